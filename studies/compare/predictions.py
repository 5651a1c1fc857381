"""Predict each segment with a student, to store the predictions for any later statistic."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["predictions_of"]

_one = threading.Lock()  # torch's threads are shared


def predictions_of(run: Path, store: Path, task: str) -> dict[str, dict[str, NDArray[Any]]]:
    """Predict the segments of validation and test with a run's best weights.

    Args:
        run: folder of a run that has ended.
        store: store that the student was trained on.
        task: label that the student learned.

    Returns:
        For each split, arrays ``(segment,)``: ``row`` (indices of the store), ``true`` and
        ``predicted`` (classes), and ``probability`` (float32, of the true class).
    """
    import torch  # the runner's other jobs need none of it

    from antigram.model.training.batches import Batches
    from antigram.model.training.checkpoint import load_checkpoint
    from antigram.model.training.decide import log_probabilities, segments_at_once
    from antigram.pipeline.features.store import FeatureStore

    opened, net = FeatureStore(store), load_checkpoint(run / "best.pt").net()
    found = {}
    with _one, torch.no_grad():
        batches = Batches(
            opened, task, None, segments_at_once(opened.shape[0]), torch.device("cpu")
        )
        for split in ("validation", "test"):
            rows = opened.rows(split, task)
            true = opened.labels(task)[rows]
            log_p = [log_probabilities(net(batch.x)) for batch in batches.passes(rows)]
            scores = np.concatenate(log_p) if log_p else np.zeros((0, 1))
            found[split] = {
                "row": rows,
                "true": true,
                "predicted": scores.argmax(1).astype(np.int32),
                "probability": np.exp(scores[np.arange(len(rows)), true]).astype(np.float32),
            }
    return found
