"""Check that a student's maps can be compared with those of its teachers, before a training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from antigram.model.loss.pairwise import Grid
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import map_shape
from antigram.pipeline.errors import InputError

__all__ = ["check_grids", "check_shapes"]


def check_shapes(student: Arch, spec: TapSpec, shape: tuple[int, int]) -> None:
    """Raise if the maps of student and teacher cannot be compared at a layer.

    They need the same number of channels and of positions. With ``pairwise`` the student's need
    only be as large as the grid.

    Args:
        student: architecture of the student.
        spec: tap points of the teacher.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: the shapes differ; the message names the layer and both networks.
    """
    for layer in student.check_layers(spec.layers):
        channels, *size = map_shape(student, layer, spec.tap, shape)
        teacher_channels, *teacher_size = map_shape(spec.arch, layer, spec.tap, shape)
        own = f"layer {layer}: the student ({student.name}, width {student.width}) has"
        if grid := spec.grid(layer, (teacher_size[0], teacher_size[1])):
            if size[0] < grid[0] or size[1] < grid[1]:
                raise InputError(
                    f"{own} maps of {size[0]} x {size[1]} positions, fewer than the teacher's grid "
                    f"of {grid[0]} x {grid[1]}: compare at a layer with larger maps, or leave "
                    "`arch` out"
                )
        elif (channels, math.prod(size)) != (teacher_channels, math.prod(teacher_size)):
            raise InputError(
                f"{own} {channels} channels x {math.prod(size)} positions, the teacher "
                f"({spec.arch.name}, width {spec.arch.width}) {teacher_channels} x "
                f"{math.prod(teacher_size)}. AT needs the same: leave `arch` and `width` out, or "
                "train the teacher with these."
            )


def check_grids(specs: Mapping[str, TapSpec], shape: tuple[int, int]) -> None:
    """Raise if teachers that are compared at the same layer have different grids.

    Args:
        specs: tap points by the teacher's name.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: the grids differ; the message names the layer and both teachers.
    """
    known: dict[int, tuple[str, Grid | None]] = {}
    for name, spec in specs.items():
        for layer in spec.layers:
            _, *size = map_shape(spec.arch, layer, spec.tap, shape)
            grid = spec.grid(layer, (size[0], size[1]))
            first, other = known.setdefault(layer, (name, grid))
            if grid != other:
                raise InputError(
                    f"layer {layer}: the teacher {name} has the grid {grid}, {first} {other}; all "
                    "teachers of a layer need the same: leave one out, or compare it at another"
                )
