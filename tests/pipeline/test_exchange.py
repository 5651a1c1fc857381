"""Export to one HDF5 file and import: the same bytes, and nothing of what is damaged or hostile."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from antigram import cli
from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.chunks import STRING, ArraySpec, encode, write_chunk
from antigram.pipeline.storage.exchange import export_file, import_file, verify_export
from antigram.pipeline.storage.manifest import create_arrays, create_group, write_manifest
from tests.pipeline.small import bytes_of, flip, prepare_gsc

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = {"clip_id", "features", "labels/speaker", "labels/word", "source", "split"}
IDS = ["", "naïve", "日本/a", "x" * 500, "z"]


@pytest.fixture(scope="module")
def half(gsc_home, tmp_path_factory) -> FeatureStore:
    """The clips of ``clean``, as float16."""
    return prepare_gsc(gsc_home, tmp_path_factory.mktemp("half") / "half.zarr", dtype="float16")


@pytest.fixture(scope="module")
def exported(clean, tmp_path_factory) -> Path:
    goal = tmp_path_factory.mktemp("exported") / "gsc.h5"
    export_file(clean.store.path, goal)
    return goal


@pytest.fixture
def copied(exported, tmp_path) -> Path:
    """A copy of the exported file, to be damaged."""
    return Path(shutil.copy(exported, tmp_path / "copy.h5"))


@pytest.fixture
def features(tmp_path) -> Path:
    """Where imports go."""
    folder = tmp_path / "features"
    folder.mkdir()
    return folder


def names_of(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def group(tmp_path, rng):
    """A group of a few rows, written by hand: ``(folder, values)``."""
    values = {
        "numbers": rng.standard_normal((5, 3)).astype(np.float32),
        "whole": np.arange(5, dtype=np.int32),
        "text": IDS,
    }
    folder = tmp_path / "small.zarr"
    specs = [
        ArraySpec("numbers", (5, 3), "float32", 2),
        ArraySpec("whole", (5,), "int32", 5),
        ArraySpec("text", (5,), STRING, 2),
    ]
    create_group(folder, {"antigram": {"made": "by hand"}, "wide": "y" * 70_000})
    create_arrays(folder, specs)
    written = {
        spec.name: [
            write_chunk(folder, spec, i, encode(spec, i, values[spec.name][spec.span(i)]))
            for i in range(spec.chunks)
        ]
        for spec in specs
    }
    write_manifest(folder, written)
    return folder, values


# --- what is whole ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["clean", "noisy", "half"])
def test_a_store_comes_back_byte_by_byte(name, request, tmp_path, features):
    path = request.getfixturevalue(name).store.path
    file = tmp_path / "store.h5"
    assert export_file(path, file) == file.stat().st_size
    assert names_of(tmp_path) == ["features", "store.h5"]
    assert import_file(file, features / "back.zarr") is True
    assert bytes_of(features / "back.zarr") == bytes_of(path)
    assert names_of(features) == ["back.zarr"]


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


# --- what is there already -------------------------------------------------------------------


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
    assert names_of(features) == ["gsc.zarr"]


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


# --- what stops half way ---------------------------------------------------------------------


def test_an_interrupted_export_leaves_the_old_file(clean, tmp_path):
    goal = tmp_path / "goal.h5"
    goal.write_bytes(b"old")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_file(clean.store.path, goal, stop)
    assert names_of(tmp_path) == ["goal.h5"]
    assert goal.read_bytes() == b"old"


def test_an_interrupted_import_leaves_the_old_folder(half, exported, features):
    goal = Path(shutil.copytree(half.store.path, features / "gsc.zarr"))

    def stop(_, done, __):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(exported, goal, stop)
    assert names_of(features) == ["gsc.zarr"]
    assert bytes_of(goal) == bytes_of(half.store.path)


KILLED = """
import os, signal, sys
from pathlib import Path
from antigram.pipeline.storage.exchange import export_file, import_file, verify_export
def tick(what, done, of):
    if done == 3 or what == "exported":
        os.kill(os.getpid(), signal.SIGKILL)
{"import": import_file, "export": export_file}[sys.argv[1]](
    Path(sys.argv[2]), Path(sys.argv[3]), tick
)
"""


def killed(*arguments) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL


def test_a_killed_import_shows_nothing_and_the_next_one_clears_up(clean, exported, features):
    killed("import", exported, features / "gsc.zarr")
    assert names_of(features) == [".gsc.zarr.import"]
    (features / ".gsc.zarr.import" / "rubbish").write_text("left by another version")
    assert import_file(exported, features / "gsc.zarr") is True
    assert names_of(features) == ["gsc.zarr"]
    assert bytes_of(features / "gsc.zarr") == bytes_of(clean.store.path)


def test_a_killed_export_shows_nothing_and_the_next_one_clears_up(clean, tmp_path):
    killed("export", clean.store.path, tmp_path / "gsc.h5")
    assert names_of(tmp_path) == [".gsc.h5.partial"]
    export_file(clean.store.path, tmp_path / "gsc.h5")
    assert names_of(tmp_path) == ["gsc.h5"]
    assert FeatureStore(tmp_path / "gsc.h5").fingerprint == clean.store.fingerprint


# --- what cannot be exported -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["gsc.hdf5", "gsc", "gsc.h5.zarr"])
def test_another_suffix_is_refused(name, clean, tmp_path):
    with pytest.raises(InputError, match=rf"{name}: wanted a name that ends in \.h5"):
        export_file(clean.store.path, tmp_path / name)
    assert not names_of(tmp_path)


def test_a_folder_that_is_not_there_is_refused(clean, tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        export_file(clean.store.path, tmp_path / "nowhere" / "gsc.h5")
    assert not names_of(tmp_path)


def test_a_disk_that_is_too_small_is_refused(clean, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    with pytest.raises(InputError, match=r"B wanted, 0\.0 MB free"):
        export_file(clean.store.path, tmp_path / "gsc.h5")
    assert not names_of(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["features/c/2/0/0", "labels/word/c/1", "clip_id/c/0", "features/zarr.json", "zarr.json",
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
    assert names_of(tmp_path) == ["copy.zarr"]


# --- what cannot be imported -----------------------------------------------------------------


def refused(error, match: str, file: Path, features: Path) -> None:
    """An import that fails, and leaves what was there and nothing else."""
    with pytest.raises(error, match=match) as found:
        import_file(file, features / "new.zarr")
    assert str(found.value).startswith(str(file))
    assert names_of(features) == []
    old = features / "old.zarr"
    old.mkdir()
    (old / "zarr.json").write_text("{}")
    with pytest.raises(error, match=match):
        import_file(file, old)
    assert names_of(features) == ["old.zarr"]
    assert bytes_of(old) == {"zarr.json": b"{}"}


@pytest.mark.parametrize("name", ["features", "labels/word", "split", "zarr/features/zarr.json",
                                  "zarr/zarr.json", "zarr/manifest/zarr.json"])  # fmt: skip
@pytest.mark.parametrize("part", [0, 0.5, 1], ids=["first", "middle", "last"])
def test_a_flipped_bit_of_a_dataset_is_found(part, name, copied, features):
    with h5py.File(copied) as file:
        place = file[name].id.get_offset()
        size = file[name].size * file[name].dtype.itemsize
    flip(copied, place + round(part * (size - 1)), 2)
    refused(DamagedError, name.removeprefix("zarr/"), copied, features)


def test_a_changed_text_is_found(clean, copied, features):
    clip_id = clean.store.clip_ids[7].encode()
    raw = copied.read_bytes()
    places = [p for p in range(len(raw)) if raw.startswith(clip_id, p)]
    assert places
    for place in places:
        flip(copied, place + 3)
    refused(DamagedError, "crc32c", copied, features)


@pytest.mark.parametrize("left", [0, 5, 512, 0.5, -100, -1], ids=str)
def test_a_truncated_file_is_refused(left, copied, features):
    raw = copied.read_bytes()
    copied.write_bytes(raw[: round(left * len(raw)) if left == 0.5 else left])
    refused((InputError, DamagedError), "HDF5", copied, features)


def another(name, **given):
    """Put another dataset in the place of one."""

    def change(file):
        values = file[name][...]
        del file[name]
        file.create_dataset(name, **{"data": values, **given})

    return change


def soft_link(file):
    file.move("split", "elsewhere")
    file["split"] = h5py.SoftLink("/elsewhere")


def external_link(file):
    with h5py.File(Path(file.filename).with_name("beside.h5"), "w") as beside:
        file.copy("split", beside)
    del file["split"]
    file["split"] = h5py.ExternalLink("beside.h5", "/split")


def link_to_a_group(file):
    file.move("zarr", "elsewhere")
    file["zarr"] = h5py.SoftLink("/elsewhere")


def virtual(file):
    file.move("split", "elsewhere")
    layout = h5py.VirtualLayout(shape=file["elsewhere"].shape, dtype=np.int8)
    layout[:] = h5py.VirtualSource(file["elsewhere"])
    file.create_virtual_dataset("split", layout)


def external_storage(file):
    """Its bytes are those of another file of the machine."""
    values = file["split"][...]
    outside = Path(file.filename).with_name("secret.bin")
    outside.write_bytes(values.tobytes())
    del file["split"]
    file.create_dataset(
        "split", values.shape, values.dtype, external=[(str(outside), 0, values.nbytes)]
    )


def compact(file):
    """The same bytes, but inside the dataset's header, where they cannot be mapped."""
    values = file["split"][...]
    del file["split"]
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_layout(h5py.h5d.COMPACT)
    space = h5py.h5s.create_simple(values.shape)
    h5py.h5d.create(file.id, b"split", h5py.h5t.NATIVE_INT8, space, plist).write(
        h5py.h5s.ALL, h5py.h5s.ALL, values
    )


