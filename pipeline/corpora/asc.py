"""Arabic Speech Commands: 30 speakers x 40 words x 10 takes, one second, 16 kHz mono WAV.

Source: https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset; CC BY 4.0.
Layout: ``dataset/<word>/<speaker, 8 digits>_NO_<take>.wav`` (``.flac`` in copies with lossless
compression), ``background_noise/``, and ``train.csv``, ``val.csv``, ``test.csv`` (``file,class``),
whose paths end in ``.wav``. A copy may lack some words: their recordings are counted as skipped. If
the folder of a word exists, a listed recording that is missing from it is rejected.
Labels: ``word`` (40), ``speaker`` (30).
Split: the authors' three lists, with 18, 6 and 6 speakers; no speaker is in two of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import (
    Archive,
    Clip,
    Corpus,
    CorpusError,
    Entry,
    Rejected,
    Skipped,
    Split,
)

__all__ = ["ASC"]

_NAME = re.compile(r"(?P<speaker>\d{8})_NO_(?P<take>\d{2})\.(wav|flac)")
_LISTS: dict[str, Split] = {"train.csv": "train", "val.csv": "validation", "test.csv": "test"}


def _splits(home: Path) -> dict[str, Split]:
    """Return a mapping from ``word/name``, without the suffix, to its split in the three lists."""
    splits: dict[str, Split] = {}
    for name, split in _LISTS.items():
        path = home / name
        header, *lines = read_text(path).splitlines()
        if header != "file,class":
            raise CorpusError(f"{path}:1: begins with {header!r}, wanted file,class")
        for number, line in enumerate(lines, 2):
            file = PurePosixPath(line.partition(",")[0])
            key = f"{file.parent.name}/{file.stem}"
            if splits.setdefault(key, split) != split:
                raise CorpusError(f"{path}:{number}: {file} is in two lists; wanted one")
    return splits


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Entry]:
    splits = _splits(home)
    words = sorted(p for p in (home / "dataset").iterdir() if p.is_dir())
    missing = set(splits)
    hidden = 0
    for folder in words:
        for file in sorted(folder.iterdir()):
            if file.name.startswith("."):
                hidden += 1
                continue
            if (name := _NAME.fullmatch(file.name)) is None:
                raise CorpusError(f"asc: {file} is not named <speaker, 8 digits>_NO_<take>.wav")
            key = f"{folder.name}/{file.stem}"
            if key not in splits:
                raise CorpusError(f"asc: {file} is in none of {', '.join(_LISTS)}")
            missing.discard(key)
            yield Clip(
                id=key,
                path=f"dataset/{folder.name}/{file.name}",
                labels={"word": folder.name, "speaker": name["speaker"]},
                split=splits[key],
            )
    present = {folder.name for folder in words}
    for key in sorted(missing):
        if key.partition("/")[0] in present:
            yield Rejected(
                f"dataset/{key}", f"named in {', '.join(_LISTS)}, and there is no such file"
            )
    if absent := sum(key.partition("/")[0] not in present for key in missing):
        yield Skipped("listed recording of a word that is not there", absent)
    if hidden:
        yield Skipped("hidden file", hidden)


def _is_home(folder: Path) -> bool:
    return (folder / "dataset").is_dir() and all((folder / name).is_file() for name in _LISTS)


ASC = Corpus(
    name="asc",
    labels=("word", "speaker"),
    seconds=1.0,
    longer="cut",
    official=True,
    licence="CC-BY-4.0",
    citation="Ghandoura, A., Hjabo, F., Al Dakkak, O. (2021). Building and Benchmarking an Arabic "
    "Speech Commands Dataset for Small-Footprint Keyword Spotting. Engineering Applications of "
    "Artificial Intelligence 102, 104267. doi:10.1016/j.engappai.2021.104267.",
    how_to_get="Arabic Speech Commands: github.com/abdulkaderghandoura/arabic-speech-commands-"
    "dataset.",
    homepage="https://doi.org/10.5281/zenodo.4662481",
    archives=(
        # The commit with the layout described above. GitHub makes the archive on request, states
        # no size and does not guarantee its bytes.
        Archive(
            url="https://github.com/abdulkaderghandoura/arabic-speech-commands-dataset/archive/"
            "72f3438.zip",
            name="arabic-speech-commands-dataset-72f3438.zip",
        ),
    ),
    is_home=_is_home,
    list_clips=_clips,
)
