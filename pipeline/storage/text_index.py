"""Find the rows of texts by hashing: 12 bytes a text, where a dictionary of them takes 180."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.text_table import TextTable

__all__ = ["TextIndex", "coded", "numbers_of"]

_AT_ONCE = 1 << 16


class TextIndex:
    """An index of texts; rows are numbered from 0.

    Args:
        texts: the texts, which the index refers to.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        few = len(texts) <= np.iinfo(np.uint32).max
        self._order = order.astype(np.uint32) if few else order

    def rows(self, wanted: Sequence[str]) -> NDArray[np.int64]:
        """Return the row of each of some texts, the first if there are several; -1 if none."""
        hashes = np.fromiter(map(hash, wanted), np.int64, len(wanted))
        starts = np.searchsorted(self._hashes, hashes, "left").tolist()
        ends = np.searchsorted(self._hashes, hashes, "right").tolist()
        rows = np.full(len(wanted), -1, np.int64)
        for at, (text, start, end) in enumerate(zip(wanted, starts, ends, strict=True)):
            for row in self._order[start:end].tolist():
                if self._texts[row] == text:  # else another text with the same hash
                    rows[at] = row
                    break
        return rows

    def repeated(self) -> str | None:
        """Return a text that occurs more than once, or None."""
        alike = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        for start, end in _runs(alike.tolist()):
            texts: list[str] = [self._texts[row] for row in self._order[start : end + 2].tolist()]
            for text in texts:
                if texts.count(text) > 1:
                    return text
        return None

    def firsts(self) -> NDArray[np.int64]:
        """Return for each text the first row that has the same text."""
        firsts = np.arange(len(self._texts))
        alike = np.flatnonzero(self._hashes[1:] == self._hashes[:-1])
        for start, end in _runs(alike.tolist()):
            seen: dict[str, int] = {}
            for row in self._order[start : end + 2].tolist():
                firsts[row] = seen.setdefault(self._texts[row], row)
        return firsts


def coded(texts: Iterable[str], count: int) -> tuple[NDArray[np.int32], list[str]]:
    """Return a number for each text, and the text of each number; for few different texts.

    Args:
        texts: the texts; they are read once.
        count: number of texts.
    """
    known: dict[str, int] = {}
    numbers = (known.setdefault(text, len(known)) for text in texts)
    return np.fromiter(numbers, np.int32, count), list(known)


def numbers_of(texts: Iterable[str], count: int) -> NDArray[np.signedinteger]:
    """Return a number for each text, which equal texts share: ``(text,)`` int32, or int64.

    Texts of which equal ones mostly follow each other, but need not, take least memory.

    Args:
        texts: the texts; they are read once.
        count: number of texts.
    """
    begins = np.zeros(count, bool)

    def runs() -> Iterator[list[str]]:
        """Yield the text of each run of equal texts, in parts, and note where it begins."""
        part: list[str] = []
        before = None
        for row, text in enumerate(texts):
            if text != before:
                begins[row] = True
                part.append(text)
                before = text
                if len(part) == _AT_ONCE:
                    yield part
                    part = []
        yield part

    firsts = TextIndex(TextTable.of(runs())).firsts()
    dtype = np.int32 if count <= np.iinfo(np.int32).max else np.int64
    numbers: NDArray[np.signedinteger] = firsts.astype(dtype)[np.cumsum(begins, dtype=dtype) - 1]
    return numbers


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return first and last of each run of consecutive numbers, which are sorted."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return runs
