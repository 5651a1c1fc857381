"""From logits to decisions: of a segment by itself, of a recording by all of its segments."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["average", "finite_rows", "log_probabilities", "segments_at_once"]

_MOST_SEGMENTS = 64
_MOST_FRAMES = 64 * 512  # 64 segments of 4 s: the first maps of a VGG16 then take 1.1 GB


def segments_at_once(frames: int) -> int:
    """Segments in a batch of so many frames each: 64, and fewer of those above four seconds."""
    return max(1, min(_MOST_SEGMENTS, _MOST_FRAMES // frames))


def finite_rows(x: Tensor, logits: Tensor) -> NDArray[np.bool_]:
    """Segments whose features and logits are all finite: no other can be decided.

    Features are looked at, too: a ReLU may make a plain zero of an infinite value.

    Args:
        x: ``(segment, 1, frame, freq)`` features.
        logits: ``(segment, class)``.

    Returns:
        ``(segment,)``, in host memory.
    """
    finite: NDArray[np.bool_] = (
        (x.flatten(1).isfinite().all(1) & logits.isfinite().all(1)).cpu().numpy()
    )
    return finite


def log_probabilities(logits: Tensor) -> NDArray[np.float64]:
    """Log-softmax ``(segment, class)`` of finite logits, in float64 and host memory."""
    found: NDArray[np.float64] = logits.double().log_softmax(1).cpu().numpy()
    return found


def average(segments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Class probabilities of a recording: the softmax of its segments' mean log-probabilities.

    Args:
        segments: ``(segment, class)`` log-probabilities of one recording.

    Returns:
        ``(class,)``, which add up to 1.
    """
    mean = segments.mean(0)
    shares: NDArray[np.float64] = np.exp(mean - mean.max())
    shares /= shares.sum()
    return shares
