"""TESS: names, a misspelt one, AIFF called WAV, and a copy within the copy."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from antigram.pipeline.corpora.tess import TESS
from antigram.pipeline.corpus import CorpusError
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    """Make folders of a speaker and an emotion; one file is AIFF, one speaker is misspelt."""
    for n, name in enumerate(("OAF_back_angry", "OAF_bite_ps", "YAF_back_angry", "YAF_mob_sad")):
        speaker, _, emotion = name.split("_")
        wav(home / f"{speaker}_{emotion}" / f"{name}.wav", sound(n, 24_414), rate=24_414)
    wav(home / "OAF_neutral" / "OA_bite_neutral.wav", sound(7, 24_414), rate=24_414)
    aiff = home / "YAF_sad" / "YAF_germ_sad.wav"
    soundfile.write(aiff, sound(8, 24_414), 24_414, format="AIFF")
    wav(home / "copy" / "OAF_angry" / "OAF_back_angry.wav", sound(0, 24_414), rate=24_414)
    (home / "OAF_angry" / "._OAF_back_angry.wav").write_bytes(MAC_RUBBISH)
    return home


def test_a_name_gives_speaker_word_and_emotion(tmp_path):
    clips, skipped = clips_of(TESS, tree(tmp_path))
    assert set(clips) == {"OAF_back_angry", "OAF_bite_ps", "YAF_back_angry", "YAF_mob_sad",
                          "OAF_bite_neutral", "YAF_germ_sad"}  # fmt: skip
    assert clips["OAF_bite_ps"].labels == {
        "emotion": "pleasant surprise", "word": "bite", "speaker": "OAF",
    }  # fmt: skip
    assert clips["OAF_bite_neutral"].path == "OAF_neutral/OA_bite_neutral.wav"
    assert skipped == {"hidden file": 1}


def test_all_files_may_be_in_one_folder(tmp_path):
    for n, name in enumerate(("OAF_back_angry", "YAF_back_sad")):
        wav(tmp_path / f"{name}.wav", sound(n))
    assert set(clips_of(TESS, tmp_path)[0]) == {"OAF_back_angry", "YAF_back_sad"}


def test_a_strange_name_stops_the_listing(tmp_path):
    wav(tree(tmp_path) / "YAF_sad" / "YAF_back.wav", sound(1))
    with pytest.raises(CorpusError, match=r"YAF_back.wav is not named <OAF or YAF>_<word>_<emotio"):
        clips_of(TESS, tmp_path)
