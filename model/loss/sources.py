"""Sources of the teachers' rows for the anti-transfer loss: a live network or a cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.choices import Aggregation, Layer, Tap, layer_order
from antigram.model.loss.codecs import Rows, Stack, encode_rows, exact_codec
from antigram.model.loss.pairwise import Grid, default_grid
from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Backbone, channels_last
from antigram.model.nets.networks import extractor_digest
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.choices import check_choices
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.mapped import MappedArray

__all__ = ["GramSource", "LiveGrams", "Sources", "TapSpec", "TeacherRows"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSpec:
    """Where student and teacher are compared, and how.

    Attributes:
        arch: architecture of the teacher.
        layers: numbers of a VGG's convolution layers, counted from 1, or names of modules.
        tap: point of the layer: ``relu``, ``conv`` or ``released``, as in `Backbone.run_features`.
        aggregation: ``gram``, ``mean``, ``sum``, ``max``, ``compmul`` or ``pairwise``.
        grids: for ``pairwise``, frames and frequencies that maps are averaged to, by layer; layers
            without one have the `default_grid` of the teacher's maps.

    Raises:
        InputError: there is no such tap or aggregation, named layers cannot have it, or a grid is
            invalid.
    """

    arch: Arch
    layers: tuple[Layer, ...]
    tap: Tap = "relu"
    aggregation: Aggregation = "gram"
    grids: Mapping[Layer, Grid] = field(default_factory=dict)
    shapes: Mapping[Layer, tuple[int, int]] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        check_choices(self)
        named = [layer for layer in self.layers if isinstance(layer, str)]
        if named and self.tap != "relu":
            raise InputError(
                f"`tap={self.tap}`: is for the numbered layers of a VGG; {named[0]} is tapped at "
                "its output: leave `tap` out, and name the module whose output you want"
            )
        if self.grids and self.aggregation != "pairwise":
            raise InputError(f"grids: go with `aggregation=pairwise`, not {self.aggregation}")
        for layer, grid in self.grids.items():
            if min(grid) < 1:
                raise InputError(f"grids: that of layer {layer} is {grid}; wanted at least 1 x 1")

    def grid(self, layer: Layer, size: Grid) -> Grid | None:
        """Return the grid of a layer, None unless the aggregation is ``pairwise``.

        Args:
            layer: one of ``layers``.
            size: frames and frequencies of the teacher's maps.

        Raises:
            InputError: the maps are smaller than the grid.
        """
        if self.aggregation != "pairwise":
            return None
        grid = self.grids.get(layer) or default_grid(size)
        if size[0] < grid[0] or size[1] < grid[1]:
            raise InputError(
                f"grids: that of layer {layer} is {grid[0]} x {grid[1]}, the teacher's maps have "
                f"{size[0]} x {size[1]} positions; wanted at most these"
            )
        return grid


# Numbers of some teachers, as in `Sources.names`, and their rows, which have the same form.
Group = tuple[tuple[int, ...], Stack]


class TeacherRows:
    """Rows of all teachers for one batch; the rows of each layer can be taken once.

    The caller of `take` holds the only reference to a layer's rows. So a step frees them as soon
    as they are compared, before the backward pass, in which its memory has its peak.

    Args:
        layers: groups of teachers by layer.
    """

    def __init__(self, layers: Mapping[Layer, Sequence[Group]]) -> None:
        self._layers = dict(layers)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Layers whose rows were not yet taken."""
        return tuple(self._layers)

    def take(self, layer: Layer) -> Sequence[Group]:
        """Return the rows of a layer and drop the reference to them.

        Raises:
            LookupError: the layer has no rows, or they were already taken.
        """
        if layer not in self._layers:
            raise LookupError(
                f"layer {layer}: no rows, or they were taken; the rows of a batch serve one step"
            )
        return self._layers.pop(layer)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of all rows that were not yet taken."""
        for groups in self._layers.values():
            for _, stack in groups:
                yield from stack.tensors()


class GramSource(Protocol):
    """A source of one teacher's rows, live or cached; the trainer treats both alike.

    Attributes:
        spec: where and how the teacher is compared.
        views: augmentation of the segments whose rows are stored; None if there is none.
        stored_bytes: bytes of device memory that `keep_on` takes; 0 if nothing is stored.
    """

    spec: TapSpec
    views: Views | None
    stored_bytes: int

    @property
    def identity(self) -> Mapping[str, str]:
        """Digest of the weights or the cache that each layer's rows come from, by layer.

        A run resumes only with a source of the same identity.
        """

    @property
    def arrays(self) -> Sequence[MappedArray]:
        """Arrays on disk that rows are read from; a training holds them open until it ends."""

    def keep_on(self, device: torch.device) -> None:
        """Copy all stored rows to a device and use these from now on."""

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Return the augmentation parameters of the segments whose rows `read` returns.

        Args:
            clips: indices into the store.
            epoch: counted from 1; decides the view.

        Returns:
            ``(segment, parameter)``; None if the stored rows are of segments without augmentation.
        """

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[Layer, Rows]:
        """Read the stored rows of segments; called ahead of the step, in a thread.

        Args:
            clips: indices into the store.
            epoch: counted from 1; decides the view. 0 outside training.

        Returns:
            Rows in host memory, by layer; empty if the source stores nothing.
        """

    def rows(self, read: Mapping[Layer, Rows], x: Tensor) -> Mapping[Layer, Rows]:
        """Return the rows of a batch for each layer of ``spec``, on the device of its features.

        Args:
            read: result of `read` for this batch.
            x: features of the batch, ``(batch, 1, frame, freq)``.
        """


