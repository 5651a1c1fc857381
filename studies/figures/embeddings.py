"""Segments as points: the first two principal components of a network's maps, by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.studies.figures.panels import (
    MARKERS,
    Panel,
    Panels,
    draw_panels,
    set_labels,
    set_title,
    short,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Components", "draw_embeddings", "embedding_panels", "principal_components"]

_SHOWN = 12  # classes with a marker of their own; more would not be told apart


class Components(NamedTuple):
    """Principal components of segments.

    Attributes:
        points: ``(segment, 2)`` float64 scores on the first two components.
        shares: share of the variance that each of the two explains; 0 without any variance.
    """

    points: NDArray[np.float64]
    shares: tuple[float, float]


def principal_components(embeddings: NDArray[np.floating]) -> Components:
    """Project embeddings onto their first two principal components.

    The sign of a component is free; it is chosen so that its largest loading is positive.

    Args:
        embeddings: ``(segment, feature)``; centred here, not scaled.
    """
    x = embeddings.astype(np.float64)
    x -= x.mean(0)
    left, values, axes = np.linalg.svd(x, full_matrices=False)
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
    scores = np.zeros((len(x), 2))
    scores[:, : min(2, len(values))] = (left * values * signs)[:, :2]
    total = float((values**2).sum())
    first, second = [*(values**2 / total if total > 0 else 0 * values).tolist(), 0.0, 0.0][:2]
    return Components(scores, (first, second))


def draw_embeddings(
    embeddings: NDArray[np.floating], labels: Mapping[str, Sequence[str]]
) -> Panels:
    """Draw the principal components of segments, once for each label: see `embedding_panels`."""
    return draw_panels([embedding_panels(embeddings, labels)])


def embedding_panels(
    embeddings: NDArray[np.floating], labels: Mapping[str, Sequence[str]], title: str = ""
) -> list[Panel | None]:
    """Return panels with the same points, marked by the classes of one label each.

    Classes differ by marker as well as by colour. Only the most frequent twelve classes have a
    marker of their own.

    Args:
        embeddings: ``(segment, feature)``.
        labels: name of a label -> class of each segment; an empty name where it is not known.
        title: put before the title of each panel, such as the name of a network.
    """
    components = principal_components(embeddings)
    before = f"{short(title)}: " if title else ""
    return [
        Panel(
            draw=partial(
                _draw, title=f"{before}by {short(label)}", components=components, classes=classes
            ),
            alt=f"{before}first two principal components of segments, marked by {label}",
        )
        for label, classes in labels.items()
    ]


def _draw(axis: Axes, *, title: str, components: Components, classes: Sequence[str]) -> None:
    points, shares = components
    names, counts = np.unique([name for name in classes if name], return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")[:_SHOWN]]
    shown = sorted(frequent.tolist())
    of_row = np.array(classes)
    others = points[~np.isin(of_row, shown)]
    texts = []
    if len(others):
        axis.plot(*others.T, ".", color="0.7", markersize=4, label="line")
        texts.append("others")
    for number, name in enumerate(shown):
        (line,) = axis.plot(*points[of_row == name].T, label="line", linestyle="none")
        line.set(marker=MARKERS[number % len(MARKERS)], markersize=5, alpha=0.8)
        line.set(color=f"C{number % 10}", markeredgecolor="white", markeredgewidth=0.4)
        texts.append(short(name, 16))
    axis.set_xlabel(f"component 1 ({shares[0]:.0%} of the variance)")
    axis.set_ylabel(f"component 2 ({shares[1]:.0%})")
    axis.grid(alpha=0.3)
    set_title(axis, title)
    set_labels(axis, texts, beside=True)
