"""Draw figures as rows of panels; each panel is also a separate picture.

A page places the pictures side by side or one below the other, by its width; a file shows all
panels. Importing matplotlib takes memory and time, so it is imported when a figure is drawn.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "MARKERS",
    "Panel",
    "Panels",
    "Picture",
    "draw_panels",
    "draw_picture",
    "panels_file",
    "set_labels",
    "set_title",
    "short",
]

MARKERS = "os^DvPX"  # a number without a common factor with the number of matplotlib's colours
_WIDTH, _HEIGHT, _DPI = 480, 384, 120  # size of a panel in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image embedded in a page.

    Attributes:
        png: bytes of the PNG file.
        alt: alternative text.
    """

    png: bytes
    alt: str

    @property
    def source(self) -> str:
        """Return the image as a data URL."""
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A panel to be drawn.

    Attributes:
        draw: draws the panel on empty axes.
        alt: alternative text of its picture.
    """

    draw: Callable[[Axes], None]
    alt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Panels:
    """Panels that were drawn.

    Attributes:
        png: one image with all panels.
        rows: the panels of each row as separate pictures.
    """

    png: bytes
    rows: Sequence[Sequence[Picture]]


def draw_panels(
    grid: Sequence[Sequence[Panel | None]],
    *,
    finish: Callable[[Sequence[Axes]], None] = lambda _: None,
) -> Panels:
    """Draw rows of panels.

    Args:
        grid: rows of panels; None leaves a gap.
        finish: called with the axes of all panels when they are drawn, to give them common scales.

    Returns:
        The images; equal panels give equal bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    with _drawn(grid, finish) as figure:
        canvas = FigureCanvasAgg(figure)
        png = _png(figure)
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    rows: list[list[Picture]] = [[] for _ in grid]
    for row, panels in enumerate(grid):
        for column, panel in enumerate(panels):
            if panel is not None:
                top, left = row * _HEIGHT, column * _WIDTH
                part = pixels[top : top + _HEIGHT, left : left + _WIDTH]
                one = io.BytesIO()
                imsave(one, part, format="png", metadata={"Software": None})  # type: ignore[dict-item]
                rows[row].append(Picture(png=one.getvalue(), alt=panel.alt))
    return Panels(png=png, rows=rows)


def draw_picture(panel: Panel, *, width: int = _WIDTH, height: int = _HEIGHT) -> Picture:
    """Draw one panel as a picture of its own size; equal panels give equal bytes.

    Args:
        panel: the panel.
        width: width in pixels.
        height: height in pixels.
    """
    with _drawn([[panel]], size=(width, height)) as figure:
        return Picture(png=_png(figure), alt=panel.alt)


def panels_file(grid: Sequence[Sequence[Panel | None]], form: Literal["png", "svg"]) -> bytes:
    """Draw rows of panels as one file; equal panels give equal bytes."""
    if form == "png":
        return draw_panels(grid).png
    with _drawn(grid) as figure:
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


@contextmanager
def _drawn(
    grid: Sequence[Sequence[Panel | None]],
    finish: Callable[[Sequence[Axes]], None] = lambda _: None,
    size: tuple[int, int] = (_WIDTH, _HEIGHT),
) -> Iterator[Figure]:
    """Yield a figure with all panels of a size, within the settings that it must be saved with."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = max(map(len, grid))
    with (
        mpl.rc_context({"font.size": 9, "text.usetex": False, "svg.hashsalt": "antigram"}),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
        inches = (size[0] / _DPI * columns, size[1] / _DPI * len(grid))
        figure = Figure(figsize=inches, dpi=_DPI, layout="constrained")
        # Each panel has its own subfigure, so that no panel extends beyond its part of the image.
        places = figure.subfigures(len(grid), columns, squeeze=False)
        drawn = []
        for row, panels in enumerate(grid):
            for column, panel in enumerate(panels):
                if panel is not None:
                    drawn.append(places[row, column].subplots())
                    panel.draw(drawn[-1])
        finish(drawn)
        yield figure


def set_title(axis: Axes, title: str) -> None:
    """Set the title of a panel; names in it are shown literally, not as formulas."""
    axis.set_title(title).set_parse_math(False)


def set_labels(axis: Axes, labels: Sequence[str], *, beside: bool = False) -> None:
    """Add a legend to a panel whose lines are all labelled ``line``, with their true labels.

    matplotlib would parse labels with ``$`` as formulas, and leave out those that begin with ``_``.

    Args:
        axis: axes of the panel.
        labels: labels of the lines, in the order in which the lines were drawn.
        beside: put the legend to the right of the axes, in small print.
    """
    if beside:
        legend = axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7)
    else:
        legend = axis.legend(framealpha=0.6)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(short(label))


def short(name: str, most: int = 40) -> str:
    """Return a name in printable characters, shortened to ``most`` with its middle left out."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    head = most // 2
    return plain if len(plain) <= most else f"{plain[:head]}…{plain[head + 1 - most :]}"
