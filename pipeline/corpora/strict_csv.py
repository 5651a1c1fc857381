"""Read CSV tables strictly: refuse what is ambiguous, with line and column.

The format is RFC 4180, but a row is always one line: an unclosed quote would otherwise swallow the
rows below it. Python's csv module accepts a quote in the middle of a cell, and drops surplus cells
silently.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import CorpusError

__all__ = ["BadCellError", "Row", "Table", "read_table", "split_line"]

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
        starts = [start for start, _ in split_line(self.lines[number - 1])]
        return f"{self.path}:{number}:{starts[index]}"


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
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if "\0" in line:
            at = line.index("\0") + 1
            raise CorpusError(f"{path}:{number}:{at}: a NUL; wanted UTF-8 text: save it as such")
        try:
            rows.append(Row(number, tuple(text for _, text in split_line(line))))
        except BadCellError as error:
            raise CorpusError(f"{path}:{number}:{error.column}: {error}") from None
    if not rows:
        raise CorpusError(f"{path}:1:1: the table is empty; wanted a line of column names")
    header, body = rows[0], tuple(rows[1:])
    table = Table(path, tuple(name.strip() for name in header.cells), body, lines)
    _check_names(table, header)
    for row in body:
        _check_count(table, row)
    return table


def _check_names(table: Table, header: Row) -> None:
    if len(table.names) == 1 and (separator := re.search(r"[;\t|]", table.names[0])):
        at = f"{table.path}:{header.number}:{separator.start() + 1}"
        raise CorpusError(f"{at}: columns are separated by {separator[0]!r}; wanted commas")
    seen: dict[str, int] = {}
    for index, name in enumerate(table.names):
        where = table.where(header, index)
        if not name:
            raise CorpusError(
                f"{where}: column {index + 1} of {len(table.names)} has no name; give it one, or "
                "remove it (pandas: to_csv(..., index=False))"
            )
        if not name.isprintable():
            raise CorpusError(f"{where}: the column name {name!r} has characters that do not show")
        # Names that differ in case only are refused too: some file systems cannot hold both.
        first = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), index)
        if first != index:
            raise CorpusError(
                f"{where}: column {index + 1} is called {name!r}, as is column {first + 1} "
                f"({table.names[first]!r}); wanted each name once: rename one, or remove it"
            )


def _check_count(table: Table, row: Row) -> None:
    wanted = len(table.names)
    if len(row.cells) == wanted:
        return
    surplus = len(row.cells) > wanted
    advice = (
        'a value with a comma is written in quotes: "Smith, John"'
        if surplus
        else "an empty cell needs its comma, too"
    )
    where = table.where(row, wanted if surplus else len(row.cells) - 1)
    raise CorpusError(
        f"{where}: the line has {len(row.cells)} cells, the header {wanted} "
        f"({_shown(table.names)}): {advice}"
    )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
