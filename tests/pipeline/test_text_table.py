from __future__ import annotations

import pickle
import tracemalloc

import numpy as np
import pytest

from antigram.pipeline.storage import text_table
from antigram.pipeline.storage.text_table import Picked, TextTable

TEXTS = ["", "a", "naïve", "日本/a", "", "x" * 500, "z", "a"]


@pytest.fixture(params=[1, 3, 100])
def table(request, monkeypatch) -> TextTable:
    monkeypatch.setattr(text_table, "_AT_ONCE", request.param)
    step = request.param
    return TextTable.of(TEXTS[i : i + step] for i in range(0, len(TEXTS), step))


def test_texts_are_read_as_in_a_list(table):
    assert list(table) == TEXTS
    assert len(table) == 8
    assert [table[i] for i in range(-8, 8)] == TEXTS * 2
    for span in (slice(2, 5), slice(5, 2), slice(None), slice(-3, None), slice(None, None, -2)):
        assert table[span] == TEXTS[span]
    assert table.index("naïve") == 2
    assert "z" in table
    assert "y" not in table
    assert np.array(table)[[1, 3]].tolist() == ["a", "日本/a"]
    assert pickle.loads(pickle.dumps(table)) == table


@pytest.mark.parametrize("index", [8, -9])
def test_a_text_that_is_not_there_is_an_error(index, table):
    with pytest.raises(IndexError, match=f"text {index} of 8"):
        table[index]


def test_it_is_equal_to_the_same_texts_alone(table):
    assert table == TEXTS
    assert table == TEXTS
    assert table == tuple(TEXTS)
    assert table == TextTable.of([TEXTS])
    assert table != TEXTS[1:]
    assert table != [*TEXTS[1:], ""]
    assert table != TextTable.of([["".join(TEXTS)]])
    assert table != "a"


def test_no_text_at_all_is_a_table():
    assert TextTable.of([]) == []
    assert list(TextTable.of([[], []])) == []


def test_an_id_takes_its_bytes_and_four_more():
    parts = [[f"speaker{i:02d}/{j:06d}" for j in range(10_000)] for i in range(10)]
    tracemalloc.start()
    table = TextTable.of(parts)
    bytes_a_text = tracemalloc.get_traced_memory()[0] / len(table)
    tracemalloc.stop()
    assert bytes_a_text < 1.2 * (16 + 4)


def test_some_texts_of_a_table_are_a_sequence():
    picked = Picked(TextTable.of([TEXTS]), np.array([6, 0, 3, 3]))
    assert list(picked) == ["z", "", "日本/a", "日本/a"]
    assert (picked[1:3], picked[-1], len(picked)) == (["", "日本/a"], "日本/a", 4)
    with pytest.raises(IndexError):
        picked[4]
