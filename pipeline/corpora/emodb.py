"""EmoDB: 535 German sentences, acted by 10 speakers with 7 emotions, 16 kHz mono WAV.

Source: Burkhardt et al. (2005), emodb.bilderbar.info. The publisher states no licence.
Layout: ``wav/<speaker><text><emotion><version>.wav``, as in ``03a01Fa.wav``, and folders of
alignments, which are not read.
Labels: ``emotion`` (7; letters are of the German names), ``speaker`` (10), ``sentence`` (10),
``gender``.
Split: none by the publisher. All speakers speak the same sentences, so ``by:speaker`` shares
sentences, and ``by:sentence`` speakers. Recordings take 1.2 to 9 s; some public copies are
resampled.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.named_files import named_files
from antigram.pipeline.corpus import Clip, Corpus, Entry, Skipped

__all__ = ["EMODB"]

_EMOTIONS = {"W": "anger", "L": "boredom", "E": "disgust", "A": "fear", "F": "happiness",
             "T": "sadness", "N": "neutral"}  # fmt: skip
_WOMEN = ("08", "09", "13", "14", "16")
_NAME = re.compile(
    r"(?P<speaker>03|08|09|10|11|12|13|14|15|16)(?P<sentence>[ab]\d\d)(?P<emotion>[WLEAFTN])"
    r"[a-z]?\.wav"
)


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    wanted = "<speaker, 2 digits><text, as a01><emotion, one of WLEAFTN><version>.wav"
    for entry in named_files("emodb", home, "wav/*.wav", _NAME, wanted):
        if isinstance(entry, Skipped):
            yield entry
            continue
        path, name = entry
        yield Clip(
            id=name[0].removesuffix(".wav"),
            path=path,
            labels={
                "emotion": _EMOTIONS[name["emotion"]],
                "speaker": name["speaker"],
                "sentence": name["sentence"],
                "gender": "female" if name["speaker"] in _WOMEN else "male",
            },
        )


EMODB = Corpus(
    name="emodb",
    labels=("emotion", "speaker", "sentence", "gender"),
    seconds=4.0,
    longer="segment",
    licence="no licence is stated by the publisher; free for research",
    citation="Burkhardt, F., Paeschke, A., Rolfes, M., Sendlmeier, W., Weiss, B. (2005). A "
    "Database of German Emotional Speech. Interspeech, 1517-1520. "
    "doi:10.21437/Interspeech.2005-446.",
    how_to_get="EmoDB: emodb.bilderbar.info.",
    homepage="",
    is_home=lambda folder: any(_NAME.fullmatch(p.name) for p in folder.glob("wav/*.wav")),
    list_clips=_clips,
)
