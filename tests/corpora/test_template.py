"""Template: file names, and errors that stop the listing. Copy this file with the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.corpora.TEMPLATE import TEMPLATE
from antigram.pipeline.corpus import CorpusError
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    """Make a few recordings in the corpus's layout, with the oddities of the real one."""
    speakers = {"train": ("ann", "bob"), "valid": ("cid",), "test": ("dora",)}
    for folder, names in speakers.items():
        for number, speaker in enumerate(names):
            for word in ("one", "two"):
                y = sound(number + len(word + folder), 16_000)
                wav(home / folder / f"{word}_{speaker}_0.wav", y, rate=16_000)
    (home / "train" / "._one_ann_0.wav").write_bytes(MAC_RUBBISH)
    return home


def test_a_name_gives_word_and_speaker_and_a_folder_the_split(tmp_path):
    clips, skipped = clips_of(TEMPLATE, tree(tmp_path))
    assert len(clips) == 8
    assert clips["two_cid_0"].labels == {"word": "two", "speaker": "cid"}
    assert clips["two_cid_0"].split == "validation"
    assert skipped == {"hidden file": 1}


def test_a_strange_name_stops_the_listing(tmp_path):
    home = tree(tmp_path)
    wav(home / "test" / "three.wav", sound(1))
    with pytest.raises(CorpusError, match=r"is not named <word>_<speaker>_<take>\.wav"):
        clips_of(TEMPLATE, home)
