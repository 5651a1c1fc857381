"""Weights of the classes in the cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["balanced_weights", "weights_note"]


def balanced_weights(labels: NDArray[np.integer], classes: int) -> NDArray[np.float32]:
    """Return weights under which every class has the same share of the loss.

    The weight of a class is ``n / (k count)``: n segments, k classes that occur, and ``count``
    segments of that class. The mean weight of the segments is 1, so the scale of the loss, and what
    ``lr`` and ``beta`` mean beside it, stay the same.

    Args:
        labels: ``(segment,)`` classes of the training segments, from 0.
        classes: number of the network's outputs.

    Returns:
        ``(class,)`` float32; 0 for a class that no training segment has.

    References:
        King and Zeng (2001), Logistic Regression in Rare Events Data; "balanced" in scikit-learn's
        ``compute_class_weight``.
    """
    counts = np.bincount(labels, minlength=classes).astype(np.float64)
    seen = counts > 0
    weights = np.zeros(classes)
    weights[seen] = len(labels) / (seen.sum() * counts[seen])
    return weights.astype(np.float32)


def weights_note(weights: NDArray[np.float32], names: Sequence[str]) -> str:
    """Return a line with the least and the greatest weight of the classes that occur."""
    seen = np.flatnonzero(weights)
    low, high = (int(seen[i]) for i in (weights[seen].argmin(), weights[seen].argmax()))
    return (
        f"class weights: {weights[low]:.3g} ({names[low]}) to {weights[high]:.3g} ({names[high]}); "
        "the losses of training and validation are weighted"
    )
