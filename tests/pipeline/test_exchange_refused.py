"""Damaged, malicious and foreign files are not imported, and change nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.exchange import import_file
from tests.support.files import all_names_in, bytes_of, flip


def refused(error, match: str, file: Path, features: Path) -> None:
    """Check that an import fails and changes no file."""
    with pytest.raises(error, match=match) as found:
        import_file(file, features / "new.zarr")
    assert str(found.value).startswith(str(file))
    assert all_names_in(features) == []
    old = features / "old.zarr"
    old.mkdir()
    (old / "zarr.json").write_text("{}")
    with pytest.raises(error, match=match):
        import_file(file, old)
    assert all_names_in(features) == ["old.zarr"]
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
    """Replace a dataset by another."""

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
    """A dataset whose bytes are those of another file on the machine."""
    values = file["split"][...]
    outside = Path(file.filename).with_name("secret.bin")
    outside.write_bytes(values.tobytes())
    del file["split"]
    file.create_dataset(
        "split", values.shape, values.dtype, external=[(str(outside), 0, values.nbytes)]
    )


def compact(file):
    """A dataset with its bytes inside its header, where they cannot be mapped."""
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
        pytest.param(compact, "split extends beyond the end", id="compact"),
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
    assert all_names_in(features.parent) == ["copy.h5", "features"]


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
