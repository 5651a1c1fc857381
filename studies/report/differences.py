"""Draw differences from the baseline, with intervals, by arm, by layer or by weight."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from antigram.studies.report.page import Picture

if TYPE_CHECKING:  # matplotlib takes memory
    from matplotlib.axes import Axes

__all__ = ["draw_by_arm", "draw_by_number"]

_DPI = 120
_WIDTH = 5.0  # inches
_MARKERS = "os^DvPX"
_EQUIVALENT = 0.5  # points, either way: the region of practical equivalence


def draw_by_arm(arms: Sequence[tuple[str, float, float | None, float | None]]) -> Picture:
    """Draw the difference of each arm from the baseline, one below the other.

    Args:
        arms: for each arm its name, the mean difference, and the ends of its interval (None if
            they are not known), all in points of accuracy.
    """

    def draw(axis: Axes) -> None:
        axis.axvspan(-_EQUIVALENT, _EQUIVALENT, color="0.9", label="no difference that matters")
        axis.axvline(0, color="0.4", linewidth=1)
        for row, (_, mean, low, high) in enumerate(arms):
            if low is not None and high is not None:
                axis.plot([low, high], [row, row], "-", color="C0", linewidth=2)
            axis.plot([mean], [row], _MARKERS[0], color="C0")
        axis.set_yticks(range(len(arms)), [_short(name) for name, *_ in arms])
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_xlabel("difference from the baseline, points")
        for text in axis.get_yticklabels():
            text.set_parse_math(False)

    said = "; ".join(f"{name} {mean:+.1f}" for name, mean, *_ in arms)
    return Picture(
        png=_png(draw, 0.9 + 0.32 * len(arms)),
        alt=f"Difference of each arm from the baseline in points: {said}",
    )


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
        names = []
        for number, (name, points) in enumerate(lines.items()):
            x = [p[0] for p in points]
            color, marker = f"C{number}", _MARKERS[number % len(_MARKERS)]
            axis.plot(x, [p[1] for p in points], f"-{marker}", color=color, label="line")
            known = [p for p in points if p[2] is not None and p[3] is not None]
            axis.vlines(
                [p[0] for p in known],
                [p[2] or 0.0 for p in known],
                [p[3] or 0.0 for p in known],
                color=color,
                alpha=0.5,
            )
            names.append(name)
        axis.set_xticks(sorted({p[0] for points in lines.values() for p in points}))
        axis.set_xlabel(what)
        axis.set_ylabel("difference, points")
        axis.grid(alpha=0.3)
        for text, name in zip(axis.legend(framealpha=0.6).get_texts(), names, strict=True):
            text.set_parse_math(False)
            text.set_text(_short(name))

    said = "; ".join(
        f"{name}: " + ", ".join(f"{p[0]:g} {p[1]:+.1f}" for p in points)
        for name, points in lines.items()
    )
    return Picture(
        png=_png(draw, 3.0), alt=f"Difference from the baseline in points by {what}. {said}"
    )


def _short(name: str) -> str:
    """Return a name with only printable characters, shortened to 24 of them."""
    plain = "".join(c if c.isprintable() else "?" for c in name)
    return plain if len(plain) <= 24 else f"{plain[:12]}…{plain[-11:]}"


def _png(draw: Callable[[Any], None], height: float) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 9, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # names may be in any script
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.subplots())
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()