def without(name):
    def change(file):
        del file[name]

    return change


def shorter_text(file):
    texts = file["clip_id"].asstr()[...].tolist()
    del file["clip_id"]
    fixed = h5py.string_dtype("utf-8", 64)
    file.create_dataset("clip_id", data=np.array([t.encode() for t in texts[:-1]], fixed))


def with_document(name):
    def change(file):
        group = file["zarr"]
        *folders, last = name.split("/")
        for folder in folders:
            place = folder.encode()
            group = group[place] if place in group else group.create_group(place)
        group.create_dataset(last, data=np.frombuffer(b"{}", np.uint8))

    return change


def newer(file):
    file.attrs["format_version"] = 2


def own_member(file):
    file["zarr/features/again"] = file["zarr"]


def of_numbers(file):
    del file["zarr/zarr.json"]
    file["zarr/zarr.json"] = np.arange(5.0)


SHAPE, DTYPE = np.zeros(25, np.int8), np.zeros(24, np.int16)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(another("split", data=SHAPE), r"split is \(25,\)", id="shape"),
        pytest.param(another("split", data=SHAPE[:, None]), r"split is \(25, 1\)", id="axes"),
        pytest.param(another("split", data=DTYPE), r"split is .*int16, wanted", id="dtype"),
        pytest.param(another("features", dtype=">f4"), r"features is .*>f4", id="big-endian"),
        pytest.param(another("split", data=SHAPE[:24]), "crc32c", id="values"),
        pytest.param(another("split", chunks=(4,)), "split is not contiguous", id="chunked"),
        pytest.param(another("split", compression="gzip"), "not contiguous", id="compressed"),
        pytest.param(another("clip_id", chunks=(4,)), "not contiguous", id="chunked text"),
        pytest.param(another("clip_id", data=DTYPE), "clip_id: 0 texts of 24", id="no text"),
        pytest.param(
            another("split", data=["a"] * 24),
            "split holds texts of variable length",
            id="text for numbers",
        ),
        pytest.param(shorter_text, "clip_id: 23 texts of 24", id="shorter text"),
        pytest.param(soft_link, "split is a link to elsewhere", id="soft link"),
        pytest.param(external_link, "split is a link to elsewhere", id="external link"),
        pytest.param(link_to_a_group, "zarr is a link to elsewhere", id="linked group"),
        pytest.param(virtual, "split is not contiguous", id="virtual"),
        pytest.param(external_storage, "split is not contiguous", id="external storage"),
        pytest.param(compact, "split goes on behind the end", id="compact"),
        pytest.param(without("split"), r"split is \(\)", id="no array"),
        pytest.param(without("labels"), r"labels/speaker is \(\)", id="no group"),
        pytest.param(without("zarr/split/zarr.json"), "split/zarr.json", id="no document"),
        pytest.param(without("zarr/zarr.json"), "zarr.json", id="no root"),
        pytest.param(without("zarr/manifest"), "manifest/zarr.json: missing", id="no manifest"),
        pytest.param(without("zarr"), "manifest/zarr.json: missing", id="no documents"),
        pytest.param(with_document("x/zarr.json"), "unknown file", id="unknown document"),
        pytest.param(of_numbers, "zarr.json: 40 bytes of float64", id="document of numbers"),
        pytest.param(own_member, "unknown file|holds a document", id="group inside itself"),
    ],
)
def test_what_is_not_as_it_was_exported_is_damage(change, match, copied, features):
    with h5py.File(copied, "r+", libver="latest") as file:
        change(file)
    refused(DamagedError, match, copied, features)


