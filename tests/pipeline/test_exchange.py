"""Export to one HDF5 file and import it: the same bytes, and no damaged data."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.exchange import export_file, import_file
from tests.support.files import all_names_in, bytes_of, flip
from tests.support.stores import IDS

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = {"clip_id", "features", "labels/speaker", "labels/word", "source", "split"}


# --- intact stores and caches ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["clean", "noisy", "half"])
def test_a_store_comes_back_byte_by_byte(name, request, tmp_path, features):
    path = request.getfixturevalue(name).store.path
    file = tmp_path / "store.h5"
    assert export_file(path, file) == file.stat().st_size
    assert all_names_in(tmp_path) == ["features", "store.h5"]
    assert import_file(file, features / "back.zarr") is True
    assert bytes_of(features / "back.zarr") == bytes_of(path)
    assert all_names_in(features) == ["back.zarr"]


def test_a_file_is_read_as_the_store_that_it_was_made_of(clean, exported):
    store, want = FeatureStore(exported), clean.store
    assert store.fingerprint == want.fingerprint
    assert store.clip_ids == want.clip_ids
    assert store.sources == want.sources
    np.testing.assert_array_equal(store.labels("word"), want.labels("word"))
    np.testing.assert_array_equal(store.split, want.split)
    np.testing.assert_array_equal(store.features.read(), want.features.read())
    rows = np.array([23, 0, 5, 5, 17])
    np.testing.assert_array_equal(store.features.take(rows), want.features.take(rows))


def test_a_store_of_float16_stays_one(half, tmp_path, features):
    export_file(half.store.path, tmp_path / "half.h5")
    with h5py.File(tmp_path / "half.h5") as file:
        assert file["features"].dtype == np.float16
        np.testing.assert_array_equal(file["features"][...], half.store.features.read())
    import_file(tmp_path / "half.h5", features / "half.zarr")
    assert FeatureStore(features / "half.zarr").features.spec.dtype == "float16"


def test_text_of_every_kind_survives(group, tmp_path, features):
    folder, values = group
    export_file(folder, tmp_path / "small.h5")
    with h5py.File(tmp_path / "small.h5") as file:
        assert file["text"].asstr()[...].tolist() == IDS
        np.testing.assert_array_equal(file["numbers"][...], values["numbers"])
    import_file(tmp_path / "small.h5", features / "small.zarr")
    assert bytes_of(features / "small.zarr") == bytes_of(folder)


def test_an_attribute_too_long_for_hdf5_is_only_in_the_document(group, tmp_path):
    export_file(group[0], tmp_path / "small.h5")
    with h5py.File(tmp_path / "small.h5") as file:
        assert json.loads(file.attrs["antigram"]) == {"made": "by hand"}
        assert "wide" not in file.attrs
        document = json.loads(file["zarr/zarr.json"][...].tobytes())
    assert document["attributes"]["wide"] == "y" * 70_000


ALONE = """
import json, sys
import h5py, numpy as np
found, attributes = {}, {}
def plain(member):
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in member.attrs.items()}
with h5py.File(sys.argv[1]) as file:
    def look(name, member):
        attributes[name] = plain(member)
        if isinstance(member, h5py.Dataset) and not name.startswith("zarr/"):
            assert member.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS, name
            text = h5py.check_string_dtype(member.dtype) is not None
            found[name] = np.array(member.asstr()[...].tolist()) if text else member[...]
    file.visititems(look)
    root = plain(file)
