"""A teacher's rows under the names of the student's layers that are compared with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from antigram.model.choices import Layer
from antigram.model.loss.codecs import Rows
from antigram.model.loss.sources import GramSource

__all__ = ["Renamed"]


class _RenamedRows(Mapping[Layer, Rows]):
    """The result of another source's `GramSource.read`, with other names of layers."""

    def __init__(self, read: Mapping[Layer, Rows], names: Mapping[Layer, Layer]) -> None:
        self.read, self._names = read, {student: teacher for teacher, student in names.items()}

    def __getitem__(self, layer: Layer) -> Rows:
        return self.read[self._names[layer]]

    def __iter__(self) -> Iterator[Layer]:
        return (student for student, teacher in self._names.items() if teacher in self.read)

    def __len__(self) -> int:
        return len(self.read)


class Renamed:
    """A `GramSource` whose layers have the names of the student's layers compared with them.

    Args:
        source: rows of a teacher.
        names: layer of the teacher -> layer of the student, for every layer of the source.
    """

    def __init__(self, source: GramSource, names: Mapping[Layer, Layer]) -> None:
        self.source, self.names = source, dict(names)
        spec = source.spec
        self.spec = replace(
            spec,
            layers=tuple(self.names[layer] for layer in spec.layers),
            grids={self.names[layer]: grid for layer, grid in spec.grids.items()},
            shapes={self.names[n]: size for n, size in spec.shapes.items() if n in self.names},
        )
        self.views, self.stored_bytes = source.views, source.stored_bytes
        self.arrays = source.arrays

    @property
    def identity(self) -> Mapping[str, str]:
        """See `GramSource`; the key is ``STUDENT=TEACHER`` where the layers' names differ."""
        texts = {
            str(teacher): str(teacher) if student == teacher else f"{student}={teacher}"
            for teacher, student in self.names.items()
        }
        return {texts[layer]: digest for layer, digest in self.source.identity.items()}

    def keep_on(self, device: torch.device) -> None:
        """See `GramSource`."""
        self.source.keep_on(device)

    def params(self, clips: NDArray[np.int64], epoch: int) -> NDArray[np.float32] | None:
        """See `GramSource`."""
        return self.source.params(clips, epoch)

    def read(self, clips: NDArray[np.int64], epoch: int = 0) -> Mapping[Layer, Rows]:
        """See `GramSource`."""
        return _RenamedRows(self.source.read(clips, epoch), self.names)

    def rows(self, read: Mapping[Layer, Rows], x: Tensor) -> Mapping[Layer, Rows]:
        """See `GramSource`."""
        if isinstance(read, _RenamedRows):
            read = read.read
        return {self.names[layer]: rows for layer, rows in self.source.rows(read, x).items()}
