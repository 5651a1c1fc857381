"""The result of preparing a feature store, and what the command line says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from antigram.pipeline.features.source_record import Checked
from antigram.pipeline.features.split import SPLITS
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.summary import Summary, summarise

__all__ = ["Prepared"]


@dataclass(frozen=True)
class Prepared:
    """Result of `prepare`.

    Attributes:
        store: the opened store.
        seconds: duration of the call.
        computed: number of segments whose sums were computed in this call.
        sources: result of comparing the recordings with their record.
        left_alone: whether the store existed already and was kept.
        folds: paths of the store's folds, if it was prepared with a design.
    """

    store: FeatureStore
    seconds: float
    computed: int
    sources: Checked
    left_alone: bool = False
    folds: Sequence[Path] = ()

    @cached_property
    def summary(self) -> Summary:
        """Summary of the store's contents."""
        return summarise(self.store)

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``prepare --json``."""
        store, rows = self.store, {split: self.store.rows(split) for split in SPLITS}
        recordings = store.recording_numbers
        return {
            "store": str(store.path),
            "name": store.name,
            "fingerprint": store.fingerprint,
            "clips": {split: len(own) for split, own in rows.items()},
            "recordings": {split: len(np.unique(recordings[own])) for split, own in rows.items()},
            "folds": [str(path) for path in self.folds],
            "shape": list(store.shape),
            "classes": store.classes,
            "mean": store.mean,
            "std": store.std,
            "rejected": store.root["rejected"],
            "skipped": store.root["skipped"],
            "silent": store.root["silent"],
            "seconds": round(self.seconds, 3),
            "clips_per_second": round(self.computed / self.seconds, 1),
            "computed": self.computed,
            "sources": asdict(self.sources),
            "summary": self.summary.to_json(),
        }
