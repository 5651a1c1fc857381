"""The anti-transfer loss, and where the frozen net's side of it comes from.

``L_AT = beta * similarity``, one value per clip and layer; beta is applied by the trainer, once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.codecs import Rows, encode_rows, exact_codec
from model.gram import aggregate, flat, self_product
from model.vgg import Arch, Vgg, extractor_digest, tap_shape
from pipeline.errors import InputError
from pipeline.views import Views

__all__ = [
    "SIMILARITIES",
    "GramSource",
    "LiveGrams",
    "Own",
    "Sources",
    "TapSpec",
    "at_loss",
    "check_combination",
    "check_shapes",
    "released_loss",
]

SIMILARITIES = ("cos2", "mse-sigmoid")


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSpec:
    """What is compared: at which layers, where in them, and as what."""

    arch: Arch
    layers: tuple[int, ...]
    tap: str = "relu"
    aggregation: str = "gram"


class GramSource(Protocol):
    """Where the trainer gets the frozen net's rows from; live and cached look the same.

    Attributes:
        spec: what is compared.
        identity: digest of what each layer's rows come from; a resumed run must have the same.
        views: how the clips were augmented whose rows are stored; None if they were not.
        stored_bytes: what `keep_on` takes.
    """

    spec: TapSpec
    identity: Mapping[str, str]
    views: Views | None
    stored_bytes: int

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
    """A `GramSource` that runs the frozen net on every batch: the online mode.

    Args:
        net: frozen: put in eval mode, its gradients switched off.
        spec: what is compared.
    """

    views: Views | None = None
    stored_bytes = 0

    def __init__(self, net: Vgg, spec: TapSpec) -> None:
        self.spec = spec
        # Channels last, as the net in training: its batches are then laid out for both.
        net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # noqa: FBT003
        self.net = net
        self.net.set_tap(spec.tap)
        state = net.state_dict()
        self.identity: Mapping[str, str] = {
            str(layer): extractor_digest(state, net, layer, spec.tap) for layer in spec.layers
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
        """Run the frozen net up to the deepest layer: see `GramSource`."""
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
    """The frozen nets of a training, by name: any number of `GramSource`.

    Args:
        members: name -> source; all with the same tap and aggregation, as the net in training is
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


def check_shapes(student: Arch, spec: TapSpec, shape: tuple[int, int]) -> None:
    """Refuse a student whose maps at a layer have another shape than the frozen net's.

    Args:
        student: shape of the net in training.
        spec: of the frozen net, and where the two are compared.
        shape: (frame, freq) of a clip.

    Raises:
        InputError: naming the layer and both nets.
    """
    for layer in student.check_layers(spec.layers):
        own = tap_shape(student, layer, spec.tap, shape)
        theirs = tap_shape(spec.arch, layer, spec.tap, shape)
        if own != theirs:
            raise InputError(
                f"layer {layer}: the net in training ({student.name}, width {student.width}) has "
                f"{own[0]} channels x {own[1]} positions, the frozen net ({spec.arch.name}, width "
                f"{spec.arch.width}) {theirs[0]} x {theirs[1]}. AT needs the same: leave --arch "
                "and --width out, or train the frozen net with these."
            )


def check_combination(
    aggregation: str, tap: str, similarity: str, layers: Collection[int] = ()
) -> None:
    """Refuse what has no meaning.

    Raises:
        InputError: ``compmul`` on maps that may be negative, or an unknown similarity.
    """
    if similarity not in SIMILARITIES:
        raise InputError(f"--similarity {similarity!r}: wanted {', '.join(SIMILARITIES)}")
    # What enters layer 1 is the normalised spectrogram itself.
    if aggregation == "compmul" and (tap == "conv" or (tap == "released" and 1 in layers)):
        raise InputError(
            f"--aggregation compmul needs values >= 0, and --tap {tap} gives negative ones"
            f"{' at layer 1' if tap == 'released' else ''}: use --tap relu, or another aggregation"
        )


