"""What an accuracy is worth: that of guessing, of the most frequent class, and a binomial test.

Imports no torch, so that reports and the command line may use it.
"""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
from numpy.typing import NDArray

__all__ = ["above_chance", "chance", "majority"]


def chance(classes: Sized) -> float:
    """Accuracy expected of a guess among these classes, all drawn alike.

    Raises:
        ValueError: there is no class.
    """
    if not len(classes):
        raise ValueError("chance: no classes, wanted at least one")
    return 1 / len(classes)


def majority(train_labels: NDArray[np.integer], split_labels: NDArray[np.integer]) -> float | None:
    """Accuracy on a split of always answering the most frequent class of the training split.

    Args:
        train_labels: ``(segment,)`` classes of the training split; below 0: not known, left out.
        split_labels: ``(segment,)`` classes of the split that is scored, likewise.

    Returns:
        A share in [0, 1]; None if either has no known class. Of equally frequent classes the
        first is answered.
    """
    learned = train_labels[train_labels >= 0]
    asked = split_labels[split_labels >= 0]
    if not learned.size or not asked.size:
        return None
    return float(np.mean(asked == np.bincount(learned).argmax()))


def above_chance(correct: int, n: int, p0: float) -> float:
    """How likely ``correct`` or more of ``n`` answers are right where each is with probability p0.

    Args:
        correct: correct answers, 0 to ``n``.
        n: independent answers: recordings rather than segments, as segments of one recording are
            answered alike.
        p0: probability of a correct answer without knowledge: `chance`, or `majority`.

    Returns:
        The p-value of the exact one-sided binomial test; 1 without answers.
    """
    if not correct:
        return 1.0
    from scipy.special import bdtrc  # takes a while to import, and most commands need no test

    return float(bdtrc(correct - 1, n, p0))
