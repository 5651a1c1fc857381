"""Mel bands and decibels against torchaudio and librosa, and their way through the whole chain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torchaudio import functional as reference

from antigram import cli
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.explain import explain
from antigram.pipeline.audio.augmentation import COLUMNS, apply_views
from antigram.pipeline.audio.stft import stft
from antigram.pipeline.corpora import find_corpus
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.naming import store_name
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.spectra import band_hz, mel_filters, spectra

KINDS = ["magnitude", "log-magnitude", "mel", "log-mel"]
SIZES = [(256, 16_000, 40), (256, 16_000, 57), (400, 8_000, 64), (1024, 44_100, 80)]


def recipe(features, **fields):
    return Recipe(corpus="folder", features=features, **fields)


@pytest.mark.parametrize(("n_fft", "rate", "bands"), SIZES)
def test_mel_filters_are_those_of_torchaudio(n_fft, rate, bands):
    want = reference.melscale_fbanks(n_fft // 2 + 1, 0.0, rate / 2, bands, rate).numpy()
    np.testing.assert_allclose(mel_filters(n_fft, rate, bands), want, atol=1e-5)


@pytest.mark.parametrize(("n_fft", "rate", "bands"), SIZES)
def test_features_are_those_of_librosa(n_fft, rate, bands, rng):
    librosa = pytest.importorskip("librosa", reason="librosa comes with the extra bench")
    y = (0.1 * rng.standard_normal(3 * n_fft)).astype(np.float32)
    sizes = {"n_fft": n_fft, "hop": n_fft // 2, "sample_rate": rate, "seconds": y.size / rate}
    power = stft(y, n_fft=n_fft, hop=n_fft // 2).astype(np.float64).T ** 2
    mel = librosa.feature.melspectrogram(
        S=power, sr=rate, n_fft=n_fft, n_mels=bands, htk=True, norm=None
    )
    got = spectra(y, recipe("mel", n_mels=bands, **sizes))
    np.testing.assert_allclose(got, mel.T, rtol=1e-5, atol=1e-12)
    log = spectra(y, recipe("log-mel", n_mels=bands, **sizes))
    np.testing.assert_allclose(log, librosa.power_to_db(mel, top_db=None).T, rtol=0, atol=5e-5)
    log = spectra(y, recipe("log-magnitude", **sizes))
    want = librosa.amplitude_to_db(np.sqrt(power), top_db=None).T
    np.testing.assert_allclose(log, want, rtol=0, atol=5e-5)


def test_features_are_those_of_torchaudio(rng):
    y = (0.1 * rng.standard_normal((3, 16_000))).astype(np.float32)
    magnitudes = torch.from_numpy(stft(y)).double()
    filters = reference.melscale_fbanks(129, 0.0, 8_000.0, 40, 16_000).double()
    mel = magnitudes**2 @ filters
    np.testing.assert_allclose(spectra(y, recipe("mel")), mel, rtol=1e-4, atol=1e-9)
    for kind, power, factor in (("log-mel", mel, 10), ("log-magnitude", magnitudes, 20)):
        least = 10 ** (-100 / factor)
        want = reference.amplitude_to_DB(power, factor, least, 0.0)
        np.testing.assert_allclose(spectra(y, recipe(kind)), want, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_are_those_of_single_segments(kind, rng):
    y, of = rng.standard_normal((3, 4_000)).astype(np.float32), recipe(kind, seconds=0.25)
    out = np.empty((3, *of.shape), np.float32)
    assert spectra(y, of, out=out) is out
    for one, row in zip(y, out, strict=True):
        np.testing.assert_allclose(spectra(one, of), row, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_silence_has_its_level_and_a_gain_of_audio_is_a_gain_of_its_view(kind, rng):
    of = recipe(kind)
    y = (0.01 * rng.standard_normal(16_000)).astype(np.float32)
    quiet = spectra(np.zeros(16_000, np.float32), of)
    assert np.unique(quiet).size == 1
    mean, std = (-60.0, 12.0) if of.is_log else (0.001, 0.002)
    levels = of.levels(mean, std)
    assert (quiet[0, 0] - mean) / std == pytest.approx(levels.silence, rel=1e-6)
    view = (spectra(y, of)[None] - np.float32(mean)) / np.float32(std)
    params = np.zeros((1, len(COLUMNS)), np.float32)
    params[0, COLUMNS.index("gain_db")] = 6.0
    apply_views(view, params, levels)
    louder = (spectra(y * np.float32(10**0.3), of) - mean) / std
    np.testing.assert_allclose(view[0], louder, rtol=1e-3, atol=1e-3)


def test_fingerprints_of_recipes_of_magnitudes_stay():
    plain = Recipe(corpus="gsc").to_json()
    assert not {"features", "n_mels", "within"} & set(plain)
    assert Recipe.from_json(recipe("log-mel", n_mels=30).to_json()).shape == (126, 30)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"n_mels": 40}, "`n_mels` is 40: goes with"),
        ({"features": "mel", "n_mels": 90}, "`n_mels` is 90: .* would be empty"),
        ({"features": "mfcc"}, "features is 'mfcc'; wanted: magnitude"),
        ({"n_fft": 255}, "`n_fft` is 255; wanted: an even"),
        ({"hop": 300}, "`hop` is 300; wanted 1 to 256"),
        ({"sample_rate": 10}, "`sample_rate` is 10; wanted"),
    ],
)
def test_wrong_settings_are_refused_in_a_line(fields, match):
    with pytest.raises(InputError, match=match):
        Recipe(corpus="gsc", **fields)


def test_stores_of_other_features_have_other_names():
    gsc = find_corpus("gsc")
    names = {
        store_name(gsc, Recipe(corpus="gsc", **fields))
        for fields in (
            {},
            {"features": "log-mel"},
            {"features": "log-mel", "n_mels": 30},
            {"n_fft": 512},
            {"hop": 64},
            {"sample_rate": 8_000},
        )
    }
    assert len(names) == 6
    assert "gsc" in names


def test_mel_bands_have_the_frequencies_of_their_peaks():
    of = recipe("mel")
    peaks = mel_filters(of.n_fft, of.sample_rate, of.bands).argmax(axis=0) * 62.5
    assert [band_hz(of, band) for band in range(40)] == pytest.approx(peaks, abs=62.5)
    assert band_hz(recipe("magnitude"), 2.5) == pytest.approx(156.25)


def test_the_chain_with_log_mel_at_another_rate(audio, tmp_path):
    workspace = ["--workspace", str(tmp_path / "workspace"), "--json"]

    def run(*words):
        result = CliRunner().invoke(cli.app, [*workspace, *map(str, words)])
        assert result.exit_code == 0, result.output + result.stderr
        return json.loads(result.stdout)

    sizes = ("--n-mels", 32, "--sample-rate", 8_000, "--n-fft", 200, "--hop", 80)
    store = run("prepare", "folder", "--source", audio, "--features", "log-mel", *sizes)
    assert store["shape"] == [101, 32]
    ckpt = tmp_path / "net.pt"
    tiny = ("--arch", "vgg11", "--width", 1, "--epochs", 1, "--device", "cpu", "--augment")
    run("train", "--mode", "baseline", "--save", ckpt, *tiny)
    run("cache-grams", "--ckpt", ckpt, "--layer", 3, "--device", "cpu", "--views", 2)
    run("train", "--mode", "cached", *tiny)
    assert run("verify")["ok"]
    wav = next(Path(audio).rglob("*.wav"))
    (predicted,) = run("predict", "--ckpt", ckpt, wav, "--device", "cpu")["recordings"]
    seen = explain(load_checkpoint(ckpt), wav, layer=1, device=torch.device("cpu"))
    assert seen.prediction.label == predicted["label"]
    assert seen.magnitudes.shape[1] == 32
    assert (seen.magnitudes >= 0).all()
    assert seen.bin_hz is None
    run("prepare", "folder", "--source", audio, "--name", "plain")
    evaluate = [*workspace, "evaluate", "--ckpt", str(ckpt), "--data", "plain"]
    refused = CliRunner().invoke(cli.app, evaluate).exception
    assert isinstance(refused, InputError)
    assert "sample_rate is 16000, the checkpoint was trained with 8000" in str(refused)
    said = CliRunner().invoke(
        cli.app, [*workspace, "cache-grams", "--ckpt", str(ckpt), "--layer", "3", "--dry-run"]
    )
    assert "net.pt: was trained with sample_rate 8000, plain has 16000" in said.stderr
