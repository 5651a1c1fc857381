"""torchaudio as an independent reference: spectrogram, masks, gain and noise, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchaudio import functional as reference

from antigram.pipeline.audio.augmentation import COLUMNS, Levels, apply_views
from antigram.pipeline.audio.noise import mix
from antigram.pipeline.audio.stft import stft
from tests.support.corpus_trees import sound

EPS = np.finfo(np.float32).eps
RATE = 16_000


def spectrogram(y, n_fft=256, hop=128, window=torch.hamming_window):
    """Return torchaudio's ``(frame, freq)`` magnitudes in float64, divided by the window's sum."""
    taps = window(n_fft, dtype=torch.float64)
    padded = np.pad(y.astype(np.float64), (0, -y.size % hop))  # torchaudio drops an incomplete hop
    return reference.spectrogram(
        torch.from_numpy(padded),
        pad=0,
        window=taps / taps.sum(),
        n_fft=n_fft,
        hop_length=hop,
        win_length=n_fft,
        power=1.0,
        normalized=False,
        pad_mode="constant",
    ).T.numpy()


@pytest.mark.parametrize("samples", [256, 257, 15_999, 16_000, 96_123])
@pytest.mark.parametrize(
    ("n_fft", "hop", "window"), [(256, 128, "hamming"), (400, 160, "hann"), (64, 64, "hamming")]
)
def test_stft_is_the_spectrogram_of_torchaudio(samples, n_fft, hop, window, rng):
    y = rng.uniform(-1, 1, max(samples, n_fft)).astype(np.float32)
    got = stft(y, n_fft=n_fft, hop=hop, window=window)
    want = spectrogram(y, n_fft, hop, getattr(torch, f"{window}_window"))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * EPS * want.max())  # seen: 1.5 eps


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shape", [(126, 129), (40, 9)], ids=str)
def test_masks_drawn_by_torchaudio_are_laid_alike(shape, seed, rng):
    silence = -0.75
    x = rng.standard_normal(shape).astype(np.float32)
    torch.manual_seed(seed)
    want = torch.from_numpy(x.T.copy())  # (freq, time), torchaudio's order
    for axis, most in ((1, shape[0] // 2), (0, shape[1] // 2)):
        want = reference.mask_along_axis(want, most, silence, axis)
    is_masked = want.T.numpy() == np.float32(silence)
    frames, bins = np.flatnonzero(is_masked.all(1)), np.flatnonzero(is_masked.all(0))
    numbers = dict.fromkeys(COLUMNS, 0.0)
    if frames.size:
        numbers |= {"time_first": frames[0], "time_frames": frames.size}
    if bins.size:
        numbers |= {"freq_first": bins[0], "freq_bins": bins.size}
    views = x[None].copy()
    apply_views(views, np.array([list(numbers.values())], np.float32), Levels(silence))
    np.testing.assert_array_equal(views[0], want.T.numpy())


@pytest.mark.parametrize("gain_db", [-6.0, 0.0, 2.5])
def test_the_gain_of_a_view_is_that_of_the_recording(gain_db):
    y = sound(3, RATE)
    mean, std = 0.01, 0.02
    louder = spectrogram(reference.gain(torch.from_numpy(y), gain_db).numpy())
    views = ((stft(y)[None] - np.float32(mean)) / np.float32(std)).astype(np.float32)
    apply_views(views, np.array([[0, gain_db, 0, 0, 0, 0]], np.float32), Levels(-mean / std))
    want = (louder - mean) / std
    np.testing.assert_allclose(
        views[0], want, rtol=0, atol=4 * EPS * np.abs(want).max()
    )  # seen: 1.6


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 20.0])
def test_noise_is_added_at_the_snr_of_torchaudio(snr_db, rng):
    speech, noise = sound(1, RATE), rng.standard_normal(RATE).astype(np.float32)
    got = mix(speech, noise, snr_db, released=False)
    want = reference.add_noise(
        torch.from_numpy(speech).double(),
        torch.from_numpy(noise).double(),
        torch.tensor(snr_db, dtype=torch.float64),
    ).numpy()
    level = 10 ** (-25 / 20) / np.sqrt(np.mean(speech.astype(np.float64) ** 2))  # -25 dBFS
    np.testing.assert_allclose(
        got, want * level, rtol=0, atol=4 * EPS * np.abs(got).max()
    )  # seen: 0.6
