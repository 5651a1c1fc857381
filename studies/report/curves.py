"""Draw losses and accuracy over the epochs from the entries of metrics.jsonl.

Lines differ by dash and marker as well as by colour. Names of runs and teachers are drawn
literally, not as formulas.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from antigram.studies.report.page import Picture

if TYPE_CHECKING:  # matplotlib takes memory, and a training imports this module
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SPLITS", "Curves", "Entry", "at_path", "best_epoch", "draw_curves", "teachers"]

Entry = Mapping[str, Any]
SPLITS = {"train": "-", "validation": "--"}  # split -> line style
_TITLES = ("task loss", "AT loss", "accuracy")
_MARKERS = "os^DvPX"  # a number without a common factor with the number of matplotlib's colours
_WIDTH, _HEIGHT, _DPI = 480, 384, 120  # size of a panel in pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Curves of some runs.

    Attributes:
        png: one image with a row of panels for each run.
        rows: the panels of each run as separate pictures, which a page may arrange by its width.
    """

    png: bytes
    rows: Sequence[Sequence[Picture]]


def draw_curves(
    runs: Mapping[str, Sequence[Entry]], best: Mapping[str, int | None] | None = None
) -> Curves:
    """Draw task loss, AT loss (of runs that have one) and accuracy over the epochs.

    Panels with the same title have the same scale in all runs.

    Args:
        runs: name of a run -> entries of its metrics.jsonl, at least one.
        best: name of a run -> epoch to mark; default: the epoch of the least validation loss.

    Returns:
        The images; equal entries give equal bytes.

    References:
        Guizzo, Weyde and Tarroni (2021), figure 7.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imsave

    lines = {name: _lines(entries) for name, entries in runs.items()}
    titles = [title for title in _TITLES if any(title in panels for panels in lines.values())]
    size = (_WIDTH / _DPI * len(titles), _HEIGHT / _DPI * len(runs))
    with mpl.rc_context({"font.size": 9, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        # Each panel has its own subfigure, so that no panel extends beyond its part of the image.
        grid = figure.subfigures(len(runs), len(titles), squeeze=False)
        shown: dict[tuple[int, int], str] = {}
        for row, (name, entries) in enumerate(runs.items()):
            marked = (best or {}).get(name) or best_epoch(entries)
            for column, title in enumerate(titles):
                if title in lines[name]:
                    text = title if len(runs) == 1 else f"{_short(name)}: {title}"
                    axis = grid[row, column].subplots()
                    _draw(axis, text, entries, lines[name][title], marked)
                    shown[row, column] = text
        _align(figure, titles)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
        pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    rows: list[list[Picture]] = [[] for _ in runs]
    for (row, column), text in shown.items():
        top, left = row * _HEIGHT, column * _WIDTH
        panel = io.BytesIO()
        part = pixels[top : top + _HEIGHT, left : left + _WIDTH]
        imsave(panel, part, format="png", metadata={"Software": None})  # type: ignore[dict-item]
        alt = f"Curves of {text} over the epochs"
        rows[row].append(Picture(png=panel.getvalue(), alt=alt))
    return Curves(png=file.getvalue(), rows=rows)


def best_epoch(entries: Sequence[Entry]) -> int | None:
    """Return the epoch of the least validation loss; None if no loss is known."""
    losses = {entry["epoch"]: _finite(at_path(entry, "validation", "loss")) for entry in entries}
    known = [epoch for epoch, loss in losses.items() if math.isfinite(loss)]
    return min(known, key=losses.__getitem__, default=None)


def teachers(entries: Sequence[Entry]) -> list[str]:
    """Return the names of teachers whose AT losses the entries list separately."""
    names = [name for entry in entries for name in at_path(entry, "train", "at_by_source") or ()]
    return list(dict.fromkeys(names))


def at_path(value: Any, *keys: str) -> Any:  # noqa: ANN401 - what JSON holds
    """Return the value in nested objects under these keys; None if a key is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _lines(entries: Sequence[Entry]) -> dict[str, list[tuple[str, ...]]]:
    """Return the keys of the lines of each panel."""
    lines: dict[str, list[tuple[str, ...]]] = {"task loss": [("ce",)], "accuracy": [("accuracy",)]}
    if any(at_path(entry, "train", "at") for entry in entries):  # arms without AT have no AT loss
        by_teacher = [("at_by_source", name) for name in teachers(entries)]
        lines["AT loss"] = [*by_teacher] or [("at",)]
    return lines


def _draw(
    axis: Axes,
    title: str,
    entries: Sequence[Entry],
    lines: Sequence[tuple[str, ...]],
    best: int | None,
) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = [entry["epoch"] for entry in entries]
    labels = []
    for number, keys in enumerate(lines):
        for split, dash in SPLITS.items():
            values = [_finite(at_path(entry, split, *keys)) for entry in entries]
            (line,) = axis.plot(epochs, values, dash, color=f"C{number}", label="line")
            line.set(marker=_MARKERS[number % len(_MARKERS)], markersize=3.5)
            line.set_markerfacecolor("white" if split == "validation" else f"C{number}")
            labels.append(" ".join([*keys[1:], split]))
    if best is not None:
        axis.axvline(best, color="0.5", linestyle=":", label="line")
        labels.append(f"best epoch: {best}")
    axis.set_xlabel("epoch")
    axis.set_title(title).set_parse_math(False)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    # matplotlib would parse labels with "$" as formulas and omit those that begin with "_".
    for text, label in zip(axis.legend(framealpha=0.6).get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_short(label))


def _align(figure: Figure, titles: Sequence[str]) -> None:
    """Give panels with the same title the same scale."""
    for title in titles:
        alike = [axis for axis in figure.axes if axis.get_title().endswith(title)]
        top = 1.02 if title == "accuracy" else 1.03 * max(axis.get_ylim()[1] for axis in alike)
        for axis in alike:
            axis.set_ylim(0, top)


def _short(name: str) -> str:
    """Return a name with only printable characters, shortened to 40 of them."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= 40 else f"{plain[:20]}…{plain[-19:]}"


def _finite(value: object) -> float:
    """Return a number to draw, or NaN, which is not drawn, for other values or above 1e100."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else math.nan
