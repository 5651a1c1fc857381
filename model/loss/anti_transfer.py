"""The anti-transfer loss as a module, to add to any training loop and any network.

Hooks observe the network's forward pass; the teacher's rows are read by the ids of the batch's
segments. Loss and gradient are those of antigram's own trainer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from antigram.model.choices import Aggregation, Layer, Similarity, similarity_of
from antigram.model.loss.compare import compare
from antigram.model.loss.sources import GramSource, Group, Sources, TeacherRows
from antigram.model.nets.hooks import watch
from antigram.pipeline.errors import InputError

__all__ = ["AntiTransferLoss", "StoredGrams"]


class _Layer(Protocol):
    """A layer of a cache: the size of the teacher's maps."""

    channels: int
    positions: int


class StoredGrams(GramSource, Protocol):
    """A `GramSource` whose rows are found by the ids of segments: a `GramCache`."""

    path: Path

    @property
    def layers(self) -> Mapping[Layer, _Layer]:
        """Number or name of a layer -> the layer."""

    def indices(self, clip_ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each segment."""

    def with_layers(self, layers: Sequence[Layer]) -> StoredGrams:
        """Return this cache with some of its layers alone."""


class AntiTransferLoss(nn.Module):
    """Penalty on the similarity of a network's feature maps to those of one or more teachers.

    For a batch of which ``clip_ids`` are the ids:

    .. code-block:: python

        at = AntiTransferLoss(GramCache("words--speaker.zarr"), {"layer3": 5})
        with at.watch(net, clip_ids):
            loss = cross_entropy(net(x), y) + at.loss()

    It has no parameters and no buffers, so that a ``state_dict`` does not change if a network holds
    it. The value is computed in float32 under autocast, too. Each forward pass has its own block;
    to accumulate gradients, enter a block for each part. With DistributedDataParallel every process
    gives the ids of its own part of the batch. A network of `torch.compile` runs uncompiled in the
    block.

    Args:
        grams: cache of a teacher; or caches of several teachers, as a sequence or by name.
        layers: name of a module of the network, as in ``net.named_modules()`` -> layer of the
            caches that its output is compared with: a number, or the name of the teacher's module.
            A layer may be missing in some of several caches.
        beta: weight of the loss, or of each teacher by name. Below 0 it rewards similarity.
        similarity: ``cos2``, ``mse-sigmoid`` or ``cka``, as for `at_loss`; by default ``cka`` for
            caches of the aggregation ``pairwise``, else ``cos2``.

    Attributes:
        layer_of: name of a module -> the layer that it is compared with.
        teachers: names of the teachers: as given, or those of the files of the caches.

    Raises:
        InputError: there is no cache, a layer is in none of them or given twice, a beta is of no
            teacher, a cache holds augmented views, or the caches differ in tap or aggregation.

    References:
        Guizzo, Weyde and Tarroni (2021), Neural Networks 142, doi:10.1016/j.neunet.2021.05.012.
    """

    def __init__(
        self,
        grams: StoredGrams | Sequence[StoredGrams] | Mapping[str, StoredGrams],
        layers: Mapping[str, Layer],
        *,
        beta: float | Mapping[str, float] = 1.0,
        similarity: Similarity | None = None,
    ) -> None:
        super().__init__()
        caches = _by_name(grams)
        self.layer_of = _checked(caches, layers)
        chosen = {
            name: cache.with_layers([n for n in self.layer_of.values() if n in cache.layers])
            for name, cache in caches.items()
            if not set(self.layer_of.values()).isdisjoint(cache.layers)
        }
        for name, cache in chosen.items():
            if cache.views is not None:
                raise InputError(
                    f"{cache.path}: the rows of `grams` {name} are of augmented segments, which "
                    "antigram's own trainer draws; build a cache without `views`"
                )
        self._caches, self._sources = chosen, Sources(chosen)
        self.aggregation: Aggregation = self._sources.spec.aggregation
        self.similarity = similarity_of(self.aggregation, similarity)
        self.teachers = tuple(chosen)
        betas = beta if isinstance(beta, Mapping) else dict.fromkeys(chosen, beta)
        if odd := sorted(set(betas) ^ set(chosen)):
            raise InputError(
                f"`beta` {dict(betas)}: wanted a number, or one for each teacher of `grams`: "
                f"{', '.join(chosen)}; {odd[0]} is missing or unknown"
            )
        self.betas = [float(betas[name]) for name in chosen]
        self._pass: _Pass | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the latest forward pass."""
        return {**vars(self), "_pass": None}

    def keep_on(self, device: torch.device | str) -> None:
        """Copy all rows of the layers to a device, so that a step reads none from disk."""
        self._sources.keep_on(torch.device(device))

    @contextmanager
    def watch(self, net: nn.Module, clip_ids: Sequence[str]) -> Iterator[AntiTransferLoss]:
        """Observe the forward pass of a batch in the block; `loss` then returns its penalty.

        Args:
            net: the network, possibly inside DistributedDataParallel or torch.compile.
            clip_ids: ids of the segments of the batch, in its order, as the caches hold them: a
                sequence of texts, as a DataLoader collates them.

        Yields:
            This object.

        Raises:
            InputError: there is no such module or segment, a module's output has another number of
                segments than there are ids, or cannot be compared with the layer, or the block has
                no forward pass, or two.
        """
        ids = _texts(clip_ids)
        read = {name: cache.read(cache.indices(ids), 0) for name, cache in self._caches.items()}
        current = self._pass = _Pass(self, ids, read)
        with watch(net, self.layer_of, current.tap):
            yield self

    def loss(self) -> Tensor:
        """Return beta times the mean similarity, summed over layers and teachers.

        Returns:
            A differentiable scalar, float32, on the device of the network.

        Raises:
            InputError: the network has not run in a `watch` block.
        """
        return self._latest().loss()

    def forward(self) -> Tensor:
        """Return `loss`."""
        return self.loss()

    @property
    def similarities(self) -> dict[str, dict[str, Tensor]]:
        """Mean similarity over the batch: module -> teacher -> scalar, before beta, no gradient."""
        return self._latest().similarities

    def _latest(self) -> _Pass:
        if self._pass is None:
            raise InputError(
                "AntiTransferLoss: no forward pass yet: run the network in "
                "`with at.watch(net, clip_ids):`, then call loss()"
            )
        return self._pass

    def check(self, name: str, maps: Tensor, clips: int) -> None:
        """Raise if a module's maps cannot be compared with the rows of its layer.

        Args:
            name: name of the module.
            maps: its output, ``(batch, channel, height, width)``.
            clips: number of ids.

        Raises:
            InputError: the message has both sizes.
        """
        where = f"`layers` {name!r}"
        if len(maps) != clips:
            raise InputError(
                f"{where}: its output has {len(maps)} segments, `clip_ids` has {clips}; wanted one "
                "id for each segment of the batch"
            )
        if self.aggregation == "pairwise":
            return  # `compare` checks the grid, and channels may differ
        number = self.layer_of[name]
        for cache in self._caches.values():
            if (layer := cache.layers.get(number)) is None:
                continue
            of_gram = self.aggregation == "gram"
            wanted = layer.channels if of_gram else layer.positions
            got = maps.shape[1] if of_gram else maps.shape[2] * maps.shape[3]
            if got != wanted:
                raise InputError(
                    f"{where}: has {got} {'channels' if of_gram else 'positions'}, layer {number} "
                    f"of {cache.path} has {wanted}; wanted a module of the same size, or a cache "
                    "of `aggregation=pairwise`, which compares networks of any width"
                )


class _Pass:
    """The forward pass of one batch.

    Args:
        at: the loss that it belongs to.
        ids: ids of the batch.
        read: rows of each teacher in host memory.
    """

    def __init__(
        self, at: AntiTransferLoss, ids: Sequence[str], read: Mapping[str, Mapping[Layer, Any]]
    ) -> None:
        self._at, self._clips, self._read = at, len(ids), read
        self._rows: TeacherRows | None = None
        self._losses: dict[str, Tensor] = {}
        self.similarities: dict[str, dict[str, Tensor]] = {}

    def tap(self, name: str, maps: Tensor) -> None:
        """Compare the output of a module with its layer."""
        at, sources = self._at, self._at._sources
        if name in self._losses:
            raise InputError(
                "AntiTransferLoss: the network runs a second time in one `watch` block; wanted a "
                "block for each forward pass, with the ids of its batch"
            )
        at.check(name, maps, self._clips)
        if self._rows is None:
            self._rows = sources.batch_rows(self._read, maps)
            self._read = {}
        groups: Sequence[Group] = self._rows.take(at.layer_of[name])
        members = tuple(chain.from_iterable(numbers for numbers, _ in groups))
        weights = [at.betas[member] for member in members]
        stacks = [stack for _, stack in groups]
        try:
            loss, means = compare(maps, stacks, weights, at.aggregation, at.similarity)
        except InputError as error:
            raise InputError(f"`layers` {name!r}: {error}") from None
        self._losses[name] = loss
        of_teacher = zip(members, means.unbind(), strict=True)
        self.similarities[name] = {at.teachers[member]: mean for member, mean in of_teacher}

    def loss(self) -> Tensor:
        """Return the sum of the losses of all modules."""
        missing = [name for name in self._at.layer_of if name not in self._losses]
        if missing:
            raise InputError(
                f"AntiTransferLoss: `layers` {missing[0]!r} has not run in the `watch` block; call "
                "loss() after the forward pass of the network"
            )
        first, *others = self._losses.values()
        return sum(others, start=first)


def _by_name(
    grams: StoredGrams | Sequence[StoredGrams] | Mapping[str, StoredGrams],
) -> dict[str, StoredGrams]:
    """Return caches by the names of their teachers: by default, those of the files."""
    if isinstance(grams, Mapping):
        caches = dict(grams)
    else:
        listed: list[Any] = list(grams) if isinstance(grams, list | tuple) else [grams]
        caches = {}
        for cache in listed:
            if not hasattr(cache, "indices"):
                raise InputError(
                    f"`grams` is a {type(cache).__name__}; wanted a GramCache, or several"
                )
            caches.setdefault(_free(cache.path.name.removesuffix(".zarr"), caches), cache)
    if not caches:
        raise InputError("`grams` is empty; wanted a GramCache, or several")
    return caches


def _free(name: str, taken: Mapping[str, object]) -> str:
    """Return a name that is not taken, numbered if needed."""
    numbered = chain([name], (f"{name}-{number}" for number in range(2, len(taken) + 3)))
    return next(each for each in numbered if each not in taken)


def _checked(caches: Mapping[str, StoredGrams], layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Return the layer that each module is compared with.

    Raises:
        InputError: none is given, a layer is in no cache, or two modules have one layer.
    """
    cached = list(dict.fromkeys(chain.from_iterable(cache.layers for cache in caches.values())))
    if not isinstance(layers, Mapping) or not layers:
        raise InputError(
            f"`layers` is {layers!r}; wanted a module's name and the layer of the cache for each, "
            f"such as {{'layer3': {cached[0]!r}}}"
        )
    for module, layer in layers.items():
        if layer not in cached:
            paths = ", ".join(str(cache.path) for cache in caches.values())
            known = ", ".join(map(repr, cached))
            raise InputError(
                f"`layers` {module!r}: layer {layer!r} is not cached in {paths}; it has {known}"
            )
    if len(set(layers.values())) < len(layers):
        raise InputError(
            f"`layers` {dict(layers)}: two modules have the same layer; wanted one for each"
        )
    return dict(layers)


def _texts(clip_ids: Sequence[str]) -> list[str]:
    """Return ids as plain texts.

    Raises:
        InputError: they are not a sequence of texts.
    """
    given = clip_ids.tolist() if isinstance(clip_ids, np.ndarray) else clip_ids
    if isinstance(given, list | tuple) and all(isinstance(each, str) for each in given):
        return [str(each) for each in given]
    odd = type(given).__name__
    if isinstance(given, list | tuple):
        odd += f" of {next(type(e).__name__ for e in given if not isinstance(e, str))}"
    raise InputError(
        f"`clip_ids` is a {odd}; wanted the ids of the segments of the batch, a list of texts"
    )
