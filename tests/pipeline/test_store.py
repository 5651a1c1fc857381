from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from tests.support.files import flip
from tests.support.stores import edit_store, gsc_recipe


def test_a_store_gives_back_what_was_prepared(clean):
    store = FeatureStore(clean.store.path)
    assert len(store) == 24
    assert store.shape == (126, 129)
    assert store.name == "gsc"
    assert store.recipe == gsc_recipe()
    assert store.main_label == "word"
    assert store.classes["word"] == ["one", "two", "zero"]
    assert store.fingerprint == clean.store.fingerprint
    parts = [store.rows(split) for split in ("train", "validation", "test")]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(24))
    assert all((np.diff(part) > 0).all() for part in parts)


def test_rows_without_a_label_are_left_out_of_its_task(noisy):
    store = FeatureStore(noisy.store.path)
    silent = int(np.flatnonzero(store.labels("noise") == -1)[0])
    split = ("train", "validation", "test")[store.split[silent]]
    assert silent in store.rows(split)
    assert silent not in store.rows(split, "noise")
    assert store.rows(split).size == store.rows(split, "noise").size + 1


def test_unknown_labels_and_splits_are_refused(clean):
    with pytest.raises(InputError, match="no label 'singer'; it has word, speaker"):
        clean.store.labels("singer")
    with pytest.raises(InputError, match="wanted: train, validation, test"):
        clean.store.rows("dev")


def test_no_store_and_another_group_are_the_users_mistake(tmp_path, store_copy):
    with pytest.raises(InputError, match="no feature store there"):
        FeatureStore(tmp_path)
    edit_store(store_copy, lambda root: root.update(format="antigram/grams"))
    with pytest.raises(InputError, match=r"not a feature store \(antigram/grams\)"):
        FeatureStore(store_copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: root.update(format_version=3), "written by format version 3, .* up to 2"),
        (lambda root: root.update(complete=False), "not complete"),
        (lambda root: root.pop("complete"), "not complete"),
        (lambda root: root.update(mean=0.0), "does not match its fingerprint"),
        (lambda root: root.pop("std"), "lack 'std'"),
        (lambda root: root["recipe"].update(seed=5), "does not match its fingerprint"),
        (lambda root: root["recipe"].update(version="prepare/9"), "prepare/9"),
        (lambda root: root["recipe"].update(pitch=1), "unknown fields"),
        (lambda root: root["recipe"].update(noise="nigh"), "noise"),
        (lambda root: root["classes"]["word"].reverse(), "does not match its fingerprint"),
        (lambda root: root.update(main_label="pitch"), "main label"),
        (lambda root: root.update(fingerprint="0" * 64), "does not match its fingerprint"),
    ],
    ids=["newer version", "incomplete", "no mark", "mean", "no std", "recipe", "recipe version",
         "recipe field", "recipe value", "classes", "main label", "fingerprint"],
)  # fmt: skip
def test_changed_metadata_is_stored_data_that_cannot_be_trusted(change, says, store_copy):
    edit_store(store_copy, change)
    with pytest.raises(StoredDataError, match=says):
        FeatureStore(store_copy)


def _state(path: Path):
    """Read everything that training takes from a store."""
    store = FeatureStore(path)
    labels = {name: store.labels(name).tolist() for name in store.classes}
    return (
        store.recipe, store.mean, store.std, store.fingerprint, store.main_label, store.classes,
        labels, store.split.tolist(), store.clip_ids, store.sources, store.features.shape,
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["zarr.json", "features/zarr.json", "labels/word/zarr.json", "manifest/zarr.json",
     "labels/word/c/0", "split/c/0", "clip_id/c/0"],
)  # fmt: skip
def test_a_flipped_bit_never_gives_other_values(name, noisy, store_copy):
    want = _state(noisy.store.path)
    path = store_copy / name
    whole = path.read_bytes()
    wrong = []
    for place in range(0, len(whole), 2):
        flip(path, place, place % 7)
        try:
            if _state(store_copy) != want:
                wrong.append(whole[max(0, place - 30) : place + 9])
        except (InputError, StoredDataError):
            pass
        path.write_bytes(whole)
    assert not wrong, f"{len(wrong)} flips gave other values: {wrong[:3]}"


@pytest.mark.parametrize("name", ["split", "labels/word", "clip_id", "source", "features"])
def test_a_deleted_array_is_damage(name, store_copy):
    (store_copy / name / "zarr.json").unlink()
    with pytest.raises(DamagedError, match=f"{name}/zarr.json.*antigram verify"):
        _state(store_copy)


def test_a_store_without_its_manifest_is_damage(store_copy):
    (store_copy / "manifest" / "zarr.json").unlink()
    with pytest.raises(DamagedError, match="missing; without it nothing can be checked"):
        FeatureStore(store_copy)
