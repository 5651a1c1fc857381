"""The audio of a store's segments is rendered again as it was when their features were made."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soxr

from antigram.pipeline.audio.noise import NoiseBank, noise_files
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.folds import make_folds
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.scale import normalised
from antigram.pipeline.features.segment_audio import open_audio
from antigram.pipeline.features.source_record import path_of
from antigram.pipeline.features.spectra import spectra
from antigram.pipeline.features.store import FeatureStore
from tests.support import corpus_trees
from tests.support.stores import prepare_gsc

EDITED = "two/0000ab03_nohash_1.wav"


def made(corpus: str, home: Path, target: Path, noise_home: Path | None = None, **settings):
    """Prepare a store, and open its audio again."""
    noise = noise_files([noise_home])[1] if noise_home else None
    if noise:
        settings = {"noise_files": NoiseBank.digest_of(noise), **settings}
    adapter, recipe = recipe_for(CORPORA[corpus], settings)
    store = prepare(adapter, home, recipe, target, noise=noise).store
    return store, open_audio(store, adapter, home, noise)


def features_of(store: FeatureStore, y: np.ndarray) -> np.ndarray:
    return normalised(spectra(y, store.recipe), store.mean, store.std, store.recipe.dtype)


@pytest.fixture(scope="module")
def folder_home(tmp_path_factory) -> Path:
    return corpus_trees.folder(tmp_path_factory.mktemp("folder"))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"noise": "high"},
        {"noise": "low", "snr_mode": "released", "features": "log-mel"},
        {"limit_per_class": 3, "seed": 2},
        {"sample_rate": 8_000},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_features_of_the_rendered_audio_are_those_of_the_store(
    gsc_home, noise_home, tmp_path, settings
):
    noise = noise_home if "noise" in settings else None
    store, audio = made("gsc", gsc_home, tmp_path / "x.zarr", noise, **settings)
    y = audio.take(range(len(store)))
    assert y.shape == (len(store), store.recipe.samples)
    np.testing.assert_array_equal(features_of(store, y), store.features.read())


@pytest.mark.parametrize("last_window", ["pad", "end"])
def test_segments_of_long_recordings_are_rendered_again(
    folder_home, noise_home, tmp_path, last_window
):
    store, audio = made(
        "folder", folder_home, tmp_path / "x.zarr", noise_home,
        noise="high", seconds=0.5, overlap=0.5, last_window=last_window,
    )  # fmt: skip
    order = np.random.default_rng(3).permutation(len(store))
    np.testing.assert_array_equal(
        features_of(store, audio.take(order)), store.features.read()[order]
    )


def test_mixtures_are_rendered_again(tmp_path):
    home = corpus_trees.ms_snsd(tmp_path / "ms-snsd")
    store, audio = made(
        "ms-snsd", home / "clean_train", tmp_path / "x.zarr", home, hours="0.02", noise="high"
    )
    np.testing.assert_array_equal(
        features_of(store, audio.take(range(len(store)))), store.features.read()
    )


def test_the_audio_of_a_fold_is_that_of_its_store(gsc_home, tmp_path):
    store, audio = made("gsc", gsc_home, tmp_path / "x.zarr")
    fold = FeatureStore(make_folds(store, "kfold:speaker:2", seed=0)[1])
    again = open_audio(fold, CORPORA["gsc"], gsc_home)
    np.testing.assert_array_equal(again.take([5, 1]), audio.take([5, 1]))


def test_audio_is_resampled_to_another_rate(gsc_home, clean):
    plain = open_audio(clean.store, CORPORA["gsc"], gsc_home).take([0, 4])
    audio = open_audio(clean.store, CORPORA["gsc"], gsc_home, sample_rate=22_050)
    assert audio.samples == 22_050
    want = np.stack([soxr.resample(y, 16_000, 22_050, quality="HQ") for y in plain])
    np.testing.assert_array_equal(audio.take([0, 4]), want)


@pytest.fixture
def copy_of_gsc(gsc_home, tmp_path) -> Path:
    return Path(shutil.copytree(gsc_home, tmp_path / "gsc"))


def edit(path: Path) -> None:
    """Write other samples to a file, without changing its size."""
    corpus_trees.wav(path, corpus_trees.sound(999, (path.stat().st_size - 44) // 2))


def test_an_edited_recording_is_refused_by_its_checksum(copy_of_gsc, tmp_path):
    store = prepare_gsc(copy_of_gsc, tmp_path / "a.zarr").store
    edit(copy_of_gsc / EDITED)
    with pytest.raises(InputError, match=rf"1 recordings are not as they were .*\({EDITED}\)"):
        open_audio(store, CORPORA["gsc"], copy_of_gsc)


def test_without_a_record_an_edited_recording_is_refused_by_its_features(copy_of_gsc, tmp_path):
    store = prepare_gsc(copy_of_gsc, tmp_path / "a.zarr").store
    path_of(store.path).unlink()
    edit(copy_of_gsc / EDITED)
    said: list[str] = []
    audio = open_audio(store, CORPORA["gsc"], copy_of_gsc, on_message=said.append)
    assert len(said) == 1
    assert "there is no record of them" in said[0]
    edited = store.sources.index(f"{EDITED}#0")
    others = [row for row in range(len(store)) if row != edited]
    assert len(audio.take(others)) == len(others)
    with pytest.raises(InputError, match=f"{EDITED}: the segment .* was made of other audio"):
        audio.take([edited])


def test_a_recording_that_is_missing_is_named(copy_of_gsc, tmp_path):
    store = prepare_gsc(copy_of_gsc, tmp_path / "a.zarr").store
    (copy_of_gsc / EDITED).unlink()
    with pytest.raises(InputError, match=r"1 recordings of the store a are not there.*`source`"):
        open_audio(store, CORPORA["gsc"], copy_of_gsc)


def test_a_recording_of_another_length_is_refused(copy_of_gsc, tmp_path):
    store, _ = made("folder", copy_of_gsc, tmp_path / "a.zarr", seconds=0.5)
    corpus_trees.wav(copy_of_gsc / EDITED, corpus_trees.sound(1, 4_000))
    with pytest.raises(InputError, match=r"the segment two/.*#00001 of a was at .* is now not"):
        open_audio(store, CORPORA["folder"], copy_of_gsc)


def test_other_noise_is_refused(gsc_home, noise_home, tmp_path, noisy):
    other = Path(shutil.copytree(noise_home, tmp_path / "noise"))
    edit(sorted((other / "noise_train").glob("*.wav"))[0])
    with pytest.raises(InputError, match=r"other noise recordings than gsc-high.*`noise_source`"):
        open_audio(noisy.store, CORPORA["gsc"], gsc_home, noise_files([other])[1])
