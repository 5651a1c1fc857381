"""Draw losses and accuracy over the epochs from the entries of metrics.jsonl.

Lines differ by dash and marker as well as by colour. Names of runs and teachers are drawn
literally, not as formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from antigram.studies.figures.panels import (
    MARKERS,
    Panel,
    Panels,
    draw_panels,
    set_labels,
    set_title,
    short,
)

if TYPE_CHECKING:  # matplotlib takes memory, and a training imports this module
    from matplotlib.axes import Axes

__all__ = ["SPLITS", "Curves", "Entry", "at_path", "best_epoch", "draw_curves", "teachers"]

Curves = Panels
Entry = Mapping[str, Any]
SPLITS = {"train": "-", "validation": "--"}  # split -> line style
_TITLES = ("task loss", "AT loss", "accuracy")


def draw_curves(
    runs: Mapping[str, Sequence[Entry]], best: Mapping[str, int | None] | None = None
) -> Curves:
    """Draw task loss, AT loss (of runs that have one) and accuracy over the epochs.

    Panels with the same title have the same scale in all runs.

    Args:
        runs: name of a run -> entries of its metrics.jsonl, at least one.
        best: name of a run -> epoch to mark; default: the epoch of the least validation loss.

    Returns:
        A row of panels for each run; equal entries give equal bytes.

    References:
        Guizzo, Weyde and Tarroni (2021), figure 7.
    """
    lines = {name: _lines(entries) for name, entries in runs.items()}
    titles = [title for title in _TITLES if any(title in panels for panels in lines.values())]
    grid: list[list[Panel | None]] = []
    for name, entries in runs.items():
        marked = (best or {}).get(name) or best_epoch(entries)
        row: list[Panel | None] = []
        for title in titles:
            if title not in lines[name]:
                row.append(None)
                continue
            text = title if len(runs) == 1 else f"{short(name)}: {title}"
            draw = partial(
                _draw, title=text, entries=entries, lines=lines[name][title], best=marked
            )
            row.append(Panel(draw=draw, alt=f"Curves of {text} over the epochs"))
        grid.append(row)
    return draw_panels(grid, finish=partial(_align, titles=titles))


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
            line.set(marker=MARKERS[number % len(MARKERS)], markersize=3.5)
            line.set_markerfacecolor("white" if split == "validation" else f"C{number}")
            labels.append(" ".join([*keys[1:], split]))
    if best is not None:
        axis.axvline(best, color="0.5", linestyle=":", label="line")
        labels.append(f"best epoch: {best}")
    axis.set_xlabel("epoch")
    set_title(axis, title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    set_labels(axis, labels)


def _align(axes: Sequence[Axes], titles: Sequence[str]) -> None:
    """Give panels with the same title the same scale."""
    for title in titles:
        alike = [axis for axis in axes if axis.get_title().endswith(title)]
        top = 1.02 if title == "accuracy" else 1.03 * max(axis.get_ylim()[1] for axis in alike)
        for axis in alike:
            axis.set_ylim(0, top)


def _finite(value: object) -> float:
    """Return a number to draw, or NaN, which is not drawn, for other values or above 1e100."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else math.nan
