"""Draw accuracies and differences with intervals, by arm, by layer or by weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from antigram.studies.figures.panels import (
    MARKERS,
    Panel,
    Picture,
    draw_picture,
    set_labels,
    short,
)

if TYPE_CHECKING:  # matplotlib takes memory
    from matplotlib.axes import Axes

__all__ = ["draw_by_arm", "draw_by_number", "draw_probes"]

_WIDTH, _HEIGHT = 600, 360  # pixels
_ROW, _BESIDE = 38, 108  # pixels: of an arm, and above and below all arms
_LONGEST = 24  # characters of a name
_EQUIVALENT = 0.5  # points, either way: the region of practical equivalence

Drawn = tuple[str, float, float | None, float | None]


def draw_by_arm(arms: Sequence[Drawn]) -> Picture:
    """Draw the difference of each arm from the baseline, one below the other.

    Args:
        arms: for each arm its name, the mean difference, and the ends of its interval (None if
            they are not known), all in points of accuracy.
    """

    def draw(axis: Axes) -> None:
        axis.axvspan(-_EQUIVALENT, _EQUIVALENT, color="0.9", label="no difference that matters")
        axis.axvline(0, color="0.4", linewidth=1)
        _rows(axis, arms, "difference from the baseline, points")

    said = "; ".join(f"{name} {mean:+.1f}" for name, mean, *_ in arms)
    return _by_arm(
        Panel(draw=draw, alt=f"Difference of each arm from the baseline in points: {said}"), arms
    )


def draw_probes(arms: Sequence[Drawn], label: str) -> Picture:
    """Draw how well a probe reads a label from the networks of each arm, one below the other.

    Args:
        arms: for each arm its name, the mean accuracy of the probe, and the ends of its interval
            (None if they are not known), all in per cent. A line marks the first arm's mean.
        label: the label.
    """

    def draw(axis: Axes) -> None:
        axis.axvline(arms[0][1], color="0.4", linewidth=1)
        _rows(axis, arms, f"accuracy of a probe of {short(label, _LONGEST)}, %")
        axis.xaxis.label.set_parse_math(False)

    said = "; ".join(f"{name} {mean:.1f}" for name, mean, *_ in arms)
    alt = f"Accuracy of a probe of {label} by arm in per cent: {said}"
    return _by_arm(Panel(draw=draw, alt=alt), arms)


def draw_by_number(
    lines: Mapping[str, Sequence[tuple[float, float, float | None, float | None]]], what: str
) -> Picture:
    """Draw the difference from the baseline over a number such as the layer.

    Args:
        lines: name of an arm -> for each number the mean difference and the ends of its interval
            (None if they are not known), in points of accuracy.
        what: name of the number, for the axis.
    """

    def draw(axis: Axes) -> None:
        axis.axhline(0, color="0.4", linewidth=1)
        for number, points in enumerate(lines.values()):
            x = [p[0] for p in points]
            color, marker = f"C{number}", MARKERS[number % len(MARKERS)]
            axis.plot(x, [p[1] for p in points], f"-{marker}", color=color, label="line")
            known = [p for p in points if p[2] is not None and p[3] is not None]
            axis.vlines(
                [p[0] for p in known],
                [p[2] or 0.0 for p in known],
                [p[3] or 0.0 for p in known],
                color=color,
                alpha=0.5,
            )
        axis.set_xticks(sorted({p[0] for points in lines.values() for p in points}))
        axis.set_xlabel(what)
        axis.set_ylabel("difference, points")
        axis.grid(alpha=0.3)
        set_labels(axis, [short(name, _LONGEST) for name in lines])

    said = "; ".join(
        f"{name}: " + ", ".join(f"{p[0]:g} {p[1]:+.1f}" for p in points)
        for name, points in lines.items()
    )
    panel = Panel(draw=draw, alt=f"Difference from the baseline in points by {what}. {said}")
    return draw_picture(panel, width=_WIDTH, height=_HEIGHT)


def _by_arm(panel: Panel, arms: Sequence[Drawn]) -> Picture:
    return draw_picture(panel, width=_WIDTH, height=_BESIDE + _ROW * len(arms))


def _rows(axis: Axes, arms: Sequence[Drawn], what: str) -> None:
    """Draw the mean and the interval of each arm in a row of its own."""
    for row, (_, mean, low, high) in enumerate(arms):
        if low is not None and high is not None:
            axis.plot([low, high], [row, row], "-", color="C0", linewidth=2)
        axis.plot([mean], [row], MARKERS[0], color="C0")
    axis.set_yticks(range(len(arms)), [short(name, _LONGEST) for name, *_ in arms])
    axis.set_ylim(len(arms) - 0.5, -0.5)
    axis.set_xlabel(what)
    for text in axis.get_yticklabels():
        text.set_parse_math(False)
