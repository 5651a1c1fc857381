"""AudioMNIST: 60 speakers x 10 digits x 50 takes, up to one second, 48 kHz mono WAV.

Source: Becker et al. (2024), github.com/soerenab/AudioMNIST; MIT.
Layout: ``data/<speaker, 01-60>/<digit>_<speaker>_<take>.wav``, and ``data/audioMNIST_meta.txt``
(JSON: what is known about each speaker), which copies may lack.
Labels: ``digit`` (10), ``speaker`` (60), ``gender``, ``accent``.
Split: none by the publisher; ``by:speaker`` keeps speakers apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.named_files import named_files
from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import Archive, Clip, Corpus, CorpusError, Entry, Skipped
from antigram.pipeline.storage.regular import is_named

__all__ = ["AUDIOMNIST"]

_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>\d\d)_(?P<take>\d{1,2})\.wav")
_FIELDS = ("gender", "accent")


def _speakers(home: Path) -> dict[str, dict[str, str]]:
    """Return the labels of each speaker, as far as they are known."""
    path = home / "data" / "audioMNIST_meta.txt"
    if not is_named(path):
        return {}
    try:
        return {
            speaker: {name: str(known[name]).strip().lower() for name in _FIELDS if known[name]}
            for speaker, known in json.loads(read_text(path)).items()
        }
    except CorpusError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorpusError(f"{path}: wanted JSON with gender and accent: {error!r}") from None


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    speakers = _speakers(home)
    wanted = "<digit>_<speaker, 2 digits>_<take>.wav"
    for entry in named_files("audiomnist", home, "data/*/*.wav", _NAME, wanted):
        if isinstance(entry, Skipped):
            yield entry
            continue
        path, name = entry
        if path.split("/")[1] != name["speaker"]:
            raise CorpusError(f"audiomnist: {home / path} is of another speaker than its folder")
        own = {"digit": name["digit"], "speaker": name["speaker"]}
        labels = own | speakers.get(name["speaker"], {})
        yield Clip(id=name[0].removesuffix(".wav"), path=path, labels=labels)


AUDIOMNIST = Corpus(
    name="audiomnist",
    labels=("digit", "speaker", "gender", "accent"),
    seconds=1.0,
    longer="cut",
    licence="MIT",
    citation="Becker, S., Vielhaben, J., Ackermann, M., Mueller, K.-R., Lapuschkin, S., Samek, W. "
    "(2024). AudioMNIST: Exploring Explainable Artificial Intelligence for audio analysis on a "
    "simple benchmark. Journal of the Franklin Institute 361(1), 418-428. "
    "doi:10.1016/j.jfranklin.2023.11.038.",
    how_to_get="AudioMNIST: github.com/soerenab/AudioMNIST.",
    homepage="https://github.com/soerenab/AudioMNIST",
    archives=(
        # GitHub makes the archive on request, states no size and does not guarantee its bytes.
        Archive(
            url="https://github.com/soerenab/AudioMNIST/archive/master.zip",
            name="AudioMNIST-master.zip",
        ),
    ),
    is_home=lambda folder: any(_NAME.fullmatch(p.name) for p in folder.glob("data/01/*.wav")),
    list_clips=_clips,
)
