"""The demo corpus, in the layout that the synthesis writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.corpora.demo import DEMO
from antigram.pipeline.corpus import CorpusError
from tests.support import corpus_trees
from tests.support.corpus_trees import sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    """Two words by two voices in two prosodies, and noise."""
    for word in ("one", "two"):
        for voice in ("en-us+m1", "en-gb-x-rp+f2"):
            for emotion in ("neutral", "sad"):
                y = sound(len(word + voice + emotion), 12_000)
                wav(home / "speech" / f"{word}_{voice}_{emotion}_0.wav", y, rate=22_050)
    corpus_trees.noise(home)
    return home


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
