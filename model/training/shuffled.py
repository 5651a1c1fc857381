"""Shuffle the labels of a training: a control, from which nothing about the task can be learned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.draw import draw
from antigram.pipeline.features.store import FeatureStore

__all__ = ["SHUFFLED", "shuffled_labels", "shuffled_note"]

SHUFFLED = ("train", "validation")  # splits; test segments keep their labels


def shuffled_labels(
    store: FeatureStore, task: str, rows: Mapping[str, NDArray[np.int64]], seed: int
) -> NDArray[np.int32]:
    """Return the labels of a store, permuted within training and within validation.

    Recordings are permuted, not segments: all segments of a recording that had one class have one
    class afterwards, and each split has as many recordings of each class as before.

    Args:
        store: features and labels.
        task: label to permute.
        rows: indices of the labelled segments of each split.
        seed: the seed that the user gave; it decides the permutation.

    Returns:
        ``(segment,)`` int32 classes; -1 for none, as in the store.
    """
    labels = store.labels(task).copy()
    for split in SHUFFLED:
        # As for scores, the segments of a file that have the same class are a recording.
        units: dict[tuple[str, int], list[int]] = {}
        for row in rows[split].tolist():
            units.setdefault((store.recordings[row], int(labels[row])), []).append(row)
        keys = np.random.PCG64(draw(seed, "shuffled labels", split)[0]).random_raw(len(units))
        classes = [label for _, label in units]
        for own, other in zip(units.values(), np.argsort(keys, kind="stable"), strict=True):
            labels[own] = classes[other]
    return labels


def shuffled_note(task: str, seed: int) -> str:
    """Return a line that says that a result is a control."""
    return (
        f"control, no result about {task}: the labels of training and validation were shuffled "
        f"among recordings (seed {seed}), and accuracies on these splits are those on the shuffled "
        "labels. Test labels are the true ones, so that their accuracy is expected at chance."
    )
