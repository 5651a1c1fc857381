"""The interface of a stored array, whether it is memory-mapped or computed as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.chunks import ArraySpec

__all__ = ["StoredArray"]


class StoredArray(Protocol):
    """An array of a store, read row by row."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def spec(self) -> ArraySpec:
        """Layout of the array as it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, rows first."""

    def chunk(self, index: int) -> NDArray[Any]:
        """Return the rows of one chunk, padding included; a chunk is checked when it is first read.

        Raises:
            DamagedError: the chunk is missing, truncated, or does not match the manifest.
        """

    def take(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return rows, in any order, as an array (row, ...).

        Args:
            rows: indices of the rows.
            view: index along the second axis, if that is an axis of views; None takes all.
            out: array for the result; default: a new one.
        """

    def expect(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Have rows that are taken soon read into memory in the background.

        Args:
            rows: indices of the rows.
            view: index along the second axis, if that is an axis of views; None reads all.
            again: read rows of chunks that were read before, too.
        """

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """Write rows to ``out`` (row, ...), converted to its dtype; arguments as for `take`."""

    def read(self) -> NDArray[Any]:
        """Return all rows."""

    def read_span(self, span: slice) -> NDArray[Any]:
        """Return rows ``span.start`` to ``span.stop``."""

    def hold(self) -> None:
        """Map all chunks, so that replacing their files has no effect.

        Raises:
            DamagedError: a chunk is missing, or has another size.
        """

    def look(self, rows: slice | None = None) -> list[str]:
        """Check whether chunks have changed since they were mapped.

        Args:
            rows: rows whose chunks are checked; None checks all.

        Returns:
            Lines for the user about files that were replaced, or rewritten with the same bytes.

        Raises:
            DamagedError: a file was truncated or overwritten in place; the message names it.
        """