root["format_version"] = int(root["format_version"])
assert not {"pipeline", "cache", "zarr"} & set(sys.modules)
np.savez(sys.argv[2], **found)
print(json.dumps([root, attributes]))
"""


def test_h5py_alone_reads_names_values_and_attributes(clean, exported, tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, exported, tmp_path / "found.npz"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    root, attributes = json.loads(done.stdout)
    store = clean.store
    with np.load(tmp_path / "found.npz") as found:
        assert set(found) == ARRAYS
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["features"], store.features.read())
        for label in ("word", "speaker"):
            np.testing.assert_array_equal(found[f"labels/{label}"], store.labels(label))
        np.testing.assert_array_equal(found["split"], store.split)
        assert found["clip_id"].tolist() == store.clip_ids
        assert found["source"].tolist() == store.sources
    assert (root["format"], root["format_version"]) == ("antigram/hdf5", 1)
    assert json.loads(root["antigram"]) == store.root
    for name in ARRAYS:
        document = json.loads((store.path / name / "zarr.json").read_text())
        got = {key: json.loads(text) for key, text in attributes[name].items()}
        assert got == document["attributes"], name


def test_progress_ends_with_all(clean, tmp_path, features):
    seen = []
    export_file(clean.store.path, tmp_path / "a.h5", lambda *args: seen.append(args))
    done = [step[1] for step in seen]
    assert done == sorted(done)
    assert 0.9 < done[-1] / seen[-1][2] <= 1
    seen.clear()
    import_file(tmp_path / "a.h5", features / "a.zarr", lambda *args: seen.append(args))
    assert {name for name, done, chunks in seen if done == chunks} == {
        f"imported {name}" for name in ARRAYS
    }


# --- existing goals -------------------------------------------------------------------


def test_a_second_import_leaves_it_alone(exported, features):
    goal = features / "gsc.zarr"
    assert import_file(exported, goal) is True
    before = {p: p.stat().st_mtime_ns for p in [goal, *goal.rglob("*")]}
    assert import_file(exported, goal) is False
    assert {p: p.stat().st_mtime_ns for p in [goal, *goal.rglob("*")]} == before


def test_an_import_replaces_other_content(clean, half, exported, features):
    goal = Path(shutil.copytree(half.store.path, features / "gsc.zarr"))
    assert import_file(exported, goal) is True
    assert bytes_of(goal) == bytes_of(clean.store.path)
    assert all_names_in(features) == ["gsc.zarr"]


@pytest.mark.parametrize("damage", ["flipped", "deleted", "added"])
def test_an_import_mends_what_is_damaged(damage, clean, exported, features):
    goal = features / "gsc.zarr"
    import_file(exported, goal)
    chunk = goal / "features" / "c" / "1" / "0" / "0"
    if damage == "flipped":
        flip(chunk, 99)
    elif damage == "deleted":
        chunk.unlink()
    else:
        (goal / "notes.txt").write_text("mine")
    assert import_file(exported, goal) is True
    assert bytes_of(goal) == bytes_of(clean.store.path)


def test_an_export_replaces_the_file_that_is_there(clean, half, exported, tmp_path):
    goal = tmp_path / "goal.h5"
    export_file(half.store.path, goal)
    export_file(clean.store.path, goal)
    assert goal.stat().st_size == exported.stat().st_size
    assert FeatureStore(goal).fingerprint == clean.store.fingerprint


# --- refused exports -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsc.hdf5", "gsc", "gsc.h5.zarr"])
def test_another_suffix_is_refused(name, clean, tmp_path):
    with pytest.raises(InputError, match=rf"{name}: wanted a name that ends in \.h5"):
        export_file(clean.store.path, tmp_path / name)
    assert not all_names_in(tmp_path)


def test_a_folder_that_is_not_there_is_refused(clean, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        export_file(clean.store.path, tmp_path / "nowhere" / "gsc.h5")
    assert not all_names_in(tmp_path)


def test_a_disk_that_is_too_small_is_refused(clean, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"B wanted, 0\.0 MB free"):
        export_file(clean.store.path, tmp_path / "gsc.h5")
    assert not all_names_in(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["features/c/2/0/0", "labels/word/c/0", "clip_id/c/0", "features/zarr.json", "zarr.json",
     "manifest/zarr.json"],
)  # fmt: skip
@pytest.mark.parametrize("damage", ["flipped", "truncated", "deleted"])
def test_a_damaged_store_is_not_exported(damage, name, store_copy, tmp_path):
    path = store_copy / name
    if damage == "flipped":
        flip(path, path.stat().st_size // 2)
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        path.unlink()
    with pytest.raises(DamagedError, match=name):
        export_file(store_copy, tmp_path / "gsc.h5")
    assert all_names_in(tmp_path) == ["copy.zarr"]
