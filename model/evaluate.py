"""How well a net does on some rows of a store: confusion matrix, accuracy, recalls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.batches import Batches
from model.checkpoint import Checkpoint
from model.pace import set_precision
from model.vgg import Vgg
from pipeline.errors import InputError
from pipeline.store import FeatureStore

__all__ = ["Scores", "evaluate", "evaluate_checkpoint"]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a net's decisions amount to.

    Attributes:
        classes: names, in the order of the axes of ``confusion``.
        confusion: (true class, decided class) counts.
    """

    classes: Sequence[str]
    confusion: NDArray[np.int64]

    @property
    def accuracy(self) -> float | None:
        """Share of clips decided rightly; None without clips."""
        total = int(self.confusion.sum())
        return int(self.confusion.trace()) / total if total else None

    @property
    def recall(self) -> dict[str, float | None]:
        """Share of each class's clips decided rightly; None for a class without clips."""
        return {
            name: float(row[i] / row.sum()) if row.sum() else None
            for i, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True))
        }

    @property
    def unweighted_average_recall(self) -> float | None:
        """Mean recall of the classes that have clips: each counts alike, however rare."""
        known = [value for value in self.recall.values() if value is not None]
        return sum(known) / len(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Fields of ``evaluate --json``."""
        return {
            "accuracy": self.accuracy,
            "recall": self.recall,
            "unweighted_average_recall": self.unweighted_average_recall,
            "confusion": self.confusion.tolist(),
            "classes": list(self.classes),
            "clips": int(self.confusion.sum()),
        }


@torch.no_grad()
def evaluate(net: Vgg, batches: Batches, rows: NDArray[np.int64], classes: Sequence[str]) -> Scores:
    """Decide the class of each row with the net in eval mode, in full float32."""
    set_precision("32")
    net.eval()
    confusion = torch.zeros(len(classes) ** 2, dtype=torch.long, device=batches.device)
    for batch in batches.passes(rows):
        decided = net(batch.x).argmax(1)
        confusion += torch.bincount(batch.y * len(classes) + decided, minlength=len(classes) ** 2)
    return Scores(classes, confusion.view(len(classes), -1).cpu().numpy())


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    store: FeatureStore,
    split: str,
    *,
    device: torch.device,
    batch_clips: int = 64,
) -> Scores:
    """Evaluate a checkpoint on a split of a store, which may not be the one it was trained on.

    Raises:
        InputError: the store has not the task, has classes that the net does not know, or its
            features are not of the checkpoint's kind.
    """
    for field in ("sample_rate", "n_fft", "hop", "window"):
        was, is_ = getattr(checkpoint.recipe, field), getattr(store.recipe, field)
        if was != is_:
            raise InputError(
                f"{store.path}: {field} is {is_}, the checkpoint was trained with {was}. "
                "Prepare the store with the checkpoint's settings."
            )
    labels = store.labels(checkpoint.task)
    names = store.classes[checkpoint.task]
    if unknown := sorted(set(names) - set(checkpoint.classes)):
        raise InputError(
            f"{store.path}: {checkpoint.task} has classes the checkpoint does not know: "
            f"{', '.join(unknown[:5])}. It knows {', '.join(checkpoint.classes[:12])}."
        )
    batches = Batches(store, checkpoint.task, None, batch_clips, device)
    index = np.array([checkpoint.classes.index(name) for name in names], np.int32)
    batches.labels = np.where(labels >= 0, index[labels], -1).astype(np.int32)
    batches.scale = store.std / checkpoint.std
    batches.shift = (store.mean - checkpoint.mean) / checkpoint.std
    rows = store.rows(split, checkpoint.task)
    return evaluate(checkpoint.net().to(device), batches, rows, checkpoint.classes)
