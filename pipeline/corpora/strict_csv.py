"""Read CSV tables strictly: refuse what is ambiguous, with line and column.

The format is RFC 4180, but a row is always one line: an unclosed quote would otherwise swallow the
rows below it. Python's csv module accepts a quote in the middle of a cell, and drops surplus cells
silently.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import CorpusError

__all__ = ["BadCellError", "Row", "Table", "read_rows", "read_table", "split_line"]

_LINE_END = re.compile(r"\r\n|\n|\r")
_CELL = re.compile(r'"((?:[^"]|"")*+)"(?=,|\Z)|([^",]*+)(?=,|\Z)')


class BadCellError(ValueError):
    """A line of CSV is malformed; ``column`` counts characters from 1."""

    def __init__(self, column: int, reason: str) -> None:
        super().__init__(reason)
        self.column = column


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: its number, counted from 1, and the text of its cells."""

    number: int
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table in which every row has one cell for each column."""

    path: Path
    names: tuple[str, ...]
    rows: tuple[Row, ...]
    lines: tuple[str, ...]  # all lines of the file, for `where`

    def where(self, row: Row | int, index: int) -> str:
        """Return ``PATH:LINE:COLUMN`` of a cell; columns count characters, as in editors."""
        number = row if isinstance(row, int) else row.number
        return _where(self.path, number, self.lines[number - 1], index)


def _where(path: Path, number: int, line: str, index: int) -> str:
    return f"{path}:{number}:{split_line(line)[index][0]}"


def split_line(line: str) -> list[tuple[int, str]]:
    """Split a line into cells; return the column, from 1, and the text of each cell.

    Raises:
        BadCellError: a quote is not closed, is inside a cell, or is followed by text.
    """
    cells, start = [], 0
    while True:
        cell = _CELL.match(line, start)
        if cell is None:
            raise _cell_error(line, start)
        quoted, plain = cell.groups()
        cells.append((start + 1, plain if quoted is None else quoted.replace('""', '"')))
        start = cell.end() + 1
        if start > len(line):
            return cells


def _cell_error(line: str, at: int) -> BadCellError:
    if line[at] != '"':
        advice = 'put the cell in quotes, and write "" for a quote within them'
        return BadCellError(line.index('"', at) + 1, f"a quote inside a cell: {advice}")
    if closed := re.compile(r'"(?:[^"]|"")*+"').match(line, at):
        problem = f"text after the end of a quoted cell: {line[closed.end() : closed.end() + 20]!r}"
        return BadCellError(closed.end() + 1, f'{problem}; write "" for a quote within quotes')
    return BadCellError(at + 1, "a quote that is not closed on its line: close it, or remove it")


def read_table(path: Path) -> Table:
    """Read a table; blank lines are left out.

    Raises:
        CorpusError: the file is not UTF-8 text, or the table is malformed or ambiguous.
    """
    lines = tuple(_LINE_END.split(read_text(path)))
    header, *rows = read_rows(path, enumerate(lines, 1))
    return Table(path, header.cells, tuple(rows), lines)


def read_rows(path: Path, lines: Iterable[tuple[int, str]]) -> Iterator[Row]:
    """Yield the names of a table's columns as a row, then its rows; blank lines are left out.

    Args:
        path: file of the table, for messages.
        lines: number, from 1, and text of each line.

    Raises:
        CorpusError: the table is malformed or ambiguous.
    """
    names: tuple[str, ...] = ()
    for number, line in lines:
        if not line.strip():
            continue
        if "\0" in line:
            at = line.index("\0") + 1
            raise CorpusError(f"{path}:{number}:{at}: a NUL; wanted UTF-8 text: save it as such")
        try:
            cells = tuple(text for _, text in split_line(line))
        except BadCellError as error:
            raise CorpusError(f"{path}:{number}:{error.column}: {error}") from None
        if not names:
            cells = names = tuple(name.strip() for name in cells)
            _check_names(path, number, line, names)
        elif len(cells) != len(names):
            raise _count_error(path, number, line, names)
        yield Row(number, cells)
    if not names:
        raise CorpusError(f"{path}:1:1: the table is empty; wanted a line of column names")


def _check_names(path: Path, number: int, line: str, names: tuple[str, ...]) -> None:
    if len(names) == 1 and (separator := re.search(r"[;\t|]", names[0])):
        at = f"{path}:{number}:{separator.start() + 1}"
        raise CorpusError(f"{at}: columns are separated by {separator[0]!r}; wanted commas")
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        where = _where(path, number, line, index)
        if not name:
            raise CorpusError(
                f"{where}: column {index + 1} of {len(names)} has no name; give it one, or "
                "remove it (pandas: to_csv(..., index=False))"
            )
        if not name.isprintable():
            raise CorpusError(f"{where}: the column name {name!r} has characters that do not show")
        # Names that differ in case only are refused too: some file systems cannot hold both.
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), index)
        if first != index:
            raise CorpusError(
                f"{where}: column {index + 1} is called {name!r}, as is column {first + 1} "
                f"({names[first]!r}); wanted each name once: rename one, or remove it"
            )


def _count_error(path: Path, number: int, line: str, names: tuple[str, ...]) -> CorpusError:
    wanted, count = len(names), len(split_line(line))
    surplus = count > wanted
    advice = (
        'a value with a comma is written in quotes: "Smith, John"'
        if surplus
        else "an empty cell needs its comma, too"
    )
    where = _where(path, number, line, wanted if surplus else count - 1)
    return CorpusError(
        f"{where}: the line has {count} cells, the header {wanted} ({_shown(names)}): {advice}"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
