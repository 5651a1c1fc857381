"""Divide segments into train, validation and test: a seeded, stratified, group-wise split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.choices import Split
from antigram.pipeline.draw import draw
from antigram.pipeline.storage.text_index import coded, numbers_of

__all__ = ["FRACTIONS", "SPLITS", "assign"]

SPLITS: tuple[str, ...] = get_args(Split)
FRACTIONS = (0.7, 0.2, 0.1)


def assign(
    groups: Sequence[str],
    labels: Sequence[str],
    *,
    seed: int,
    fill_all: bool = False,
    fractions: Sequence[float] = FRACTIONS,
    purpose: str = "split",
) -> list[int]:
    """Assign each segment to a split, 70/20/10 of the segments as far as the groups allow.

    Groups are assigned one by one, large groups first, groups of equal size in an order drawn from
    the seed. A group goes to the split that lacks most segments of the group's classes, if that
    split lacks at least as many as the group has. Otherwise it goes to the split that lacks most
    segments in total, so that rounding errors of many small classes do not add up. A group whose
    classes occur in no other group goes to train.

    Args:
        groups: group of each segment; all segments of a group go to the same split.
        labels: class of each segment, to stratify by.
        seed: seed of the order of groups of equal size.
        fill_all: give each split at least one group, as needed to split by speaker. With two
            groups, validation gets one group, and test stays empty.
        fractions: share of the segments that each split aims at.
        purpose: name of the draw: with another name, the same seed gives another order.

    Returns:
        For each segment, 0 (train), 1 (validation) or 2 (test): the index of a fraction.
    """
    counted = _Counted.of(groups, labels)
    # Number of segments that each split still lacks: of each class, and in all.
    lacks = [[share * n for share in fractions] for n in counted.of_class]
    overall = [share * len(labels) for share in fractions]
    filled = [False] * len(fractions)

    order = _order(groups, counted, seed, purpose)
    chosen = np.zeros(len(order), np.int8)
    usable = range(min(len(fractions), len(order)))
    for position, group in enumerate(order):
        counts = counted.classes(group)
        empty = [s for s in usable if not filled[s]] if fill_all else ()
        if fill_all and len(order) - position <= len(empty):
            allowed: Sequence[int] = empty
        elif not fill_all and all(counted.groups_with[label] == 1 for label, _ in counts):
            allowed = (0,)
        else:
            allowed = range(len(fractions))
        brought, total = 0, 0
        by_class = [0.0] * len(fractions)
        for label, n in counts:
            brought += n * n
            total += n
            for split in allowed:
                by_class[split] += n * lacks[label][split]
        best, most = 0, (-1.0, 0.0)
        for split in allowed:
            class_need = round(by_class[split], 9)
            need = class_need if class_need >= brought else 0.0, round(overall[split], 9)
            if need > most:
                best, most = split, need
        chosen[group] = best
        filled[best] = True
        overall[best] -= total
        for label, n in counts:
            lacks[label][best] -= n
    splits: list[int] = chosen[counted.group_of].tolist()
    return splits


@dataclass(frozen=True, slots=True)
class _Counted:
    """Segments of each class in each group; groups and classes are numbered from 0.

    There may be as many groups as segments, of which there may be tens of millions.

    Attributes:
        group_of: ``(segment,)`` number of its group.
        first: ``(group,)`` index of its first segment.
        totals: ``(group,)`` number of segments.
        of_class: number of segments of each class.
        groups_with: number of groups with each class.
        starts: first cell of each group, and the number of cells.
        cells: class, and number of its segments, of each class in each group; in a group, in the
            order in which the classes occur.
    """

    group_of: NDArray[np.signedinteger]
    first: NDArray[np.int64]
    totals: NDArray[np.int64]
    of_class: list[int]
    groups_with: list[int]
    starts: list[int]
    cells: tuple[list[int], list[int]]

    @classmethod
    def of(cls, groups: Sequence[str], labels: Sequence[str]) -> _Counted:
        """Count segments; ``groups`` and ``labels`` have an entry for each."""
        if len(groups) != len(labels):
            raise ValueError(f"{len(groups)} groups and {len(labels)} labels, wanted one of each")
        first, group_of = np.unique(
            numbers_of(groups, len(groups)), return_index=True, return_inverse=True
        )[1:]
        of_segment, known = coded(labels, len(labels))
        width = max(1, len(known))
        cells, seen, counts = np.unique(
            group_of * width + of_segment, return_index=True, return_counts=True
        )
        order = np.lexsort((seen, cells // width))
        cells, counts = cells[order], counts[order]
        starts = np.searchsorted(cells // width, np.arange(len(first) + 1))
        return cls(
            group_of.astype(np.int32) if len(first) < 1 << 31 else group_of,
            first,
            np.bincount(group_of, minlength=len(first)),
            np.bincount(of_segment, minlength=len(known)).tolist(),
            np.bincount(cells % width, minlength=len(known)).tolist(),
            starts.tolist(),
            ((cells % width).tolist(), counts.tolist()),
        )

    def classes(self, group: int) -> list[tuple[int, int]]:
        """Return the classes of a group, each with its number of segments."""
        own = slice(self.starts[group], self.starts[group + 1])
        return list(zip(self.cells[0][own], self.cells[1][own], strict=True))


def _order(groups: Sequence[str], counted: _Counted, seed: int, purpose: str) -> list[int]:
    """Return the groups by decreasing size; of equal size, in the order of their draws."""
    drawn = (draw(seed, purpose, groups[row])[0] for row in counted.first.tolist())
    draws = np.fromiter(drawn, np.uint64, len(counted.first))
    order = np.lexsort((draws, -counted.totals))
    alike = (np.diff(counted.totals[order]) == 0) & (draws[order][1:] == draws[order][:-1])
    numbers: list[int] = order.tolist()
    if alike.any():  # then names decide; the order of others is kept, as sorting is stable
        names = [groups[row] for row in counted.first.tolist()]
        numbers.sort(key=lambda group: names[group])
        numbers.sort(key=lambda group: (-counted.totals[group], draws[group]))
    return numbers
