"""What a reader of a stored array can ask of it, whether it is mapped or computed as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.chunks import ArraySpec

__all__ = ["StoredArray"]


class StoredArray(Protocol):
    """An array of a store, read by rows."""

    def __len__(self) -> int:
        """Number of rows."""

    @property
    def spec(self) -> ArraySpec:
        """Layout of the array as it is read."""

    @property
    def shape(self) -> tuple[int, ...]:
        """All axes, rows first."""

    def chunk(self, index: int) -> NDArray[Any]:
        """Return the rows of one chunk, padding included; checked the first time.

        Raises:
            DamagedError: it is missing, truncated, or not what the manifest names.
        """

    def take(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Return rows, in any order, as an array (row, ...).

        Args:
            rows: their indices.
            view: index along the second axis, of an array that has one for views.
            out: array to write them to; None: a new one.
        """

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """Write rows to ``out`` (row, ...), converted to its dtype; arguments as of `take`."""

    def read(self) -> NDArray[Any]:
        """Return all rows."""

    def read_span(self, span: slice) -> NDArray[Any]:
        """Return rows ``span.start`` to ``span.stop``."""

    def hold(self) -> None:
        """Keep all chunks as they are now, whatever replaces their files.

        Raises:
            DamagedError: a chunk is missing, or of another size.
            InputError: the process reaches its limit of memory maps.
        """

    def look(self, rows: slice | None = None) -> list[str]:
        """Hold the chunks of rows (None: all) against what they were when they were opened.

        Returns:
            Lines for people: what was replaced, or written to without a change.

        Raises:
            DamagedError: a file was truncated or overwritten in place; names it.
        """
