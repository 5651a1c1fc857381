from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.chunks import STRING, ArraySpec, chunk_path, encode, write_chunk
from antigram.pipeline.storage.files import map_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_arrays
from antigram.pipeline.storage.mapped import MappedArray
from tests.support.files import flip

FEATURES = ArraySpec("features", (11, 3, 5), "float32", 4)
TEXT = ArraySpec("clip_id", (5,), STRING, 2)
IDS = ["", "naïve", "日本/a", "x" * 500, "z"]
REPAIR = "Run `antigram verify`."


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
