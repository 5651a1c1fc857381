"""Where the teacher's side of the anti-transfer loss comes from: a live net, or a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.choices import Aggregation, Tap
from antigram.model.loss.codecs import Rows, Stack, encode_rows, exact_codec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg, channels_last, extractor_digest, tap_shape
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.choices import check_choices
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.mapped import MappedArray

__all__ = ["GramSource", "LiveGrams", "Sources", "TapSpec", "TeacherRows", "check_shapes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSpec:
    """What is compared: at which layers, where in them, and as what."""

    arch: Arch
    layers: tuple[int, ...]
    tap: Tap = "relu"
    aggregation: Aggregation = "gram"

    def __post_init__(self) -> None:
        check_choices(self)


# Some teachers, by their numbers in the run, and their rows, which are alike in form.
Group = tuple[tuple[int, ...], Stack]


class TeacherRows:
    """Rows of one batch, of all teachers: each layer's can be taken once.

    Whoever takes a layer's rows is then the only one that holds them. So a step frees them as soon
    as they are compared, and none lives through the backward pass, in which a step's memory has
    its peak.

    Args:
        layers: layer -> groups of teachers.
    """

    def __init__(self, layers: Mapping[int, Sequence[Group]]) -> None:
        self._layers = dict(layers)

    @property
    def layers(self) -> tuple[int, ...]:
        """Those whose rows were not taken."""
        return tuple(self._layers)

    def take(self, layer: int) -> Sequence[Group]:
        """Give up a layer's rows.

        Raises:
            LookupError: there are none, or they were taken.
        """
        if layer not in self._layers:
            raise LookupError(
                f"layer {layer}: no rows; a step takes those of its batch, which serves one step"
            )
        return self._layers.pop(layer)

    def tensors(self) -> Iterator[Tensor]:
        """All that were not taken."""
        for groups in self._layers.values():
            for _, stack in groups:
                yield from stack.tensors()


class GramSource(Protocol):
    """Where the trainer gets the teacher's rows from; live and cached look the same.

    Attributes:
        spec: what is compared.
        views: how the clips were augmented whose rows are stored; None if they were not.
        stored_bytes: what `keep_on` takes.
    """

    spec: TapSpec
    views: Views | None
    stored_bytes: int

    @property
    def identity(self) -> Mapping[str, str]:
        """Digest of what each layer's rows come from; a resumed run must have the same."""

    @property
    def arrays(self) -> Sequence[MappedArray]:
        """On disk, that rows are read from; a training keeps them as it opened them."""

    def keep_on(self, device: torch.device) -> None:
        """Hold all stored rows there from now on."""

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """What the clips must be turned into for `read`'s rows to be theirs; None if nothing."""

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[int, Rows]:
        """What can be had without the net, for indices into the store: called ahead, in a thread.

        Args:
            clips: indices into the store.
            epoch: counted from 1, which decides the view; 0 outside training.

        Returns:
            Layer -> rows in host memory; empty if the source has nothing stored.
        """

    def rows(self, read: Mapping[int, Rows], x: Tensor) -> Mapping[int, Rows]:
        """Rows of a batch for each layer of ``spec``, on the device of its features.

        Args:
            read: what `read` gave for this batch.
            x: ``(batch, 1, frame, freq)``, its features.
        """


class LiveGrams:
    """A `GramSource` that runs the teacher on every batch: the online mode.

    It runs in the precision that it is called in, under `torch.autocast` or not.

    Args:
        net: the teacher; it is frozen: put in eval mode, its gradients switched off.
        spec: what is compared.
    """

    views: Views | None = None
    stored_bytes = 0
    arrays: Sequence[MappedArray] = ()

    def __init__(self, net: Vgg, spec: TapSpec) -> None:
        self.spec = spec
        # Channels last, as the student: its batches are then laid out for both.
        self.net = channels_last(net.eval().requires_grad_(False))  # noqa: FBT003
        self.net.set_tap(spec.tap)

    @cached_property
    def identity(self) -> Mapping[str, str]:
        """Digest of the teacher up to each layer: see `GramSource`."""
        state = self.net.state_dict()
        return {
            str(layer): extractor_digest(state, self.net, layer, self.spec.tap)
            for layer in self.spec.layers
        }

    def keep_on(self, device: torch.device) -> None:
        """Nothing is stored: see `GramSource`."""

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """Any clips will do: see `GramSource`."""
        del clips, epoch
        return None

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[int, Rows]:
        """Nothing: see `GramSource`."""
        del clips, epoch
        return {}

    def rows(self, read: Mapping[int, Rows], x: Tensor) -> Mapping[int, Rows]:
        """Run the teacher up to the deepest layer: see `GramSource`."""
        del read
        found: dict[int, Rows] = {}
        aggregation = self.spec.aggregation

        def on_tap(layer: int, maps: Tensor) -> None:
            codec = exact_codec(aggregation, maps.shape[1], maps[0, 0].numel())
            found[layer] = encode_rows(maps, aggregation, torch.float32, codec)

        with torch.no_grad():
            self.net.run_features(x, self.spec.layers, self.spec.tap, on_tap, stop=True)
        return found


