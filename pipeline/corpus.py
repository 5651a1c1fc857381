"""What a corpus adapter gives: a `Corpus` that lists `Clip`s. No decoding, no download.

An adapter is one file in `pipeline/corpora/`. It says where the recordings lie and what is known
about each; cutting, mixing, splitting and storing are the same for all corpora and live elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError

__all__ = ["Clip", "Corpus", "CorpusError", "Skipped", "Split", "locate", "wav_files"]

Split = Literal["train", "validation", "test"]


class CorpusError(InputError):
    """A corpus is not there, or is not laid out as its adapter expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One recording (or a part of one) and what is known about it.

    Attributes:
        id: unique in the corpus, the same on every machine and in every run.
        path: the audio file, relative to the corpus's own folder.
        labels: label name -> class; a label that is not known for this clip is left out.
        group: what a split may not part; the clip itself if None.
        split: the publisher's split, if there is one.
        start_s: where the part begins, in seconds.
        end_s: where it ends; None is the end of the file.
    """

    id: str
    path: Path
    labels: Mapping[str, str]
    group: str | None = None
    split: Split | None = None
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in the corpus that is normal there, and that no store holds; counted by reason."""

    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """One corpus: facts, and how to list it.

    Attributes:
        name: what users type after ``prepare``.
        labels: all labels, the main one first; empty where the data decides (``folder``).
        seconds: length of a row, as in the paper.
        overlap: share of a window that the next one repeats, for ``longer="segment"``.
        longer: what becomes of a recording longer than that: its start is kept, or it is segmented.
        official: whether the publisher gives a split.
        licence: SPDX name, or one line.
        how_to_get: one line for the user who has it not.
        is_home: whether a folder is the corpus's own folder.
        list_clips: the corpus's own folder and the options given -> clips and what was skipped.
        options: options this corpus understands, with their defaults (they enter the recipe).
        resolve: turns an option's text into its canonical form, or raises CorpusError.
    """

    name: str
    labels: tuple[str, ...]
    seconds: float
    longer: Literal["cut", "segment"]
    licence: str
    how_to_get: str
    is_home: Callable[[Path], bool]
    list_clips: Callable[[Path, Mapping[str, str]], Iterable[Clip | Skipped]]
    overlap: float = 0.0
    official: bool = False
    options: Mapping[str, str] = field(default_factory=dict)
    resolve: Callable[[str, str], str] = lambda _name, value: value


def locate(corpus: Corpus, candidates: Iterable[Path]) -> Path:
    """Return the corpus's own folder, looked for in each candidate and up to two levels below.

    Of several versions in one folder the last by name is taken (``speech_commands_v0.02``).

    Raises:
        CorpusError: none of the candidates holds the corpus; the message lists them.
    """
    looked = list(candidates)
    for place in looked:
        if not place.is_dir():
            continue
        for depth in ("", "*", "*/*"):
            found = [p for p in ([place] if not depth else place.glob(depth)) if p.is_dir()]
            homes = [p for p in found if not p.name.startswith(".") and corpus.is_home(p)]
            if homes:
                return max(homes)
    raise CorpusError(
        f"{corpus.name}: no such corpus in {', '.join(str(p) for p in looked)}. "
        f"Name its folder with --source. {corpus.how_to_get}"
    )


def wav_files(folder: Path) -> list[Path]:
    """Sorted ``*.wav`` of one folder, less hidden files (macOS leaves ``._name.wav`` behind)."""
    return sorted(p for p in folder.glob("*.wav") if not p.name.startswith("."))
