from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import soundfile
import zarr

from antigram.pipeline.audio.noise import SNR_LEVELS, NoiseBank, mix_noise, noise_files
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage import chunks
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.verification import verify_group
from antigram.pipeline.workspace import is_locked
from tests.reference.scipy_features import magnitudes, padded
from tests.support import corpus_trees
from tests.support.files import bytes_of, flip, names_in
from tests.support.stores import prepare_gsc

EPS = np.finfo(np.float32).eps
SILENT = "one/0000ab03_nohash_0"


def wanted_magnitudes(store, home) -> np.ndarray:
    """Compute all rows from the WAV files with scipy alone."""
    paths = [home / source.rpartition("#")[0] for source in store.sources]
    return np.stack([magnitudes(padded(soundfile.read(p)[0], 16_000)) for p in paths])


def test_the_training_split_has_mean_0_and_deviation_1(clean):
    train = clean.store.features.read()[clean.store.rows("train")].astype(np.float64)
    assert train.mean() == pytest.approx(0, abs=1e-6)
    assert train.std() == pytest.approx(1, abs=1e-6)


def test_features_equal_those_computed_from_the_wav_with_scipy(clean, gsc_home):
    store = clean.store
    want = wanted_magnitudes(store, gsc_home)
    train = want[store.rows("train")]
    assert store.mean == pytest.approx(train.mean(), rel=1e-6)
    assert store.std == pytest.approx(train.std(), rel=1e-6)
    want = (want - train.mean()) / train.std()
    np.testing.assert_allclose(store.features.read(), want, rtol=0, atol=8 * EPS * want.max())


def test_noisy_features_equal_those_of_the_mixture(noisy, gsc_home, noise_home, tmp_path):
    store = noisy.store
    bank = NoiseBank.build(noise_files([noise_home])[1], 16_000, tmp_path / "noise.f32")
    labels, snr = store.labels("noise"), store._array("snr_db").read()
    for row, (clip_id, source) in enumerate(zip(store.clip_ids, store.sources, strict=True)):
        y = soundfile.read(gsc_home / source.rpartition("#")[0], dtype="float32")[0]
        y = padded(y, 16_000).astype(np.float32)
        mixed = mix_noise(
            y, bank, bank.samples(), level="high", snr_mode="exact", seed=0, clip_id=clip_id
        )
        want = (magnitudes(mixed.y) - store.mean) / store.std
        got = store.features.read_span(slice(row, row + 1))[0]
        np.testing.assert_allclose(got, want, rtol=0, atol=16 * EPS * np.abs(want).max())
        assert store.classes["noise"][labels[row]] == bank.classes[mixed.noise] or not y.any()
        np.testing.assert_equal(snr[row], np.float32(mixed.snr_db))


def test_labels_and_snr_are_stored_for_every_clip(noisy):
    group = zarr.open_group(noisy.store.path, mode="r")
    ids = group["clip_id"][:].tolist()
    assert ids == sorted(ids)
    for name, part in (("word", 0), ("speaker", 1)):
        array: Any = group[f"labels/{name}"]
        assert array.dtype == np.int32
        got = [array.attrs["classes"][i] for i in array[:]]
        assert got == [i.replace("_nohash_", "/").split("/")[part] for i in ids]
        assert list(array.attrs["classes"]) == sorted(array.attrs["classes"])
    snr: Any = group["snr_db"][:]
    kind: Any = group["labels/noise"][:]
    assert snr.dtype == np.float32
    silent = np.array(ids) == SILENT
    np.testing.assert_array_equal(np.isnan(snr), silent)
    np.testing.assert_array_equal(kind == -1, silent)
    assert set(snr[~silent].tolist()) <= set(SNR_LEVELS["high"])
    assert group["split"].dtype == np.int8
    assert group["source"][:].tolist() == [f"{i}.wav#0" for i in ids]


def test_a_store_without_noise_has_neither_noise_nor_snr(clean):
    assert {p.name for p in clean.store.path.iterdir()} == {
        "zarr.json", "features", "labels", "split", "clip_id", "source", "manifest",
    }  # fmt: skip
    assert list(clean.store.classes) == ["word", "speaker"]


def test_the_root_says_what_the_store_is(noisy):
    root: Any = zarr.open_group(noisy.store.path, mode="r").attrs["antigram"]
    assert root["format"] == "antigram/features"
    assert root["format_version"] == 2
    assert root["complete"] is True
    assert root["corpus"] == "gsc"
    assert root["main_label"] == "word"
    assert root["rejected"] == []
    assert root["recipe"]["noise"] == "high"
    assert {"mean", "std", "fingerprint", "skipped", "versions"} <= set(root)
    assert root["silent"] == 1
    assert "/tmp" not in (noisy.store.path / "zarr.json").read_text()


def test_every_numeric_array_is_raw_with_crc32c_and_small_ones_have_few_chunks(noisy):
    group = zarr.open_group(noisy.store.path, mode="r")
    for name in ("features", "labels/word", "labels/noise", "snr_db", "split"):
        array = group[name]
        assert array.chunks[0] == (4 if name == "features" else len(noisy.store))
        assert [c.to_dict()["name"] for c in array.metadata.codecs] == ["bytes", "crc32c"]
        assert np.isnan(array.fill_value) if array.dtype.kind == "f" else array.fill_value == -1


