"""A row of a feature store by its definition in docs/method.md, with scipy in float64."""

from __future__ import annotations

import numpy as np
import scipy.signal


def magnitudes(y: np.ndarray, n_fft: int = 256, hop: int = 128, window: str = "hamming"):
    """Return ``(frame, freq)`` float64 magnitudes, as the released code does, transposed."""
    _, _, spectrum = scipy.signal.stft(
        y.astype(np.float64), window=window, nperseg=n_fft, noverlap=n_fft - hop
    )
    return np.abs(spectrum).T


def padded(y: np.ndarray, samples: int) -> np.ndarray:
    """Return the start of a recording, padded with zeros at the end."""
    return np.pad(y[:samples], (0, max(0, samples - len(y)))).astype(np.float64)


def rms(y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(y, dtype=np.float64))))
