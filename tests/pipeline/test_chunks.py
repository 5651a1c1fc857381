from __future__ import annotations

import os
import signal
import subprocess
import sys

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from antigram.pipeline.storage.chunks import (
    STRING,
    ArraySpec,
    chunk_path,
    crc32c,
    encode,
    rows_per_chunk,
    write_chunk,
)
from antigram.pipeline.storage.durable import atomic_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.hashing import digest, digest_of_list
from antigram.pipeline.storage.journal import Journal
from antigram.pipeline.storage.manifest import create_arrays, create_group, write_manifest
from tests.support.files import flip

KILLED = """
import os, sys
from pathlib import Path
from antigram.pipeline.storage.journal import Journal
journal = Journal(Path(sys.argv[1]), flush_s=3600)
for n in range(5):
    journal.append({"n": n})
os.kill(os.getpid(), 9)
"""
SPECS = {
    "exact": ArraySpec("features", (8, 3, 5), "float32", 4),
    "padded": ArraySpec("features", (9, 3, 5), "float32", 4),
    "half": ArraySpec("features", (7, 2, 3), "float16", 4),
    "one row": ArraySpec("features", (1, 6), "float32", 1),
    "labels": ArraySpec("labels/word", (9,), "int32", 4, {"classes": ["a", "b"]}),
    "bytes": ArraySpec("split", (5,), "int8", 2),
    "text": ArraySpec("clip_id", (5,), STRING, 2),
}


def values_of(spec: ArraySpec, rng):
    if spec.dtype == STRING:
        return ["", "a/b", "naïve", "日本", "x" * 1_000][: spec.shape[0]]
    if spec.dtype.startswith("float"):
        return rng.standard_normal(spec.shape).astype(spec.dtype)
    return rng.integers(-1, 100, spec.shape).astype(spec.dtype)


def write_group(folder, spec: ArraySpec, values):
    written = [
        write_chunk(Folder(folder), spec, i, encode(spec, i, values[spec.span(i)]))
        for i in range(spec.chunks)
    ]
    create_group(Folder(folder), {"antigram": {"format": "test"}})
    if "/" in spec.name:
        create_group(Folder(folder / "labels"), {})
    create_arrays(Folder(folder), [spec])
    return write_manifest(Folder(folder), {spec.name: written})


@pytest.mark.parametrize("name", SPECS)
def test_zarr_opens_what_is_written_and_reads_equal_values(name, tmp_path, rng):
    spec = SPECS[name]
    values = values_of(spec, rng)
    write_group(tmp_path / "x.zarr", spec, values)
    group = zarr.open_group(tmp_path / "x.zarr", mode="r")
    assert dict(group.attrs) == {"antigram": {"format": "test"}}
    array = group[spec.name]
    assert array.shape == spec.shape
    assert array.chunks == (spec.rows, *spec.shape[1:])
    assert dict(array.attrs) == spec.attributes
    assert [type(codec).__name__ for codec in array.compressors] == ["Crc32cCodec"]
    np.testing.assert_array_equal(array[:], values)


@pytest.mark.parametrize("name", [n for n, s in SPECS.items() if s.dtype != STRING])
def test_a_chunk_file_maps_to_the_rows_and_their_padding(name, tmp_path, rng):
    spec = SPECS[name]
    values = values_of(spec, rng)
    write_group(tmp_path, spec, values)
    for index in range(spec.chunks):
        path = chunk_path(tmp_path, spec, index)
        shape = (spec.rows, *spec.shape[1:])
        mapped = np.memmap(path, np.dtype(spec.dtype).newbyteorder("<"), "r", shape=shape)
        want = np.full(shape, np.nan if spec.dtype.startswith("float") else -1, spec.dtype)
        want[: len(values[spec.span(index)])] = values[spec.span(index)]
        np.testing.assert_array_equal(mapped, want)
        assert path.stat().st_size == spec.rows * spec.row_bytes + 4
        data, tail = path.read_bytes()[:-4], path.read_bytes()[-4:]
        assert int.from_bytes(tail, "little") == google_crc32c.value(data) == crc32c(data)


def test_crc32c_is_castagnolis():
    assert crc32c(b"123456789") == 0xE3069283


