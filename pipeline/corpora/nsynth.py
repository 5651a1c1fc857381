"""NSynth: 305,979 four-second notes of 1,006 instruments, 16 kHz WAV.

Source: Engel et al. (2017), arXiv:1704.01279; CC BY 4.0.
Layout: ``nsynth-<train|valid|test>/examples.json`` and ``.../audio/<note>.wav``.
Labels: ``family`` (11), ``instrument`` (as in ``instrument_str``), ``pitch`` (MIDI),
``velocity``, ``source`` (acoustic, electronic, synthetic).
Split: the publisher's. No instrument of train is in valid or test, so instrument identity cannot be
tested on it; ``synth_lead`` is in train only. Some notes are nearly silent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Split
from antigram.pipeline.storage.regular import is_named

__all__ = ["NSYNTH"]

_MOST_JSON = 1 << 30  # bytes; the file of the training set has about 200 MB
_FOLDERS: dict[str, Split] = {
    "nsynth-train": "train",
    "nsynth-valid": "validation",
    "nsynth-test": "test",
}


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Clip]:
    for folder, split in _FOLDERS.items():
        table = home / folder / "examples.json"
        if not is_named(table):
            continue
        try:
            notes = json.loads(read_text(table, most=_MOST_JSON))
            for name, note in sorted(notes.items()):
                yield Clip(
                    id=name,
                    path=f"{folder}/audio/{name}.wav",
                    labels={
                        "family": note["instrument_family_str"],
                        "instrument": note["instrument_str"],
                        "pitch": str(note["pitch"]),
                        "velocity": str(note["velocity"]),
                        "source": note["instrument_source_str"],
                    },
                    split=split,
                )
        except CorpusError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorpusError(f"nsynth: {table}: not NSynth's examples.json: {error!r}") from None


NSYNTH = Corpus(
    name="nsynth",
    labels=("family", "instrument", "pitch", "velocity", "source"),
    seconds=6.0,
    longer="cut",
    official=True,
    licence="CC-BY-4.0",
    citation="Engel, J., Resnick, C., Roberts, A., Dieleman, S., Norouzi, M., Eck, D., Simonyan, "
    "K. (2017). Neural Audio Synthesis of Musical Notes with WaveNet Autoencoders. ICML, "
    "1068-1077. arXiv:1704.01279.",
    how_to_get="NSynth, json/wav version: magenta.tensorflow.org/datasets/nsynth.",
    homepage="https://magenta.tensorflow.org/datasets/nsynth",
    # tensorflow_datasets has hashes of the TFRecords only. The address is the bucket behind
    # download.magenta.tensorflow.org, with TLS.
    archives=tuple(
        Archive(
            url="https://storage.googleapis.com/magentadata/datasets/nsynth/"
            f"{folder}.jsonwav.tar.gz",
            name=f"{folder}.jsonwav.tar.gz",
        )
        for folder in _FOLDERS
    ),
    presets={"paper": {"limit": 59_400, "split": "official"}},
    is_home=lambda folder: any(is_named(folder / name / "examples.json") for name in _FOLDERS),
    list_clips=_clips,
)
