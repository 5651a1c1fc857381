"""Results of rendering rows, in columns: 45 bytes a row, where a list takes 250."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.features.row_audio import RowResult

__all__ = ["Results"]

_COLUMNS = np.dtype(
    [
        ("total", "f8"),
        ("squares", "f8"),
        ("silent", "?"),
        ("noise", "i4"),
        ("snr_db", "f8"),
        ("low", "f8"),
        ("high", "f8"),
    ]
)  # fields of `RowResult` behind `reason`, in their order


class Results(Sequence[RowResult]):
    """Results that are made when they are read; a slice is a list.

    Args:
        columns: ``(row,)`` fields of `RowResult` but the reason; an SNR that is None is NaN.
        reasons: row -> why it was rejected.
    """

    def __init__(self, columns: NDArray[Any], reasons: dict[int, str]) -> None:
        self.columns, self._reasons = columns, reasons

    @classmethod
    def of(cls, results: Iterable[RowResult]) -> Results:
        """Return results in columns."""
        if isinstance(results, Results):
            return results
        results = list(results)
        values = [
            (r.total, r.squares, r.silent, r.noise, _number(r.snr_db), r.low, r.high)
            for r in results
        ]
        reasons = {row: result.reason for row, result in enumerate(results) if result.reason}
        return cls(np.array(values, _COLUMNS), reasons)

    @classmethod
    def joined(cls, parts: Iterable[Results]) -> Results:
        """Return the results of all rows that were not rejected."""
        columns = [part.columns[part.usable] if part._reasons else part.columns for part in parts]
        return cls(np.concatenate([np.empty(0, _COLUMNS), *columns]), {})

    @property
    def usable(self) -> NDArray[np.bool_]:
        """``(row,)`` whether a row was not rejected."""
        usable = np.ones(len(self), bool)
        usable[list(self._reasons)] = False
        return usable

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> RowResult: ...

    @overload
    def __getitem__(self, index: slice) -> list[RowResult]: ...

    def __getitem__(self, index: int | slice) -> RowResult | list[RowResult]:
        rows = range(len(self))[index]
        if isinstance(rows, range):
            return [self[row] for row in rows]
        return self._result(rows, self.columns[rows].item())

    def __iter__(self) -> Iterator[RowResult]:
        for row, values in enumerate(self.columns.tolist()):
            yield self._result(row, values)

    def _result(self, row: int, values: tuple[Any, ...]) -> RowResult:
        total, squares, silent, noise, snr_db, low, high = values
        snr = None if math.isnan(snr_db) else snr_db
        return RowResult(self._reasons.get(row, ""), total, squares, silent, noise, snr, low, high)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Results | list):
            return list(self) == list(other)
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]


def _number(snr_db: float | None) -> float:
    return math.nan if snr_db is None else snr_db
