"""Divide segments into train, validation and test: a seeded, stratified, group-wise split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import get_args

from antigram.pipeline.choices import Split
from antigram.pipeline.draw import draw

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
    class_counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        class_counts[group][label] += 1
    totals = Counter(labels)
    groups_with = Counter(label for counts in class_counts.values() for label in counts)
    # Number of segments that each split still lacks: of each class, and in all.
    lacks = {label: [share * n for share in fractions] for label, n in totals.items()}
    overall = [share * len(labels) for share in fractions]
    filled = [False] * len(fractions)

    order = sorted(
        class_counts, key=lambda g: (-class_counts[g].total(), draw(seed, purpose, g)[0], g)
    )
    chosen: dict[str, int] = {}
    usable = range(min(len(fractions), len(order)))
    for position, group in enumerate(order):
        counts = class_counts[group]
        empty = [s for s in usable if not filled[s]] if fill_all else ()
        if fill_all and len(order) - position <= len(empty):
            allowed: Sequence[int] = empty
        elif not fill_all and all(groups_with[label] == 1 for label in counts):
            allowed = (0,)
        else:
            allowed = range(len(fractions))
        brought, total = 0, 0
        by_class = [0.0] * len(fractions)
        for label, n in counts.items():
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
        for label, n in counts.items():
            lacks[label][best] -= n
    return [chosen[group] for group in groups]
