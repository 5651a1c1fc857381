"""Arabic Speech Commands: names, the authors' lists, FLAC copies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from antigram.pipeline.corpora.asc import ASC
from antigram.pipeline.corpus import Clip, CorpusError, Rejected, Skipped, locate
from antigram.pipeline.features.listing import list_rows
from antigram.pipeline.features.recipe import Recipe
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import entries_of


def tree(home: Path) -> Path:
    """Two words by four speakers; one file is FLAC, but its path in the lists ends in .wav."""
    lists = {"train": ["file,class"], "val": ["file,class"], "test": ["file,class"]}
    for number, word in enumerate(("one", "two")):
        for speaker, split in enumerate(("train", "train", "val", "test"), 1):
            for take in (1, 2):
                name = f"{speaker:08d}_NO_{take:02d}"
                suffix, subtype = (".flac", "PCM_16") if speaker == 4 else (".wav", "PCM_16")
                y = sound(40 * number + 10 * speaker + take)
                wav(home / "dataset" / word / f"{name}{suffix}", y, subtype=subtype)
                lists[split].append(f"dataset/{word}/{name}.wav,{word}")
    for split, lines in lists.items():
        lines.append(f"dataset/backward/{split}_NO_01.wav,backward")  # a word without a folder
        (home / f"{split}.csv").write_text("\n".join(lines) + "\n")
    (home / "dataset" / "one" / "._00000001_NO_01.wav").write_bytes(MAC_RUBBISH)
    wav(home / "background_noise" / "boiler.wav", sound(99))
    return home


@pytest.fixture
def home(tmp_path):
    return tree(tmp_path / "arabic-speech-commands-dataset")


def listed(home):
    return entries_of(ASC, home)


def test_speakers_are_in_the_split_of_the_authors_lists(home):
    clips = {clip.id: clip for clip in listed(home) if isinstance(clip, Clip)}
    assert len(clips) == 16
    assert clips["two/00000003_NO_02"].labels == {"word": "two", "speaker": "00000003"}
    splits = {clip.labels["speaker"]: clip.split for clip in clips.values()}
    assert splits == {
        "00000001": "train",
        "00000002": "train",
        "00000003": "validation",
        "00000004": "test",
    }
    assert clips["one/00000004_NO_01"].path == "dataset/one/00000004_NO_01.flac"


def test_hidden_files_are_counted_and_background_noise_is_no_word(home):
    assert Skipped("hidden file", 1) in listed(home)
    assert not any("background" in getattr(clip, "id", "") for clip in listed(home))


def test_listed_recordings_of_absent_words_are_counted_and_those_of_a_word_there_rejected(home):
    absent = Skipped("listed recording of a word that is not there", 3)
    assert absent in listed(home)
    assert not any(isinstance(found, Rejected) for found in listed(home))
    (home / "dataset/two/00000004_NO_02.flac").unlink()
    rejected = [found for found in listed(home) if isinstance(found, Rejected)]
    assert [found.path for found in rejected] == ["dataset/two/00000004_NO_02"]
    assert "no such file" in rejected[0].reason
    assert absent in listed(home)


def test_it_is_found_in_the_folder_above(home):
    assert locate(ASC, [home.parent]) == home


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda home: (home / "dataset/one/a.wav").write_bytes(b""), "is not named <speaker"),
        (
            lambda home: (home / "dataset/one/00000001_NO_09.wav").write_bytes(b""),
            "is in none of train.csv, val.csv, test.csv",
        ),
        (lambda home: (home / "val.csv").write_text("path,label\n"), r"val.csv:1: begins with"),
        (
            lambda home: (home / "val.csv").write_text(
                "file,class\ndataset/one/00000001_NO_01.wav,one\n"
            ),
            r"val.csv:2: .* is in two lists",
        ),
    ],
    ids=["name", "unlisted", "header", "two lists"],
)
def test_what_is_not_laid_out_so_stops_it(change, match, home):
    change(home)
    with pytest.raises(CorpusError, match=match):
        listed(home)


@pytest.mark.corpora
def test_the_digits_of_the_real_corpus(corpora):
    found = list_rows(ASC, locate(ASC, [corpora / "asc"]), Recipe(corpus="asc"))
    labels = [dict(row.labels) for row in found.rows]
    assert Counter(one["word"] for one in labels) == dict.fromkeys(
        "zero one two three four five six seven eight nine".split(), 300
    )
    assert len({one["speaker"] for one in labels}) == 30
    assert Counter(row.official for row in found.rows) == {
        "train": 1800,
        "validation": 600,
        "test": 600,
    }
    assert found.rejected == ()
    assert found.skipped == {"listed recording of a word that is not there": 9000}
