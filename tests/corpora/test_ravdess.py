"""RAVDESS: seven numbers in a name, stereo recordings, song."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.corpora.ravdess import RAVDESS
from antigram.pipeline.corpus import CorpusError
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of


def tree(home: Path) -> Path:
    """Make two actors, with a stereo recording and one of song."""
    for n, name in enumerate(("03-01-06-01-02-01-12", "03-01-01-01-01-02-12",
                              "03-01-08-02-01-01-01", "03-01-05-02-02-02-01")):  # fmt: skip
        y = sound(n, 48_000)
        folder = home / f"Actor_{name[-2:]}"
        wav(folder / f"{name}.wav", y.reshape(-1, 1).repeat(1 + n % 2, 1), rate=48_000)
    wav(home / "Actor_01" / "03-02-05-02-02-02-01.wav", sound(5))
    (home / "Actor_01" / "._03-01-05-02-02-02-01.wav").write_bytes(MAC_RUBBISH)
    return home


def test_a_name_gives_its_labels(tmp_path):
    clips, skipped = clips_of(RAVDESS, tree(tmp_path))
    assert clips["03-01-06-01-02-01-12"].labels == {
        "emotion": "fearful", "speaker": "12", "statement": "dogs", "intensity": "normal",
        "gender": "female",
    }  # fmt: skip
    assert clips["03-01-08-02-01-01-01"].labels == {
        "emotion": "surprised", "speaker": "01", "statement": "kids", "intensity": "strong",
        "gender": "male",
    }  # fmt: skip
    assert skipped == {"song": 1, "hidden file": 1}


@pytest.mark.parametrize("name", ["03-01-09-01-01-01-01", "02-01-06-01-02-01-12",
                                  "03-01-06-01-02-01-25"])  # fmt: skip
def test_a_strange_name_stops_the_listing(name, tmp_path):
    wav(tree(tmp_path) / "Actor_01" / f"{name}.wav", sound(1))
    with pytest.raises(CorpusError, match=f"ravdess: .*{name}.wav is not named 03-01-<emotion>"):
        clips_of(RAVDESS, tmp_path)
