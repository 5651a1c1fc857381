"""Rows gathered by several threads are those gathered by one."""

import os

import numpy as np
import pytest

from antigram.pipeline.storage import gathering
from antigram.pipeline.storage.gathering import gather


@pytest.fixture
def several(monkeypatch):
    monkeypatch.setattr(gathering, "_LEAST_BYTES", 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 64, 301])
def test_any_number_of_rows_comes_in_its_order(count, several, rng):
    table = rng.integers(0, 256, (50, 33), dtype=np.uint8)
    rows = rng.integers(0, 50, count)
    out = np.zeros((count, 33), np.uint8)
    gather(table, rows, out)
    np.testing.assert_array_equal(out, table[rows])


@pytest.mark.usefixtures("several")
def test_a_forked_process_has_threads_of_its_own(rng):
    table = rng.integers(0, 256, (50, 33), dtype=np.uint8)
    rows = rng.integers(0, 50, 20)
    gather(table, rows, np.zeros((20, 33), np.uint8))  # starts threads here
    first = gathering._pool(os.getpid())
    assert gathering._pool(os.getpid()) is first
    assert gathering._pool(os.getpid() + 1) is not first


def test_few_bytes_are_gathered_by_the_calling_thread(monkeypatch, rng):
    monkeypatch.setattr(gathering, "_pool", None)
    table = rng.integers(0, 256, (50, 33), dtype=np.uint8)
    out = np.zeros((20, 33), np.uint8)
    gather(table, np.arange(20), out)
    np.testing.assert_array_equal(out, table[:20])
