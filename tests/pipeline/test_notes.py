"""Journals of an interrupted `prepare` with entries that this code does not write."""

import json
import pickle
from typing import Any

import pytest

from antigram.pipeline.features.journal import BlockNote
from antigram.pipeline.features.row_audio import RowResult
from antigram.pipeline.features.row_results import Results
from antigram.pipeline.storage.chunks import crc32c
from antigram.pipeline.storage.journal import Journal
from tests.support.files import bytes_of, names_in
from tests.support.stores import Stopped, prepare_gsc, stop_at

ROW = ["", 1.0, 1.0, False, -1, None, 0.0, 1.0]
SOURCE = ["one/a.wav", 32_044, 1, 7, False]
BLOCK = {"block": 0, "rows": [ROW] * 4, "sources": []}
CHUNK = {"chunk": 0, "rows": 4, "identity": "x", "written": {}}
GARBAGE: dict[str, list[Any]] = {
    "sums.jsonl": [
        {},
        {"block": 7, "rows": []},
        {"block": 0},
        {**BLOCK, "block": 10**30},
        {**BLOCK, "block": -1},
        {**BLOCK, "block": None},
        {**BLOCK, "rows": [ROW] * 3},
        {**BLOCK, "rows": [ROW[:3]] * 4},
        {**BLOCK, "rows": "four"},
        {**BLOCK, "rows": [[*ROW[:4], 10**30, *ROW[5:]]] * 4},
        {"block": 0, "rows": [ROW] * 4},
        {**BLOCK, "sources": [SOURCE[:3]]},
        {**BLOCK, "sources": [[*SOURCE[:3], "7", False]]},
        {**BLOCK, "sources": [SOURCE]},
    ],
    "chunks.jsonl": [
        {},
        CHUNK,
        {**CHUNK, "written": {"crc32c": 10**20, "sha256": ""}},
        {**CHUNK, "written": {"crc32c": -1, "sha256": ""}},
        {**CHUNK, "written": None},
        {**CHUNK, "chunk": "../../x"},
        {**CHUNK, "chunk": None, "spent": None},
        {**CHUNK, "rows": "many", "written": {"crc32c": 1, "sha256": ""}},
    ],
}


def line(text):
    return b"%08x %s\n" % (crc32c(text), text)


@pytest.mark.parametrize("name", GARBAGE)
def test_entries_of_a_journal_that_cannot_be_understood_are_made_again(
    name, clean, gsc_home, tmp_path
):
    target, journal = tmp_path / "gsc.zarr", tmp_path / ".gsc.zarr.partial" / name
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, target, on_progress=stop_at("normalise", 3))
    kept = len(Journal.read(journal))
    garbage = [line(json.dumps(entry).encode()) for entry in GARBAGE[name]]
    journal.write_bytes(b"".join(garbage) + journal.read_bytes() + b"".join(garbage))
    assert prepare_gsc(gsc_home, target).computed <= 24 - 4 * min(kept, 3)
    assert bytes_of(target) == bytes_of(clean.store.path)


@pytest.mark.parametrize("name", ["job.json", "sums.jsonl", "chunks.jsonl"])
@pytest.mark.parametrize("content", [b"", b"\xff\0", line(b"{"), line(b"[" * 9999), None])
def test_notes_that_are_none_are_made_again(name, content, clean, gsc_home, tmp_path):
    target, note = tmp_path / "gsc.zarr", tmp_path / ".gsc.zarr.partial" / name
    with pytest.raises(Stopped):
        prepare_gsc(gsc_home, target, on_progress=stop_at("normalise", 3))
    note.unlink()
    note.write_bytes(content) if content is not None else (note / "inner").mkdir(parents=True)
    prepare_gsc(gsc_home, target)
    assert bytes_of(target) == bytes_of(clean.store.path)
    assert names_in(tmp_path) == ["gsc.zarr"]


def test_a_file_in_the_place_of_the_folder_of_the_work_is_no_hindrance(clean, gsc_home, tmp_path):
    (tmp_path / ".gsc.zarr.partial").write_text("notes of mine")
    prepare_gsc(gsc_home, tmp_path / "gsc.zarr")
    assert bytes_of(tmp_path / "gsc.zarr") == bytes_of(clean.store.path)


RESULTS = [
    RowResult(total=1.5, squares=2.5, noise=3, snr_db=5.0, low=0.1, high=0.7),
    RowResult(reason="too short"),
    RowResult(total=1e300, squares=0.1, silent=True, low=0.0, high=1e-300),
]


def test_results_in_columns_are_those_of_a_list():
    results = Results.of(RESULTS)
    assert results == RESULTS
    assert [results[i] for i in range(-3, 3)] == RESULTS * 2
    assert results[1:] == RESULTS[1:]
    assert Results.of(results) is results
    assert pickle.loads(pickle.dumps(results)) == RESULTS
    assert results.usable.tolist() == [True, False, True]
    assert results != RESULTS[:2]
    joined = Results.joined([results, Results.of([]), Results.of(RESULTS[2:])])
    assert joined == [RESULTS[0], RESULTS[2], RESULTS[2]]
    note = BlockNote(4, results, [])
    assert BlockNote.from_json(json.loads(json.dumps(note.to_json()))) == note
