"""Rows in columns, which corpora of more than a million segments have, are the rows of a list."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from antigram.pipeline.corpora.folder import FOLDER
from antigram.pipeline.features import listing
from antigram.pipeline.features.listing import list_rows, split_rows
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.row_table import RowTable
from antigram.pipeline.features.rows import Row
from tests.support.corpus_trees import RATE, sound, wav
from tests.support.files import bytes_of

# "a/1.wav#x" begins with the id of another recording, and its segments sort between those.
NAMES = ("a/1.wav", "a/1.wav#00000x", "a/2.wav", "b/1.wav", "b/2.wav", "c/1.wav")


@pytest.fixture
def home(tmp_path):
    for seed, name in enumerate(NAMES):
        folder, _, file = name.partition("/")
        wav(tmp_path / "mine" / folder / f"{file}.wav", sound(seed, (1 + seed % 4) * RATE + 9_000))
    return tmp_path / "mine"


@pytest.fixture
def recipe():
    return Recipe(corpus="folder", longer="segment", seed=3)


@pytest.fixture
def in_columns(monkeypatch):
    """All rows after the first three are put in columns as they are listed."""
    monkeypatch.setattr(listing, "_MANY_ROWS", 3)


def test_a_listing_in_columns_has_the_same_rows_and_identity(home, recipe, monkeypatch):
    want = list_rows(FOLDER, home, recipe)
    monkeypatch.setattr(listing, "_MANY_ROWS", 3)
    got = list_rows(FOLDER, home, recipe)
    assert isinstance(got.rows, RowTable)
    assert tuple(got.rows) == want.rows
    assert got.identity == want.identity
    ids = [row.clip_id for row in got.rows]
    assert ids == sorted(ids)
    assert split_rows(FOLDER, got.rows, recipe, got.main) == split_rows(
        FOLDER, want.rows, recipe, want.main
    )


def test_rows_and_slices_of_a_table_are_those_of_a_list(home, recipe, in_columns):
    table = list_rows(FOLDER, home, recipe).rows
    assert isinstance(table, RowTable)
    rows = list(table)
    assert [table[i] for i in range(len(table))] == rows
    assert table[-1] == rows[-1]
    assert isinstance(table[0], Row)
    assert isinstance(table[2:5], RowTable)
    assert list(table[2:5]) == rows[2:5]
    assert list(table[2:7][1:3]) == rows[3:5]
    kept = np.arange(len(rows)) % 3 > 0
    assert list(table.picked(kept)) == [row for row, own in zip(rows, kept, strict=True) if own]
    assert pickle.loads(pickle.dumps(table[1:4])) == tuple(rows[1:4])
    with pytest.raises(IndexError):
        table[len(rows)]


@pytest.mark.parametrize("truncated", [False, True], ids=["all", "some rejected"])
def test_a_store_is_the_same_whether_its_rows_were_in_columns(
    truncated, home, recipe, tmp_path, monkeypatch
):
    if truncated:  # its last segments cannot be read, as its header promises too much
        path = home / "b" / "2.wav.wav"
        raw = path.read_bytes()
        size = (int.from_bytes(raw[40:44], "little") + 4 * RATE).to_bytes(4, "little")
        path.write_bytes(raw[:40] + size + raw[44:])
    made = prepare(FOLDER, home, recipe, tmp_path / "list.zarr", max_rejected=9)
    assert bool(made.store.root["rejected"]) is truncated
    monkeypatch.setattr(listing, "_MANY_ROWS", 3)
    other = prepare(FOLDER, home, recipe, tmp_path / "columns.zarr", max_rejected=9)
    assert bytes_of(other.store.path) == bytes_of(made.store.path)
