"""How well a net does on a split of a store: confusion matrix, accuracy, recalls.

Segments are scored one by one, and recordings by the mean of their segments' log-probabilities.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batches
from antigram.model.training.chance import chance, majority
from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.decide import finite_rows, log_probabilities, segments_at_once
from antigram.model.training.precision import set_precision
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.held import Held

__all__ = ["Scores", "Tally", "evaluate", "evaluate_checkpoint"]


@dataclass(frozen=True, slots=True)
class Tally:
    """How often a net's decisions on segments, or on recordings, are correct.

    Attributes:
        classes: names, in the order of the axes of ``confusion``.
        confusion: (true class, decided class) counts.
        majority: accuracy of always answering the most frequent class of the training split; None
            if the store has no such split.
    """

    classes: Sequence[str]
    confusion: NDArray[np.int64]
    majority: float | None = None

    @property
    def count(self) -> int:
        """Segments, or recordings, that were decided."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float | None:
        """Share of correct decisions; None without any."""
        return int(self.confusion.trace()) / self.count if self.count else None

    @property
    def chance(self) -> float:
        """Accuracy expected of a guess among the classes."""
        return chance(self.classes)

    @property
    def recall(self) -> dict[str, float | None]:
        """Share of correct decisions in each class; None for a class that does not occur."""
        return {
            name: float(row[i] / row.sum()) if row.sum() else None
            for i, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True))
        }

    @property
    def unweighted_average_recall(self) -> float | None:
        """Mean recall of the classes that occur: each counts alike, however rare."""
        known = [value for value in self.recall.values() if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, slots=True)
class Scores:
    """A net on a split: its segments one by one, and its recordings."""

    segments: Tally
    recordings: Tally

    def to_json(self) -> dict[str, Any]:
        """Fields of ``evaluate --json``."""
        one, all_ = self.segments, self.recordings
        return {
            "accuracy": one.accuracy,
            "recall": one.recall,
            "unweighted_average_recall": one.unweighted_average_recall,
            "chance": one.chance,
            "majority": one.majority,
            "confusion": one.confusion.tolist(),
            "classes": list(one.classes),
            "clips": one.count,
            "recordings": {
                "accuracy": all_.accuracy,
                "unweighted_average_recall": all_.unweighted_average_recall,
                "majority": all_.majority,
                "confusion": all_.confusion.tolist(),
                "recordings": all_.count,
            },
        }


@torch.no_grad()
def evaluate(net: Vgg, batches: Batches, rows: NDArray[np.int64], classes: Sequence[str]) -> Scores:
    """Predict each segment and each recording with the net in eval mode, in full float32.

    A recording is all segments of one file that have the same class: where noise was mixed in, its
    class may change from one segment to the next. Of a corpus that is cut each row is one.

    Args:
        net: its logits are ``(segment, class)``.
        batches: of the store, with the classes' numbers in ``classes``.
        rows: ``(segment,)`` indices of labelled segments.
        classes: names of the net's outputs.

    Raises:
        InputError: the net's logits are not finite; the message names the first such segment.
        StoredDataError: stored features are not finite, or damaged.
    """
    set_precision("32")
    net.eval()
    store, labels = batches.store, batches.labels
    segments, recordings = np.zeros((2, len(classes), len(classes)), np.int64)
    missing = Counter(_recordings(store, labels, rows))
    sums: dict[tuple[str, int], NDArray[np.float64]] = {}  # of recordings with segments to come
    for batch in batches.passes(rows):
        logits = net(batch.x)
        finite = finite_rows(batch.x, logits)
        if not finite.all():
            raise _not_finite(store, int(batch.clips[finite.argmin()]))
        found = log_probabilities(logits)
        np.add.at(segments, (labels[batch.clips], found.argmax(1)), 1)
        for key, one in zip(_recordings(store, labels, batch.clips), found, strict=True):
            sums[key] = sums.get(key, 0.0) + one
            missing[key] -= 1
            if not missing[key]:
                recordings[key[1], sums.pop(key).argmax()] += 1
    train = store.rows("train")
    train = train[labels[train] >= 0]
    known = [_classes(store, labels, chosen) for chosen in (train, rows)]
    return Scores(
        Tally(classes, segments, majority(labels[train], labels[rows])),
        Tally(classes, recordings, majority(*known)),
    )


def _recordings(
    store: FeatureStore, labels: NDArray[np.int32], rows: NDArray[np.int64]
) -> list[tuple[str, int]]:
    """Recording and class of each segment."""
    names = store.recordings
    return [
        (names[i], label) for i, label in zip(rows.tolist(), labels[rows].tolist(), strict=True)
    ]


def _classes(
    store: FeatureStore, labels: NDArray[np.int32], rows: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Class of each recording."""
    return np.array([label for _, label in set(_recordings(store, labels, rows))], np.int64)


def _not_finite(store: FeatureStore, row: int) -> InputError | StoredDataError:
    """Say whether the store or the net makes a segment undecidable."""
    name = store.clip_ids[row]
    if not np.isfinite(store.features.take([row])).all():
        return StoredDataError(
            f"{store.path}: the stored features of segment {name} are not finite, wanted numbers. "
            "Prepare the store again; if its dtype is float16, with `dtype=float32`."
        )
    return InputError(
        f"{store.path}: the net's outputs for segment {name} are not finite, though its features "
        "are: no class can be decided. Train the net again, with a lower `lr`."
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
    """Evaluate a checkpoint on a split of a store, which may not be the one it was trained on.

    Args:
        checkpoint: the net, with its classes and preprocessing.
        store: features and labels.
        split: ``train``, ``validation`` or ``test``.
        task: the store's label that holds the checkpoint's classes; by default it has the name of
            the checkpoint's task.
        device: where the net runs.
        batch_clips: segments in a batch; by default 64, or fewer of long ones.
        on_message: told if the store was replaced meanwhile.

    Raises:
        InputError: the store has not the label, has classes that the net does not know, or its
            features are not of the checkpoint's kind; or the net's logits are not finite.
        StoredDataError: stored features are not finite, or damaged.
    """
    for field in ("sample_rate", "n_fft", "hop", "window"):
        was, is_ = getattr(checkpoint.recipe, field), getattr(store.recipe, field)
        if was != is_:
            raise InputError(
                f"{store.path}: {field} is {is_}, the checkpoint was trained with {was}. "
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
