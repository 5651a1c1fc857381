"""Data sets saved with Hugging Face's datasets: audio inside the Arrow file, or paths."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import antigram
from antigram.pipeline.audio.decoding import AudioError, probe, read
from antigram.pipeline.corpus import Clip, CorpusError, Rejected
from antigram.pipeline.storage.members import is_member, member_path, stat_recording
from antigram.pipeline.workspace import Workspace
from tests.support import manifests
from tests.support.corpus_trees import RATE, sound, wav
from tests.support.manifests import clips, entries, utterances


def encoded(seed: int, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(seed, 8_000), RATE, format=kind)
    return file.getvalue()


@pytest.fixture(scope="module")
def pa():
    return pytest.importorskip("pyarrow", reason="pyarrow reads Arrow files")


def saved(pa, folder: Path, rows: list[dict], *, classes: list[str] | None = None, size=5) -> Path:
    """Write a data set as `datasets.Dataset.save_to_disk` does, in batches of a few rows."""
    audio = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    kinds = {"audio": audio, "label": pa.int64(), "speaker": pa.string()}
    features = {
        "audio": {"_type": "Audio"},
        "label": {"_type": "ClassLabel", "names": classes or ["a", "b"]},
        "speaker": {"_type": "Value", "dtype": "string"},
    }
    about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    schema = pa.schema(list(kinds.items()), metadata=about)
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for first in range(0, len(rows), size):
            stream.write_batch(pa.RecordBatch.from_pylist(rows[first : first + size], schema))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def rows(kinds=("WAV", "FLAC", "OGG")) -> list[dict]:
    return [
        {"audio": {"bytes": encoded(n, kinds[n % len(kinds)]), "path": f"{n}.x"}, "label": n % 2,
         "speaker": f"s{n % 4}"}
        for n in range(12)
    ]  # fmt: skip


def test_audio_within_an_arrow_file_gives_the_segments_of_plain_files(pa, tmp_path):
    made = rows()
    source = saved(pa, tmp_path / "data", made)
    lines = [("file_name", "label", "speaker")]
    for n, row in enumerate(made):
        path = tmp_path / "files" / f"{n:08d}.wav"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(row["audio"]["bytes"])  # antigram looks at the content, not at the name
        lines.append((path.name, "ab"[row["label"]], row["speaker"]))
    manifests.write_csv(tmp_path / "files" / "metadata.csv", lines)
    own: dict[str, Any] = {"seconds": 0.25, "split": "by:speaker", "workers": 1}
    one = antigram.prepare_corpus(Workspace(tmp_path), "manifest", source=source, **own).store
    two = antigram.prepare_corpus(
        Workspace(tmp_path), "folder", source=tmp_path / "files", **own
    ).store
    assert [name.replace("#", ".wav#") for name in one.clip_ids] == two.clip_ids
    assert one.features.read().tobytes() == two.features.read().tobytes()
    assert one.classes == two.classes
    assert one.labels("label").tolist() == two.labels("label").tolist()
    # The store is left alone as long as the audio is the same.
    again = antigram.prepare_corpus(
        Workspace(tmp_path), "manifest", source=source, check_sources=True, **own
    )
    assert again.left_alone
    assert again.sources.read == 12
    os.utime(source / "data-00000-of-00001.arrow", (1, 1))
    assert antigram.prepare_corpus(Workspace(tmp_path), "manifest", source=source, **own).left_alone


def test_edited_bytes_within_an_arrow_file_are_noticed(pa, tmp_path):
    made = rows(("WAV",))
    source = saved(pa, tmp_path / "data", made)
    own: dict[str, Any] = {"seconds": 0.25, "split": "by:speaker", "workers": 1}
    first = antigram.prepare_corpus(Workspace(tmp_path), "manifest", source=source, **own)
    file = source / "data-00000-of-00001.arrow"
    content = bytearray(file.read_bytes())
    at = content.index(made[3]["audio"]["bytes"]) + 2_000
    content[at : at + 500] = bytes(500)
    file.write_bytes(content)
    found = antigram.prepare_corpus(Workspace(tmp_path), "manifest", source=source, **own)
    assert not found.left_alone
    assert found.store.fingerprint != first.store.fingerprint


def test_a_saved_dict_has_parts_that_are_the_official_split(pa, tmp_path):
    for name in ("train", "validation", "test"):
        saved(pa, tmp_path / name, rows(("WAV",)))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    found = clips(tmp_path)
    assert {(i.partition("/")[0], c.split) for i, c in found.items()} == {
        ("train", "train"), ("validation", "validation"), ("test", "test"),
    }  # fmt: skip
    assert found["test/00000007"].labels == {"label": "b", "speaker": "s3"}


def test_paths_are_relative_to_the_folder_that_is_named(pa, tmp_path):
    made = [
        {"audio": {"bytes": None, "path": f"{u.id}.wav"}, "label": n % 2, "speaker": u.speaker}
        for n, u in enumerate(utterances())
    ]
    source = saved(pa, tmp_path / "data", made)
    audio = manifests.plain(tmp_path / "audio")
    assert clips(source, audio)["00000001"].path == "ann_two.wav"


def test_a_row_without_audio_is_rejected_and_an_unknown_class_is_no_label(pa, tmp_path):
    made = rows(("WAV",))
    made[6]["audio"] = None
    made[7]["audio"] = {"bytes": None, "path": None}
    made[0]["label"], made[1]["label"] = -1, None
    found = entries(saved(pa, tmp_path / "data", made))
    assert [e for e in found if isinstance(e, Rejected)] == [
        Rejected("00000006", "data-00000-of-00001.arrow:7: a row without audio"),
        Rejected("00000007", "data-00000-of-00001.arrow:8: a row without audio"),
    ]
    known = {e.id: e.labels for e in found if isinstance(e, Clip)}
    assert known["00000000"] == {"speaker": "s0"}
    assert known["00000001"] == {"speaker": "s1"}


def cut_off(share: float):
    def damage(source: Path) -> None:
        file = source / "data-00000-of-00001.arrow"
        file.write_bytes(file.read_bytes()[: round(share * file.stat().st_size)])

    return damage


def flip_metadata(source: Path) -> None:
    file = source / "data-00000-of-00001.arrow"
    content = bytearray(file.read_bytes())
    content[12:300] = bytes(288)
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut_off(0.9), r"arrow: truncated: the end of its stream is missing"),
        (cut_off(0.0), r"arrow:1: damaged or truncated|arrow: truncated"),
        (flip_metadata, r"data-00000-of-00001.arrow:1: damaged or truncated at this row"),
        (lambda f: (f / "data-00000-of-00001.arrow").unlink(), r"arrow: cannot be read: No such"),
        (
            lambda f: (f / "state.json").write_text(
                '{"_data_files": [{"filename": "../x.arrow"}]}'
            ),
            r"state.json: names '../x.arrow'; wanted the name of an entry of its folder",
        ),
        (lambda f: (f / "state.json").write_text('{"_data'), "state.json: not JSON"),
    ],
    ids=["cut", "empty", "metadata", "missing", "outside", "json"],
)
def test_a_damaged_data_set_costs_one_line(damage, says, pa, tmp_path):
    source = saved(pa, tmp_path / "data", rows(("WAV",)))
    damage(source)
    with pytest.raises(CorpusError, match=says) as error:
        clips(source)
    assert "\n" not in str(error.value)


def test_any_flipped_byte_gives_clips_or_one_line(pa, tmp_path, rng):
    source = saved(pa, tmp_path / "data", rows(("WAV",))[:3])
    file = source / "data-00000-of-00001.arrow"
    intact = file.read_bytes()
    refused = 0
    for at in rng.choice(2_000, 150, replace=False):  # the schema and the head of the batch
        content = bytearray(intact)
        content[at] ^= 0xFF
        file.write_bytes(content)
        try:
            found = clips(source)
        except CorpusError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
        else:
            for clip in found.values():
                if is_member(clip.path):
                    stat_recording(f"{source}/{clip.path}")  # within the file
    assert refused > 5


def test_compressed_data_are_refused(pa, tmp_path):
    source = saved(pa, tmp_path / "data", rows(("WAV",)))
    file = source / "data-00000-of-00001.arrow"
    with pa.ipc.open_stream(file.read_bytes()) as stream:
        table = stream.read_all()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with (
        pa.OSFile(str(file), "wb") as out,
        pa.ipc.new_stream(out, table.schema, options=options) as to,
    ):
        to.write_table(table)
    with pytest.raises(CorpusError, match="its data are compressed"):
        clips(source)


def test_without_pyarrow_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.arrow").write_bytes(b"x")
    with pytest.raises(CorpusError, match=r"pyarrow.* is not installed. Run `pip install"):
        clips(tmp_path / "a.arrow")


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "AIFF", "MP3"])
def test_a_part_of_a_file_is_read_like_a_file(kind, tmp_path):
    content = encoded(5, kind)
    alone, inside = tmp_path / "a.x", tmp_path / "b.arrow"
    alone.write_bytes(content)
    inside.write_bytes(b"head" * 33 + content + b"tail" * 99)
    path = member_path(str(inside), 132, len(content))
    assert probe(path) == probe(alone)
    one = read(path, start=100, count=3_000, sample_rate=RATE)
    two = read(alone, start=100, count=3_000, sample_rate=RATE)
    np.testing.assert_array_equal(one, two)
    assert stat_recording(path) == (len(content), inside.stat().st_mtime_ns)


def test_a_part_after_the_end_of_its_file_is_truncated(tmp_path):
    inside = wav(tmp_path / "a.wav", sound(1)).rename(tmp_path / "b.arrow")
    path = member_path(str(inside), 0, inside.stat().st_size + 1)
    with pytest.raises(AudioError, match="truncated: it has"):
        probe(path)
    with pytest.raises(OSError, match="truncated"):
        stat_recording(path)
