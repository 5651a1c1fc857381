"""CSV files for people, who open them in a spreadsheet."""

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

__all__ = ["check_target", "csv_table", "plain_cell", "plain_text"]

Cell = str | float

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def plain_text(name: str | Path) -> str:
    """Return a file's name as text of UTF-8; bytes of it that are none are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def plain_cell(cell: Cell) -> Cell:
    """Return a cell that no spreadsheet takes for a formula: an apostrophe before ``= + - @``.

    Numbers stay as they are, negative ones too.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def check_target(path: Path, option: str) -> None:
    """Refuse a name that no table may have, before the work is done that it is for.

    Raises:
        InputError: its folder is not there, or it names a folder, a device or an audio file.
    """
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option} {path}: there is no folder {path.absolute().parent}")
    if path.suffix.lower() in SUFFIXES or (path.exists() and not path.is_file()):
        raise InputError(f"{option} {path}: wanted a file for the table, such as predictions.csv")


@contextmanager
def csv_table(path: Path, header: Iterable[str]) -> Iterator[Callable[[Iterable[Cell]], None]]:
    """Write a CSV file in UTF-8: complete once the block ends, none if the block raises.

    Args:
        path: of the file.
        header: names of the columns.

    Yields:
        What adds a row; cells of text are guarded by `plain_cell`.
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
            text.detach()  # writes what is left, and leaves the file open