@pytest.mark.parametrize(
    "name",
    [
        "../x/zarr.json",
        "../../zarr.json",
        "features/../../../x/zarr.json",
        "..",
        "x\\y/zarr.json",
        "x\n/zarr.json",
        "~/\u202e/zarr.json",
        "features/c/0/0/0",
        "features/run.sh",
        ".bashrc",
    ],
    ids=ascii,
)
def test_a_document_of_a_hostile_name_is_refused(name, copied, features):
    with h5py.File(copied, "r+", libver="latest") as file:
        with_document(name)(file)
    refused(DamagedError, "holds a document called", copied, features)
    assert names_of(features.parent) == ["copy.h5", "features"]


def test_a_newer_file_is_refused(copied, features):
    with h5py.File(copied, "r+", libver="latest") as file:
        newer(file)
    refused(StoredDataError, "in format version 2", copied, features)


@pytest.mark.parametrize("raw", [b"hello\n", b"PK\x03\x04" * 99], ids=["text", "zip"])
def test_what_is_no_hdf5_is_refused(raw, tmp_path, features):
    (tmp_path / "no.h5").write_bytes(raw)
    refused((InputError, DamagedError), "HDF5", tmp_path / "no.h5", features)


def test_hdf5_of_others_is_refused(tmp_path, features):
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["features"] = np.zeros((3, 4))
        file.attrs["format"] = "something else"
    refused(InputError, "not written by `antigram export`", tmp_path / "theirs.h5", features)


