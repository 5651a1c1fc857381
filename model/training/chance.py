"""Baselines of an accuracy: guessing, the most frequent class, and a binomial test against them.

This module does not import torch, so that reports and the command line can use it.
"""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
from numpy.typing import NDArray

__all__ = ["above_chance", "chance", "majority"]


def chance(classes: Sized) -> float:
    """Return the expected accuracy of a uniform guess among these classes.

    Raises:
        ValueError: there is no class.
    """
    if not len(classes):
        raise ValueError("chance: no classes, wanted at least one")
    return 1 / len(classes)


def majority(train_labels: NDArray[np.integer], split_labels: NDArray[np.integer]) -> float | None:
    """Return the accuracy of always predicting the most frequent class of the training split.

    If several classes are equally frequent, the first of them is predicted.

    Args:
        train_labels: ``(segment,)`` classes of the training split; negative numbers are unknown
            classes, which do not count.
        split_labels: ``(segment,)`` classes of the split that is scored, in the same form.

    Returns:
        A share in [0, 1]; None if either split has no known class.
    """
    train_known = train_labels[train_labels >= 0]
    split_known = split_labels[split_labels >= 0]
    if not train_known.size or not split_known.size:
        return None
    return float(np.mean(split_known == np.bincount(train_known).argmax()))


def above_chance(correct: int, n: int, p0: float) -> float:
    """Test whether an accuracy is above chance, by the exact one-sided binomial test.

    Args:
        correct: number of correct predictions, 0 to ``n``.
        n: number of independent predictions. Count recordings rather than segments, as predictions
            for segments of one recording depend on each other.
        p0: probability of a correct prediction without knowledge: `chance`, or `majority`.

    Returns:
        The p-value: the probability of ``correct`` or more correct predictions if each is correct
        with probability ``p0``; 1 without predictions.
    """
    if not correct:
        return 1.0
    from scipy.special import bdtrc  # imported late: it is slow, and most commands do not need it

    return float(bdtrc(correct - 1, n, p0))
