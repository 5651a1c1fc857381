"""The demo's corpus, as a synthesis leaves it."""

from __future__ import annotations

import pytest

from antigram.pipeline.corpora.demo import DEMO
from antigram.pipeline.corpus import CorpusError
from tests.corpora.listing import clips_of
from tests.pipeline import trees
from tests.pipeline.trees import sound, wav

tree = trees.demo


def test_a_name_gives_word_voice_and_prosody(tmp_path):
    clips, _ = clips_of(DEMO, tree(tmp_path))
    assert len(clips) == 8
    labels = {"word": "one", "speaker": "en-gb-x-rp+f2", "emotion": "sad"}
    assert clips["one_en-gb-x-rp+f2_sad_0"].labels == labels


def test_a_strange_name_stops_it(tmp_path):
    home = tree(tmp_path)
    wav(home / "speech" / "one_sad.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <digit>_<voice>_<prosody>_<take>\.wav"):
        clips_of(DEMO, home)
