"""Google Speech Commands, v0.01 (30 words, 64,727 files) and v0.02 (35 words, 105,829 files).

Source: Warden (2018), arXiv:1804.03209; CC BY 4.0. One-second WAV, 16 kHz, some shorter.
Layout: ``<word>/<speaker>_nohash_<n>.wav``, ``testing_list.txt``, ``validation_list.txt``,
``_background_noise_/`` (in no list, and no word). The archive has no top folder.
Labels: ``word``; ``speaker`` (8 hex digits, stable across words).
Split: the two lists; no speaker is in two splits. The same path may be another recording in the
other version. The separate archive of the test set has another layout and is not supported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.corpora.text import read_text
from antigram.pipeline.corpus import (
    Archive,
    Clip,
    Corpus,
    CorpusError,
    Skipped,
    Split,
    wav_names,
)
from antigram.pipeline.storage.regular import is_named

__all__ = ["GSC"]

_NAME = re.compile(r"(?P<speaker>[0-9a-f]{8})_nohash_\d+\.wav")
_DIGITS = "zero one two three four five six seven eight nine".split()


def _is_home(folder: Path) -> bool:
    return any(p.is_file() for p in folder.glob("*/*_nohash_*.wav"))


def _words(option: str, value: str) -> str:
    """Return the canonical form of ``words``: digits, all, or a sorted list."""
    words = sorted({w.strip() for w in value.split(",")} - {""})
    if not words:
        raise CorpusError(f"`{option}` {value!r}: wanted digits, all, or a list like yes,no,up")
    return value if value in ("digits", "all") else ",".join(words)


def _official(home: Path) -> dict[str, Split]:
    """Return path -> split for the paths in the two lists; all other paths are training."""
    listed: dict[str, Split] = {}
    lists: tuple[tuple[str, Split], ...] = (
        ("testing_list.txt", "test"),
        ("validation_list.txt", "validation"),
    )
    for name, split in lists:
        if is_named(home / name):
            listed |= dict.fromkeys(read_text(home / name).split(), split)
    return listed


def _clips(home: Path, options: Mapping[str, str]) -> Iterator[Clip | Skipped]:
    folders = {p.name: p for p in sorted(home.iterdir()) if p.is_dir() and p.name[0] not in "._"}
    choice = options["words"]
    chosen = list(folders) if choice == "all" else _DIGITS
    if choice not in ("digits", "all"):
        chosen = choice.split(",")
        if missing := [word for word in chosen if word not in folders]:
            raise CorpusError(f"gsc: {home} has no word {', '.join(missing)}: see `words`")
    background = len(list((home / "_background_noise_").glob("*.wav")))
    if background:
        yield Skipped("_background_noise_", background)
    lists = _official(home)
    known = all(is_named(home / f"{name}_list.txt") for name in ("testing", "validation"))
    for word in chosen:
        if word not in folders:
            continue
        if hidden := len(list(folders[word].glob(".*.wav"))):
            yield Skipped("hidden file (._*.wav)", hidden)
        for file in wav_names(folders[word]):
            relative = f"{word}/{file}"
            if (name := _NAME.fullmatch(file)) is None:
                raise CorpusError(
                    f"gsc: {home / relative} is not named <8 hex digits>_nohash_<n>.wav"
                )
            yield Clip(
                id=relative.removesuffix(".wav"),
                path=relative,
                labels={"word": word, "speaker": name["speaker"]},
                split=lists.get(relative, "train") if known else None,
            )


GSC = Corpus(
    name="gsc",
    labels=("word", "speaker"),
    seconds=1.0,
    longer="cut",
    official=True,
    licence="CC-BY-4.0",
    citation="Warden, P. (2018). Speech Commands: A Dataset for Limited-Vocabulary Speech "
    "Recognition. arXiv:1804.03209.",
    how_to_get="Google Speech Commands v0.02 (2.4 GB): download.tensorflow.org/data.",
    homepage="https://arxiv.org/abs/1804.03209",
    archives=(
        # Size, SHA-256: tensorflow/datasets, tensorflow_datasets/url_checksums/speech_commands.txt;
        # the same hash and this address, which has TLS: torchaudio's speechcommands.py.
        Archive(
            url="https://storage.googleapis.com/download.tensorflow.org/data/"
            "speech_commands_v0.02.tar.gz",
            name="speech_commands_v0.02.tar.gz",
            size=2428923189,
            known_hash="sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        ),
    ),
    is_home=_is_home,
    list_clips=_clips,
    presets={"paper": {"words": "digits", "limit_per_class": 1000}},
    options={"words": "digits"},
    resolve=_words,
)
