"""EmoDB: labels are letters and numbers of a file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.corpora.emodb import EMODB
from antigram.pipeline.corpus import CorpusError
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    for n, name in enumerate(("03a01Fa", "08b10Wb", "16a05Lc", "12a07N", "15b03Tc", "09a02Ea")):
        wav(home / "wav" / f"{name}.wav", sound(n, 24_000 + 9_000 * n))
    (home / "wav" / "._03a01Fa.wav").write_bytes(MAC_RUBBISH)
    (home / "lablaut").mkdir()
    (home / "lablaut" / "03a01Faxx.lablaut").write_text("signal 03a01Fa\n#\n")
    return home


def test_a_name_gives_speaker_sentence_emotion_and_gender(tmp_path):
    clips, skipped = clips_of(EMODB, tree(tmp_path))
    assert clips["03a01Fa"].labels == {
        "emotion": "happiness", "speaker": "03", "sentence": "a01", "gender": "male",
    }  # fmt: skip
    assert clips["16a05Lc"].labels["emotion"] == "boredom"
    assert clips["16a05Lc"].labels["gender"] == "female"
    assert clips["12a07N"].labels["emotion"] == "neutral"
    assert skipped == {"hidden file": 1}


@pytest.mark.parametrize("name", ["03a01Xa", "07a01Fa", "notes"])
def test_a_strange_name_stops_the_listing(name, tmp_path):
    wav(tree(tmp_path) / "wav" / f"{name}.wav", sound(1))
    with pytest.raises(CorpusError, match=f"emodb: .*{name}.wav is not named <speaker, 2 digits>"):
        clips_of(EMODB, tmp_path)