@pytest.mark.parametrize("name", ["none.h5", "folder.h5", "store.zarr", "renamed.hdf5"])
def test_what_is_no_exported_file_is_refused(name, exported, tmp_path, features):
    (tmp_path / "folder.h5").mkdir()
    shutil.copy(exported, tmp_path / "renamed.hdf5")
    refused(InputError, "no such file", tmp_path / name, features)


FLIPPED = """
import json, signal, sys
from pathlib import Path
import antigram.pipeline.storage.exchange as exchange
from antigram.pipeline.errors import DamagedError, InputError
from tests.pipeline.small import bytes_of
exchange.flush_filesystem = lambda _: None
source, folder, flips = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
raw, made, wrong = source.read_bytes(), 0, []
exchange.import_file(source, folder / "whole.zarr")
want = bytes_of(folder / "whole.zarr")
for number, (place, bit) in enumerate(flips):
    changed = bytearray(raw)
    changed[place] ^= 1 << bit
    file, goal = folder / f"{number}.h5", folder / f"{number}.zarr"
    file.write_bytes(changed)
    signal.alarm(10)  # its default: the end
    print(place, bit, file=sys.stderr, flush=True)
    try:
        exchange.import_file(file, goal)
    except (DamagedError, InputError):
        wrong += [[place, bit]] if goal.exists() else []
    else:
        wrong += [] if bytes_of(goal) == want else [[place, bit]]
        made += 1
    signal.alarm(0)
    file.unlink()
print(json.dumps([made, wrong]))
"""


def flipped(file: Path, folder: Path, flips: list[tuple[int, int]]) -> int:
    """Imports, in a process of their own, that a flipped bit does not stop; none may differ."""
    done = subprocess.run(
        [sys.executable, "-c", FLIPPED, file, folder, json.dumps(flips)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-3:]
    assert done.returncode == 0, f"ended with {done.returncode} at byte and bit {last}"
    made, wrong = json.loads(done.stdout)
    assert not wrong
    return made


def test_a_flipped_bit_anywhere_is_refused_or_changes_nothing(group, tmp_path, features):
    file = tmp_path / "small.h5"
    size = export_file(group[0], file)
    draw = random.Random(1)
    flips = [(draw.randrange(size), draw.randrange(8)) for _ in range(150)]
    made = flipped(file, features, flips)
    assert made < len(flips)


def test_nothing_lies_in_the_heap_of_hdf5(group, tmp_path):
    """It has no checksums, and HDF5 walks it by sizes: a flipped bit makes it loop for ever."""
    file = tmp_path / "small.h5"
    export_file(group[0], file)
    assert b"GCOL" not in file.read_bytes()


def test_verify_of_an_exported_file_finds_what_an_import_would_refuse(copied):
    assert not list(verify_export(copied))
    raw = copied.read_bytes()
    draw = random.Random(5)
    for _ in range(60):
        changed = bytearray(raw)
        changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
        copied.write_bytes(changed)
        problems = list(verify_export(copied))
        try:
            import_file(copied, copied.with_name("imported.zarr"))
            intact = True
        except (DamagedError, InputError):
            intact = False
        assert intact is not bool(problems)
        shutil.rmtree(copied.with_name("imported.zarr"), ignore_errors=True)


def test_an_exported_file_can_be_named_to_verify(copied, capsys, monkeypatch):
    def verify():
        monkeypatch.setattr(sys, "argv", ["antigram", "--json", "verify", str(copied)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, json.loads(capsys.readouterr().out)

    assert verify() == (0, {"ok": True, "problems": [], "checked": [str(copied)]})
    flip(copied, copied.stat().st_size // 2)
    code, answer = verify()
    assert code == 3
    assert [problem["path"] for problem in answer["problems"]] == [str(copied)]
