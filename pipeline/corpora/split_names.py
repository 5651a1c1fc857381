"""The names that people give to the parts of a split, in lower case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from antigram.pipeline.choices import Split

__all__ = ["SPLIT_NAMES", "splits_of"]

SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def splits_of(names: Sequence[str]) -> list[Split | None]:
    """Return the split that each part of a corpus is called after.

    Args:
        names: the name of each part.

    Returns:
        The split of each part; None for all unless all parts, two or more, are called after splits.
    """
    splits = [SPLIT_NAMES.get(name.lower()) for name in names]
    return splits if len(splits) > 1 and None not in splits else [None] * len(splits)
