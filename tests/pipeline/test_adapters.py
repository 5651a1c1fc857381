"""Adapters of gsc, iemocap and fsdd against the traps that docs/corpora.md names."""

from __future__ import annotations

from collections import Counter

import pytest

from antigram.pipeline.corpora import FSDD, GSC, IEMOCAP
from antigram.pipeline.corpus import Clip, CorpusError, Skipped
from tests.pipeline import trees
from tests.pipeline.trees import sound, wav


def listed(corpus, home, **options) -> tuple[dict[str, Clip], Counter[str]]:
    found = list(corpus.list_clips(home, {**corpus.options, **options}))
    skipped: Counter[str] = Counter()
    for s in found:
        if isinstance(s, Skipped):
            skipped[s.reason] += s.count
    return {c.id: c for c in found if isinstance(c, Clip)}, skipped


@pytest.fixture
def iemocap_home(tmp_path):
    return trees.iemocap(tmp_path, sessions=2)


def test_gsc_lists_the_digits_and_nothing_of_the_background_noise(gsc_home):
    clips, _ = listed(GSC, gsc_home)
    assert len(clips) == 24
    assert {c.labels["word"] for c in clips.values()} == {"zero", "one", "two"}
    one = clips["zero/0000ab01_nohash_1"]
    assert one.labels == {"word": "zero", "speaker": "0000ab01"}
    assert one.path == "zero/0000ab01_nohash_1.wav"


def test_gsc_all_words_are_the_folders_but_never_background_noise(gsc_home):
    clips, _ = listed(GSC, gsc_home, words="all")
    assert {c.labels["word"] for c in clips.values()} == {"zero", "one", "two", "cat"}
    assert len(clips) == 25


def test_gsc_a_list_of_words_is_taken_and_an_unknown_word_refused(gsc_home):
    clips, _ = listed(GSC, gsc_home, words="cat,one")
    assert {c.labels["word"] for c in clips.values()} == {"cat", "one"}
    with pytest.raises(CorpusError, match="no word bird"):
        listed(GSC, gsc_home, words="bird,cat")


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
    clips, _ = listed(GSC, gsc_home)
    assert {i: c.split for i, c in clips.items() if c.split != "train"} == {
        "zero/0000ab03_nohash_0": "test",
        "two/0000ab03_nohash_1": "test",  # its line has no newline
        "one/0000ab02_nohash_0": "validation",
    }


def test_gsc_without_both_lists_has_no_official_split(tmp_path):
    home = trees.gsc(tmp_path, per_word=2)
    (home / "validation_list.txt").unlink()
    clips, _ = listed(GSC, home)
    assert {c.split for c in clips.values()} == {None}


def test_gsc_a_strange_name_stops_it(tmp_path):
    home = trees.gsc(tmp_path, per_word=2)
    wav(home / "one" / "one_0000ab00_nohash_0.wav.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <8 hex digits>_nohash_<n>.wav"):
        listed(GSC, home)


def test_fsdd_takes_0_to_4_are_test_and_5_to_9_validation(tmp_path):
    clips, _ = listed(FSDD, trees.fsdd(tmp_path))
    assert len(clips) == 24
    splits = {int(i.rpartition("_")[2]): c.split for i, c in clips.items()}
    assert splits == {
        0: "test", 4: "test", 5: "validation", 9: "validation", 10: "train", 49: "train",
    }  # fmt: skip
    assert clips["1_theo_49"].labels == {"word": "1", "speaker": "theo"}


def test_fsdd_a_strange_name_stops_it(tmp_path):
    home = trees.fsdd(tmp_path)
    wav(home / "recordings" / "x_theo_1.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <digit>_<speaker>_<take>.wav"):
        listed(FSDD, home)


def test_iemocap_takes_the_four_emotions_and_counts_the_others(iemocap_home):
    clips, skipped = listed(IEMOCAP, iemocap_home)
    emotions = Counter(c.labels["emotion"] for c in clips.values())
    assert emotions == {"neu": 2, "hap": 2, "sad": 2, "ang": 2}
    assert skipped == {
        "emotion exc": 2,
        "emotion fru": 2,
        "emotion xxx": 2,
        "hidden file (._*.wav)": 2,
        "turn without a label": 2,  # _MXX0
    }


def test_iemocap_the_speaker_is_the_letter_of_the_last_part(iemocap_home):
    clips, _ = listed(IEMOCAP, iemocap_home)
    speakers = {i: c.labels["speaker"] for i, c in clips.items()}
    assert speakers["Ses01F_impro01_F000"] == "Ses01F"
    assert speakers["Ses01F_impro01_F002"] == "Ses01F"
    assert speakers["Ses01F_impro01_M001"] == "Ses01M"
    assert speakers["Ses02F_impro01_M003"] == "Ses02M"
    assert {c.labels["session"] for c in clips.values()} == {"1", "2"}


def test_iemocap_impro01_m002_is_the_man(tmp_path):
    base = tmp_path / "Session1"
    turn = "Ses01F_impro01_M002"
    wav(base / "sentences" / "wav" / "Ses01F_impro01" / f"{turn}.wav", sound(1))
    labels = base / "dialog" / "EmoEvaluation" / "Ses01F_impro01.txt"
    labels.parent.mkdir(parents=True)
    labels.write_text(f"[6.2901 - 8.2357]\t{turn}\tsad\t[2.5, 2.5, 2.5]\r\n", newline="")
    clips, _ = listed(IEMOCAP, tmp_path)
    assert clips[turn].labels == {"emotion": "sad", "speaker": "Ses01M", "session": "1"}


def test_iemocap_single_raters_and_hidden_files_change_no_label(iemocap_home):
    clips, _ = listed(IEMOCAP, iemocap_home)
    assert clips["Ses01F_impro01_F000"].labels["emotion"] == "neu"
    assert "Ses01F_impro01_MXX0" not in clips  # the tree's Categorical/ calls it angry


def test_iemocap_the_stereo_dialogue_is_no_turn(iemocap_home):
    clips, _ = listed(IEMOCAP, iemocap_home)
    assert all("sentences" in c.path.split("/") for c in clips.values())


def test_iemocap_a_labelled_turn_whose_file_is_absent_is_listed_to_be_rejected(iemocap_home):
    turn = "Ses01F_impro01_F000"
    path = iemocap_home / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / f"{turn}.wav"
    before, _ = listed(IEMOCAP, iemocap_home)
    path.unlink()
    assert listed(IEMOCAP, iemocap_home)[0] == before


@pytest.mark.parametrize("line", ["[6.29 - 8.23] Ses01F_impro01_F000", "[6.29 - 8.23", "[] a b"])
def test_iemocap_a_strange_label_line_stops_it(line, iemocap_home):
    path = iemocap_home / "Session2" / "dialog" / "EmoEvaluation" / "Ses02F_impro01.txt"
    path.write_text(f"% header\n{line}\n")
    with pytest.raises(CorpusError, match=r"Ses02F_impro01.txt:2: not a label line"):
        listed(IEMOCAP, iemocap_home)


def test_iemocap_a_strange_wav_stops_it(iemocap_home):
    wav(iemocap_home / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "x.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <dialog>_<F or M><number>.wav"):
        listed(IEMOCAP, iemocap_home)
