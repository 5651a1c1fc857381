"""CREMA-D: labels in names, and a table of actors that may be missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.corpora.crema_d import CREMA_D
from antigram.pipeline.corpus import CorpusError
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    for n, name in enumerate(("1001_IEO_ANG_HI", "1001_DFA_NEU_XX", "1002_ITH_SAD_X",
                              "1002_IEO_HAP_LO", "1003_TAI_FEA_MD")):  # fmt: skip
        wav(home / "AudioWAV" / f"{name}.wav", sound(n, 30_000))
    (home / "AudioWAV" / "._1001_IEO_ANG_HI.wav").write_bytes(MAC_RUBBISH)
    rows = "1001,51,Male,Caucasian,Not Hispanic\n1002,21,Female,Caucasian,Not Hispanic\n"
    (home / "VideoDemographics.csv").write_text("ActorID,Age,Sex,Race,Ethnicity\n" + rows)
    return home


def test_a_name_and_the_table_of_actors_give_labels_as_far_as_they_are_known(tmp_path):
    clips, skipped = clips_of(CREMA_D, tree(tmp_path))
    assert clips["1001_IEO_ANG_HI"].labels == {
        "emotion": "anger", "speaker": "1001", "sentence": "IEO", "intensity": "high",
        "gender": "male",
    }  # fmt: skip
    assert clips["1002_ITH_SAD_X"].labels == {
        "emotion": "sadness", "speaker": "1002", "sentence": "ITH", "gender": "female",
    }  # fmt: skip
    assert "gender" not in clips["1003_TAI_FEA_MD"].labels
    assert skipped == {"hidden file": 1}


def test_without_the_table_of_actors_there_is_no_gender(tmp_path):
    (tree(tmp_path) / "VideoDemographics.csv").unlink()
    assert "gender" not in clips_of(CREMA_D, tmp_path)[0]["1001_IEO_ANG_HI"].labels


def test_another_table_and_a_strange_name_stop_the_listing(tmp_path):
    home = tree(tmp_path)
    wav(home / "AudioWAV" / "1001_IEO_JOY_HI.wav", sound(1))
    with pytest.raises(CorpusError, match=r"1001_IEO_JOY_HI.wav is not named <actor, 4 digits>"):
        clips_of(CREMA_D, home)
    (home / "VideoDemographics.csv").write_text("Actor,Sex\n1001,Male\n")
    with pytest.raises(CorpusError, match=r"VideoDemographics.csv:1: columns .*wanted ActorID"):
        clips_of(CREMA_D, home)
