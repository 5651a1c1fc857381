"""Rows of a corpus in columns: 20 bytes a row, not 300, for corpora of millions of segments."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.rows import Labels, Row
from antigram.pipeline.storage.text_table import TextTable

__all__ = ["RowColumns", "RowTable"]

_AT_ONCE = 1 << 16  # rows


class _Recording(NamedTuple):
    """What all rows of a recording have alike."""

    id: str
    path: str
    labels: Labels
    group: str
    official: str | None
    length: int


class RowTable(Sequence[Row]):
    """Rows that are made when they are read; a slice is a table. It is pickled as a tuple of rows.

    Args:
        recipe: recipe of the store, for the ids of segments.
        recordings: the recordings.
        columns: ``(row,)`` index of its recording, number of the segment in it, first sample, and
            number of samples.
    """

    def __init__(
        self,
        recipe: Recipe,
        recordings: Sequence[_Recording],
        columns: tuple[NDArray[np.int64], ...],
    ) -> None:
        self._recipe, self._recordings, self._columns = recipe, recordings, columns

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> RowTable: ...

    def __getitem__(self, index: int | slice) -> Row | RowTable:
        if isinstance(index, slice):
            return self.picked(index)
        of, number, start, samples = (int(column[index]) for column in self._columns)
        return self._row(self._recordings[of], number, start, samples)

    def picked(self, rows: slice | NDArray[np.bool_] | NDArray[np.int64]) -> RowTable:
        """Return a table of some rows; ``rows`` as for an array of numpy."""
        columns = tuple(column[rows] for column in self._columns)
        return RowTable(self._recipe, self._recordings, columns)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self), _AT_ONCE):
            parts = [column[start : start + _AT_ONCE].tolist() for column in self._columns]
            for of, number, first, samples in zip(*parts, strict=True):
                yield self._row(self._recordings[of], number, first, samples)

    def ids(self) -> Iterator[str]:
        """Yield the ids of all rows."""
        segment_id, names = self._recipe.segment_id, [own.id for own in self._recordings]
        for start in range(0, len(self), _AT_ONCE):
            of, number = (column[start : start + _AT_ONCE].tolist() for column in self._columns[:2])
            yield from map(segment_id, map(names.__getitem__, of), number)

    def _row(self, recording: _Recording, number: int, start: int, samples: int) -> Row:
        return Row(
            clip_id=self._recipe.segment_id(recording.id, number),
            path=recording.path,
            start=start,
            samples=samples,
            labels=recording.labels,
            group=recording.group,
            official=recording.official,
            length=recording.length,
        )

    def __reduce__(self) -> tuple[type[tuple[Row, ...]], tuple[list[Row]]]:
        return tuple, (list(self),)


class RowColumns:
    """Collects rows that are not of mixtures, recording by recording.

    Args:
        recipe: recipe of the store.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._recordings: list[_Recording] = []
        # Index of the recording, number of the segment, first sample, number of samples.
        self._columns = array("i"), array("i"), array("q"), array("q")

    def add(self, row: Row) -> None:
        """Add a row."""
        own = self._recipe.recording_of(row.clip_id)
        if not self._recordings or self._recordings[-1].id != own:
            self._recordings.append(
                _Recording(own, row.path, row.labels, row.group, row.official, row.length)
            )
        number = int(row.clip_id[len(own) + 1 :])
        values = len(self._recordings) - 1, number, row.start, row.samples
        for column, value in zip(self._columns, values, strict=True):
            column.append(value)

    def sorted(self) -> RowTable:
        """Return all rows, sorted by id."""
        columns = tuple(np.frombuffer(column, column.typecode) for column in self._columns)
        table = RowTable(self._recipe, self._recordings, columns)
        if all(before < after for before, after in pairwise(table.ids())):
            return table
        # An id may begin with another one, or a recording have more than 100,000 segments.
        texts = TextTable.of(_batched(table.ids()))
        return table.picked(np.array(sorted(range(len(table)), key=texts.__getitem__), np.int64))


def _batched(texts: Iterator[str]) -> Iterator[list[str]]:
    while part := list(islice(texts, _AT_ONCE)):
        yield part
