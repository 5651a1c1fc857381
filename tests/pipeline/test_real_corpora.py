"""The adapters on real recordings: counts found by other means (find, grep, wc)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from antigram.pipeline.audio.noise import noise_class, noise_files
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.corpus import Clip, locate
from antigram.pipeline.features.listing import Listing, list_rows
from antigram.pipeline.features.recipe import Recipe

pytestmark = pytest.mark.corpora


def listing(corpora: Path, name: str, **options: str) -> Listing:
    corpus = CORPORA[name]
    home = locate(corpus, [corpora / name])
    recipe = Recipe(
        corpus=name,
        options={**corpus.options, **options},
        seconds=corpus.seconds,
        overlap=corpus.overlap,
        longer=corpus.longer,
    )
    return list_rows(corpus, home, recipe)


def classes(found: Listing, label: str) -> Counter[str]:
    return Counter(dict(row.labels)[label] for row in found.rows)


def test_fsdd_is_whole(corpora):
    found = listing(corpora, "fsdd")
    assert classes(found, "word") == dict.fromkeys("0123456789", 300)
    assert len(classes(found, "speaker")) == 6
    assert Counter(row.official for row in found.rows) == {
        "train": 2_400, "validation": 300, "test": 300,
    }  # fmt: skip
    assert found.rejected == ()


def test_gsc_has_13_of_each_digit_and_10_of_each_other_word(corpora):
    digits = listing(corpora, "gsc")
    assert set(classes(digits, "word").values()) == {13}
    assert len(digits.rows) == 130
    assert Counter(row.official for row in digits.rows)["test"] == 23
    assert Counter(row.official for row in digits.rows)["validation"] == 17
    every = classes(listing(corpora, "gsc", words="all"), "word")
    assert len(every) == 30
    assert sum(every.values()) == 330


def test_iemocap_gives_the_four_emotions_of_ten_speakers(corpora):
    corpus = CORPORA["iemocap"]
    home = locate(corpus, [corpora / "iemocap"])
    clips = [c for c in corpus.list_clips(home, {}) if isinstance(c, Clip)]
    counts = Counter(clip.labels["emotion"] for clip in clips)
    assert counts == {"ang": 127, "hap": 71, "neu": 79, "sad": 62}
    assert len({clip.labels["speaker"] for clip in clips}) == 10
    found = listing(corpora, "iemocap")
    assert found.skipped.pop("piece shorter than half a window", 0) == 0
    assert found.skipped == {
        "emotion exc": 20, "emotion fru": 20, "emotion xxx": 20, "hidden file (._*.wav)": 20,
    }  # fmt: skip
    assert found.rejected == ()
    per_clip = Counter(row.group for row in found.rows)
    assert set(per_clip) == {clip.id for clip in clips}
    assert np.mean(list(per_clip.values())) < 3  # of 1.2 to 9 s, in windows of 4 s


def test_ms_snsd_gives_eight_of_the_eleven_classes(corpora):
    _, found = noise_files([corpora / "ms-snsd"])
    assert list(found) == [
        "AirConditioner", "AirportAnnouncements", "Babble", "CopyMachine", "Munching",
        "NeighborSpeaking", "ShuttingDoor", "VacuumCleaner",
    ]  # fmt: skip
    assert all(noise_class(p.stem) == label for label, paths in found.items() for p in paths)
