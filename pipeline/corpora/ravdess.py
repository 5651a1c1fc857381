"""RAVDESS, speech: 1,440 recordings of 2 sentences by 24 actors with 8 emotions, 48 kHz WAV.

Source: Livingstone and Russo (2018), zenodo.org/records/1188976; CC BY-NC-SA 4.0.
Layout: ``Actor_<01-24>/03-01-<emotion>-<intensity>-<statement>-<repetition>-<actor>.wav``, 60 in
each folder. Recordings of song (``03-02-...``) are skipped.
Labels: ``emotion`` (8), ``speaker`` (24), ``statement`` (2: kids, dogs), ``intensity`` (normal,
strong; neutral is never strong), ``gender`` (odd actors are men).
Split: none by the publisher; ``by:speaker`` keeps actors apart. Five recordings are stereo, and
metadata surround the samples, so no fixed header may be assumed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.named_files import named_files
from antigram.pipeline.corpus import Archive, Clip, Corpus, Entry, Skipped

__all__ = ["RAVDESS"]

_EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised")
_NAME = re.compile(
    r"03-0(?P<channel>[12])-0(?P<emotion>[1-8])-0(?P<intensity>[12])-0(?P<statement>[12])-"
    r"0[12]-(?P<actor>0[1-9]|1\d|2[0-4])\.wav"
)


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    wanted = "03-01-<emotion>-<intensity>-<statement>-<repetition>-<actor>.wav"
    for entry in named_files("ravdess", home, "Actor_*/*.wav", _NAME, wanted):
        if isinstance(entry, Skipped):
            yield entry
            continue
        path, name = entry
        if name["channel"] == "2":
            yield Skipped("song")
            continue
        yield Clip(
            id=name[0].removesuffix(".wav"),
            path=path,
            labels={
                "emotion": _EMOTIONS[int(name["emotion"]) - 1],
                "speaker": name["actor"],
                "statement": ("kids", "dogs")[int(name["statement"]) - 1],
                "intensity": ("normal", "strong")[int(name["intensity"]) - 1],
                "gender": "male" if int(name["actor"]) % 2 else "female",
            },
        )


RAVDESS = Corpus(
    name="ravdess",
    labels=("emotion", "speaker", "statement", "intensity", "gender"),
    seconds=4.0,
    longer="segment",
    licence="CC-BY-NC-SA-4.0",
    citation="Livingstone, S. R., Russo, F. A. (2018). The Ryerson Audio-Visual Database of "
    "Emotional Speech and Song (RAVDESS). PLoS ONE 13(5), e0196391. "
    "doi:10.1371/journal.pone.0196391.",
    how_to_get="RAVDESS, Audio_Speech_Actors_01-24.zip: zenodo.org/records/1188976.",
    homepage="https://zenodo.org/records/1188976",
    archives=(
        # Zenodo publishes size and MD5; many public scripts have the same two.
        Archive(
            url="https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip?download=1",
            name="Audio_Speech_Actors_01-24.zip",
            size=208_468_073,
            known_hash="md5:bc696df654c87fed845eb13823edef8a",
        ),
    ),
    is_home=lambda folder: any(folder.glob("Actor_*/03-0*.wav")),
    list_clips=_clips,
)
