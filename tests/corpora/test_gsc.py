"""Google Speech Commands: words, the two lists, and the folder of background noise."""

from __future__ import annotations

from collections import Counter

import pytest

from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.corpus import CorpusError
from tests.support import corpus_trees
from tests.support.corpus_trees import sound, wav
from tests.support.listings import clips_of, labels_of, real_rows

tree = corpus_trees.gsc


@pytest.fixture(scope="module")
def gsc_home(tmp_path_factory):
    return tree(tmp_path_factory.mktemp("gsc"))


def test_gsc_lists_the_digits_and_nothing_of_the_background_noise(gsc_home):
    clips, _ = clips_of(GSC, gsc_home)
    assert len(clips) == 24
    assert {c.labels["word"] for c in clips.values()} == {"zero", "one", "two"}
    one = clips["zero/0000ab01_nohash_1"]
    assert one.labels == {"word": "zero", "speaker": "0000ab01"}
    assert one.path == "zero/0000ab01_nohash_1.wav"


def test_gsc_all_words_are_the_folders_but_never_background_noise(gsc_home):
    clips, _ = clips_of(GSC, gsc_home, words="all")
    assert {c.labels["word"] for c in clips.values()} == {"zero", "one", "two", "cat"}
    assert len(clips) == 25


def test_gsc_a_list_of_words_is_taken_and_an_unknown_word_refused(gsc_home):
    clips, _ = clips_of(GSC, gsc_home, words="cat,one")
    assert {c.labels["word"] for c in clips.values()} == {"cat", "one"}
    with pytest.raises(CorpusError, match="no word bird"):
        clips_of(GSC, gsc_home, words="bird,cat")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("digits", "digits"), ("all", "all"), ("up,down", "down,up"), (" up , up,", "up")],
)
def test_gsc_words_have_one_canonical_form(text, canonical):
    assert GSC.resolve("words", text) == canonical


def test_gsc_no_words_at_all_are_refused():
    with pytest.raises(CorpusError, match="wanted digits, all, or a list"):
        GSC.resolve("words", " , ")


def test_gsc_the_official_split_is_that_of_the_lists(gsc_home):
    clips, _ = clips_of(GSC, gsc_home)
    assert {i: c.split for i, c in clips.items() if c.split != "train"} == {
        "zero/0000ab03_nohash_0": "test",
        "two/0000ab03_nohash_1": "test",  # its line has no newline
        "one/0000ab02_nohash_0": "validation",
    }


def test_gsc_without_both_lists_has_no_official_split(tmp_path):
    home = tree(tmp_path, per_word=2)
    (home / "validation_list.txt").unlink()
    clips, _ = clips_of(GSC, home)
    assert {c.split for c in clips.values()} == {None}


def test_gsc_a_strange_name_stops_it(tmp_path):
    home = tree(tmp_path, per_word=2)
    wav(home / "one" / "one_0000ab00_nohash_0.wav.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <8 hex digits>_nohash_<n>.wav"):
        clips_of(GSC, home)


@pytest.mark.corpora
def test_gsc_has_13_of_each_digit_and_10_of_each_other_word(corpora):
    digits = real_rows(corpora, "gsc")
    assert set(labels_of(digits, "word").values()) == {13}
    assert len(digits.rows) == 130
    assert Counter(row.official for row in digits.rows)["test"] == 23
    assert Counter(row.official for row in digits.rows)["validation"] == 17
    every = labels_of(real_rows(corpora, "gsc", words="all"), "word")
    assert len(every) == 30
    assert sum(every.values()) == 330
