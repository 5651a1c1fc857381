"""The same twelve utterances of four speakers, as plain files and as manifests of other tools.

Three utterances follow each other in each recording, with gaps between them.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from antigram.pipeline.corpora.manifest import MANIFEST
from antigram.pipeline.corpus import Clip, Entry
from tests.support.corpus_trees import RATE, sound, wav

SPEAKERS = ("ann", "bob", "cid", "dora")
WORDS = ("one", "two", "three")
_GAP = 0.125  # seconds before each utterance; a binary fraction, so that all times are exact


def entries(source: Path, root: Path | None = None, **options: str) -> list[Entry]:
    """Return what a manifest lists."""
    assert MANIFEST.open_source is not None
    corpus, home = MANIFEST.open_source([source], root)
    assert corpus.list_clips is not None
    return list(corpus.list_clips(home, options))


def clips(source: Path, root: Path | None = None, **options: str) -> dict[str, Clip]:
    """Return id -> clip of a manifest."""
    return {c.id: c for c in entries(source, root, **options) if isinstance(c, Clip)}


class Utterance(NamedTuple):
    """A part of a recording; times in seconds."""

    id: str
    recording: str
    start: float
    end: float
    speaker: str
    word: str


def utterances() -> Iterator[Utterance]:
    """Yield the utterances; they differ in length."""
    for speaker in SPEAKERS:
        start = _GAP
        for index, word in enumerate(WORDS):
            end = start + 0.25 + 0.125 * index
            yield Utterance(f"{speaker}_{word}", f"rec_{speaker}", start, end, speaker, word)
            start = end + _GAP


def samples(recording: str) -> np.ndarray:
    """Return a recording."""
    return sound(sum(map(ord, recording)), 2 * RATE)


def recordings(folder: Path) -> Path:
    """Write the recordings, and return their folder."""
    for speaker in SPEAKERS:
        wav(folder / f"rec_{speaker}.wav", samples(f"rec_{speaker}"))
    return folder


def plain(folder: Path) -> Path:
    """Write each utterance to a file of its own, with a metadata.csv for the corpus folder."""
    rows = [("file_name", "word", "speaker")]
    for u in utterances():
        part = samples(u.recording)[round(u.start * RATE) : round(u.end * RATE)]
        wav(folder / f"{u.id}.wav", part)
        rows.append((f"{u.id}.wav", u.word, u.speaker))
    write_csv(folder / "metadata.csv", rows)
    return folder


def write_csv(path: Path, rows: Iterable[Iterable[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def write_lines(path: Path, records: Iterable[Mapping[str, object]]) -> Path:
    """Write JSON lines, with gzip if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def lhotse(folder: Path, *, suffix: str = ".jsonl.gz") -> Path:
    """Write recordings and supervisions of lhotse, and their audio."""
    recordings(folder / "audio")
    write_lines(folder / f"my_recordings{suffix}", map(lhotse_recording, SPEAKERS))
    write_lines(folder / f"my_supervisions{suffix}", map(lhotse_supervision, utterances()))
    return folder


def lhotse_recording(speaker: str) -> dict[str, object]:
    source = {"type": "file", "channels": [0], "source": f"audio/rec_{speaker}.wav"}
    length = {"sampling_rate": RATE, "num_samples": 2 * RATE, "duration": 2.0}
    return {"id": f"rec_{speaker}", "sources": [source], **length, "channel_ids": [0]}


def lhotse_supervision(u: Utterance) -> dict[str, object]:
    times = {"start": u.start, "duration": u.end - u.start}
    known = {"text": u.word, "speaker": u.speaker, "custom": {"word": u.word, "snr": 3.5}}
    return {"id": u.id, "recording_id": u.recording, **times, "channel": 0, **known}


def lhotse_cut(u: Utterance) -> dict[str, object]:
    """Return a cut from before the utterance to its end; the utterance's start counts from it."""
    supervision = {**lhotse_supervision(u), "start": _GAP}
    times = {"start": u.start - _GAP, "duration": u.end - u.start + _GAP, "channel": 0}
    recording = lhotse_recording(u.speaker)
    return {"id": u.id, **times, "supervisions": [supervision], "recording": recording}


def kaldi(folder: Path) -> Path:
    """Write a data folder of Kaldi, and its audio."""
    recordings(folder / "audio")
    tables = {
        "wav.scp": [f"rec_{speaker} audio/rec_{speaker}.wav" for speaker in SPEAKERS],
        "segments": [f"{u.id} {u.recording} {u.start} {u.end}" for u in utterances()],
        "utt2spk": [f"{u.id} {u.speaker}" for u in utterances()],
        "utt2word": [f"{u.id} {u.word}" for u in utterances()],
        "text": [f"{u.id} {u.word}" for u in utterances()],
        "spk2gender": [f"{speaker} {'fm'[n % 2]}" for n, speaker in enumerate(SPEAKERS)],
        "utt2dur": [f"{u.id} {u.end - u.start}" for u in utterances()],
    }
    for name, lines in tables.items():
        (folder / name).write_text("\n".join(sorted(lines)) + "\n")
    return folder


def speechbrain_csv(folder: Path) -> Path:
    """Write a CSV file of SpeechBrain, which counts samples, and its audio."""
    recordings(folder / "audio")
    rows = [("ID", "duration", "wav", "start", "stop", "spk_id", "word")]
    for u in utterances():
        file, spoken = f"$data_root/audio/{u.recording}.wav", (u.speaker, u.word)
        start, stop = (round(seconds * RATE) for seconds in (u.start, u.end))
        rows.append((u.id, f"{u.end - u.start:g}", file, str(start), str(stop), *spoken))
    return write_csv(folder / "all.csv", rows)


def speechbrain_json(folder: Path, *, indent: int | None = 2) -> Path:
    """Write a JSON file of SpeechBrain, with the part beside the file."""
    recordings(folder / "audio")
    examples = {
        u.id: {
            "wav": {
                "file": f"{{data_root}}/audio/{u.recording}.wav",
                "start": round(u.start * RATE),
                "stop": round(u.end * RATE),
            },
            "length": u.end - u.start,
            "speaker": u.speaker,
            "word": u.word,
        }
        for u in utterances()
    }
    (folder / "all.json").write_text(json.dumps(examples, indent=indent))
    return folder / "all.json"


def audiofolder(folder: Path) -> Path:
    """Write the utterances as files with a metadata.jsonl."""
    plain(folder)
    (folder / "metadata.csv").unlink()
    records = ({"file_name": f"{u.id}.wav", "word": u.word, "speaker": u.speaker}
               for u in utterances())  # fmt: skip
    return write_lines(folder / "metadata.jsonl", records).parent
