"""The features of a recipe: magnitudes of an STFT, mel bands, or either of them in decibels.

This is the one place that maps audio to what a store holds: `prepare`, `predict` and the pictures
of reports call it.

References:
    Mel bands: the scale of HTK (Young and others 2006, The HTK Book, section 5.4), triangles of
    height 1, as torchaudio's ``melscale_fbanks(norm=None, mel_scale="htk")`` and librosa's
    ``filters.mel(htk=True, norm=None)``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.stft import stft
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.recipe import LEAST_DB, Recipe

__all__ = ["amplitudes", "band_hz", "mel_filters", "spectra"]

_LEAST_AMPLITUDE = np.float32(10 ** (LEAST_DB / 20))
_LEAST_POWER = np.float32(10 ** (LEAST_DB / 10))


def spectra(
    y: NDArray[np.float32], recipe: Recipe, *, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the features of mono audio, before they are normalised.

    ``magnitude`` is the STFT of `antigram.pipeline.audio.stft`, in the unit of ``y``; ``mel`` the
    sum of squared magnitudes in each band; ``log-magnitude`` and ``log-mel`` are these in dB of
    full scale, at least -100 dB.

    Args:
        y: ``(..., sample)`` at the recipe's sample rate.
        recipe: names the features and their sizes.
        out: array for the result; default: a new one.

    Returns:
        ``(..., frame, freq)`` float32; ``freq`` is ``n_fft / 2 + 1``, or ``n_mels`` in mel bands.

    Raises:
        ValueError: ``y`` is shorter than a window.
        InputError: as for `mel_filters`.
    """
    sizes: dict[str, Any] = {"n_fft": recipe.n_fft, "hop": recipe.hop, "window": recipe.window}
    if recipe.features in ("magnitude", "log-magnitude"):
        x, least, factor = stft(y, out=out, **sizes), _LEAST_AMPLITUDE, 20
    else:
        filters = mel_filters(recipe.n_fft, recipe.sample_rate, recipe.bands)
        magnitudes = stft(y, **sizes)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks for infinity
            power = np.square(magnitudes, out=magnitudes)
            x, least, factor = np.matmul(power, filters, out=out), _LEAST_POWER, 10
    if recipe.is_log:
        np.maximum(x, least, out=x)
        np.log10(x, out=x)
        np.multiply(x, np.float32(factor), out=x)
    return x


def amplitudes(x: NDArray[np.float32], recipe: Recipe) -> NDArray[np.float32]:
    """Return features that are not normalised as magnitudes, for pictures in dB.

    Args:
        x: array of any shape.
        recipe: names the features.
    """
    if recipe.is_log:
        return np.power(np.float32(10), x / 20, dtype=np.float32)
    return np.sqrt(x.clip(0)) if recipe.features == "mel" else x


def band_hz(recipe: Recipe, index: float) -> float:
    """Return the frequency in Hz of an index, which may lie between two bins or bands."""
    if not recipe.is_mel:
        return index * recipe.sample_rate / recipe.n_fft
    edges = _mel_edges(recipe.sample_rate, recipe.bands)
    return float(np.interp(index + 1, np.arange(len(edges)), edges))


@lru_cache(maxsize=8)
def mel_filters(n_fft: int, sample_rate: int, n_mels: int) -> NDArray[np.float32]:
    """Return triangular mel bands from 0 Hz to half of the sample rate.

    Args:
        n_fft: length of the transform, in samples.
        sample_rate: in Hz.
        n_mels: number of bands.

    Returns:
        ``(freq, band)`` float32, read only.

    Raises:
        InputError: a band is narrower than the distance of two bins, and would be empty.
    """
    edges = _mel_edges(sample_rate, n_mels)
    bins = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    if not filters.any(axis=0).all():
        raise InputError(
            f"`n_mels` is {n_mels}: with `n_fft={n_fft}` the bins are {sample_rate / n_fft:.4g} Hz "
            f"apart, and {int((~filters.any(axis=0)).sum())} of the mel bands are narrower and "
            "would be empty. Take fewer bands or a longer window."
        )
    result = filters.astype(np.float32)
    result.flags.writeable = False  # the array is shared by all callers
    return result


def _mel_edges(sample_rate: int, n_mels: int) -> NDArray[np.float64]:
    """Return the ``n_mels + 2`` edges of the bands in Hz; each band ends where the next peaks."""
    top = 2595 * np.log10(1 + sample_rate / 2 / 700)
    edges: NDArray[np.float64] = 700 * (10 ** (np.linspace(0, top, n_mels + 2) / 2595) - 1)
    return edges
