"""IEMOCAP: speakers, emotions, hidden files and the files of single raters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from antigram.pipeline.corpora.iemocap import IEMOCAP
from antigram.pipeline.corpus import Clip, CorpusError, locate
from tests.support import corpus_trees
from tests.support.corpus_trees import sound, wav
from tests.support.listings import clips_of, entries_of, real_rows

tree = corpus_trees.iemocap


@pytest.fixture
def iemocap_home(tmp_path):
    return tree(tmp_path, sessions=2)


def test_iemocap_takes_the_four_emotions_and_counts_the_others(iemocap_home):
    clips, skipped = clips_of(IEMOCAP, iemocap_home)
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
    clips, _ = clips_of(IEMOCAP, iemocap_home)
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
    clips, _ = clips_of(IEMOCAP, tmp_path)
    assert clips[turn].labels == {"emotion": "sad", "speaker": "Ses01M", "session": "1"}


def test_iemocap_single_raters_and_hidden_files_change_no_label(iemocap_home):
    clips, _ = clips_of(IEMOCAP, iemocap_home)
    assert clips["Ses01F_impro01_F000"].labels["emotion"] == "neu"
    assert "Ses01F_impro01_MXX0" not in clips  # the tree's Categorical/ calls it angry


def test_iemocap_the_stereo_dialogue_is_no_turn(iemocap_home):
    clips, _ = clips_of(IEMOCAP, iemocap_home)
    assert all("sentences" in c.path.split("/") for c in clips.values())


def test_iemocap_a_labelled_turn_whose_file_is_absent_is_listed_to_be_rejected(iemocap_home):
    turn = "Ses01F_impro01_F000"
    path = iemocap_home / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / f"{turn}.wav"
    before, _ = clips_of(IEMOCAP, iemocap_home)
    path.unlink()
    assert clips_of(IEMOCAP, iemocap_home)[0] == before


@pytest.mark.parametrize("line", ["[6.29 - 8.23] Ses01F_impro01_F000", "[6.29 - 8.23", "[] a b"])
def test_iemocap_a_strange_label_line_stops_it(line, iemocap_home):
    path = iemocap_home / "Session2" / "dialog" / "EmoEvaluation" / "Ses02F_impro01.txt"
    path.write_text(f"% header\n{line}\n")
    with pytest.raises(CorpusError, match=r"Ses02F_impro01.txt:2: not a label line"):
        clips_of(IEMOCAP, iemocap_home)


def test_iemocap_a_strange_wav_stops_it(iemocap_home):
    wav(iemocap_home / "Session1" / "sentences" / "wav" / "Ses01F_impro01" / "x.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <dialog>_<F or M><number>.wav"):
        clips_of(IEMOCAP, iemocap_home)


@pytest.mark.corpora
def test_iemocap_gives_the_four_emotions_of_ten_speakers(corpora):
    corpus = IEMOCAP
    home = locate(corpus, [corpora / "iemocap"])
    clips = [c for c in entries_of(corpus, home) if isinstance(c, Clip)]
    counts = Counter(clip.labels["emotion"] for clip in clips)
    assert counts == {"ang": 127, "hap": 71, "neu": 79, "sad": 62}
    assert len({clip.labels["speaker"] for clip in clips}) == 10
    found = real_rows(corpora, "iemocap")
    assert found.skipped.pop("piece shorter than half a window", 0) == 0
    assert found.skipped == {
        "emotion exc": 20, "emotion fru": 20, "emotion xxx": 20, "hidden file (._*.wav)": 20,
    }  # fmt: skip
    assert found.rejected == ()
    per_clip = Counter(row.group for row in found.rows)
    assert set(per_clip) == {clip.id for clip in clips}
    assert np.mean(list(per_clip.values())) < 3  # of 1.2 to 9 s, in windows of 4 s
