from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage import files, folder, map_limit
from antigram.pipeline.storage.chunks import STRING, ArraySpec, chunk_path, encode, write_chunk
from antigram.pipeline.storage.files import Region, map_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_arrays
from antigram.pipeline.storage.mapped import MappedArray
from tests.support.files import flip

FEATURES = ArraySpec("features", (11, 3, 5), "float32", 4)
TEXT = ArraySpec("clip_id", (5,), STRING, 2)
IDS = ["", "naïve", "日本/a", "x" * 500, "z"]
REPAIR = "Run `antigram verify`."


@pytest.fixture(params=["mapped", "read"], autouse=True)
def way(request, monkeypatch) -> str:
    """Whether this process may map the chunks of an array, or has to read them."""
    if request.param == "read":
        monkeypatch.setattr(map_limit, "most_maps", lambda: 0)
    return request.param


@pytest.fixture
def values(rng) -> np.ndarray:
    return rng.standard_normal(FEATURES.shape).astype(np.float32)


def write(folder: Path, spec: ArraySpec, values) -> list[int]:
    create_arrays(Folder(folder), [spec])
    spans = [(i, values[spec.span(i)]) for i in range(spec.chunks)]
    return [write_chunk(Folder(folder), spec, i, encode(spec, i, v)).crc32c for i, v in spans]


@pytest.fixture
def array(tmp_path, values) -> MappedArray:
    return MappedArray(Folder(tmp_path), "features", write(tmp_path, FEATURES, values), REPAIR)


def test_all_rows_are_read_as_written(array, values):
    assert len(array) == 11
    assert array.shape == (11, 3, 5)
    np.testing.assert_array_equal(array.read(), values)


@pytest.mark.parametrize("span", [(0, 0), (0, 4), (3, 5), (4, 8), (2, 11), (10, 11)], ids=str)
def test_a_span_of_rows_is_read_across_chunks(span, array, values):
    np.testing.assert_array_equal(array.read_span(slice(*span)), values[slice(*span)])


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_rows_are_gathered_in_any_order_and_converted(dtype, array, values):
    rows = np.array([10, 0, 5, 5, 3])
    out = np.empty((5, 3, 5), dtype)
    array.gather(rows, out)
    np.testing.assert_array_equal(out, values[rows].astype(dtype))


@pytest.mark.parametrize("first", [[], [0, 1, 2], [1]], ids=["new", "all checked", "one checked"])
@pytest.mark.parametrize("rows", [[], [10, 0, 5, 5, 3], [4, 5, 6], [3, 2, 1, 8]], ids=str)
def test_rows_are_taken_the_same_before_and_after_chunks_are_checked(first, rows, array, values):
    for index in first:
        array.chunk(index)
    np.testing.assert_array_equal(array.take(np.array(rows, int)), values[rows])
    np.testing.assert_array_equal(array.take(np.array(rows, int), view=1), values[rows][:, 1])
    out = np.empty((len(rows), 5), np.float64)
    array.gather(np.array(rows, int), out, view=2)
    np.testing.assert_array_equal(out, values[rows][:, 2].astype(np.float64))


def test_a_chunk_is_a_read_only_map_with_its_padding(array, values):
    chunk = array.chunk(2)
    assert chunk.shape == (4, 3, 5)
    np.testing.assert_array_equal(chunk[:3], values[8:])
    assert np.isnan(chunk[3]).all()
    with pytest.raises(ValueError, match="read-only"):
        chunk[0] = 0


def test_text_is_read_as_written(tmp_path):
    array = MappedArray(Folder(tmp_path), "clip_id", write(tmp_path, TEXT, IDS), REPAIR)
    assert array.read_text() == IDS


def damage_flip(path: Path) -> None:
    flip(path, 5)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


def damage_append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0\0\0")


def damage_swap(path: Path) -> None:
    path.write_bytes((path.parents[2] / "0" / "0" / "0").read_bytes())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (damage_flip, "differ from what was written"),
        (damage_truncate, "differ from what was written"),
        (damage_append, "differ from what was written"),
        (damage_swap, "differ from what was written"),
        (lambda path: path.write_bytes(b""), "differ from what was written"),
        (Path.unlink, "No such file or directory, wanted a chunk"),
    ],
    ids=["flip", "truncate", "append", "swap", "empty", "delete"],
)
def test_a_damaged_chunk_is_refused_and_the_others_are_read(damage, says, array, values):
    damage(chunk_path(array.group.path, FEATURES, 1))
    np.testing.assert_array_equal(array.read_span(slice(0, 4)), values[:4])
    out = np.empty((1, 3, 5), np.float32)
    for attempt in (lambda: array.gather([5], out), array.read, lambda: array.chunk(1)):
        with pytest.raises(DamagedError, match=f"features/c/1/0/0: .*{says}.*antigram verify"):
            attempt()


def test_a_flip_of_any_bit_of_a_chunks_data_is_refused(array, tmp_path):
    path = chunk_path(tmp_path, FEATURES, 1)
    for place in range(path.stat().st_size - 4):
        flip(path, place, place % 8)
        with pytest.raises(DamagedError):
            MappedArray(Folder(tmp_path), "features", array._crcs, REPAIR).chunk(1)
        flip(path, place, place % 8)


def test_damaged_text_is_refused(tmp_path):
    crcs = write(tmp_path, TEXT, IDS)
    flip(chunk_path(tmp_path, TEXT, 1), 3)
    with pytest.raises(DamagedError, match="clip_id/c/1"):
        MappedArray(Folder(tmp_path), "clip_id", crcs, REPAIR).read_text()


