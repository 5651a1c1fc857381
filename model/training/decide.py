"""Turn logits into class probabilities of segments, and average them for a recording."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["average", "finite_rows", "log_probabilities", "segments_at_once"]

_MOST_SEGMENTS = 64
_MOST_FRAMES = 64 * 512  # 64 segments of 4 s: the first maps of a VGG16 then take 1.1 GB


def segments_at_once(frames: int) -> int:
    """Return the batch size for prediction: 64, or fewer for segments longer than four seconds.

    Args:
        frames: frames of a segment.
    """
    return max(1, min(_MOST_SEGMENTS, _MOST_FRAMES // frames))


def finite_rows(x: Tensor, logits: Tensor) -> NDArray[np.bool_]:
    """Find the segments whose features and logits are all finite; only these can be predicted.

    The features are checked as well, because a ReLU may turn an infinite value into zero.

    Args:
        x: ``(segment, 1, frame, freq)`` features.
        logits: ``(segment, class)``.

    Returns:
        ``(segment,)`` bool, in host memory.
    """
    finite: NDArray[np.bool_] = (
        (x.flatten(1).isfinite().all(1) & logits.isfinite().all(1)).cpu().numpy()
    )
    return finite


def log_probabilities(logits: Tensor) -> NDArray[np.float64]:
    """Return the log-softmax ``(segment, class)`` of finite logits, in float64 and host memory."""
    log_softmax: NDArray[np.float64] = logits.double().log_softmax(1).cpu().numpy()
    return log_softmax


def average(segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the class probabilities of a recording from its segments' log-probabilities.

    They are the softmax of the mean log-probabilities.

    Args:
        segments: ``(segment, class)`` log-probabilities of one recording.

    Returns:
        ``(class,)`` probabilities, which sum to 1.
    """
    mean = segments.mean(0)
    probabilities: NDArray[np.float64] = np.exp(mean - mean.max())
    probabilities /= probabilities.sum()
    return probabilities