def _cosine(inner: Tensor, squared_norm: Tensor, row_norm: Tensor) -> Tensor:
    """Cosine, 0 where either side is zero, without NaN in value or gradient."""
    live = (squared_norm > 0) & (row_norm > 0)
    # The inner `where` keeps sqrt away from 0, whose gradient is infinite: times 0 it is NaN.
    own = torch.where(live, squared_norm, 1.0).sqrt()
    return torch.where(live, inner / (own * torch.where(live, row_norm, 1.0)), 0.0)


class Own:
    """The side of the net in training at one layer: made once, whatever the number of sources.

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: what is compared.
    """

    def __init__(self, maps: Tensor, aggregation: str) -> None:
        self.channels, self.positions = maps.shape[1], maps[0, 0].numel()
        self.values = flat(maps) if aggregation == "gram" else aggregate(maps, aggregation)

    @cached_property
    def gram(self) -> Tensor:
        """``(batch, C, C)``."""
        return self_product(self.values)

    @cached_property
    def squared_norm(self) -> Tensor:
        """||G||^2, from the smaller of F F^T and F^T F, which have the same; or of the map."""
        if self.values.ndim == 2:
            return self.values.square().sum(1)
        few = self.positions < self.channels and "gram" not in vars(self)
        product = self_product(self.values.mT) if few else self.gram
        return product.square().sum((1, 2))

    def inner(self, rows: Rows) -> Tensor:
        """Inner product with rows, each in its own form: no Gram where a smaller product does."""
        if rows.codec == "map":
            return (self.values * rows.data.float()).sum(1)
        if rows.codec == "packed":
            return (self.gram * rows.matrices(self.channels)).sum((1, 2))
        vectors = rows.data.float()  # <V V^T, F F^T> = ||V^T F||^2 = <V, F F^T V>
        if self.positions < self.channels:
            return (vectors.mT @ self.values).square().sum((1, 2))
        return (vectors * (self.gram @ vectors)).sum((1, 2))


def at_loss(own: Own | Tensor, rows: Rows, aggregation: str, similarity: str = "cos2") -> Tensor:
    """Similarity of a net's maps to the rows of the frozen net, for each clip.

    Args:
        own: `Own` of the net in training, or its maps ``(batch, channel, frame, freq)``.
        rows: of the frozen net, same clips, same layer and tap.
        aggregation: what ``rows`` are.
        similarity: ``cos2``, the squared cosine; or ``mse-sigmoid``, minus the sigmoid of the mean
            squared error, of Grams scaled by 1000 / (C P) as in the paper's code, and of maps as
            they are.

    Returns:
        ``(batch,)`` float32, before beta: in [0, 1] for ``cos2``, in (-1, -0.5] for the other.

    References:
        Guizzo, Weyde and Tarroni (2021), equation of L_AT and 5.5.
    """
    with torch.autocast(rows.data.device.type, enabled=False):
        if isinstance(own, Tensor):
            own = Own(own, aggregation)
        if similarity == "cos2":
            # In this order: a Gram that the inner product needs gives the norm too.
            inner = own.inner(rows)
            return _cosine(inner, own.squared_norm, rows.row_norm).square()
        if aggregation == "gram":
            ours, theirs = own.gram.flatten(1), rows.matrices(own.channels).flatten(1)
            scale = 1000.0 / (own.channels * own.positions)
        else:
            ours, theirs, scale = own.values, rows.data.float(), 1.0
        # Not scale-free: the stored row was divided by its norm.
        whole = theirs * rows.norm[:, None]
        return -torch.sigmoid((scale * (ours - whole)).square().mean(1))


def released_loss(maps: Tensor, frozen: Tensor) -> Tensor:
    """Loss of the paper's released code, as a reference for comparisons.

    The batch is folded into the channels, so that clips are mixed; the cosine is taken row by row,
    its absolute values averaged and squared. There beta enters before the square: weigh by beta^2.

    Args:
        maps: ``(batch, channel, frame, freq)`` of the net in training.
        frozen: the same of the frozen net.

    Returns:
        Scalar in [0, 1], before beta.
    """
    with torch.autocast(maps.device.type, enabled=False):
        grams = []
        for each in (frozen, maps):
            rows = each.float().flatten(0, 1).flatten(1)
            grams.append(rows @ rows.mT * (1000.0 / each.numel()))
        cosine = torch.nn.functional.cosine_similarity(grams[0], grams[1], dim=1)
        return cosine.abs().mean().square()
