"""Manifests of other tools give the same segments as the same audio in plain files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import antigram
from antigram.pipeline.corpora.manifests import pieces
from antigram.pipeline.corpus import Clip, CorpusError, Note, Rejected, Skipped
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.prepared import Prepared
from antigram.pipeline.features.source_record import path_of
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from tests.support import manifests
from tests.support.corpus_trees import sound, wav
from tests.support.manifests import (
    SPEAKERS,
    clips,
    entries,
    lhotse_cut,
    lhotse_recording,
    lhotse_supervision,
    utterances,
    write_csv,
    write_lines,
)


def tree(home: Path) -> Path:
    """Manifests of lhotse called after splits, with a recording that no supervision names."""
    for split, speaker in (("train", "ann"), ("dev", "bob"), ("test", "cid")):
        recordings = [lhotse_recording(speaker), {**lhotse_recording(speaker), "id": "other"}]
        write_lines(home / f"my_recordings_{split}.jsonl.gz", recordings)
        own = [
            {**lhotse_supervision(u), "custom": {"label": u.word}}
            for u in utterances()
            if u.speaker == speaker
        ]
        write_lines(home / f"my_supervisions_{split}.jsonl.gz", own)
    manifests.recordings(home / "audio")
    return home


def prepared(folder: Path, corpus: str, source: Path, **given) -> Prepared:
    options: dict[str, Any] = {
        "seconds": 0.25,
        "split": "by:speaker",
        "main_label": "word",
        "workers": 1,
        **given,
    }
    return antigram.prepare_corpus(Workspace(folder), corpus, source=source, **options)


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> FeatureStore:
    """The store of the utterances as plain files."""
    folder = tmp_path_factory.mktemp("plain")
    return prepared(folder / "w", "folder", manifests.plain(folder / "files")).store


def assert_same(store: FeatureStore, plain: FeatureStore, speaker: str = "speaker") -> None:
    assert [name.replace("#", ".wav#") for name in store.clip_ids] == plain.clip_ids
    assert store.features.read().tobytes() == plain.features.read().tobytes()
    assert store.split.tolist() == plain.split.tolist()
    for name, other in ((speaker, "speaker"), ("word", "word")):
        assert store.classes[name] == plain.classes[other]
        assert store.labels(name).tolist() == plain.labels(other).tolist()


def cuts(folder: Path) -> Path:
    manifests.recordings(folder / "audio")
    return write_lines(folder / "cuts.jsonl", map(lhotse_cut, utterances()))


FORMATS: dict[str, Callable[[Path], Path]] = {
    "lhotse": manifests.lhotse,
    "lhotse, not compressed": lambda folder: manifests.lhotse(folder, suffix=".jsonl"),
    "cuts": cuts,
    "kaldi": manifests.kaldi,
    "speechbrain json": manifests.speechbrain_json,
    "speechbrain json on one line": lambda f: manifests.speechbrain_json(f, indent=None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_manifest_gives_the_segments_of_plain_files(name, plain, tmp_path):
    source = FORMATS[name](tmp_path / "data")
    assert_same(prepared(tmp_path / "w", "manifest", source).store, plain)


def test_a_table_of_speechbrain_gives_the_segments_of_plain_files(plain, tmp_path):
    source = manifests.speechbrain_csv(tmp_path / "data")
    store = prepared(tmp_path / "w", "manifest", source, split="by:spk_id").store
    assert_same(store, plain, "spk_id")


def test_audiofolder_gives_the_store_of_the_corpus_folder(plain, tmp_path):
    source = manifests.audiofolder(tmp_path / "data")
    store = prepared(tmp_path / "w", "manifest", source).store
    assert store.clip_ids == plain.clip_ids
    assert store.features.read().tobytes() == plain.features.read().tobytes()


def test_folders_of_classes_are_read_as_the_corpus_folder_reads_them(tmp_path):
    for n, name in enumerate(("a/1", "a/2", "b/1", "b/2")):
        wav(tmp_path / f"{name}.wav", sound(n))
    assert {i: dict(c.labels) for i, c in clips(tmp_path).items()} == {
        "a/1.wav": {"label": "a"}, "a/2.wav": {"label": "a"},
        "b/1.wav": {"label": "b"}, "b/2.wav": {"label": "b"},
    }  # fmt: skip


def test_frames_at_another_rate_are_that_part_of_the_file(tmp_path):
    """SpeechBrain counts samples of the file, whatever the rate of the store is."""
    wav(tmp_path / "a.wav", sound(1, 16_000), rate=8_000)
    rows = [("ID", "wav", "start", "stop", "word"), ("x", "a.wav", "4000", "6000", "one")]
    source = write_csv(tmp_path / "train.csv", rows)
    store = prepared(tmp_path / "w", "manifest", source, split="random").store
    assert store.sources == ["a.wav#0.5"]


def test_all_fields_of_text_and_integers_can_be_labels(tmp_path):
    own = [
        {**lhotse_supervision(u), "gender": "f", "language": None, "custom": {"age": 20 + n // 4,
         "snr": 1.5, "ok": n > 5, "list": [1], "text": "other"}}
        for n, u in enumerate(utterances())
    ]  # fmt: skip
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / "my_supervisions.jsonl.gz", own)
    found = clips(source, labels="age,ok,custom.text,gender", main_label="ok")["dora_three"]
    assert dict(found.labels) == {"ok": "true", "age": "22", "custom.text": "other", "gender": "f"}
    with pytest.raises(CorpusError, match="`labels` 'snr': no such column; there is text, speaker"):
        clips(source, labels="snr")


def test_a_transcript_is_left_out_with_its_reason_unless_it_is_picked(tmp_path):
    own = [{**lhotse_supervision(u), "text": f"{u.id} says more"} for u in utterances()]
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / "my_supervisions.jsonl.gz", own)
    notes = "\n".join(e.text for e in entries(source) if isinstance(e, Note))
    assert "Not taken: text: another value for each file (12 of 12 differ)" in notes
    assert clips(source, labels="text")["ann_one"].labels == {"text": "ann_one says more"}


def test_a_transcript_of_a_large_manifest_is_dropped_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "_MANY", 6)
    own = [{**lhotse_supervision(u), "text": f"{u.id} says more"} for u in utterances()]
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / "my_supervisions.jsonl.gz", own)
    notes = "\n".join(e.text for e in entries(source) if isinstance(e, Note))
    assert "Not taken: text: another value for each file (6 of 6 differ)" in notes
    assert clips(source, labels="text")["dora_one"].labels == {"text": "dora_one says more"}


def test_a_random_split_keeps_speakers_apart_unless_they_are_the_main_label(tmp_path):
    source = manifests.lhotse(tmp_path)
    assert {c.group for c in clips(source, main_label="word").values()} == set(SPEAKERS)
    groups = {c.group for c in clips(source, main_label="speaker").values()}
    assert groups == {f"audio/rec_{speaker}.wav" for speaker in SPEAKERS}


def test_speakers_who_share_a_recording_are_one_group(tmp_path):
    source = manifests.lhotse(tmp_path)
    own = [lhotse_supervision(u) for u in utterances()]
    own[0]["speaker"] = "dora"  # speaks in ann's recording, too
    write_lines(tmp_path / "my_supervisions.jsonl.gz", own)
    found = clips(source, main_label="word")
    assert found["ann_two"].group == found["dora_two"].group == found["ann_one"].group == "ann"
    assert found["bob_two"].group == "bob"


def test_two_speakers_are_not_kept_apart(tmp_path):
    own = [lhotse_supervision(u) for u in utterances() if u.speaker in ("ann", "bob")]
    source = manifests.lhotse(tmp_path)
    write_lines(tmp_path / "my_supervisions.jsonl.gz", own)
    found = entries(source, main_label="word")
    assert any("speaker has 2 speakers, too few" in e.text for e in found if isinstance(e, Note))
    assert {e.group for e in found if isinstance(e, Clip)} == {
        "audio/rec_ann.wav", "audio/rec_bob.wav",
    }  # fmt: skip


def test_manifests_called_after_splits_are_the_official_split(tmp_path):
    found = clips(tree(tmp_path))
    splits = {(c.labels["speaker"], c.split) for c in found.values()}
    assert splits == {("ann", "train"), ("bob", "validation"), ("cid", "test")}


def test_data_folders_of_kaldi_called_after_splits_are_the_official_split(tmp_path):
    for name in ("train", "dev", "test"):
        folder = manifests.kaldi(tmp_path / name)
        for path in folder.iterdir():
            if path.is_file() and path.name != "spk2gender":  # ids are unique over all folders
                lines = (f"{name}-{line}\n" for line in path.read_text().splitlines())
                path.write_text("".join(lines).replace(" rec_", f" {name}-rec_"))
    found = clips(tmp_path, main_label="word")
    assert found["dev-ann_one"].split == "validation"
    assert found["dev-ann_one"].path == "dev/audio/rec_ann.wav"
    (tmp_path / "dev").rename(tmp_path / "more")
    with pytest.raises(CorpusError, match=r"several data folders \(more, test, train\)"):
        clips(tmp_path)


def test_without_segments_a_recording_of_kaldi_is_a_piece(tmp_path):
    folder = manifests.kaldi(tmp_path)
    (folder / "segments").unlink()
    (folder / "utt2spk").write_text("".join(f"rec_{s} {s}\n" for s in SPEAKERS))
    found = clips(folder, labels="speaker,gender")
    assert list(found) == [f"rec_{s}" for s in SPEAKERS]
    assert found["rec_bob"].labels == {"speaker": "bob", "gender": "m"}
    assert (found["rec_bob"].start_s, found["rec_bob"].end_s) == (0.0, None)


def test_an_end_of_minus_one_is_the_end_of_the_recording(tmp_path):
    folder = manifests.kaldi(tmp_path)
    (folder / "segments").write_text("ann_one rec_ann 0.5 -1\nbob_one rec_bob 0 1\n")
    assert clips(folder, labels="word")["ann_one"].end_s is None


def test_a_cut_with_several_supervisions_gives_a_piece_for_each(tmp_path):
    manifests.recordings(tmp_path / "audio")
    cut = lhotse_cut(next(utterances()))
    first, second = dict(cut["supervisions"][0]), dict(cut["supervisions"][0], id="late")
    second |= {"start": 0.25, "duration": 9.0}  # goes on after the cut
    cut |= {"supervisions": [first, second], "start": 0.5, "duration": 0.75, "id": "c"}
    source = write_lines(tmp_path / "cuts.jsonl", [cut])
    found = clips(source)
    assert {i: (c.start_s, c.end_s) for i, c in found.items()} == {
        "c/ann_one": (0.625, 0.875), "c/late": (0.75, 1.25),
    }  # fmt: skip


def test_recordings_without_supervision_are_counted(tmp_path):
    found = entries(tree(tmp_path))
    assert [e.count for e in found if isinstance(e, Skipped)] == [3]


def test_absolute_paths_are_below_the_folder_that_is_named(plain, tmp_path):
    source = manifests.lhotse(tmp_path / "manifest")
    audio = manifests.recordings(tmp_path / "elsewhere" / "audio")
    records = [lhotse_recording(speaker) for speaker in SPEAKERS]
    for record, speaker in zip(records, SPEAKERS, strict=True):
        record["sources"] = [{**record["sources"][0], "source": str(audio / f"rec_{speaker}.wav")}]
    write_lines(source / "my_recordings.jsonl.gz", records)
    with pytest.raises(
        InputError, match=r"my_recordings.jsonl.gz:1: the recording .* `audio_root`"
    ):
        prepared(tmp_path / "w", "manifest", source)
    store = prepared(tmp_path / "w", "manifest", source, audio_root=tmp_path / "elsewhere").store
    assert_same(store, plain)
    assert store.sources[0].startswith("audio/rec_ann.wav#")


def test_the_fingerprint_does_not_depend_on_where_manifest_and_audio_are(tmp_path):
    one = prepared(tmp_path / "w1", "manifest", manifests.lhotse(tmp_path / "one")).store
    manifests.recordings(tmp_path / "b" / "audio")
    two = prepared(
        tmp_path / "w2", "manifest", manifests.lhotse(tmp_path / "two"), audio_root=tmp_path / "b"
    ).store
    assert one.fingerprint == two.fingerprint


def test_an_edited_recording_and_an_edited_line_are_noticed(tmp_path):
    source = manifests.lhotse(tmp_path / "data")
    first = prepared(tmp_path / "w", "manifest", source)
    assert prepared(tmp_path / "w", "manifest", source, check_sources=True).left_alone
    assert path_of(first.store.path).is_file()
    wav(source / "audio" / "rec_ann.wav", sound(77, 32_000))
    edited = prepared(tmp_path / "w", "manifest", source)
    assert not edited.left_alone
    assert edited.store.fingerprint != first.store.fingerprint
    own = [lhotse_supervision(u) for u in utterances()]
    own[3]["start"] += 0.125
    write_lines(source / "my_supervisions.jsonl.gz", own)
    assert prepared(tmp_path / "w", "manifest", source).store.fingerprint not in (
        first.store.fingerprint, edited.store.fingerprint,
    )  # fmt: skip


def test_a_teacher_takes_the_training_pieces_of_a_manifest(tmp_path):
    source = manifests.lhotse(tmp_path / "data")
    words = prepared(tmp_path / "w", "manifest", source, name="words").store
    teacher = prepared(
        tmp_path / "w", "manifest", source, within="words", main_label="speaker", split="random"
    ).store
    train = {words.recordings[row] for row in words.rows("train")}
    assert set(teacher.recordings) == train


def test_unusable_pieces_are_named_with_their_line_and_may_be_left_out(tmp_path):
    source = manifests.lhotse(tmp_path / "data")
    (source / "audio" / "rec_bob.wav").unlink()
    own = [lhotse_supervision(u) for u in utterances()]
    own[0]["start"] = 7.0  # after the end of the recording
    own[1]["duration"] = -1
    own[2]["recording_id"] = "none"
    write_lines(source / "my_supervisions.jsonl.gz", own)
    with pytest.raises(InputError, match="leave them out with `max_rejected=6`"):
        prepared(tmp_path / "w", "manifest", source, max_rejected=5)
    store = prepared(tmp_path / "w", "manifest", source, max_rejected=6).store
    reasons = sorted(r["reason"] for r in store.root["rejected"])
    assert reasons == [
        "my_supervisions.jsonl.gz:1: the part from 7 to 7.25 s ends after its recording, which has "
        "2 s",
        "my_supervisions.jsonl.gz:2: a part from 0.5 s that lasts -1 s is outside its recording",
        "my_supervisions.jsonl.gz:3: no recording has the id 'none'",
        *(f"my_supervisions.jsonl.gz:{n}: no such file" for n in (4, 5, 6)),
    ]
    assert len(set(store.recordings)) == 6


def test_if_no_recording_exists_the_folder_to_name_is_asked_for(tmp_path):
    source = manifests.lhotse(tmp_path)
    with pytest.raises(CorpusError, match=r"no recording of .* exists: .* name with `audio_root`"):
        clips(source, tmp_path / "audio")


def test_the_note_names_the_format(tmp_path):
    assert f"{tmp_path}: Kaldi" in [e.text for e in entries(manifests.kaldi(tmp_path))
                                    if isinstance(e, Note)]  # fmt: skip


def test_another_corpus_has_no_folder_of_recordings(tmp_path):
    with pytest.raises(CorpusError, match="`audio_root`: the recordings of gsc are in its own"):
        antigram.prepare_corpus(Workspace(tmp_path), "gsc", audio_root=tmp_path)


def test_a_missing_recording_of_metadata_is_rejected(tmp_path):
    source = manifests.audiofolder(tmp_path)
    (tmp_path / "bob_one.wav").unlink()
    found = [e for e in entries(source) if isinstance(e, Rejected)]
    assert found == [Rejected("bob_one.wav", "metadata.jsonl:4: no such file")]


def test_a_column_split_is_the_official_split(tmp_path):
    source = manifests.plain(tmp_path)
    rows = [("file_name", "word", "split"), ("ann_one.wav", "one", "train"),
            ("bob_one.wav", "one", " Test "), ("cid_one.wav", "two", "")]  # fmt: skip
    write_csv(source / "metadata.csv", rows)
    splits = {i: c.split for i, c in clips(source).items()}
    assert splits == {"ann_one.wav": "train", "bob_one.wav": "test", "cid_one.wav": None}


def test_folders_of_audiofolder_called_after_splits_have_files_of_their_own(tmp_path):
    for name in ("train", "test"):
        manifests.audiofolder(tmp_path / name)
    found = clips(tmp_path)
    assert found["test/ann_one.wav"].split == "test"
    assert len(found) == 24


def test_files_of_speechbrain_called_after_splits_are_the_official_split(tmp_path):
    examples = json.loads(manifests.speechbrain_json(tmp_path).read_text())
    (tmp_path / "all.json").unlink()
    for name, speaker in (("train", "ann"), ("valid", "bob"), ("test", "cid")):
        own = {key: value for key, value in examples.items() if value["speaker"] == speaker}
        (tmp_path / f"{name}.json").write_text(json.dumps(own))
    found = {(c.labels["speaker"], c.split) for c in clips(tmp_path, main_label="word").values()}
    assert found == {("ann", "train"), ("bob", "validation"), ("cid", "test")}


def test_times_with_rounding_errors_give_the_sample_that_was_meant(tmp_path):
    manifests.recordings(tmp_path / "audio")
    cut = lhotse_cut(next(utterances())) | {"start": 0.1, "duration": 1.0}
    cut["supervisions"] = [{**cut["supervisions"][0], "start": 0.2, "duration": 0.3}]
    found = clips(write_lines(tmp_path / "cuts.jsonl", [cut]))["ann_one"]
    assert (found.start_s, found.end_s) == (0.3, 0.6)
    assert np.isclose(found.end_s - found.start_s, 0.3)
