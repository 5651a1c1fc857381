"""Check that a student's maps can be compared with those of its teachers, before a training."""

from __future__ import annotations

import math
from collections.abc import Mapping

from antigram.model.choices import Layer
from antigram.model.loss.pairwise import Grid
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import map_shape, tap_shape
from antigram.pipeline.errors import InputError

__all__ = ["check_grids", "check_shapes"]


def check_shapes(
    student: Arch,
    spec: TapSpec,
    shape: tuple[int, int],
    names: Mapping[Layer, Layer] | None = None,
) -> None:
    """Raise if the maps of student and teacher cannot be compared at a layer.

    They need the same number of channels and of positions. With ``pairwise`` the student's need
    only be as large as the grid; with ``gram``, two layers of different names need only have the
    same number of channels.

    Args:
        student: architecture of the student.
        spec: tap points of the teacher.
        shape: ``(frame, freq)`` of a segment.
        names: layer of the teacher -> layer of the student; by default the same.

    Raises:
        InputError: the shapes differ, or the student has no such layer; the message names the layer
            and both networks.
    """
    pairs = {layer: (names or {}).get(layer, layer) for layer in spec.layers}
    student.check_layers(list(pairs.values()))
    for layer, own_layer in pairs.items():
        try:
            channels, *size = map_shape(student, own_layer, spec.tap, shape)
        except InputError as error:
            hint = f"; `layers` STUDENT={layer} compares another layer of the student with it"
            raise InputError(f"{error}{hint if student != spec.arch else ''}") from None
        other = "" if layer == own_layer else f" at {layer}"
        own = f"layer {own_layer}: the student ({student}) has"
        if grid := _grid(spec, layer, shape):
            if size[0] < grid[0] or size[1] < grid[1]:
                raise InputError(
                    f"{own} maps of {size[0]} x {size[1]} positions, fewer than the teacher's grid "
                    f"of {grid[0]} x {grid[1]}: compare at a layer with larger maps, or leave "
                    "`arch` out"
                )
            continue
        teacher_channels, positions = spec.shapes.get(layer) or tap_shape(
            spec.arch, layer, spec.tap, shape
        )
        by_channel = spec.aggregation == "gram" and (other or spec.arch.external)
        if by_channel and channels == teacher_channels:
            continue
        if spec.arch.external:
            raise InputError(
                f"{own} {channels} channels x {math.prod(size)} positions, the teacher "
                f"{spec.arch}{other} {teacher_channels} x {positions}; "
                f"`aggregation={spec.aggregation}` needs equal "
                f"{'numbers of channels' if by_channel else 'numbers of both'}. Build the cache "
                "with `aggregation=pairwise`, which needs neither."
            )
        if (channels, math.prod(size)) != (teacher_channels, positions):
            raise InputError(
                f"{own} {channels} channels x {math.prod(size)} positions, the teacher "
                f"({spec.arch}){other} {teacher_channels} x {positions}. AT needs "
                "the same: leave `arch` and `width` out, or train the teacher with these; "
                "`aggregation=pairwise` needs neither."
            )


def check_grids(
    specs: Mapping[str, TapSpec],
    shape: tuple[int, int],
    names: Mapping[str, Mapping[Layer, Layer]] = {},
) -> None:
    """Raise if teachers that are compared at the same layer have different grids.

    Args:
        specs: tap points by the teacher's name.
        shape: ``(frame, freq)`` of a segment.
        names: teacher's name -> its layers -> those of the student that are compared with them; by
            default they have the same names.

    Raises:
        InputError: the grids differ; the message names the layer and both teachers.
    """
    known: dict[Layer, tuple[str, Grid | None]] = {}
    for name, spec in specs.items():
        for layer in spec.layers:
            grid = _grid(spec, layer, shape)
            own = names.get(name, {}).get(layer, layer)
            first, other = known.setdefault(own, (name, grid))
            if grid != other:
                raise InputError(
                    f"layer {own}: the teacher {name} has the grid {grid}, {first} {other}; all "
                    "teachers of a layer need the same: leave one out, or compare it at another"
                )


def _grid(spec: TapSpec, layer: Layer, shape: tuple[int, int]) -> Grid | None:
    """Return the grid of a layer; that of a user's own network is not compared with its maps."""
    if spec.aggregation != "pairwise":
        return None
    if spec.arch.source and (grid := spec.grids.get(layer)):
        return grid
    _, *size = map_shape(spec.arch, layer, spec.tap, shape)
    return spec.grid(layer, (size[0], size[1]))