@pytest.mark.parametrize(
    "change",
    [
        {"codecs": [{"name": "bytes"}]},
        {"codecs": [{"name": "bytes"}, {"name": "zstd"}]},
        {"chunk_grid": {"configuration": {"chunk_shape": [4, 3, 1]}}},
        {"shape": [40, 3, 5]},
        {"shape": None},
    ],
)
def test_an_array_that_antigram_does_not_write_is_refused(change, array, tmp_path):
    path = tmp_path / "features" / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DamagedError, match=r"features/zarr.json"):
        MappedArray(Folder(tmp_path), "features", array._crcs, REPAIR)


def test_an_array_without_metadata_is_refused(array, tmp_path):
    (tmp_path / "features" / "zarr.json").unlink()
    with pytest.raises(DamagedError, match="not an array of antigram's"):
        MappedArray(Folder(tmp_path), "features", array._crcs, REPAIR)


def test_a_mapped_array_travels_to_another_process_without_its_maps(array, values):
    array.read()
    text = pickle.dumps(array)
    assert len(text) < values.nbytes + 2_000
    np.testing.assert_array_equal(pickle.loads(text).read(), values)


def test_more_chunks_than_open_files_are_mapped(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    before = len(list(Path("/proc/self/fd").iterdir()))
    maps = [map_file(path) for _ in range(50)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert {m.tobytes() for m in maps} == {b"abc"}


def test_a_map_outlives_the_file_it_was_made_of(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 10_000)
    view = map_file(path)[3:]
    path.unlink()
    assert view.tobytes() == b"abc" * 9_999


def test_maps_are_counted_over_all_arrays_and_given_back(array, values, tmp_path, monkeypatch):
    gc.collect()
    elsewhere = folder._MAPS._reserved  # by arrays that other tests of this process keep
    monkeypatch.setattr(map_limit, "most_maps", lambda: elsewhere + 5)
    crcs = array._crcs

    def opened() -> MappedArray:
        new = MappedArray(Folder(tmp_path), "features", crcs, REPAIR)
        np.testing.assert_array_equal(new.read(), values)
        return new

    one, two = opened(), opened()
    assert one._files.table is not None
    assert two._files.table is None  # 3 + 3 chunks are more than 5
    rows = one.chunk(0)
    del one
    gc.collect()
    assert opened()._files.table is None  # the rows keep the maps
    del rows
    gc.collect()
    assert opened()._files.table is not None


def test_chunks_are_read_where_the_system_maps_no_more(array, values, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    np.testing.assert_array_equal(array.take([5]), values[[5]])
    monkeypatch.setattr(Region, "map", full)
    np.testing.assert_array_equal(array.take([5, 10, 0]), values[[5, 10, 0]])
    np.testing.assert_array_equal(array.read(), values)


def test_a_limit_of_address_space_is_no_damage(array, values, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(Region, "__init__", full)
    np.testing.assert_array_equal(array.read(), values)


def test_a_file_is_read_where_the_system_maps_no_more(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 10_000)

    def full(*_):
        ctypes.set_errno(errno.ENOMEM)
        return ctypes.c_void_p(-1).value

    monkeypatch.setattr(files, "_LIBC", SimpleNamespace(mmap=full))
    assert map_file(path).tobytes() == b"abc" * 10_000


class TestReading:
    """Chunks that are too many to be mapped, and what others do to them meanwhile."""

    @pytest.fixture
    def way(self, monkeypatch) -> None:
        monkeypatch.setattr(map_limit, "most_maps", lambda: 0)

    @pytest.fixture
    def path(self, array) -> Path:
        array.read()
        return chunk_path(array.group.path, FEATURES, 1)

    def test_rows_are_read_alone_once_their_chunk_is_checked(self, array, path, values):
        raw = path.read_bytes()
        status = path.stat()
        path.write_bytes(raw[:60] + bytes(len(raw) - 60))  # rows 5 to 7
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # undetectable
        np.testing.assert_array_equal(array.take([4]), values[[4]])

    def test_a_chunk_that_was_written_to_is_checked_again(self, array, path, values):
        os.utime(path, ns=(1, 1))
        np.testing.assert_array_equal(array.take([4]), values[[4]])
        flip(path, 100)  # another row
        with pytest.raises(DamagedError, match="features/c/1/0/0: its 244 bytes differ"):
            array.take([4])

    def test_a_chunk_that_was_replaced_by_the_same_is_used(self, array, path, values):
        (path.parent / "new").write_bytes(path.read_bytes())
        (path.parent / "new").replace(path)
        np.testing.assert_array_equal(array.take([4, 9]), values[[4, 9]])

    def test_a_chunk_that_is_gone_is_named(self, array, path):
        path.unlink()
        with pytest.raises(DamagedError, match="features/c/1/0/0: No such file"):
            array.take([4])

    def test_a_missing_or_shorter_chunk_is_noticed_before_it_is_read(self, array, path, tmp_path):
        fresh = MappedArray(Folder(tmp_path), "features", array._crcs, REPAIR)
        fresh.hold()
        os.truncate(path, 100)
        with pytest.raises(DamagedError, match="its 100 bytes differ"):
            MappedArray(Folder(tmp_path), "features", array._crcs, REPAIR).hold()
        with pytest.raises(DamagedError, match="its 100 bytes differ"):
            fresh.take([4])
