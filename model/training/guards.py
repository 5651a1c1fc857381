"""Checks of a training's teachers, classes and losses."""

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

__all__ = ["UNTRAINED", "LossGuard", "check_classes", "load_teacher", "spectrum_note"]

_MOST_SEGMENTS, _MOST_CLASSES = 20, 5  # numbers of segments and of classes that a message names
_DIVERGED = (
    "The training has diverged: lower `lr`; if that does not help, listen to these recordings."
)
UNTRAINED = (
    "No step was taken: the initial weights, or a teacher's, are too large. Use other weights."
)


def load_teacher(path: Path, on_message: Callable[[str], None]) -> Teacher:
    """Open a checkpoint whose weights a training starts from, or is compared with.

    Args:
        path: the checkpoint.
        on_message: called with a line if weights were converted, and with one if the checkpoint's
            scores are not above chance.

    Raises:
        InputError: as for `open_teacher`.
        StoredDataError: as for `open_teacher`.
    """
    teacher = open_teacher(path)
    for note in (teacher.note, teacher_note(path, teacher.scores)):
        if note:
            on_message(note)
    return teacher


def spectrum_note(path: Path, teacher: Teacher, store: FeatureStore) -> str:
    """Return a line if a teacher was trained on other features than a store has, else nothing.

    Its feature maps can be computed, but mean less: the teacher never saw such input.
    """
    field = teacher.recipe.spectrum_differs(store.recipe) if teacher.recipe else ""
    if not field:
        return ""
    return (
        f"{path}: was trained with {field} {getattr(teacher.recipe, field)}, {store.name} has "
        f"{getattr(store.recipe, field)}: the teacher never saw such input. Prepare both with the "
        "same settings."
    )


def check_classes(
    store: FeatureStore,
    task: str,
    rows: Mapping[str, NDArray[np.int64]],
    on_message: Callable[[str], None],
) -> None:
    """Raise if training and validation have no class in common.

    Args:
        store: features and labels.
        task: label to predict.
        rows: indices of the segments of each split.
        on_message: called with the number of validation and of test segments whose class does not
            occur in training.

    Raises:
        InputError: no validation segment has a class that occurs in training, so that validation
            cannot tell which epoch is best.
    """
    labels, names = store.labels(task), store.classes[task]
    seen = np.zeros(len(names), bool)
    seen[labels[rows["train"]]] = True
    for split in ("validation", "test"):
        classes = labels[rows[split]]
        unseen = classes[~seen[classes]]
        if not len(unseen):
            continue
        lacking = _listed([names[i] for i in np.unique(unseen)], _MOST_CLASSES)
        if split == "validation" and len(unseen) == len(classes):
            known = _listed([names[i] for i in np.flatnonzero(seen)], _MOST_CLASSES)
            raise InputError(
                f"{store.path}: none of the {len(classes)} validation segments has a {task} that "
                f"is seen in training (validation has {lacking}; training {known}), as the store "
                f"was prepared with `split={store.design}`. Training and validation must "
                "share classes: prepare with `split=random`; for a teacher of this store's "
                f"students, also with `within={store.name}`, which takes its training recordings "
                "alone."
            )
        on_message(
            f"{len(unseen)} of {len(classes)} {split} segments have a {task} that is not seen in "
            f"training, and count as wrong: {lacking}"
        )


def _listed(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class LossGuard:
    """Stops a training whose loss is not finite, with an error that names the cause.

    Losses on a GPU are checked every few steps only, and those of a validation at its end, so the
    segments since the last check are remembered.

    Args:
        store: features.
        sources: rows of the teachers; None without AT.
        lr: learning rate, for the message.
        look: raises if another process has overwritten the stored data.
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

    def check(self, losses: Tensor, epoch: int, when: str, advice: str = _DIVERGED) -> None:
        """Raise if any of the last losses is not finite; the message names the first such batch.

        Args:
            losses: ``(batch,)`` losses of the batches that were added last; or a scalar, the loss
                of the very last.
            epoch: counted from 1; decides the view of cached rows. 0 outside training.
            when: epoch and step, for the message.
            advice: what to do, at the end of the message.

        Raises:
            DamagedError: the loss is not finite, because stored features or rows of a teacher are
                not finite, or were overwritten.
            InputError: the loss is not finite, but the stored data are.
        """
        batches, self._batches = self._batches, []
        finite = torch.isfinite(losses := losses.detach().reshape(-1))
        if finite.all():
            return
        first = int((~finite).nonzero()[0])
        del batches[len(batches) - len(losses) + first + 1 :]
        self._look()
        for segments in batches:
            self._check_stored(segments, epoch)
        ids = [self._store.clip_ids[i] for i in batches[-1].tolist()]
        raise InputError(
            f"{when}: the loss is {losses[first].item()} with `lr={self._lr:g}`, at the segments "
            f"{_listed(ids, _MOST_SEGMENTS)}. {advice}"
        )

    def _check_stored(self, segments: NDArray[np.int64], epoch: int) -> None:
        store = self._store
        values = np.empty((len(segments), *store.shape), np.float32)
        store.features.gather(segments, values)
        for what, repair, stored in [
            (f"{store.path}: the features", "Delete the store and prepare it again.", values),
            *self._rows(segments, epoch),
        ]:
            finite = np.isfinite(stored.reshape(len(segments), -1)).all(1)
            if not finite.all():
                ids = [store.clip_ids[i] for i in segments[~finite].tolist()]
                raise DamagedError(
                    f"{what} of {_listed(ids, _MOST_SEGMENTS)} are not finite. {repair}"
                )

    def _rows(
        self, segments: NDArray[np.int64], epoch: int
    ) -> Iterator[tuple[str, str, NDArray[np.float32]]]:
        """Yield the stored rows of each teacher and layer.

        Yields:
            What the rows are and what to do, for the message, and ``(segment, value)`` values.
        """
        members = self._sources.members if self._sources else {}
        for name, source in members.items():
            for layer, rows in source.read(segments, epoch).items():
                parts = (rows.data, rows.norm, rows.row_norm)
                flat = torch.cat([part.float().reshape(len(segments), -1) for part in parts], 1)
                yield (
                    f"teacher {name}, layer {layer}: the stored rows",
                    "Delete the cache and rebuild it with `antigram cache-grams`.",
                    flat.cpu().numpy(),
                )