def test_a_chunk_of_zeros_has_a_file(tmp_path):
    spec = SPECS["exact"]
    write_group(tmp_path, spec, np.zeros(spec.shape, np.float32))
    assert all(chunk_path(tmp_path, spec, i).is_file() for i in range(spec.chunks))
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "features", mode="r")[:], 0)


def test_zarr_itself_refuses_a_flipped_bit(tmp_path, rng):
    spec = SPECS["exact"]
    write_group(tmp_path, spec, values_of(spec, rng))
    flip(chunk_path(tmp_path, spec, 1), 7)
    with pytest.raises(ValueError, match="checksum"):
        zarr.open_array(tmp_path / "features", mode="r")[:]


@pytest.mark.parametrize("rows", [0, 3, 5])
def test_a_chunk_of_the_wrong_number_of_rows_is_refused(rows):
    with pytest.raises(ValueError, match=f"chunk 0 has 4 rows, got {rows}"):
        encode(SPECS["exact"], 0, np.zeros((rows, 3, 5)))


@given(st.integers(1, 1 << 26), st.integers(1, 1 << 20))
def test_rows_of_a_chunk_are_a_power_of_two_of_at_most_8_mib_or_all_rows(row_bytes, rows):
    got = rows_per_chunk(row_bytes, rows)
    assert 1 <= got <= rows
    assert got == 1 or got * row_bytes <= 8 << 20
    assert got == rows or (got & (got - 1) == 0 and 2 * got * row_bytes > 8 << 20)


def test_one_second_rows_make_chunks_of_128():
    assert rows_per_chunk(126 * 129 * 4, 100_000) == 128


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_nothing_beside(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail():
        with atomic_file(path) as file:
            file.write(b"half of the new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"


def test_a_file_is_flushed_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, type(tmp_path).replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(
        type(tmp_path), "replace", lambda one, two: (done.append("rename"), replace(one, two))[1]
    )
    write_chunk(Folder(tmp_path), SPECS["one row"], 0, b"data")
    assert done == ["fsync", "rename", "fsync"]


ENTRIES = [{"chunk": 0}, {"chunk": 1, "text": "a\nb\r ü"}, {"chunk": 2, "x": [1.5, None]}]


def _journal(path, entries):
    with Journal(path) as journal:
        for entry in entries:
            journal.append(entry)


def test_a_journal_gives_back_what_was_appended(tmp_path):
    _journal(tmp_path / "j", ENTRIES[:2])
    _journal(tmp_path / "j", ENTRIES[2:])
    with Journal(tmp_path / "j") as journal:
        assert list(journal) == ENTRIES


def test_a_journal_survives_a_last_line_torn_at_any_byte(tmp_path):
    path = tmp_path / "j"
    _journal(path, ENTRIES)
    whole = path.read_bytes()
    second = len(b"".join(whole.splitlines(keepends=True)[:2]))
    for cut in range(second, len(whole)):
        path.write_bytes(whole[:cut])
        with Journal(path) as journal:
            assert list(journal) == ENTRIES[:2], cut
            journal.append({"chunk": "again"})
        with Journal(path) as journal:
            assert list(journal) == [*ENTRIES[:2], {"chunk": "again"}], cut


def test_a_journal_ends_at_the_first_line_that_is_not_as_written(tmp_path):
    path = tmp_path / "j"
    for byte in range(12):
        path.unlink(missing_ok=True)
        _journal(path, ENTRIES)
        flip(path, len(path.read_bytes().splitlines(keepends=True)[0]) + byte)
        with Journal(path) as journal:
            assert list(journal) == ENTRIES[:1], byte


def test_entries_that_wait_to_be_flushed_survive_a_kill(tmp_path):
    path = tmp_path / "j"
    command = [sys.executable, "-c", KILLED, str(path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert Journal.read(path) == [{"n": n} for n in range(5)]


@pytest.mark.parametrize("count", [0, 1, 999, 1_000, 1_001, 2_500])
def test_the_digest_of_a_list_is_that_of_its_json(count):
    values = [{"b": f"é{n}", "a": [n, None]} for n in range(count)]
    assert digest_of_list(iter(values)) == digest(values)
