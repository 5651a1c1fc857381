"""The page of a report: one HTML file that opens offline, on a phone and on paper. No scripts.

All text is escaped, as names of runs and classes are other people's; the template is ``page.html``.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from antigram.pipeline.storage.durable import write_text

__all__ = [
    "Cell",
    "Confusion",
    "Figure",
    "Fold",
    "Page",
    "Part",
    "Picture",
    "Table",
    "page_html",
    "write_page",
]

Cell = str | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table.

    Attributes:
        caption: what it shows.
        columns: their headings.
        rows: cells of each, as many as there are columns; the first names the row.
    """

    kind: ClassVar = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    @property
    def numeric(self) -> list[bool]:
        """Whether a column holds numbers alone, by column: they are aligned at the right."""
        return [all(map(_is_number, cells)) for cells in zip(*self.rows, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """A confusion matrix, shaded by the share of each row.

    Attributes:
        caption: what was classified.
        classes: names.
        counts: ``(true class, predicted class)``.
    """

    kind: ClassVar = "confusion"
    caption: str
    classes: Sequence[str]
    counts: Sequence[Sequence[object]]

    def rows(self) -> Iterator[tuple[str, list[tuple[object, float]]]]:
        """Name of each true class, and the count and share of each prediction."""
        for name, row in zip(self.classes, self.counts, strict=True):
            yield name, [(count, _share(count, row)) for count in row]

    def recalls(self) -> Iterator[tuple[str, int, float | None]]:
        """Yield each class's name, number of examples and recall (None without examples)."""
        for i, (name, row) in enumerate(zip(self.classes, self.counts, strict=True)):
            total = int(sum(map(_number, row)))
            yield name, total, _share(row[i], row) if total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image, held by the page itself.

    Attributes:
        png: the file's bytes.
        alt: what it shows, for those who do not see it.
    """

    png: bytes
    alt: str

    @property
    def source(self) -> str:
        """The image as a URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Pictures.

    Attributes:
        caption: what they show.
        rows: of pictures, which stand side by side where the screen is wide enough.
    """

    kind: ClassVar = "figure"
    caption: str
    rows: Sequence[Sequence[Picture]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """Parts that are folded away behind a line."""

    kind: ClassVar = "fold"
    summary: str
    parts: Sequence[Table | Confusion | Figure]


Part = Table | Confusion | Figure | Fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A report.

    Attributes:
        title: heading.
        question: what was asked, or what was run.
        answer: in one sentence.
        text: further paragraphs.
        parts: tables and figures, those that matter first.
    """

    title: str
    question: str = ""
    answer: str = ""
    text: Sequence[str] = ()
    parts: Sequence[Part] = ()


def page_html(page: Page) -> str:
    """The page as HTML text: the same page is the same text."""
    import jinja2  # takes a while, and a training imports this before it begins

    templates = jinja2.PackageLoader("antigram.studies.report", ".")
    environment = jinja2.Environment(
        loader=templates, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(page=page)


def write_page(path: Path, page: Page) -> None:
    """Write a page to an HTML file, which is written completely or not at all."""
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
    """Of a row's sum; 0 for what is no number."""
    total = sum(map(_number, row))
    return round(_number(count) / total, 3) if total > 0 else 0


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else 0
