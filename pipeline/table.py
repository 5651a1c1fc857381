"""Write CSV files that are safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from antigram.pipeline.audio.decoding import SUFFIXES
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.durable import atomic_file

__all__ = ["check_target", "csv_rows", "csv_table", "plain_cell", "plain_text"]

Cell = str | float

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_text(name: str | Path) -> str:
    """Return a file name as UTF-8 text, with bytes that are not UTF-8 escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def plain_cell(cell: Cell) -> Cell:
    """Return a cell that no spreadsheet evaluates as a formula.

    Text that starts with ``= + - @``, a tab or a carriage return gets a leading apostrophe. Numbers
    stay as they are, negative ones too.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def check_target(path: Path, option: str) -> None:
    """Raise if a table cannot be written to ``path``; called before the work that fills it.

    Args:
        path: where the table is to be written.
        option: name of the option that gave the path, for the message.

    Raises:
        InputError: the folder does not exist, or the path names a folder, a device or an audio
            file.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path.suffix.lower() in SUFFIXES or (path.exists() and not path.is_file()):
        raise InputError(f"{option} {path}: wanted a file for the table, such as predictions.csv")


@contextmanager
def csv_table(path: Path, header: Iterable[str]) -> Iterator[Callable[[Iterable[Cell]], None]]:
    """Write a CSV file in UTF-8, atomically: it appears if the block ends without an exception.

    Args:
        path: the file to write.
        header: names of the columns.

    Yields:
        A function that appends one row; its cells go through `plain_cell`.
    """
    with atomic_file(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        rows = csv.writer(text)

        def add(cells: Iterable[Cell]) -> None:
            rows.writerow([plain_cell(cell) for cell in cells])

        try:
            add(header)
            yield add
        finally:
            text.detach()  # flushes the buffer and leaves the file open


@contextmanager
def csv_rows(path: Path, header: Iterable[str]) -> Iterator[Callable[[Iterable[Cell]], None]]:
    """Write a CSV file in UTF-8 row by row, for tables that are read while they grow.

    Args:
        path: the file to write; an existing file is replaced.
        header: names of the columns.

    Yields:
        A function that appends one row, which is then in the file; its cells go through
        `plain_cell`.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)

        def add(cells: Iterable[Cell]) -> None:
            rows.writerow([plain_cell(cell) for cell in cells])
            file.flush()

        add(header)
        yield add
