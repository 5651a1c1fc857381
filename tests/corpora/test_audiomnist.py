"""AudioMNIST: names, and what is known about speakers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from antigram.pipeline.corpora.audiomnist import AUDIOMNIST
from antigram.pipeline.corpus import CorpusError
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    for speaker in ("01", "02", "60"):
        for digit in (0, 7):
            y = sound(10 * int(speaker) + digit, 30_000)
            wav(home / "data" / speaker / f"{digit}_{speaker}_49.wav", y, rate=48_000)
    (home / "data" / "01" / "._0_01_49.wav").write_bytes(MAC_RUBBISH)
    known = {"01": {"accent": "german", "age": "30", "gender": "male"},
             "02": {"accent": "German", "age": "25", "gender": "female"}}  # fmt: skip
    (home / "data" / "audioMNIST_meta.txt").write_text(json.dumps(known))
    return home


def test_a_name_gives_digit_and_speaker_and_the_table_more(tmp_path):
    clips, skipped = clips_of(AUDIOMNIST, tree(tmp_path))
    assert clips["7_02_49"].labels == {
        "digit": "7", "speaker": "02", "gender": "female", "accent": "german",
    }  # fmt: skip
    assert clips["7_60_49"].labels == {"digit": "7", "speaker": "60"}
    assert skipped == {"hidden file": 1}


def test_what_is_not_laid_out_so_stops_it(tmp_path):
    home = tree(tmp_path)
    wav(home / "data" / "01" / "0_02_3.wav", sound(1))
    with pytest.raises(CorpusError, match=r"0_02_3.wav is of another speaker than its folder"):
        clips_of(AUDIOMNIST, home)
    (home / "data" / "audioMNIST_meta.txt").write_text('{"01": {"gender": "male"}}')
    with pytest.raises(CorpusError, match=r"meta.txt: wanted JSON with gender and accent"):
        clips_of(AUDIOMNIST, home)
