"""Magnitude spectrograms as in the paper: defined as `scipy.signal.stft`, but faster."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

__all__ = ["stft"]


@lru_cache(maxsize=8)
def _scaled_window(window: str, n_fft: int) -> NDArray[np.float32]:
    if (
        window == "hamming"
    ):  # the default: scipy.signal takes longer to import than a worker to start
        taps = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    else:
        import scipy.signal

        taps = scipy.signal.get_window(window, n_fft)  # periodic: fftbins=True is the default
    return np.asarray(taps / taps.sum(), np.float32)


def stft(
    y: NDArray[np.float32],
    *,
    n_fft: int = 256,
    hop: int = 128,
    window: str = "hamming",
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Magnitude STFT: ``abs(scipy.signal.stft(y, window, nperseg=n_fft, noverlap=n_fft-hop))``.

    Args:
        y: ``(..., sample)`` mono audio; a batch of segments is a third faster than one at a time.
        n_fft: length of window and transform, in samples; even.
        hop: samples between frames.
        window: name of a periodic window, as in `scipy.signal.get_window`.
        out: array for the result; default: a new one.

    Returns:
        ``(..., frame, freq)`` float32, in the unit of ``y``. ``y`` is padded with half a window of
        zeros at both ends and with zeros up to a multiple of ``hop``; each frame is divided by the
        sum of the window. ``frame`` is ``ceil(samples / hop) + 1``, ``freq`` is ``n_fft / 2 + 1``.

    Raises:
        ValueError: ``y`` is shorter than a window.

    References:
        scipy.signal.stft (1.17), ``boundary="zeros"``, ``padded=True``, ``scaling="spectrum"``.
    """
    if y.ndim == 0 or y.shape[-1] < n_fft:
        raise ValueError(f"stft: y must be (..., sample) with at least {n_fft}, got {y.shape}")
    clips, samples = y.shape[:-1], y.shape[-1]
    frames = -(-samples // hop) + 1
    padded = np.zeros((*clips, (frames - 1) * hop + n_fft), np.float32)
    padded[..., n_fft // 2 : n_fft // 2 + samples] = y
    # Overlapping views of one buffer; sliding_window_view takes longer than the transform.
    *outer, step = padded.strides
    windows = np.ndarray(
        (*clips, frames, n_fft), np.float32, padded, strides=(*outer, hop * step, step)
    )
    spectrum = scipy.fft.rfft(windows * _scaled_window(window, n_fft), axis=-1, overwrite_x=True)
    with np.errstate(
        over="ignore"
    ):  # implausible samples may overflow; the caller checks for infinity
        magnitude: NDArray[np.float32] = np.abs(spectrum, out=out)
    return magnitude
