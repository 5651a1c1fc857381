"""Write a report as one HTML file, without scripts, for offline reading, phones and paper.

All text is escaped, as names of runs and classes are user input. The template is ``page.html``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antigram.pipeline.storage.durable import write_text
from antigram.studies.figures.panels import Picture

__all__ = [
    "Cell",
    "Confusion",
    "Figure",
    "Fold",
    "Page",
    "Part",
    "Picture",
    "Sound",
    "Sounds",
    "Table",
    "page_html",
    "write_page",
]

Cell = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of a report.

    Attributes:
        caption: description of the table.
        columns: headings of the columns.
        rows: one cell for each column; the first cell names the row.
    """

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Return for each column whether it holds numbers only; such columns are right-aligned."""
        return [all(map(_is_number, cells)) for cells in zip(*self.rows, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """A confusion matrix, shaded by the fraction of its row.

    Attributes:
        caption: description of what was classified.
        classes: names of the classes.
        counts: number of segments, ``(true class, predicted class)``.
    """

    kind: ClassVar = "confusion"
    caption: str
    classes: Sequence[str]
    counts: Sequence[Sequence[object]]

    def rows(self) -> Iterator[tuple[str, list[tuple[object, float]]]]:
        """Yield the name of each true class, with count and fraction of each predicted class."""
        for name, row in zip(self.classes, self.counts, strict=True):
            yield name, [(count, _share(count, row)) for count in row]

    def recalls(self) -> Iterator[tuple[str, int, float | None]]:
        """Yield each class's name, number of examples and recall (None without examples)."""
        for i, (name, row) in enumerate(zip(self.classes, self.counts, strict=True)):
            total = int(sum(map(_number, row)))
            yield name, total, _share(row[i], row) if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Pictures with a common caption.

    Attributes:
        caption: description of the pictures.
        rows: rows of pictures, which are placed side by side if the screen is wide enough.
    """

    kind: ClassVar = "figure"
    caption: str
    rows: Sequence[Sequence[Picture]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A recording embedded in the page, to listen to.

    Attributes:
        text: what is heard.
        wav: bytes of the WAV file; empty if the recording is missing, and only the text is shown.
    """

    text: str
    wav: bytes

    @property
    def source(self) -> str:
        """Return the recording as a data URL."""
        return f"data:audio/wav;base64,{base64.b64encode(self.wav).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sounds:
    """Recordings to listen to.

    Attributes:
        caption: description of the recordings.
        text: a paragraph about them; empty: none.
        sounds: the recordings.
    """

    kind: ClassVar = "sounds"
    caption: str
    text: str = ""
    sounds: Sequence[Sound] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Parts that are collapsed behind a summary line."""

    kind: ClassVar = "fold"
    summary: str
    parts: Sequence[Table | Confusion | Figure | Sounds]


Part = Table | Confusion | Figure | Sounds | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: heading of the page.
        question: the question of the report, or what was run.
        answer: the answer in one sentence.
        text: further paragraphs.
        parts: tables and figures, the most important first.
    """

    title: str
    question: str = ""
    answer: str = ""
    text: Sequence[str] = ()
    parts: Sequence[Part] = ()


def page_html(page: Page) -> str:
    """Return the page as HTML text; equal pages give equal text."""
    import jinja2  # slow to import, and a training imports this module

    templates = jinja2.PackageLoader("antigram.studies.report", ".")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(page=page)


def write_page(path: Path, page: Page) -> None:
    """Write a page to an HTML file atomically."""
    write_text(path, page_html(page))


def _is_number(cell: Cell) -> bool:
    if not isinstance(cell, str):
        return True
    try:
        float(cell.removesuffix("%"))
    except ValueError:
        return cell in ("", "-")
    return True


def _share(count: object, row: Sequence[object]) -> float:
    """Return the fraction of a row's sum; 0 if the count is not a number."""
    total = sum(map(_number, row))
    return round(_number(count) / total, 3) if total > 0 else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else 0