class Sources:
    """The teachers of a training, by name: any number of `GramSource`.

    Args:
        members: name -> source; all with the same tap and aggregation, as the student is
            tapped once.

    Raises:
        InputError: they differ in tap, aggregation or the views that they hold.
    """

    def __init__(self, members: Mapping[str, GramSource]) -> None:
        self.members = dict(members)
        self.names = tuple(self.members)
        specs = {name: source.spec for name, source in self.members.items()}
        self.spec = next(iter(specs.values()))
        for name, spec in specs.items():
            if (spec.tap, spec.aggregation) != (self.spec.tap, self.spec.aggregation):
                raise InputError(
                    f"{name}: was made with --tap {spec.tap} --aggregation {spec.aggregation}, "
                    f"{self.names[0]} with {self.spec.tap} and {self.spec.aggregation}; all the "
                    "sources of a run need the same"
                )
        self.layers = tuple(sorted({n for spec in specs.values() for n in spec.layers}))
        self.views = self.members[self.names[0]].views
        for name, source in self.members.items():
            if source.views != self.views:
                raise InputError(
                    f"{name} and {self.names[0]}: hold other views of the clips (--views, --seed); "
                    "all the sources of a run need the same"
                )

    @property
    def identity(self) -> dict[str, dict[str, str]]:
        """What each source's rows come from."""
        return {name: dict(source.identity) for name, source in self.members.items()}

    @property
    def stored_bytes(self) -> int:
        """What `keep_on` takes."""
        return sum(source.stored_bytes for source in self.members.values())

    @property
    def arrays(self) -> list[MappedArray]:
        """What rows of all sources are read from."""
        return [array for source in self.members.values() for array in source.arrays]

    def keep_on(self, device: torch.device) -> None:
        """See `GramSource`."""
        for source in self.members.values():
            source.keep_on(device)

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """See `GramSource`; the same for all."""
        return self.members[self.names[0]].params(clips, epoch)

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> dict[str, Mapping[int, Rows]]:
        """See `GramSource`."""
        return {name: source.read(clips, epoch) for name, source in self.members.items()}

    def rows(
        self, read: Mapping[str, Mapping[int, Rows]], x: Tensor
    ) -> dict[str, Mapping[int, Rows]]:
        """Rows of a batch: source -> layer -> rows."""
        return {name: source.rows(read[name], x) for name, source in self.members.items()}

    @property
    def stored(self) -> bool:
        """No source needs more of a batch than what `read` gave."""
        return all(source.stored_bytes for source in self.members.values())

    def batch_rows(self, read: Mapping[str, Mapping[int, Rows]], x: Tensor) -> TeacherRows:
        """Rows of a batch on the device of its features ``x``, those alike in form together."""
        alike: dict[int, dict[object, list[tuple[int, Rows]]]] = {}
        for number, rows_of in enumerate(self.rows(read, x).values()):
            for layer, rows in rows_of.items():
                form = rows.codec, rows.data.dtype, rows.data.shape
                alike.setdefault(layer, {}).setdefault(form, []).append((number, rows))
        with torch.autocast(x.device.type, enabled=False):  # it cannot stack float16 on a CPU
            return TeacherRows(
                {
                    layer: [
                        (
                            tuple(number for number, _ in group),
                            Stack.of([rows for _, rows in group]),
                        )
                        for group in forms.values()
                    ]
                    for layer, forms in alike.items()
                }
            )


def check_shapes(student: Arch, spec: TapSpec, shape: tuple[int, int]) -> None:
    """Refuse a student whose maps at a layer have another shape than the teacher's.

    Args:
        student: shape of the student.
        spec: of the teacher, and where the two are compared.
        shape: (frame, freq) of a clip.

    Raises:
        InputError: naming the layer and both nets.
    """
    for layer in student.check_layers(spec.layers):
        own = tap_shape(student, layer, spec.tap, shape)
        theirs = tap_shape(spec.arch, layer, spec.tap, shape)
        if own != theirs:
            raise InputError(
                f"layer {layer}: the student ({student.name}, width {student.width}) has "
                f"{own[0]} channels x {own[1]} positions, the teacher ({spec.arch.name}, width "
                f"{spec.arch.width}) {theirs[0]} x {theirs[1]}. AT needs the same: leave --arch "
                "and --width out, or train the teacher with these."
            )
