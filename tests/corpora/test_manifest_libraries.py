"""Manifests that the other libraries wrote themselves give the segments of plain files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

import antigram
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from tests.support import manifests
from tests.support.corpus_trees import RATE
from tests.support.manifests import SPEAKERS, utterances

# Their imports warn of much that is not ours.
pytestmark = pytest.mark.filterwarnings("ignore")


def library(name: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} writes the manifests of this test")


def store_of(folder: Path, corpus: str, source: Path, **given) -> FeatureStore:
    options: dict[str, Any] = {
        "seconds": 0.25,
        "split": "by:speaker",
        "main_label": "word",
        "workers": 1,
        **given,
    }
    return antigram.prepare_corpus(Workspace(folder), corpus, source=source, **options).store


@pytest.fixture
def plain(tmp_path) -> FeatureStore:
    return store_of(tmp_path / "plain", "folder", manifests.plain(tmp_path / "files"))


def assert_same(store: FeatureStore, plain: FeatureStore) -> None:
    assert store.features.read().tobytes() == plain.features.read().tobytes()
    assert store.split.tolist() == plain.split.tolist()
    for name in ("word", "speaker"):
        assert store.classes[name] == plain.classes[name]
        assert store.labels(name).tolist() == plain.labels(name).tolist()


def manifests_of_lhotse(lhotse, audio: Path):
    recordings = lhotse.RecordingSet.from_recordings(
        lhotse.Recording.from_file(audio / f"rec_{speaker}.wav") for speaker in SPEAKERS
    )
    supervisions = lhotse.SupervisionSet.from_segments(
        lhotse.SupervisionSegment(
            id=u.id, recording_id=u.recording, start=u.start, duration=u.end - u.start,
            text=u.word, speaker=u.speaker, custom={"word": u.word},
        )
        for u in utterances()
    )  # fmt: skip
    return recordings, supervisions


@pytest.mark.parametrize("kind", ["supervisions", "cuts", "trimmed"])
def test_what_lhotse_wrote(kind, plain, tmp_path):
    lhotse = library("lhotse")
    audio = manifests.recordings(tmp_path / "audio")
    recordings, supervisions = manifests_of_lhotse(lhotse, audio)
    cuts = lhotse.CutSet.from_manifests(recordings=recordings, supervisions=supervisions)
    (tmp_path / "m").mkdir()
    if kind == "supervisions":
        recordings.to_file(tmp_path / "m" / "recordings.jsonl.gz")
        supervisions.to_file(tmp_path / "m" / "supervisions.jsonl.gz")
    else:
        cuts = cuts.trim_to_supervisions() if kind == "trimmed" else cuts
        cuts.to_file(tmp_path / "m" / "cuts.jsonl.gz")
    # The cuts of a recording give ids RECORDING-0/SUPERVISION, whose order is the same.
    assert_same(store_of(tmp_path, "manifest", tmp_path / "m", audio_root=audio), plain)


def test_what_lhotse_wrote_for_kaldi(plain, tmp_path):
    lhotse = library("lhotse")
    audio = manifests.recordings(tmp_path / "audio")
    recordings, supervisions = manifests_of_lhotse(lhotse, audio)
    lhotse.kaldi.export_to_kaldi(recordings, supervisions, tmp_path / "m")
    assert "segments" in {path.name for path in (tmp_path / "m").iterdir()}
    store = store_of(tmp_path, "manifest", tmp_path / "m", audio_root=audio, main_label="text")
    assert store.features.read().tobytes() == plain.features.read().tobytes()
    assert store.labels("text").tolist() == plain.labels("word").tolist()
    assert store.labels("speaker").tolist() == plain.labels("speaker").tolist()


@pytest.mark.parametrize("kind", ["bytes", "paths"])
def test_what_datasets_saved(kind, plain, tmp_path):
    datasets = library("datasets")
    library("pyarrow")
    spoken = list(utterances())
    known = {"word": [u.word for u in spoken], "speaker": [u.speaker for u in spoken]}
    names = [str(tmp_path / "files" / f"{u.id}.wav") for u in spoken]
    audio = datasets.Audio(sampling_rate=RATE, decode=False)
    features = datasets.Features(
        {
            "audio": audio if kind == "bytes" else datasets.Value("string"),
            "word": datasets.ClassLabel(names=["three", "two", "one"]),
            "speaker": datasets.Value("string"),
        }
    )
    made = datasets.Dataset.from_dict({"audio": names, **known}, features=features)
    datasets.disable_progress_bars()
    made.sort("audio").save_to_disk(tmp_path / "m")
    for path in tmp_path.glob("files/*.wav"):
        if kind == "bytes":
            path.unlink()
    root = tmp_path / "files" if kind == "paths" else None
    assert_same(store_of(tmp_path, "manifest", tmp_path / "m", audio_root=root), plain)