def test_small_arrays_of_many_chunks_are_read_the_same(clean, gsc_home, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "_SMALL_ROWS", 7)
    store = prepare_gsc(gsc_home, tmp_path / "many.zarr").store
    group = zarr.open_group(store.path, mode="r")
    assert {group[name].chunks for name in ("split", "clip_id", "source")} == {(7,)}
    assert len(store) % 7  # the last chunk is padded
    assert list(verify_group(Folder(store.path))) == []
    want = clean.store
    assert store.clip_ids == want.clip_ids == group["clip_id"][:].tolist()
    assert store.sources == want.sources
    np.testing.assert_array_equal(store.split, want.split)
    np.testing.assert_array_equal(store.labels("word"), want.labels("word"))


def test_float16_holds_the_rounded_float32(clean, gsc_home, tmp_path):
    half = prepare_gsc(gsc_home, tmp_path / "half.zarr", dtype="float16").store
    assert half.features.read().dtype == np.float16
    want = clean.store.features.read().astype(np.float16)
    np.testing.assert_array_equal(half.features.read(), want)
    assert half.fingerprint != clean.store.fingerprint


def test_a_finished_store_verifies_and_nothing_lies_beside_it(noisy):
    assert list(verify_group(Folder(noisy.store.path))) == []
    beside = sorted(p.name for p in noisy.store.path.parent.iterdir())
    assert beside == [".gsc-high.zarr.sources", "gsc-high.zarr"]


def test_two_workers_write_the_same_bytes_as_one(noisy, gsc_home, noise_home, tmp_path):
    target = tmp_path / "two.zarr"
    two = prepare_gsc(gsc_home, target, noise_home=noise_home, workers=2)
    assert two.store.features.spec.chunks == 6
    assert bytes_of(target) == bytes_of(noisy.store.path)


def test_another_seed_gives_another_split_other_noise_and_another_fingerprint(
    noisy, gsc_home, noise_home, tmp_path
):
    other = prepare_gsc(gsc_home, tmp_path / "x.zarr", noise_home=noise_home, seed=1).store
    assert other.split.tolist() != noisy.store.split.tolist()
    assert other.labels("noise").tolist() != noisy.store.labels("noise").tolist()
    assert other.fingerprint != noisy.store.fingerprint


def test_a_second_run_leaves_the_store_alone(store_copy, gsc_home, noise_home):
    before = bytes_of(store_copy)
    inode = (store_copy / "features" / "c" / "0" / "0" / "0").stat().st_ino
    again = prepare_gsc(gsc_home, store_copy, noise_home=noise_home)
    assert again.computed == 0
    assert bytes_of(store_copy) == before
    assert (store_copy / "features" / "c" / "0" / "0" / "0").stat().st_ino == inode


def test_another_recipe_replaces_the_store(store_copy, clean, gsc_home):
    again = prepare_gsc(gsc_home, store_copy)
    assert again.computed == 24
    assert bytes_of(store_copy) == bytes_of(clean.store.path)
    assert names_in(store_copy.parent) == ["copy.zarr"]


def test_a_corpus_with_one_clip_more_replaces_the_store(gsc_home, clean, tmp_path):
    home = shutil.copytree(gsc_home, tmp_path / "gsc")
    target = shutil.copytree(clean.store.path, tmp_path / "gsc.zarr")
    corpus_trees.wav(home / "two" / "0000ab07_nohash_0.wav", corpus_trees.sound(999))
    assert len(prepare_gsc(home, target).store) == 25


@pytest.mark.parametrize("damage", ["flip", "delete"])
def test_a_damaged_store_is_made_again(damage, store_copy, noisy, gsc_home, noise_home):
    path = store_copy / "features" / "c" / "1" / "0" / "0"
    if damage == "flip":
        flip(path, 1_000)
    else:
        path.unlink()
    prepare_gsc(gsc_home, store_copy, noise_home=noise_home)
    assert list(verify_group(Folder(store_copy))) == []
    assert bytes_of(store_copy) == bytes_of(noisy.store.path)


def test_a_store_without_its_manifest_is_made_again(store_copy, noisy, gsc_home, noise_home):
    (store_copy / "manifest" / "zarr.json").unlink()
    prepare_gsc(gsc_home, store_copy, noise_home=noise_home)
    assert bytes_of(store_copy) == bytes_of(noisy.store.path)


def test_training_clips_that_are_all_silent_are_refused(tmp_path):
    for n in range(3):
        corpus_trees.wav(tmp_path / "gsc" / "one" / f"0000000{n}_nohash_0.wav", np.zeros(16_000))
    with pytest.raises(InputError, match="training segments are silent: nothing to learn"):
        prepare_gsc(tmp_path / "gsc", tmp_path / "gsc.zarr")
    assert not (tmp_path / "gsc.zarr").exists()


def test_the_numbers_of_prepare_json_are_those_of_the_store(noisy):
    told = noisy.to_json()
    split = noisy.store.split
    assert told["clips"] == {
        "train": int((split == 0).sum()),
        "validation": int((split == 1).sum()),
        "test": int((split == 2).sum()),
    }
    assert told["shape"] == [126, 129]
    assert told["classes"] == noisy.store.classes
    assert told["computed"] == 24
    assert told["rejected"] == []


def test_a_store_that_python_prepares_is_locked(gsc_home, tmp_path):
    target, seen = tmp_path / "x.zarr", []

    def on_progress(*_):
        if not seen:
            seen.append(is_locked(target))
            with pytest.raises(InputError, match="another process is preparing it"):
                prepare_gsc(gsc_home, target)

    prepare_gsc(gsc_home, target, on_progress=on_progress)
    assert seen == [True]
    assert names_in(tmp_path) == ["x.zarr"]