class LiveGrams:
    """A `GramSource` that runs the teacher on every batch: the online mode.

    The teacher runs in the precision of the caller, under `torch.autocast` or without it.

    Args:
        net: the teacher. It is put in eval mode, and its gradients are switched off.
        spec: where and how the teacher is compared.
    """

    views: Views | None = None
    stored_bytes = 0
    arrays: Sequence[MappedArray] = ()

    def __init__(self, net: Backbone, spec: TapSpec) -> None:
        self.spec = spec
        # Channels last, like the student, so that the layout of a batch suits both.
        self.net = channels_last(net.eval().requires_grad_(requires_grad=False))
        self.net.set_tap(spec.tap)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """Digest of the teacher up to each layer: see `GramSource`."""
        state = self.net.state_dict()
        digests = {n: extractor_digest(state, self.net, n, self.spec.tap) for n in self.spec.layers}
        given = {n: f" grid {grid}" for n, grid in self.spec.grids.items()}
        return {str(n): digest + given.get(n, "") for n, digest in digests.items()}

    def keep_on(self, device: torch.device) -> None:
        """Do nothing, as no rows are stored: see `GramSource`."""

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Return None, as no augmentation parameters are stored: see `GramSource`."""
        del clips, epoch
        return None

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[Layer, Rows]:
        """Return nothing, as nothing is stored: see `GramSource`."""
        del clips, epoch
        return {}

    def rows(self, read: Mapping[Layer, Rows], x: Tensor) -> Mapping[Layer, Rows]:
        """Run the teacher up to the deepest layer: see `GramSource`."""
        del read
        rows: dict[Layer, Rows] = {}
        aggregation = self.spec.aggregation

        def on_tap(layer: Layer, maps: Tensor) -> None:
            size = maps.shape[2], maps.shape[3]
            grid = self.spec.grid(layer, size)
            codec = exact_codec(aggregation, maps.shape[1], math.prod(grid or size))
            rows[layer] = encode_rows(maps, aggregation, torch.float32, codec, grid=grid)

        with torch.no_grad():
            self.net.run_features(x, self.spec.layers, self.spec.tap, on_tap, stop=True)
        return rows


class Sources:
    """The sources of all teachers of a training, by name.

    Args:
        members: sources by the teacher's name. They have the same tap and aggregation, as the
            student is tapped once for all teachers.

    Raises:
        InputError: the sources differ in tap, aggregation or stored views.
    """

    def __init__(self, members: Mapping[str, GramSource]) -> None:
        self.members = dict(members)
        self.names = tuple(self.members)
        specs = {name: source.spec for name, source in self.members.items()}
        self.spec = next(iter(specs.values()))
        for name, spec in specs.items():
            if (spec.tap, spec.aggregation) != (self.spec.tap, self.spec.aggregation):
                raise InputError(
                    f"{name}: was made with `tap={spec.tap}` `aggregation={spec.aggregation}`, "
                    f"{self.names[0]} with {self.spec.tap} and {self.spec.aggregation}; all the "
                    "sources of a run need the same"
                )
        every = {layer for spec in specs.values() for layer in spec.layers}
        self.layers = tuple(sorted(every, key=layer_order))
        self.views = self.members[self.names[0]].views
        for name, source in self.members.items():
            if source.views != self.views:
                raise InputError(
                    f"{name} and {self.names[0]}: hold other views of the data (`views`, `seed`); "
                    "all the sources of a run need the same"
                )

    @property
    def identity(self) -> dict[str, dict[str, str]]:
        """Digests of every teacher: its name -> the result of `GramSource.identity`."""
        return {name: dict(source.identity) for name, source in self.members.items()}

    @property
    def stored_bytes(self) -> int:
        """See `GramSource`; the sum over all sources."""
        return sum(source.stored_bytes for source in self.members.values())

    @property
    def arrays(self) -> list[MappedArray]:
        """See `GramSource`; the arrays of all sources."""
        return [array for source in self.members.values() for array in source.arrays]

    def keep_on(self, device: torch.device) -> None:
        """See `GramSource`."""
        for source in self.members.values():
            source.keep_on(device)

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """See `GramSource`; the same for all sources."""
        return self.members[self.names[0]].params(clips, epoch)

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> dict[str, Mapping[Layer, Rows]]:
        """Read the rows of every teacher: its name -> the result of `GramSource.read`."""
        return {name: source.read(clips, epoch) for name, source in self.members.items()}

    def rows(
        self, read: Mapping[str, Mapping[Layer, Rows]], x: Tensor
    ) -> dict[str, Mapping[Layer, Rows]]:
        """Return the rows of every teacher: its name -> the result of `GramSource.rows`."""
        return {name: source.rows(read[name], x) for name, source in self.members.items()}

    @property
    def stored(self) -> bool:
        """Whether the rows of all sources are stored, so that `rows` needs no features."""
        return all(source.stored_bytes for source in self.members.values())

    def batch_rows(self, read: Mapping[str, Mapping[Layer, Rows]], x: Tensor) -> TeacherRows:
        """Return the rows of a batch; rows of the same form are stacked.

        Args:
            read: result of `read` for this batch.
            x: features of the batch, ``(batch, 1, frame, freq)``; rows are returned on the same
                device.
        """
        by_form: dict[Layer, dict[object, list[tuple[int, Rows]]]] = {}
        for number, rows_of in enumerate(self.rows(read, x).values()):
            for layer, rows in rows_of.items():
                form = rows.codec, rows.data.dtype, rows.data.shape, rows.grid
                by_form.setdefault(layer, {}).setdefault(form, []).append((number, rows))
        with torch.autocast(x.device.type, enabled=False):  # which cannot stack float16 on a CPU
            return TeacherRows(
                {
                    layer: [
                        (
                            tuple(number for number, _ in group),
                            Stack.of([rows for _, rows in group]),
                        )
                        for group in forms.values()
                    ]
                    for layer, forms in by_form.items()
                }
            )
