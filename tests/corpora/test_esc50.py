"""ESC-50: the publisher's table, folds, and clips of one source."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.pipeline.corpora.esc50 import ESC50
from antigram.pipeline.corpus import CorpusError, Rejected
from tests.support.corpus_trees import MAC_RUBBISH, sound, wav
from tests.support.listings import clips_of, entries_of, rows_of


def tree(home: Path) -> Path:
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    sounds = (("dog", 0, "True"), ("rain", 10, "True"), ("laughing", 26, "False"))
    for fold in range(1, 6):
        for n, (category, target, small) in enumerate(sounds):
            for take in "AB":
                name = f"{fold}-{100 * fold + n}-{take}-{target}.wav"
                wav(home / "audio" / name, sound(10 * fold + n, 44_100), rate=44_100)
                rows.append(f"{name},{fold},{target},{category},{small},{100 * fold + n},{take}")
    (home / "meta").mkdir()
    (home / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    (home / "audio" / "._1-100-A-0.wav").write_bytes(MAC_RUBBISH)
    return home


def test_the_table_gives_labels_and_clips_of_one_source_are_a_group(tmp_path):
    clips, skipped = clips_of(ESC50, tree(tmp_path))
    assert clips["3-302-B-26"].labels == {
        "category": "laughing", "group": "human", "esc10": "false", "fold": "3",
    }  # fmt: skip
    assert clips["3-302-A-26"].group == clips["3-302-B-26"].group == "source 302"
    assert len({clip.group for clip in clips.values()}) == 15
    assert skipped == {"hidden file": 1}


def test_the_folds_of_the_publisher_are_the_folds_of_a_design(tmp_path):
    rows = rows_of(ESC50, tree(tmp_path), split="kfold:fold:5").rows
    assert {dict(row.labels)["fold"] for row in rows} == set("12345")


def test_a_listed_file_that_is_missing_is_rejected_and_an_unlisted_one_stops_it(tmp_path):
    home = tree(tmp_path)
    (home / "audio" / "1-100-A-0.wav").unlink()
    found = [e for e in entries_of(ESC50, home) if isinstance(e, Rejected)]
    assert [e.path for e in found] == ["audio/1-100-A-0.wav"]
    assert "esc50.csv:2: no such file" in found[0].reason
    wav(home / "audio" / "9-1-A-0.wav", sound(1))
    with pytest.raises(CorpusError, match=r"9-1-A-0.wav is not in .*esc50.csv"):
        clips_of(ESC50, home)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("../x.wav,1,0,dog,True,1,A", r"esc50.csv:32: filename is '../x.wav'"),
        ("1-100-A-0.wav,1,0,dog,True,1,A", r"esc50.csv:32: filename is .*, once"),
        ("1-9-A-0.wav,1,50,dog,True,1,A", r"esc50.csv:32: target is '50'"),
    ],
)
def test_a_bad_line_is_refused(line, says, tmp_path):
    table = tree(tmp_path) / "meta" / "esc50.csv"
    table.write_text(table.read_text() + line + "\n")
    with pytest.raises(CorpusError, match=says):
        clips_of(ESC50, tmp_path)
