"""Damaged and hostile manifests cost one line, with file and line; what they name is never run."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from antigram.pipeline.corpora.manifest import MANIFEST
from antigram.pipeline.corpora.manifests import lines
from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.features.listing import list_rows
from antigram.pipeline.features.recipe import Recipe
from tests.support import manifests
from tests.support.manifests import (
    clips,
    lhotse_cut,
    lhotse_recording,
    lhotse_supervision,
    utterances,
    write_lines,
)

FIRST = json.dumps(lhotse_supervision(next(utterances()))).encode() + b"\n"
RECORDINGS, SUPERVISIONS = "my_recordings.jsonl.gz", "my_supervisions.jsonl.gz"


def refused(source: Path, says: str) -> None:
    with pytest.raises(CorpusError, match=says) as error:
        clips(source)
    assert "\n" not in str(error.value)


def first_supervision(**changes) -> list[dict]:
    own = [lhotse_supervision(u) for u in utterances()]
    return [*own[:2], {**own[2], **changes}, *own[3:]]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"start": float("nan")}, r"supervisions.jsonl.gz:3: start is nan; wanted a number"),
        ({"duration": float("inf")}, r"supervisions.jsonl.gz:3: duration is inf"),
        ({"start": "0"}, r"supervisions.jsonl.gz:3: start is '0'"),
        ({"start": None}, r"supervisions.jsonl.gz:3: start is None"),
        ({"start": True}, r"supervisions.jsonl.gz:3: start is True"),
        ({"id": ""}, r"supervisions.jsonl.gz:3: id is ''; wanted text"),
        ({"recording_id": ["x"]}, r"supervisions.jsonl.gz:3: recording_id is \['x'\]"),
        ({"speaker": "a\nb"}, r"supervisions.jsonl.gz:3: speaker is 'a\\nb'; wanted visible text"),
        ({"speaker": "ann "}, r"gz:3: speaker: 'ann ' and 'ann' .*differ in nothing but blanks"),
    ],
    ids=str,
)
def test_a_wrong_value_is_refused_with_its_line(changes, says, tmp_path):
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / SUPERVISIONS, first_supervision(**changes))
    refused(source, says)


def recording(**changes) -> list[dict]:
    first = lhotse_recording("ann")
    return [{**first, "sources": [{**first["sources"][0], **changes}]}]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        (recording(source="/etc/passwd"), r"gz:1: the recording '/etc/passwd' is not below"),
        (recording(source="../../a.wav"), r"gz:1: the recording '../../a.wav' is not below"),
        (recording(source="a\0.wav"), r"gz:1: the recording 'a\\x00.wav' is not below"),
        (recording(type="command", source="touch x"), r"gz:1: a source of type 'command'; wanted"),
        (recording(type="url", source="https://x"), r"gz:1: a source of type 'url'; wanted"),
        ([{**recording()[0], "sources": recording()[0]["sources"] * 2}], r"gz:1: 2 sources;"),
        ([{**recording()[0], "sources": []}], r"gz:1: sources is \[\]"),
        ([{**recording()[0], "transforms": [{"name": "Speed"}]}], r"gz:1: the recording has trans"),
        (recording() * 2, r"gz:2: the id 'rec_ann' is that of an earlier line, too"),
    ],
    ids=range(9),
)  # fmt: skip
def test_a_recording_that_is_no_file_below_the_folder_is_refused(records, says, tmp_path):
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / RECORDINGS, records)
    refused(source, says)


def test_a_channel_of_several_is_refused(tmp_path):
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / RECORDINGS, recording(channels=[0, 1]))
    refused(source, r"supervisions.jsonl.gz:1: is of channel \(0,\) of \(0, 1\)")
    write_lines(tmp_path / SUPERVISIONS, first_supervision(channel=[0, 1])[2:3])
    assert len(clips(source)) == 1


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ({"id": "x", "type": "MixedCut", "tracks": []}, r"cuts.jsonl:1: the cut has a MixedCut"),
        ({"id": "x", "type": "PaddingCut", "duration": 1}, r"cuts.jsonl:1: the cut has no record"),
        ({**lhotse_cut(next(utterances())), "supervisions": [1]}, r"cuts.jsonl:1: supervisions is"),
    ],
    ids=["mixed", "padding", "list"],
)
def test_a_cut_that_is_no_part_of_a_recording_is_refused(cut, says, tmp_path):
    manifests.recordings(tmp_path / "audio")
    refused(write_lines(tmp_path / "cuts.jsonl", [cut]), says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (FIRST + b'{"id": \n', r"gz:2: not JSON: Expecting value, column 8"),
        (FIRST + b"[1]\n", r"gz:2: wanted a JSON object"),
        (FIRST + b'{"id": "\xff"}\n', r"gz:2:9: byte 0xff is not UTF-8"),
        (b"[" * 100_000 + b"\n", r"gz:1: not JSON: nested too deeply"),
        (b'{"id": ' + b"9" * 5_000 + b"}\n", r"gz:1: not JSON: Exceeds the limit"),
    ],
    ids=["broken", "list", "latin", "deep", "digits"],
)
def test_lines_that_are_no_json_are_refused(content, says, tmp_path):
    source = manifests.lhotse(tmp_path)
    (tmp_path / SUPERVISIONS).write_bytes(gzip.compress(content))
    refused(source, says)


def test_damaged_gzip_is_refused_with_the_line_it_reaches(tmp_path, rng):
    source = manifests.lhotse(tmp_path)
    many = [{**lhotse_supervision(u), "noise": rng.bytes(40).hex()} for u in utterances()] * 90
    intact = write_lines(tmp_path / SUPERVISIONS, many).read_bytes()
    (tmp_path / SUPERVISIONS).write_bytes(intact[: len(intact) // 2])
    refused(source, r"my_supervisions.jsonl.gz:\d{3}: its gzip is damaged or truncated here")
    (tmp_path / SUPERVISIONS).write_bytes(intact[:-8] + bytes(8))  # another checksum
    refused(source, r"my_supervisions.jsonl.gz:1081: its gzip is damaged")
    broken = bytearray(intact)
    broken[len(intact) // 2 :][:9] = bytes(9)
    broken[len(intact) // 2 : len(intact) // 2 + 64] = bytes(64)
    (tmp_path / SUPERVISIONS).write_bytes(broken)
    refused(source, r"my_supervisions.jsonl.gz:\d+: ")


def test_a_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "_MOST", 1_000)
    source = manifests.lhotse(tmp_path)
    (tmp_path / SUPERVISIONS).write_bytes(gzip.compress(b" " * 5_000))
    refused(source, r"my_supervisions.jsonl.gz:1: a line of more than")


def test_two_pieces_with_one_id_are_refused_with_both_lines(tmp_path):
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / SUPERVISIONS, first_supervision(id="ann_one"))
    assert MANIFEST.open_source is not None
    corpus, home = MANIFEST.open_source([source], None)
    recipe = Recipe(corpus="manifest", longer="segment", seconds=0.25)
    with pytest.raises(CorpusError, match=r"gz:1 and my_supervisions.jsonl.gz:3 both have the id"):
        list_rows(corpus, home, recipe)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("wav.scp", "a flac -dc a.flac |", r"wav.scp:1: a is the output of a command, 'flac -dc"),
        ("wav.scp", "b x.wav\na touch made; cat x.wav |", r"wav.scp:2: a is the output of a comm"),
        ("wav.scp", "a data.ark:123", r"wav.scp:1: a is within an archive, 'data.ark:123'"),
        ("wav.scp", "a x.wav\na y.wav", r"wav.scp:2: the id 'a' is that of line 1, too"),
        ("wav.scp", "a ../x.wav", r"wav.scp:1: the recording '../x.wav' is not below"),
        ("wav.scp", "a", r"wav.scp:1: the recording '' is not below"),
        ("wav.scp", " a x.wav", r"wav.scp:1: begins with a blank"),
        ("segments", "u rec_ann 0 nan", r"segments:1: 'nan' is no time"),
        ("segments", "u rec_ann 0", r"segments:1: after the utterance 2 more words"),
        ("segments", "u rec_ann 0 1 A", r"segments:1: after the utterance a channel"),
        ("segments", "u rec_ann 0 1\nu rec_ann 1 2", r"segments:2: the id 'u' is that of an ear"),
        ("segments", "u none 0 1", r"no usable part of a recording. u: segments:1: wav.scp has no"),
        ("segments", "u rec_ann 1 0.5", r"segments:1: the part from 1 to 0.5 s is empty, or out"),
        ("utt2spk", "ann_one \xff", r"utt2spk:1:9: byte 0xff is not UTF-8"),
    ],
    ids=range(14),
)
def test_a_bad_table_of_kaldi_is_refused_and_nothing_is_run(
    name, text, says, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    source = manifests.kaldi(tmp_path / "data")
    (source / name).write_bytes(text.encode("latin-1"))
    refused(source, says)
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r'x.json:1: wanted one JSON object, {"ID"'),
        ("[]", r"x.json:1: wanted one JSON object"),
        ('{"a": {"wav": "a.wav", "w": "x"}\n,\n"b"}', r'x.json:3: wanted "ID": {...}'),
        ('{"a": {"wav": "a.wav"}\n "b": {}}', r"x.json:2: wanted , or } after an object"),
        ('{"a": {"wav": "a.wav"}} x', r"x.json:1: text after the end"),
        ('{\n"a": 5}', r"x.json:2: 'a' is 5; wanted an object"),
        ('{\n"a": {"wav":\n}}', r"x.json:3: not JSON: Expecting value"),
        ('{\n"a": {"wav": "a.wav"', r"x.json:2: not JSON|x.json:3: not JSON"),
        ('{\n"a": {"word": "x"}}', r"x.json:2: the example 'a' has no id or no file"),
        ('{\n"a": {"wav": ["x"]}}', r"x.json:2: wav is \['x'\]; wanted the path of one audio"),
        (
            '{"a": {"wav": "a.wav", "start": 0.5}}',
            r"x.json:1: start is 0.5; wanted a number of sam",
        ),
        ('{"a": {"wav": "a.wav", "stop": -1}}', r"x.json:1: stop is -1; wanted a number of sam"),
        ('{"a": {"wav": "a.wav"}, "a": {"wav": "b.wav"}}', r"x.json:1: the id 'a' is that of an"),
        ('{"a": {"wav": "a.wav",\n "w": "\xff"}}', r"x.json:2:8: byte 0xff is not UTF-8"),
    ],
    ids=range(14),
)
def test_a_bad_file_of_speechbrain_is_refused(text, says, tmp_path):
    (tmp_path / "x.json").write_bytes(text.encode("latin-1"))
    refused(tmp_path / "x.json", says)


def test_json_is_read_in_parts_however_small_they_are(tmp_path, monkeypatch):
    source = manifests.speechbrain_json(tmp_path)
    want = list(lines.json_members(source))
    for part in (1, 7, 100):
        monkeypatch.setattr(lines, "_PART", part)
        assert list(lines.json_members(source)) == want
    assert [line for line, _, _ in want][:3] == [2, 12, 22]
    assert {key: value for _, key, value in want} == json.loads(source.read_text())


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("x.csv", "ID,wav,word\na,x.wav", r"x.csv:2:3: the line has 2 cells, the header 3"),
        ("x.csv", "name,wav\na,x.wav", r"x.csv:1: the columns are name, wav; wanted ID, wav"),
        ("x.csv", "ID,wav,word\na,x.wav,one\na,x.wav,one", r"x.csv:3: the id 'a' is that of an"),
        ("x.csv", "ID,wav,start\na,x.wav,1.5", r"x.csv:2: start is '1.5'; wanted a number of sam"),
        ("x.csv", "file_name,word\nx.wav,one\n./x.wav,two", r"x.csv:3: names x.wav, as does an e"),
        ("x.csv", "file_name,split\nx.wav,held", r"x.csv:2: split is 'held'; wanted train"),
        (
            "metadata.jsonl",
            '{"file_name": 5.5}',
            r"metadata.jsonl:1: file_name is 5.5; wanted text",
        ),
        ("x.jsonl", '{"name": 5}', r"x.jsonl:1: has name; wanted a manifest of lhotse"),
        ("x.txt", "", r"x.txt is not called like a manifest: wanted"),
    ],
    ids=range(9),
)
def test_a_bad_table_is_refused(name, text, says, tmp_path):
    (tmp_path / name).write_text(text)
    refused(tmp_path / name, says)


def test_an_empty_folder_and_a_missing_one_say_what_is_wanted(tmp_path):
    refused(tmp_path, r"nothing in .* is a manifest: wanted a manifest of lhotse")
    refused(tmp_path / "none", r"manifest: no such file or folder: .*none. Name it with `source`")


def test_ambiguous_manifests_of_lhotse_are_refused(tmp_path):
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / "cuts.jsonl", [lhotse_cut(next(utterances()))])
    refused(source, r"has cuts \(cuts.jsonl\) and my_recordings.jsonl.gz, which may say the same")
    (tmp_path / "cuts.jsonl").unlink()
    (tmp_path / SUPERVISIONS).rename(tmp_path / "your_supervisions.jsonl.gz")
    refused(source, r"there is no file of recordings beside it; wanted your_recordings.jsonl.gz")
    (tmp_path / "your_supervisions.jsonl.gz").unlink()
    refused(source, r"my_recordings.jsonl.gz: there is no file of supervisions beside it")
