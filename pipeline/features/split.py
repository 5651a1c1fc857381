"""Divide clips into train, validation and test: seeded, stratified, groups never parted."""

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
    groups: Sequence[str], labels: Sequence[str], *, seed: int, fill_all: bool = False
) -> list[int]:
    """Assign each clip to a split, 70/20/10 of the clips as far as the groups allow.

    Groups are dealt one by one, large ones first and equal ones in an order drawn from the seed,
    each to the split that lacks most clips of the group's classes, as long as one lacks a whole
    group; what is left over goes to the split that lacks most clips of all classes, so that
    rounding in many small classes does not add up. A class that only one group has goes to train,
    where it can be learned.

    Args:
        groups: the group of each clip; a group goes to one split as a whole.
        labels: the class of each clip, to stratify by.
        seed: decides the order of equal groups.
        fill_all: give each split at least one group, as a split by speaker needs; of two groups
            one is validation, and test stays empty.

    Returns:
        For each clip 0 (train), 1 (validation) or 2 (test).
    """
    content: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        content[group][label] += 1
    totals = Counter(labels)
    owners = Counter(label for counts in content.values() for label in counts)
    # Clips of each class, and of all, that each split still lacks.
    lacks = {label: [share * n for share in FRACTIONS] for label, n in totals.items()}
    overall = [share * len(labels) for share in FRACTIONS]
    filled = [False] * len(SPLITS)

    order = sorted(content, key=lambda g: (-content[g].total(), draw(seed, "split", g)[0], g))
    chosen: dict[str, int] = {}
    usable = range(min(len(SPLITS), len(order)))
    for place, group in enumerate(order):
        counts = content[group]
        empty = [s for s in usable if not filled[s]] if fill_all else ()
        if fill_all and len(order) - place <= len(empty):
            allowed: Sequence[int] = empty
        elif not fill_all and all(owners[label] == 1 for label in counts):
            allowed = (0,)
        else:
            allowed = (0, 1, 2)
        brought, total = 0, 0
        by_class = [0.0] * len(SPLITS)
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
