"""Good-Sounds: the paper's classes, one take of each sound, and NULLs in the database."""

from __future__ import annotations

import pytest

from antigram.pipeline.corpora.good_sounds import GOOD_SOUNDS, goodness
from antigram.pipeline.corpus import Clip, CorpusError
from tests.support import corpus_trees
from tests.support.listings import entries_of, rows_of

tree = corpus_trees.good_sounds


@pytest.mark.parametrize(
    ("klass", "label"),
    [
        ("good-sound", "good-sound"),
        ("bad-pitch", "bad-pitch"),
        ("bad-pitch-stability-vibrato", "bad-pitch"),
        ("bad-attack bad-pitch", "bad-pitch"),
        ("bad-dynamics-stability-crescendo", "bad-dynamics"),
        ("bad-timbre", "bad-timbre"),
        ("bad-richness-pato", "bad-timbre"),
        ("bad-attack-gallo", "bad-attack"),
        ("bad-attack bad-timbre", None),
        ("bad-dynamics stable", None),
        ("bad", None),
        ("scale-good", None),
        ("bad-pitch-scale", None),
        ("good-attack-accent>", None),
        ("air-outside", None),
        (None, None),
    ],
)
def test_the_papers_classes_of_goodness(klass, label):
    assert goodness(klass) == label


def test_one_take_a_sound_the_best_microphone_that_is_there(tmp_path):
    home = tree(tmp_path)
    found = entries_of(GOOD_SOUNDS, home)
    clips = [f for f in found if isinstance(f, Clip)]
    assert [c.id for c in clips] == [f"{n:06d}" for n in (1, 2, 3, 4, 5)]
    assert [c.path.split("/")[2] for c in clips] == ["akg", "neumann", "iphone", "akg", "neumann"]
    (home / "sound_files/flute_irene/neumann/0002.wav").unlink()
    again = [f for f in entries_of(GOOD_SOUNDS, home) if isinstance(f, Clip)]
    assert again[1].path.split("/")[2] == "akg"


def test_what_is_normal_in_good_sounds_is_skipped_and_counted(tmp_path):
    found = rows_of(GOOD_SOUNDS, tree(tmp_path))
    assert found.skipped == {
        "scale": 1,
        "sound without klass": 2,
        "take of another microphone": 6,
        "take whose file is absent": 3,
        "take without a sound": 1,
    }
    assert found.rejected == ()


def test_a_damaged_database_is_an_error_that_names_it(tmp_path):
    (tmp_path / "database.sqlite").write_bytes(b"SQLite format 3\0" + bytes(100))
    with pytest.raises(CorpusError, match=r"database\.sqlite"):
        rows_of(GOOD_SOUNDS, tmp_path)
