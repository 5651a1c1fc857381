"""Stores with correct checksums whose contents violate the format.

Another program, or an attacker, may write such files: every crc32c and digest is right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.features.store import FeatureStore, store_fingerprint
from antigram.pipeline.storage.chunks import STRING, ArraySpec, crc32c, encode, write_chunk
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import (
    create_arrays,
    create_group,
    read_manifest,
    write_manifest,
)
from antigram.pipeline.storage.mapped import MappedArray
from antigram.pipeline.storage.verification import verify_group
from antigram.studies.verify import verify_store


@pytest.fixture(autouse=True)
def alarm():
    """Fail a test that waits for a pipe, instead of waiting for ever."""

    def give_up(*_):
        raise AssertionError("waited for a pipe, or read a device without end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def light(clean, tmp_path_factory) -> Path:
    """Copy the clean store, with links to its features."""
    return Path(
        shutil.copytree(
            clean.store.path, tmp_path_factory.mktemp("light") / "s.zarr", copy_function=os.link
        )
    )


@pytest.fixture
def rewrite(light, tmp_path):
    """Rewrite arrays of a copy, and all checksums, digests and the fingerprint."""

    def make(classes=None, **arrays):
        path = tmp_path / "copy.zarr"
        shutil.copytree(light, path, copy_function=os.link)
        root = json.loads((path / "zarr.json").read_text())["attributes"]["antigram"]
        root["classes"].update(classes or {})
        written = {}
        for name in read_manifest(Folder(path)).arrays:
            meta = json.loads((path / name / "zarr.json").read_text())
            dtype, rows = meta["data_type"], meta["chunk_grid"]["configuration"]["chunk_shape"][0]
            array = MappedArray(Folder(path), name, read_manifest(Folder(path)).crcs(name), "")
            change = arrays.get(name.replace("/", "_"))
            if change is None:
                spec = ArraySpec(name, tuple(meta["shape"]), dtype, rows, meta["attributes"])
                values = array.read_text() if dtype == STRING else array.read()
            else:
                values = change(array.read_text() if dtype == STRING else array.read())
                if isinstance(values, np.ndarray):
                    dtype = str(values.dtype)
                shape = np.shape(values) if dtype != STRING else (len(values),)
                spec = ArraySpec(name, shape, dtype, min(rows, len(values)), meta["attributes"])
                shutil.rmtree(path / name)
                create_arrays(Folder(path), [spec])
            written[name] = [
                write_chunk(
                    Folder(path), spec, i, encode(spec, i, values[spec.span(i)]), flush=False
                )
                for i in range(spec.chunks)
            ]
        (path / "zarr.json").unlink()  # a link
        create_group(Folder(path), {"antigram": root})
        manifest = write_manifest(Folder(path), written)
        root["fingerprint"] = store_fingerprint(root, manifest)
        create_group(Folder(path), {"antigram": root})
        write_manifest(Folder(path), written)
        return path

    return make


def put(row, value):
    def change(values):
        values = values.copy()
        values[row] = value
        return values

    return change


def read_all(path):
    store = FeatureStore(path)
    for label in store.classes:
        store.labels(label)
    return store.split, store.clip_ids, store.sources


WRONG = {
    "a label beyond the classes": (
        {"labels_word": put(5, 3)}, r"labels/word: row 5 is 3, wanted -1 to 2\."),
    "a label below none": (
        {"labels_word": put(23, -5)}, r"labels/word: row 23 is -5, wanted -1 to 2\."),
    "a label of fewer classes": (
        {"classes": {"word": ["one"]}}, r"labels/word: row \d+ is [12], wanted -1 to 0\."),
    "classes that are no list": (
        {"classes": {"word": "one"}}, r"its classes are not lists of names"),
    "a split that there is not": (
        {"split": put(2, 7)}, r"split: row 2 is 7, wanted 0 to 2\."),
    "fewer labels than clips": (
        {"labels_word": lambda v: v[:-1]}, r"labels/word: is int32 \(23,\), wanted int32 \(24\)"),
    "more ids than clips": (
        {"clip_id": lambda v: [*v, "~"]}, r"clip_id: is string \(25,\), wanted string \(24\)"),
    "labels of another dtype": (
        {"labels_word": lambda v: v.astype(np.float32)}, r"is float32 \(24,\), wanted int32"),
    "labels of another rank": (
        {"labels_word": lambda v: v[:, None]}, r"is int32 \(24, 1\), wanted int32 \(24\)"),
    "features of another rank": (
        {"features": lambda v: v.reshape(24, -1)},
        r"features: is float32 \(24, 16254\), wanted float32 \(any, 126, 129\)"),
    "features of another dtype": (
        {"features": lambda v: v.astype(np.float16)}, r"is float16 .*, wanted float32"),
    "ids that are not sorted": (
        {"clip_id": lambda v: [v[1], v[0], *v[2:]]}, r"clip_id: row 1 is .* wanted sorted ids"),
    "an id that is there twice": (
        {"clip_id": lambda v: [*v[:4], v[3], *v[5:]]}, r"clip_id: row 4 is .* each once"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_store_that_does_not_hold_what_its_format_names_is_refused(name, rewrite):
    arrays, says = WRONG[name]
    path = rewrite(**arrays)
    assert not list(verify_group(Folder(path)))  # every checksum is right
    with pytest.raises(DamagedError, match=says):
        read_all(path)
    assert [re.search(says, problem.problem) is not None for problem in verify_store(path)] == [
        True
    ]


def test_a_store_that_is_rewritten_as_it_was_is_whole(rewrite, clean):
    path = rewrite(labels_word=lambda values: values)
    assert not list(verify_store(path))
    split, *texts = read_all(path)
    want, *wanted = read_all(clean.store.path)
    np.testing.assert_array_equal(split, want)
    assert texts == wanted


ABSURD = {
    "rows": lambda meta: meta.update(shape=[10**12, *meta["shape"][1:]]),
    "rows in one chunk": lambda meta: (
        meta.update(shape=[10**11, 126, 129]),
        meta["chunk_grid"]["configuration"].update(chunk_shape=[10**11 // 6, 126, 129]),
    ),
    "an axis": lambda meta: (
        meta.update(shape=[24, 2**60, 129]),
        meta["chunk_grid"]["configuration"].update(chunk_shape=[4, 2**60, 129]),
    ),
    "a negative axis": lambda meta: (
        meta.update(shape=[24, -126, 129]),
        meta["chunk_grid"]["configuration"].update(chunk_shape=[4, -126, 129]),
    ),
    "no number": lambda meta: meta.update(shape=[24, 1.5, 129]),
    "a dtype": lambda meta: meta.update(data_type="object"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_an_absurd_shape_is_refused_before_memory_is_taken(name, light, tmp_path, monkeypatch):
    path = Path(shutil.copytree(light, tmp_path / "copy.zarr", copy_function=os.link))
    document = path / "features" / "zarr.json"
    meta = json.loads(document.read_text())
    ABSURD[name](meta)
    document.unlink()
    document.write_text(json.dumps(meta))
    crcs = read_manifest(Folder(path)).crcs("features")

    def refuse(*_, **__):
        raise AssertionError("memory was taken")

    monkeypatch.setattr(np, "empty", refuse)
    with pytest.raises(DamagedError, match="features"):
        MappedArray(Folder(path), "features", crcs, "").read()


def test_more_texts_than_a_chunk_may_have_are_refused_before_memory_is_taken(light, tmp_path):
    path = Path(shutil.copytree(light, tmp_path / "copy.zarr", copy_function=os.link))
    data = struct.pack("<I", 2**31 - 1) + b"\0" * 64
    for file in sorted((path / "clip_id" / "c").iterdir()):
        file.unlink()
        file.write_bytes(data + struct.pack("<I", crc32c(data)))
    array = MappedArray(Folder(path), "clip_id", [crc32c(data)], "")
    with pytest.raises(DamagedError, match="c/0: is not 24 texts"):
        array.read_text()


FILES = ["zarr.json", "manifest/zarr.json", "labels/word/zarr.json", "features/c/0/0/0",
         "labels/word/c/0", "clip_id/c/0", "split/c/0"]  # fmt: skip
KINDS = {"pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_pipe_or_device_in_a_store_is_damage_and_is_not_read(kind, name, light, tmp_path):
    path = Path(shutil.copytree(light, tmp_path / "copy.zarr", copy_function=os.link))
    (path / name).unlink()
    KINDS[kind](path / name)
    with pytest.raises(DamagedError, match=re.escape(name)):
        _ = read_all(path), FeatureStore(path).features.read()
    assert path / name in {problem.path for problem in verify_store(path)}
