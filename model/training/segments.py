"""Segments of a feature store as a Dataset of PyTorch, for training loops of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from antigram.pipeline.storage.array import StoredArray

__all__ = ["SegmentDataset"]


class _Store(Protocol):
    """What is read of a `FeatureStore`."""

    main_label: str
    classes: dict[str, list[str]]
    features: StoredArray

    @property
    def clip_ids(self) -> Sequence[str]: ...

    def labels(self, label: str) -> NDArray[np.int32]: ...

    def rows(self, split: str, label: str | None = None) -> NDArray[np.int64]: ...


class SegmentDataset(Dataset[tuple[Tensor, int, str]]):
    """Segments of one split, each with its class and its id.

    A DataLoader collates them to features ``(batch, 1, frame, freq)``, classes ``(batch,)`` int64
    and a sequence of ids, which `AntiTransferLoss.watch` takes. It may have workers of any start
    method.

    Args:
        store: a `FeatureStore`.
        label: label whose classes are learned; by default the main label. Segments whose class is
            not known are left out.
        split: ``train``, ``validation`` or ``test``.

    Attributes:
        classes: names of the classes.
        ids: ids of the segments.

    Raises:
        InputError: the store has no such label or split.
    """

    def __init__(self, store: _Store, label: str | None = None, split: str = "train") -> None:
        label = store.main_label if label is None else label
        self._features, self._rows = store.features, store.rows(split, label)
        self._labels = store.labels(label)[self._rows].astype(np.int64)
        self.classes = store.classes[label]
        self.ids = [store.clip_ids[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[Tensor, int, str]]:
        """Yield all segments, in order."""
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> tuple[Tensor, int, str]:
        """Return features, class and id of a segment.

        Args:
            index: of the segment in the split.

        Returns:
            ``(1, frame, freq)`` float32, normalised as the store is; index into ``classes``; id.

        Raises:
            IndexError: there is no such segment.
        """
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int, str]]:
        """Return several segments, as `__getitem__` does; a DataLoader calls it for a batch."""
        x = self._features.take(self._rows[list(indices)]).astype(np.float32, copy=False)
        features = torch.from_numpy(x)[:, None].unbind()
        labels = self._labels[list(indices)].tolist()
        ids = [self.ids[index] for index in indices]
        return list(zip(features, labels, ids, strict=True))
