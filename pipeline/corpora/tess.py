"""TESS: 200 words in a carrier phrase, by 2 women with 7 emotions: 2,800 recordings of 2 s.

Source: Pichora-Fuller and Dupuis (2020), doi:10.5683/SP2/E8H2MF; CC BY-NC-ND 4.0.
Layout: ``<OAF|YAF>_<word>_<emotion>.wav``, all in one folder or in folders such as ``OAF_angry``.
Labels: ``emotion`` (7; ``ps`` is pleasant surprise), ``word`` (200), ``speaker`` (2: OAF, aged 64,
and YAF, aged 26).
Split: none by the publisher; two speakers are too few for ``by:speaker``. Two files called
``.wav`` are AIFF, and one speaker is written OA once; antigram reads both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from antigram.pipeline.corpora.named_files import named_files
from antigram.pipeline.corpus import Clip, Corpus, Entry, Skipped

__all__ = ["TESS"]

_EMOTIONS = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
_NAME = re.compile(
    rf"(?P<speaker>OAF?|YAF)_(?P<word>[a-z-]+)_(?P<emotion>{'|'.join(_EMOTIONS)})\.wav"
)
_WANTED = "<OAF or YAF>_<word>_<emotion>.wav"


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    # Folders further down are not read: one public copy holds all files twice.
    found = (named_files("tess", home, pattern, _NAME, _WANTED) for pattern in ("*.wav", "*/*.wav"))
    for entry in chain.from_iterable(found):
        if isinstance(entry, Skipped):
            yield entry
            continue
        path, name = entry
        emotion = "pleasant surprise" if name["emotion"] == "ps" else name["emotion"]
        speaker = "YAF" if name["speaker"] == "YAF" else "OAF"
        labels = {"emotion": emotion, "word": name["word"], "speaker": speaker}
        yield Clip(id=f"{speaker}_{name['word']}_{name['emotion']}", path=path, labels=labels)


def _is_home(folder: Path) -> bool:
    files = chain(folder.glob("[OY]A*_*_*.wav"), folder.glob("[OY]A*_*/[OY]A*_*_*.wav"))
    return any(_NAME.fullmatch(path.name) for path in files)


TESS = Corpus(
    name="tess",
    labels=("emotion", "word", "speaker"),
    seconds=2.0,
    longer="cut",
    licence="CC-BY-NC-ND-4.0",
    citation="Pichora-Fuller, M. K., Dupuis, K. (2020). Toronto emotional speech set (TESS). "
    "Borealis. doi:10.5683/SP2/E8H2MF.",
    how_to_get="TESS: doi.org/10.5683/SP2/E8H2MF.",
    homepage="https://doi.org/10.5683/SP2/E8H2MF",
    is_home=_is_home,
    list_clips=_clips,
)
