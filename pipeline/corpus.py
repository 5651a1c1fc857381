"""The types of a corpus adapter: a `Corpus` lists `Clip`s. No decoding, no download.

An adapter is one file in `pipeline/corpora/` that holds everything known about a corpus: labels,
licence, citation, archives, published settings, and the labels and split of each recording.
Fetching, cutting, mixing, splitting and storing are the same for all corpora: other modules do it.
docs/add-a-corpus.md shows how to write an adapter.
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
    "Entry",
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
    """A corpus does not exist, or its files are not arranged as its adapter expects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Clean recordings joined end to end, mixed with one noise recording.

    Attributes:
        clean: path and length in samples (at the recipe's rate) of each clean recording.
        noise: class of the noise.
        recording: index of the noise recording within its class.
        offset: random number that decides where the noise begins, modulo its length.
        snr_db: SNR over the complete mixture, in dB.
    """

    clean: tuple[tuple[str, int], ...]
    noise: str
    recording: int
    offset: int
    snr_db: float

    @property
    def samples(self) -> int:
        """Length in samples, at the recipe's rate."""
        return sum(count for _, count in self.clean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A recording, or a part of a recording, with its labels.

    Attributes:
        id: unique in the corpus, and the same on every machine and in every run.
        path: the audio file, relative to the corpus's own folder, with ``/``. It is text because a
            corpus has 100,000 files, and making a Path takes as long as reading a file.
        labels: label name -> class; an unknown label is left out or empty.
        group: all clips of a group go to the same split; None: the clip is its own group.
        split: the publisher's split, if there is one.
        start_s: start of the part, in seconds.
        end_s: end of the part, in seconds; None: the end of the file.
        mixture: the recordings to mix, for a corpus that is mixed by antigram; ``path`` is then the
            first clean recording.
        frames: start and end of the part in frames of the file, for a corpus that counts these;
            ``start_s`` and ``end_s`` are then unused. An end of None is the end of the file.
        where: line of the user's file that names the part, for messages; if it is given, a part
            that ends after its recording is rejected instead of being shortened.
    """

    id: str
    path: str
    labels: Mapping[str, str]
    group: str | None = None
    split: Split | None = None
    start_s: float = 0.0
    end_s: float | None = None
    mixture: Mixture | None = None
    frames: tuple[int, int | None] | None = None
    where: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A file that an adapter has to read while listing, and cannot use."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureRequest:
    """Arguments of an adapter that lists mixtures.

    Attributes:
        clean: folder of clean speech; the paths of clips are relative to it.
        noise: class of noise -> number of its recordings.
        level: noise level, low or high.
        seed: seed of every draw.
        sample_rate: the recipe's rate, in Hz.
        options: the adapter's own options.
    """

    clean: Path
    noise: Mapping[str, int]
    level: Noise
    seed: int
    sample_rate: int
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Skipped:
    """Files that are normal in the corpus but not stored; counted by reason."""

    reason: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the user about a choice that the adapter made, and how to change it."""

    text: str


# What listing a corpus yields.
Entry = Clip | Skipped | Rejected | Note


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A file that the publisher of a corpus offers for download.

    Size and hash come from the publisher, or from a source that a comment names. A hash that is
    computed from a download proves nothing.

    Attributes:
        url: address, with ``https://``.
        name: name of the file on disk; its suffix, .zip or .tar.gz, is the expected format.
        size: size in bytes; None if it is not published.
        known_hash: ``sha256:...`` or ``md5:...``; None if it is not published.
        subset: folder of the corpus that the archive holds; empty if the corpus has no subsets.
    """

    url: str
    name: str
    size: int | None = None
    known_hash: str | None = None
    subset: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Facts about a corpus, and the functions that list it.

    Attributes:
        name: what users type after ``prepare``.
        labels: names of all labels, the main one first; empty if the data decide (``folder``).
        seconds: default length of a segment, as in the paper.
        overlap: share of a window that the next one repeats, in [0, 1), for ``longer="segment"``.
        longer: how a recording longer than ``seconds`` is stored: ``cut`` keeps its start,
            ``segment`` divides it.
        official: whether the publisher provides a split.
        licence: SPDX name, or one line.
        citation: authors, year, title, venue and DOI, on one line.
        how_to_get: one line that tells the user where to get the corpus.
        homepage: address of the publisher's page; empty if there is none.
        archives: the archives that ``download`` fetches: all of them, or the archives of one subset
            (default: the subset of the first archive). Empty if the corpus cannot be downloaded
            freely.
        presets: name -> recipe fields and options of this corpus, for ``--preset NAME``. An option
            given explicitly overrides the preset. ``paper`` is the setting of Guizzo, Weyde and
            Tarroni (2021).
        is_home: return whether a folder is the corpus's own folder.
        list_clips: take the corpus's own folder and the options; yield clips and skipped files.
        options: names and defaults of the options of this corpus. Options that are not empty enter
            the recipe, so that a new option with an empty default changes no existing recipe.
        resolve: return the canonical form of an option's text, or raise CorpusError.
        adapt: return the corpus with labels and lengths changed as the options require.
        noise: default noise level.
        has_noise: whether the corpus's folder also holds ``noise_train``, in MS-SNSD's layout.
        list_mixtures: replaces ``list_clips`` for a corpus that is mixed from speech and noise.
        open_source: for a corpus whose source may be a file, and whose recordings may be elsewhere:
            take the candidates for its source and the folder that the user names for its
            recordings, or None; return the corpus that lists this source, and the folder that its
            paths are relative to. It replaces `locate`.
        synthesise: make the corpus in a folder, for a corpus that is not published; takes the
            folder, ``workers`` and ``on_progress``.
    """

    name: str
    labels: tuple[str, ...]
    seconds: float
    longer: Longer
    licence: str
    citation: str
    how_to_get: str
    is_home: Callable[[Path], bool]
    list_clips: Callable[[Path, Mapping[str, str]], Iterable[Entry]] | None = None
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
    list_mixtures: Callable[[MixtureRequest], Iterable[Entry]] | None = None
    open_source: Callable[[Iterable[Path], Path | None], tuple[Corpus, Path]] | None = None
    synthesise: Callable[..., None] | None = None

    def preset(self, name: str | None) -> Mapping[str, Any]:
        """Return the settings of a preset; an empty mapping if ``name`` is None.

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
    """Return the corpus's own folder: a candidate, or a folder up to two levels below it.

    If a folder holds several versions, the last version by name is taken
    (``speech_commands_v0.02``).

    Raises:
        CorpusError: none of the candidates holds the corpus; the message lists them.
    """
    searched = list(candidates)
    for candidate in searched:
        if not candidate.is_dir():
            continue
        for depth in ("", "*", "*/*"):
            folders = [p for p in (candidate.glob(depth) if depth else [candidate]) if p.is_dir()]
            homes = [p for p in folders if not p.name.startswith(".") and corpus.is_home(p)]
            if homes:
                return max(homes)
    raise CorpusError(
        f"{corpus.name}: no such corpus in {', '.join(str(p) for p in searched)}. "
        f"Name its folder with `source`. {corpus.how_to_get}"
    )


def wav_names(folder: Path) -> list[str]:
    """Return the sorted names of a folder's ``*.wav`` files, without hidden ones (``._a.wav``)."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - text sorts ten times as fast as paths
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in sorted(names) if name.endswith(".wav") and name[0] != "."]


def wav_files(folder: Path) -> list[Path]:
    """Return the paths of the files that `wav_names` lists."""
    return [folder / name for name in wav_names(folder)]
