"""Features of a fold: the features of its store, normalised by the fold's mean and deviation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.array import StoredArray
from antigram.pipeline.storage.chunks import ArraySpec

__all__ = ["ScaledArray"]


@dataclass(frozen=True, slots=True)
class ScaledArray:
    """A stored array that is read as ``value * scale + shift``, in float32.

    Scale and shift are rounded to float32, and both operations are done in float32, so that all
    methods return the same numbers.

    Attributes:
        stored: the array, float32 or float16.
        scale: factor of every value.
        shift: number added to every product.
        spec: layout of the array, with dtype float32.
    """

    stored: StoredArray
    scale: np.float32
    shift: np.float32
    spec: ArraySpec = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", replace(self.stored.spec, dtype="float32"))

    def __len__(self) -> int:
        return len(self.stored)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, rows first."""
        return self.stored.shape

    def _scaled(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return a rescaled copy of stored values."""
        out: NDArray[np.float32] = values.astype(np.float32)
        out *= self.scale
        out += self.shift
        return out

    def chunk(self, index: int) -> NDArray[np.float32]:
        """Return the rows of one chunk, padding included: see `StoredArray`."""
        return self._scaled(self.stored.chunk(index))

    def take(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return rows, in any order: see `StoredArray`."""
        if out is None:
            return self._scaled(self.stored.take(rows, view))
        self.gather(rows, out, view)
        return out

    def expect(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Have rows that are taken soon read into memory: see `StoredArray`."""
        self.stored.expect(rows, view, again=again)

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """Write rows to ``out``: see `StoredArray`."""
        if out.dtype != np.float32:
            out[...] = self._scaled(self.stored.take(rows, view))
            return
        self.stored.gather(rows, out, view)
        out *= self.scale
        out += self.shift

    def read(self) -> NDArray[np.float32]:
        """Return all rows."""
        return self._scaled(self.stored.read())

    def read_span(self, span: slice) -> NDArray[np.float32]:
        """Return rows ``span.start`` to ``span.stop``."""
        return self._scaled(self.stored.read_span(span))

    def hold(self) -> None:
        """Map all chunks, so that replacing their files has no effect: see `StoredArray`."""
        self.stored.hold()

    def look(self, rows: slice | None = None) -> list[str]:
        """Check whether chunks have changed: see `StoredArray`."""
        return self.stored.look(rows)
