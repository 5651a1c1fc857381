from __future__ import annotations

import numpy as np
import pytest

from antigram.pipeline.audio.stft import stft
from antigram.pipeline.features.recipe import Recipe
from tests.reference.scipy_features import magnitudes

EPS = np.finfo(np.float32).eps
LENGTHS = [256, 257, 300, 384, 1_000, 15_999, 16_000, 16_001, 64_000, 96_123]


@pytest.mark.parametrize("samples", LENGTHS)
def test_stft_equals_scipy_transposed(samples, rng):
    y = rng.uniform(-1, 1, samples).astype(np.float32)
    got, want = stft(y), magnitudes(y)
    assert got.shape == want.shape
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=4 * EPS * want.max())  # seen: 1 eps


@pytest.mark.parametrize("level", [2.0**-15, 1.0, 1_000.0])
def test_stft_equals_scipy_at_any_level(level, rng):
    y = (level * rng.standard_normal(16_000)).astype(np.float32)
    want = magnitudes(y)
    np.testing.assert_allclose(stft(y), want, rtol=0, atol=4 * EPS * want.max())


def test_silence_gives_exact_zeros():
    np.testing.assert_array_equal(stft(np.zeros(16_000, np.float32)), np.zeros((126, 129)))


@pytest.mark.parametrize("sign", [1, -1])
def test_full_scale_constant_gives_one_at_zero_frequency(sign):
    y = np.full(16_000, sign, np.float32)
    got = stft(y)
    np.testing.assert_allclose(got, magnitudes(y), rtol=0, atol=4 * EPS)
    np.testing.assert_allclose(got[1:-1, 0], 1, rtol=0, atol=4 * EPS)


def test_one_sample_at_the_very_end_is_heard():
    y = np.zeros(1_000, np.float32)
    y[-1] = 1
    want = magnitudes(y)
    assert want[-1].max() > 0
    np.testing.assert_allclose(stft(y), want, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("window", ["hamming", "hann"])
@pytest.mark.parametrize(("n_fft", "hop"), [(256, 128), (512, 128), (400, 160), (64, 64)])
def test_stft_equals_scipy_with_other_windows_and_hops(n_fft, hop, window, rng):
    y = rng.standard_normal(4_001).astype(np.float32)
    got = stft(y, n_fft=n_fft, hop=hop, window=window)
    want = magnitudes(y, n_fft, hop, window)
    np.testing.assert_allclose(got, want, rtol=0, atol=8 * EPS * want.max())


@pytest.mark.parametrize("seconds", [0.016, 0.02, 0.5, 1.0, 1.0001, 4.0, 6.0])
def test_recipe_shape_is_the_shape_of_the_spectrum(seconds):
    recipe = Recipe(corpus="gsc", seconds=seconds)
    y = np.zeros(recipe.samples, np.float32)
    assert recipe.shape == stft(y).shape == magnitudes(y).shape


def test_one_second_is_126_by_129():
    assert Recipe(corpus="gsc").shape == (126, 129)


def test_several_clips_at_once_equal_one_by_one(rng):
    y = rng.standard_normal((3, 4_001)).astype(np.float32)
    np.testing.assert_array_equal(stft(y), np.stack([stft(one) for one in y]))


@pytest.mark.parametrize("shape", [(255,), (0,), (2, 255), ()], ids=str)
def test_too_short_is_refused(shape):
    with pytest.raises(ValueError, match=r"stft: y must be \(\.\.\., sample\) with at least 256"):
        stft(np.zeros(shape, np.float32))
