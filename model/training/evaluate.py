"""Evaluate a network on a split of a store: confusion matrix, accuracy and recalls.

Segments are scored one by one, and recordings by the mean of their segments' log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.nets.backbone import Backbone
from antigram.model.training.batches import Batches
from antigram.model.training.chance import chance, majority
from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.decide import finite_rows, log_probabilities, segments_at_once
from antigram.model.training.precision import set_precision
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.held import Held

__all__ = ["Scores", "Tally", "evaluate", "evaluate_checkpoint"]

_MOST_CLASSES = 1 << 24


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of a network's predictions, for segments or for recordings.

    Attributes:
        classes: names, in the order of the axes of ``confusion``.
        confusion: ``(true class, predicted class)`` counts.
        majority: accuracy of always predicting the most frequent class of the training split; None
            if the store has no such split.
    """

    classes: Sequence[str]
    confusion: NDArray[np.int64]
    majority: float | None = None

    @property
    def count(self) -> int:
        """Number of segments, or of recordings, that were predicted."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions; None if nothing was predicted."""
        return int(self.confusion.trace()) / self.count if self.count else None

    @property
    def chance(self) -> float:
        """Expected accuracy of a uniform guess among the classes."""
        return chance(self.classes)

    @property
    def recall(self) -> dict[str, float | None]:
        """Share of correct predictions in each class; None for a class that does not occur."""
        return {
            name: float(row[i] / row.sum()) if row.sum() else None
            for i, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True))
        }

    @property
    def unweighted_average_recall(self) -> float | None:
        """Mean recall of the classes that occur, all with the same weight."""
        known = [value for value in self.recall.values() if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of a network on a split.

    Attributes:
        segments: predictions of single segments.
        recordings: predictions of recordings.
    """

    segments: Tally
    recordings: Tally

    def to_json(self) -> dict[str, Any]:
        """Return fields of ``evaluate --json``."""
        segments, recordings = self.segments, self.recordings
        return {
            "accuracy": segments.accuracy,
            "recall": segments.recall,
            "unweighted_average_recall": segments.unweighted_average_recall,
            "chance": segments.chance,
            "majority": segments.majority,
            "confusion": segments.confusion.tolist(),
            "classes": list(segments.classes),
            "clips": segments.count,
            "recordings": {
                "accuracy": recordings.accuracy,
                "unweighted_average_recall": recordings.unweighted_average_recall,
                "majority": recordings.majority,
                "confusion": recordings.confusion.tolist(),
                "recordings": recordings.count,
            },
        }


@torch.no_grad()
def evaluate(
    net: Backbone, batches: Batches, rows: NDArray[np.int64], classes: Sequence[str]
) -> Scores:
    """Predict segments and recordings in full float32; return their confusion matrices.

    All segments of a file that have the same class count as one recording: the class of mixed-in
    noise, for example, may change from segment to segment. In a corpus whose recordings are cut,
    each row is a recording.

    Args:
        net: network, which is put in eval mode.
        batches: batches of the store, whose labels are indices into ``classes``.
        rows: ``(segment,)`` indices of labelled segments.
        classes: names of the network's outputs.

    Raises:
        InputError: the network's logits are not finite; the message names the first such segment.
        StoredDataError: stored features are not finite, or damaged.
    """
    set_precision("32")
    net.eval()
    store, labels = batches.store, batches.labels
    segments, recordings = np.zeros((2, len(classes), len(classes)), np.int64)
    known, missing = np.unique(_recordings(store, labels, rows), return_counts=True)
    classes_of = _class_of(known)
    # Sums over the segments so far, for recordings that miss segments, by index into `known`.
    sums: dict[int, NDArray[np.float64]] = {}
    for batch in batches.passes(rows):
        logits = net(batch.x)
        finite = finite_rows(batch.x, logits)
        if not finite.all():
            raise _not_finite(store, int(batch.clips[finite.argmin()]))
        log_probs = log_probabilities(logits)
        np.add.at(segments, (labels[batch.clips], log_probs.argmax(1)), 1)
        own = np.searchsorted(known, _recordings(store, labels, batch.clips)).tolist()
        for recording, row in zip(own, log_probs, strict=True):
            sums[recording] = sums.get(recording, 0.0) + row
            missing[recording] -= 1
            if not missing[recording]:
                recordings[classes_of[recording], sums.pop(recording).argmax()] += 1
    train = store.rows("train")
    train = train[labels[train] >= 0]
    of_recordings = [_class_of(np.unique(_recordings(store, labels, r))) for r in (train, rows)]
    return Scores(
        Tally(classes, segments, majority(labels[train], labels[rows])),
        Tally(classes, recordings, majority(*of_recordings)),
    )


def _recordings(
    store: FeatureStore, labels: NDArray[np.int32], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the recording and the class of each segment as one number; see `_class_of`."""
    return store.recording_numbers[rows].astype(np.int64) * _MOST_CLASSES + labels[rows]


def _class_of(recordings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each recording, from the numbers that `_recordings` returns."""
    return recordings % _MOST_CLASSES


def _not_finite(store: FeatureStore, row: int) -> InputError | StoredDataError:
    """Return an error that says whether the store or the network has values that are not finite."""
    name = store.clip_ids[row]
    if not np.isfinite(store.features.take([row])).all():
        return StoredDataError(
            f"{store.path}: the stored features of segment {name} are not finite, wanted numbers. "
            "Prepare the store again; if its dtype is float16, with `dtype=float32`."
        )
    return InputError(
        f"{store.path}: the network's outputs for segment {name} are not finite, though its "
        "features are: no class can be predicted. Train the network again, with a lower `lr`."
    )


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    store: FeatureStore,
    split: str,
    *,
    task: str | None = None,
    device: torch.device,
    batch_clips: int | None = None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Scores:
    """Evaluate a checkpoint on a split of a store, on which it need not have been trained.

    The features are normalised again, with the checkpoint's mean and standard deviation.

    Args:
        checkpoint: the network, with its classes and preprocessing.
        store: features and labels.
        split: ``train``, ``validation`` or ``test``.
        task: label of the store that has the checkpoint's classes; by default the label with the
            name of the checkpoint's task.
        device: device that the network runs on.
        batch_clips: segments in a batch; by default 64, or fewer for long segments.
        on_message: called with a line if another process replaces the store meanwhile.

    Raises:
        InputError: the store lacks the label, has classes that the checkpoint lacks, or was
            prepared with another sample rate or spectrogram; or the network's logits are not
            finite.
        StoredDataError: stored features are not finite, or damaged.
    """
    if field := checkpoint.recipe.spectrum_differs(store.recipe):
        wanted, actual = getattr(checkpoint.recipe, field), getattr(store.recipe, field)
        raise InputError(
            f"{store.path}: {field} is {actual}, the checkpoint was trained with {wanted}. "
            "Prepare the store with the checkpoint's settings."
        )
    task = task or checkpoint.task
    store.read_index(task)
    labels = store.labels(task)
    held = Held([store.features], on_message)
    names = store.classes[task]
    if unknown := sorted(set(names) - set(checkpoint.classes)):
        raise InputError(
            f"{store.path}: {task} has classes the checkpoint does not know: "
            f"{', '.join(unknown[:5])}. It knows {', '.join(checkpoint.classes[:12])}; "
            "`task` names another label of the store."
        )
    index = np.array([checkpoint.classes.index(name) for name in names], np.int32)
    batches = Batches(
        store,
        task,
        None,
        batch_clips or segments_at_once(store.shape[0]),
        device,
        labels=np.where(labels >= 0, index[labels], -1).astype(np.int32),
        rescale=(store.std / checkpoint.std, (store.mean - checkpoint.mean) / checkpoint.std),
    )
    rows = store.rows(split, task)
    scores = evaluate(checkpoint.net().to(device), batches, rows, checkpoint.classes)
    held.look()
    return scores
