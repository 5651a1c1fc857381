"""Free Spoken Digit Dataset: names, and the authors' split by take."""

from __future__ import annotations

from collections import Counter

import pytest

from antigram.pipeline.corpora.fsdd import FSDD
from antigram.pipeline.corpus import CorpusError
from tests.support import corpus_trees
from tests.support.corpus_trees import sound, wav
from tests.support.listings import clips_of, labels_of, real_rows

tree = corpus_trees.fsdd


def test_fsdd_takes_0_to_4_are_test_and_5_to_9_validation(tmp_path):
    clips, _ = clips_of(FSDD, tree(tmp_path))
    assert len(clips) == 24
    splits = {int(i.rpartition("_")[2]): c.split for i, c in clips.items()}
    assert splits == {
        0: "test", 4: "test", 5: "validation", 9: "validation", 10: "train", 49: "train",
    }  # fmt: skip
    assert clips["1_theo_49"].labels == {"word": "1", "speaker": "theo"}


def test_fsdd_a_strange_name_stops_it(tmp_path):
    home = tree(tmp_path)
    wav(home / "recordings" / "x_theo_1.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <digit>_<speaker>_<take>.wav"):
        clips_of(FSDD, home)


@pytest.mark.corpora
def test_fsdd_is_whole(corpora):
    found = real_rows(corpora, "fsdd")
    assert labels_of(found, "word") == dict.fromkeys("0123456789", 300)
    assert len(labels_of(found, "speaker")) == 6
    assert Counter(row.official for row in found.rows) == {
        "train": 2_400, "validation": 300, "test": 300,
    }  # fmt: skip
    assert found.rejected == ()
