"""Checks of a training's teachers, data and losses: what cannot teach, be learned, or go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.loss.sources import Sources
from antigram.model.training.checkpoint import Teacher, open_teacher
from antigram.model.training.worth import teacher_note
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.store import FeatureStore

__all__ = ["UNTRAINED", "LossGuard", "check_classes", "load_teacher"]

_NAMED = 20  # segments in a message
_CLASSES = 5
_DIVERGED = (
    "The training has diverged: lower `lr`; if that does not help, listen to these recordings."
)
UNTRAINED = (
    "No step was taken: the weights it begins with, or a teacher's, are too large. Take others."
)


def load_teacher(path: Path, on_message: Callable[[str], None]) -> Teacher:
    """`open_teacher` of weights that a training begins with or compares with.

    Args:
        path: of the checkpoint.
        on_message: told what was done to read it, and if it has learned nothing by its own scores.
    """
    net = open_teacher(path)
    for note in (net.note, teacher_note(path, net.scores)):
        if note:
            on_message(note)
    return net


def check_classes(
    store: FeatureStore,
    task: str,
    rows: Mapping[str, NDArray[np.int64]],
    on_message: Callable[[str], None],
) -> None:
    """Refuse a validation split that knows none of the classes that training has.

    Args:
        store: features and labels.
        task: the label to learn.
        rows: indices of each split's segments.
        on_message: told how many segments of validation and test have a class that training lacks.

    Raises:
        InputError: no validation segment has a class seen in training, so that no epoch is better
            than another.
    """
    labels, names = store.labels(task), store.classes[task]
    seen = np.zeros(len(names), bool)
    seen[labels[rows["train"]]] = True
    for split in ("validation", "test"):
        own = labels[rows[split]]
        unseen = own[~seen[own]]
        if not len(unseen):
            continue
        lacking = _listed([names[i] for i in np.unique(unseen)], _CLASSES)
        if split == "validation" and len(unseen) == len(own):
            known = _listed([names[i] for i in np.flatnonzero(seen)], _CLASSES)
            raise InputError(
                f"{store.path}: none of the {len(own)} validation segments has a {task} that is "
                f"seen in training (validation has {lacking}; training {known}), as the store was "
                f"prepared with `split={store.recipe.split}`. Training and validation must share "
                "classes: prepare with `split=random`; for a teacher of this store's students, "
                f"also with `within={store.name}`, which takes its training recordings alone."
            )
        on_message(
            f"{len(unseen)} of {len(own)} {split} segments have a {task} that is not seen in "
            f"training, and count as wrong: {lacking}"
        )


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class LossGuard:
    """Stops a training whose loss is no longer a number, and says whose fault it is.

    A GPU's losses are looked at every few steps: the segments since the last look are remembered.

    Args:
        store: the features.
        sources: the teachers' rows; None without AT.
        lr: learning rate, for the message.
        look: raises if others have overwritten what is stored.
    """

    def __init__(
        self,
        store: FeatureStore,
        sources: Sources | None,
        lr: float,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._sources, self._lr, self._look = store, sources, lr, look
        self._batches: list[NDArray[np.int64]] = []

    def add(self, segments: NDArray[np.int64]) -> None:
        """Remember the segments of a batch until the next `check`."""
        self._batches.append(segments)

    def check(self, loss: Tensor, epoch: int, when: str, advice: str = _DIVERGED) -> None:
        """Look at the loss of the batch that was added last.

        Args:
            loss: scalar.
            epoch: counted from 1, which decides the view of cached rows; 0 outside training.
            when: epoch and step, for the message.
            advice: ends the message.

        Raises:
            DamagedError: stored features or rows of a teacher are not finite, or overwritten.
            InputError: they are, and the loss is not.
        """
        batches, self._batches = self._batches, []
        if torch.isfinite(loss):
            return
        self._look()
        for segments in batches:
            self._check_stored(segments, epoch)
        ids = [self._store.clip_ids[i] for i in batches[-1].tolist()]
        raise InputError(
            f"{when}: the loss is {loss.item()} with `lr={self._lr:g}`, at the segments "
            f"{_listed(ids, _NAMED)}. {advice}"
        )

    def _check_stored(self, segments: NDArray[np.int64], epoch: int) -> None:
        store = self._store
        values = np.empty((len(segments), *store.shape), np.float32)
        store.features.gather(segments, values)
        for what, repair, finite in [
            (f"{store.path}: the features", "Remove the store and prepare it again.", values),
            *self._rows(segments, epoch),
        ]:
            good = np.isfinite(finite.reshape(len(segments), -1)).all(1)
            if not good.all():
                ids = [store.clip_ids[i] for i in segments[~good].tolist()]
                raise DamagedError(f"{what} of {_listed(ids, _NAMED)} are not finite. {repair}")

    def _rows(
        self, segments: NDArray[np.int64], epoch: int
    ) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
        """What is stored of the teachers: where, what to do, values and norms of the segments."""
        members = self._sources.members if self._sources else {}
        for name, source in members.items():
            for layer, rows in source.read(segments, epoch).items():
                parts = (rows.data, rows.norm, rows.row_norm)
                flat = torch.cat([part.float().reshape(len(segments), -1) for part in parts], 1)
                yield (
                    f"teacher {name}, layer {layer}: the stored rows",
                    "Remove the cache and build it again with `antigram cache-grams`.",
                    flat.cpu().numpy(),
                )
