"""NSynth: families, the publisher's split, notes without a file, and limits on notes."""

from __future__ import annotations

import json
from collections import Counter

from antigram.pipeline.corpora.nsynth import NSYNTH
from tests.support import corpus_trees
from tests.support.listings import labels_of, rows_of

tree = corpus_trees.nsynth


def test_families_may_hold_an_underscore_and_splits_are_the_publishers(tmp_path):
    found = rows_of(NSYNTH, tree(tmp_path))
    assert labels_of(found, "family") == {"bass": 3, "synth_lead": 3}
    assert "synth_lead_synthetic_001" in labels_of(found, "instrument")
    assert labels_of(found, "pitch") == {"60": 6}
    assert Counter(row.official for row in found.rows) == {"train": 2, "validation": 2, "test": 2}


def test_a_note_without_its_file_is_rejected(tmp_path):
    home = tree(tmp_path)
    table = home / "nsynth-test" / "examples.json"
    notes = json.loads(table.read_text())
    notes["organ_acoustic_000-021-025"] = next(iter(notes.values()))
    table.write_text(json.dumps(notes))
    assert [r.source for r in rows_of(NSYNTH, home).rejected] == [
        "nsynth-test/audio/organ_acoustic_000-021-025.wav"
    ]


def test_the_number_of_clips_can_be_limited_in_all_and_drawn_anew(tmp_path):
    home = tree(tmp_path)
    chosen = [[r.clip_id for r in rows_of(NSYNTH, home, limit=3, seed=s).rows] for s in range(6)]
    assert {len(ids) for ids in chosen} == {3}
    assert len({tuple(ids) for ids in chosen}) > 1


def test_balance_keeps_as_many_of_each_as_of_the_rarest(tmp_path):
    home = tree(tmp_path)
    table = home / "nsynth-test" / "examples.json"
    notes = json.loads(table.read_text())
    del notes["bass_synthetic_004-060-075"]
    table.write_text(json.dumps(notes))
    assert labels_of(rows_of(NSYNTH, home, balance=True), "family") == {"bass": 2, "synth_lead": 2}
