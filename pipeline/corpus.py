"""What a corpus adapter gives: a `Corpus` that lists `Clip`s. No decoding, no download.

An adapter is one file in `pipeline/corpora/` with all that is known of a corpus: its labels and
licence, how to cite it, which archives hold it, the settings it was used with, and what is known of
each recording. Fetching, cutting, mixing, splitting and storing are the same for all corpora and
live elsewhere. docs/add-a-corpus.md shows how to write one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from antigram.pipeline.choices import Longer, Noise, Split
from antigram.pipeline.errors import InputError

__all__ = [
    "Archive",
    "Clip",
    "Corpus",
    "CorpusError",
    "Found",
    "Mixture",
    "MixtureRequest",
    "Note",
    "Rejected",
    "Skipped",
    "Split",
    "locate",
    "wav_files",
    "wav_names",
]


class CorpusError(InputError):
    """A corpus is not there, or is not laid out as its adapter expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Clean recordings one behind the other, with one noise recording below them.

    Attributes:
        clean: path and samples (at the recipe's rate) of each clean recording.
        noise: class of the noise.
        recording: which of the class's recordings.
        offset: drawn number that decides where the noise begins; reduced to its length.
        snr_db: over the whole mixture.
    """

    clean: tuple[tuple[str, int], ...]
    noise: str
    recording: int
    offset: int
    snr_db: float

    @property
    def samples(self) -> int:
        """Length, at the recipe's rate."""
        return sum(count for _, count in self.clean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """One recording (or a part of one) and what is known about it.

    Attributes:
        id: unique in the corpus, the same on every machine and in every run.
        path: the audio file, relative to the corpus's own folder, with ``/``. Text, as a corpus
            has a hundred thousand of them, and a Path takes as long to make as to read its file.
        labels: label name -> class; one that is not known for this clip is left out, or empty.
        group: what a split may not part; the clip itself if None.
        split: the publisher's split, if there is one.
        start_s: where the part begins, in seconds.
        end_s: where it ends; None is the end of the file.
        mixture: what the clip is made of, for a corpus that is mixed here; ``path`` is then its
            first clean recording.
    """

    id: str
    path: str
    labels: Mapping[str, str]
    group: str | None = None
    split: Split | None = None
    start_s: float = 0.0
    end_s: float | None = None
    mixture: Mixture | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that an adapter needs to read while listing, and cannot use."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRequest:
    """What an adapter that mixes needs to know.

    Attributes:
        clean: folder of clean speech; paths of clips are relative to it.
        noise: class -> number of its recordings.
        level: of the noise: low or high.
        seed: decides every draw.
        sample_rate: Hz, of the recipe.
        options: the adapter's own.
    """

    clean: Path
    noise: Mapping[str, int]
    level: Noise
    seed: int
    sample_rate: int
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in the corpus that is normal there, and that no store holds; counted by reason."""

    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the user: a choice that the adapter made, and how to make another."""

    text: str


Found = Clip | Skipped | Rejected | Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A file that the publisher of a corpus offers for download, and what is known about it.

    Size and hash are copied from the publisher, or from a source named beside them; a hash that was
    computed from what came proves nothing.

    Attributes:
        url: its address, with ``https://``.
        name: what the file is called here; its suffix, .zip or .tar.gz, tells what it must be.
        size: bytes; None if nobody published it.
        known_hash: ``sha256:...`` or ``md5:...``; None if nobody published one.
        subset: folder of the corpus that it holds; empty where the corpus has no subsets.
    """

    url: str
    name: str
    size: int | None = None
    known_hash: str | None = None
    subset: str = ""


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
        citation: authors, year, title, where it was published and its DOI, on one line.
        how_to_get: one line for the user who has it not.
        homepage: address of the publisher's page; empty if there is none.
        archives: what ``download`` fetches: all of them, or those of one subset (of the first
            archive's, if none is named). Empty if they may not be had without asking.
        presets: name -> fields of the recipe and options of this corpus, for ``--preset NAME``. An
            option given beside a preset wins. ``paper`` is the setting of Guizzo, Weyde and
            Tarroni (2021).
        is_home: whether a folder is the corpus's own folder.
        list_clips: the corpus's own folder and the options given -> clips and what was skipped.
        options: options this corpus understands, with their defaults. They enter the recipe, but
            for those that are empty: an option that came later changes no recipe of before it.
        resolve: turns an option's text into its canonical form, or raises CorpusError.
        adapt: the corpus as it is with some options, where labels or lengths depend on them.
        noise: level that is mixed in if none is asked for.
        has_noise: whether its folder also holds ``noise_train``, in MS-SNSD's layout.
        list_mixtures: in place of ``list_clips``, for a corpus that is mixed from two.
        synthesise: makes the corpus in a folder, for one that is not published; takes the folder,
            ``workers`` and ``on_progress``.
    """

    name: str
    labels: tuple[str, ...]
    seconds: float
    longer: Longer
    licence: str
    citation: str
    how_to_get: str
    is_home: Callable[[Path], bool]
    list_clips: Callable[[Path, Mapping[str, str]], Iterable[Found]] | None = None
    overlap: float = 0.0
    official: bool = False
    homepage: str = ""
    archives: tuple[Archive, ...] = ()
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    resolve: Callable[[str, str], str] = lambda _name, value: value
    adapt: Callable[[Corpus, Mapping[str, str]], Corpus] = lambda corpus, _options: corpus
    noise: Noise = "none"
    has_noise: bool = False
    list_mixtures: Callable[[MixtureRequest], Iterable[Found]] | None = None
    synthesise: Callable[..., None] | None = None

    def preset(self, name: str | None) -> Mapping[str, Any]:
        """Settings of a preset; none if no name is given.

        Raises:
            InputError: the corpus has no such preset.
        """
        if name is None:
            return {}
        if name not in self.presets:
            known = ", ".join(self.presets) or "none"
            raise InputError(f"preset {name!r} is not known: {self.name} has {known}")
        return self.presets[name]


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


def wav_names(folder: Path) -> list[str]:
    """Sorted ``*.wav`` of one folder, less hidden files (macOS leaves ``._name.wav`` behind)."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - sorted ten times as fast as paths
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in sorted(names) if name.endswith(".wav") and name[0] != "."]


def wav_files(folder: Path) -> list[Path]:
    """As `wav_names`, with their folder."""
    return [folder / name for name in wav_names(folder)]
