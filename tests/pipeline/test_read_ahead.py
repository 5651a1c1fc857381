"""Rows that are taken soon are asked for in time: which of them, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from antigram.pipeline.errors import DamagedError
from antigram.pipeline.features.scaled import ScaledArray
from antigram.pipeline.storage import map_limit
from antigram.pipeline.storage.chunks import ArraySpec, chunk_path, encode, write_chunk
from antigram.pipeline.storage.files import read_now, read_soon
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_arrays
from antigram.pipeline.storage.mapped import MappedArray
from tests.support.files import flip

SPEC = ArraySpec("gram", (11, 2, 5), "float32", 4)  # rows of 40 bytes, views of 20
VALUES = np.arange(110, dtype=np.float32).reshape(11, 2, 5)


@pytest.fixture(params=["mapped", "read"])
def array(request, tmp_path, monkeypatch) -> MappedArray:
    if request.param == "read":
        monkeypatch.setattr(map_limit, "most_maps", lambda: 0)
    create_arrays(Folder(tmp_path), [SPEC])
    written = [
        write_chunk(Folder(tmp_path), SPEC, i, encode(SPEC, i, VALUES[SPEC.span(i)]))
        for i in range(SPEC.chunks)
    ]
    return MappedArray(Folder(tmp_path), "gram", [chunk.crc32c for chunk in written], "Repair.")


@pytest.fixture
def asked(array, monkeypatch) -> list[tuple[int, int, int]]:
    """Chunk, first byte and size of what was asked for."""
    found: list[tuple[int, int, int]] = []
    kind = type(array._files)
    real = kind.expect

    def expect(self, index, first, size):
        found.append((index, first, size))
        real(self, index, first, size)

    monkeypatch.setattr(kind, "expect", expect)
    return found


def test_a_chunk_that_was_not_checked_is_asked_for_once_and_completely(array, asked):
    array.expect(np.array([5, 4, 10, 7]))
    assert asked == [(1, 0, 160), (2, 0, 160)]
    np.testing.assert_array_equal(array.take([5, 4, 10, 7]), VALUES[[5, 4, 10, 7]])


def test_rows_that_memory_keeps_are_not_asked_for_again(array, asked):
    array.take([5])
    array.expect([5, 6])
    assert asked == []
    array.read()
    array.expect(np.arange(11))
    assert asked == []


def test_rows_that_memory_cannot_keep_are_asked_for_alone(array, asked):
    array.read()
    array.expect([6, 0], again=True)
    array.expect([9], 1, again=True)
    assert asked == [(1, 80, 40), (0, 0, 40), (2, 60, 20)]


def test_damage_is_raised_by_taking_not_by_asking(array):
    flip(chunk_path(array.group.path, SPEC, 1), 5)
    chunk_path(array.group.path, SPEC, 2).unlink()
    array.expect(np.arange(11))
    for row, says in ((4, "differ from what was written"), (8, "No such file")):
        with pytest.raises(DamagedError, match=says):
            array.take([row])


def test_a_rescaled_array_asks_for_rows_of_the_stored_one(array, asked):
    ScaledArray(array, np.float32(2), np.float32(1)).expect([2, 9])
    assert asked == [(0, 0, 160), (2, 0, 160)]


def test_asking_changes_no_byte_of_a_map():
    data = np.arange(100_000, dtype=np.uint8)
    want = data.copy()
    for ask in (read_soon, read_now):
        ask(data.__array_interface__["data"][0] + 3, 50_000)
    np.testing.assert_array_equal(data, want)
