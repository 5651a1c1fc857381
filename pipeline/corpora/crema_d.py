"""CREMA-D: 7,442 recordings of 12 sentences by 91 actors with 6 emotions, 16 kHz WAV.

Source: Cao et al. (2014), github.com/CheyneyComputerScience/CREMA-D; ODbL 1.0.
Layout: ``AudioWAV/<actor>_<sentence>_<emotion>_<intensity>.wav``, and ``VideoDemographics.csv``
with the sex of each actor, which copies may lack.
Labels: ``emotion`` (6, the intended one), ``speaker`` (91), ``sentence`` (12), ``intensity``
(low, medium, high; most recordings have none: XX), ``gender``.
Split: none by the publisher; ``by:speaker`` keeps actors apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.named_files import named_files
from antigram.pipeline.corpora.strict_csv import read_table
from antigram.pipeline.corpus import Clip, Corpus, CorpusError, Entry, Skipped
from antigram.pipeline.storage.regular import is_named

__all__ = ["CREMA_D"]

_EMOTIONS = {"ANG": "anger", "DIS": "disgust", "FEA": "fear", "HAP": "happiness",
             "NEU": "neutral", "SAD": "sadness"}  # fmt: skip
_INTENSITIES = {"LO": "low", "MD": "medium", "HI": "high"}
# One recording has X instead of XX.
_NAME = re.compile(
    r"(?P<actor>1\d{3})_(?P<sentence>[A-Z]{3})_(?P<emotion>ANG|DIS|FEA|HAP|NEU|SAD)_"
    r"(?P<intensity>LO|MD|HI|XX?)\.wav"
)


def _genders(home: Path) -> dict[str, str]:
    path = home / "VideoDemographics.csv"
    if not is_named(path):
        return {}
    table = read_table(path)
    if not {"ActorID", "Sex"} <= set(table.names):
        raise CorpusError(f"{path}:1: columns {list(table.names)}; wanted ActorID and Sex")
    actor, sex = table.names.index("ActorID"), table.names.index("Sex")
    return {row.cells[actor].strip(): row.cells[sex].strip().lower() for row in table.rows}


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    genders = _genders(home)
    wanted = "<actor, 4 digits>_<sentence, as IEO>_<emotion, as ANG>_<LO, MD, HI or XX>.wav"
    for entry in named_files("crema-d", home, "AudioWAV/*.wav", _NAME, wanted):
        if isinstance(entry, Skipped):
            yield entry
            continue
        path, name = entry
        labels = {
            "emotion": _EMOTIONS[name["emotion"]],
            "speaker": name["actor"],
            "sentence": name["sentence"],
            "intensity": _INTENSITIES.get(name["intensity"], ""),
            "gender": genders.get(name["actor"], ""),
        }
        known = {label: value for label, value in labels.items() if value}
        yield Clip(id=name[0].removesuffix(".wav"), path=path, labels=known)


CREMA_D = Corpus(
    name="crema-d",
    labels=("emotion", "speaker", "sentence", "intensity", "gender"),
    seconds=3.0,
    longer="segment",
    licence="ODbL-1.0",
    citation="Cao, H., Cooper, D. G., Keutmann, M. K., Gur, R. C., Nenkova, A., Verma, R. (2014). "
    "CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset. IEEE Transactions on Affective "
    "Computing 5(4), 377-390. doi:10.1109/TAFFC.2014.2336244.",
    how_to_get="CREMA-D: github.com/CheyneyComputerScience/CREMA-D (with git lfs).",
    homepage="https://github.com/CheyneyComputerScience/CREMA-D",
    is_home=lambda folder: any(_NAME.fullmatch(p.name) for p in folder.glob("AudioWAV/*.wav")),
    list_clips=_clips,
)
