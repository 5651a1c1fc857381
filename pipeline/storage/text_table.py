"""A sequence of texts in two arrays: a text takes its bytes and four more, not a Python object."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["Picked", "TextTable"]

_AT_ONCE = 1 << 16  # texts that are decoded at once


class TextTable(Sequence[str]):
    """Texts that are decoded when they are read; a slice is a list.

    It is equal to any sequence of the same texts.

    Args:
        raw: ``(byte,)`` uint8, all texts in UTF-8, one after the other.
        ends: ``(text,)`` end of each text in ``raw``.
    """

    def __init__(self, raw: NDArray[np.uint8], ends: NDArray[np.unsignedinteger]) -> None:
        self._raw, self._ends = raw, ends

    @classmethod
    def of(cls, parts: Iterable[Sequence[str]]) -> TextTable:
        """Make a table of texts that come in parts, so that one part at a time is in memory."""
        raw = bytearray()  # grows without a second copy of it
        lengths = [np.empty(0, np.uint32)]
        for part in parts:
            joined = "".join(part)
            own = joined.encode()
            ascii_only = len(own) == len(joined)  # each character is one byte
            sizes = map(len, part if ascii_only else [text.encode() for text in part])
            lengths.append(np.fromiter(sizes, np.uint32, len(part)))
            raw += own
        dtype = np.uint32 if len(raw) <= np.iinfo(np.uint32).max else np.uint64
        return cls(np.frombuffer(raw, np.uint8), np.cumsum(np.concatenate(lengths), dtype=dtype))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            rows = range(len(self))[index]
            if rows.step == 1:
                return self._decoded(rows.start, rows.stop)
            return [self[row] for row in rows]
        try:
            row = range(len(self))[index]
        except IndexError:
            raise IndexError(f"text {index} of {len(self)}") from None
        first = int(self._ends[row - 1]) if row else 0
        return self._raw[first : int(self._ends[row])].tobytes().decode()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self._decoded(start, min(start + _AT_ONCE, len(self)))

    def _decoded(self, start: int, stop: int) -> list[str]:
        if start >= stop:
            return []
        first = int(self._ends[start - 1]) if start else 0
        ends = (self._ends[start:stop].astype(np.int64) - first).tolist()
        raw = self._raw[first : int(self._ends[stop - 1])].tobytes()
        joined = raw.decode()
        if len(joined) == len(raw):  # each character is one byte
            return [joined[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return [raw[a:b].decode() for a, b in zip([0, *ends], ends, strict=False)]

    def __array__(
        self,
        dtype: DTypeLike | None = None,
        copy: bool | None = None,  # noqa: FBT001
    ) -> NDArray[Any]:
        """Return an array of numpy's kind of text: `numpy.array` calls it."""
        return np.array(list(self), dtype)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TextTable):
            same = np.array_equal(self._ends, other._ends)
            return same and np.array_equal(self._raw, other._raw)
        if isinstance(other, list | tuple):
            return len(self) == len(other) and all(map(operator.eq, self, other))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self[:3]))
        return f"<{len(self)} texts: {shown}{', ...' if len(self) > 3 else ''}>"


@dataclass(frozen=True, slots=True)
class Picked(Sequence[str]):
    """Some texts of a sequence, which are read where they are.

    Attributes:
        texts: the sequence.
        rows: ``(text,)`` index of each text.
    """

    texts: Sequence[str]
    rows: NDArray[np.integer]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.texts[row] for row in self.rows[index].tolist()]
        return self.texts[int(self.rows[index])]
