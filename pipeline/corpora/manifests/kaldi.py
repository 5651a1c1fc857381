"""Kaldi data folders: wav.scp, and segments, text, utt2spk and further tables where they exist.

A line of ``segments`` is a piece; without that file, each recording of ``wav.scp`` is one. Each
table ``utt2NAME`` gives a field NAME (``utt2spk`` gives ``speaker``), ``spk2gender`` the field
``gender``, and ``text`` the field ``text``. Tables of measurements are left out.

Commands in ``wav.scp``, such as ``flac -dc x |``, are refused: what a manifest names is never run.

References:
    https://kaldi-asr.org/doc/data_prep.html.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from antigram.pipeline.corpora.manifests.lines import numbered_lines
from antigram.pipeline.corpora.manifests.pieces import Pieces
from antigram.pipeline.corpora.split_names import splits_of
from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.storage.regular import is_named

__all__ = ["folders_in", "read"]

_NAMES = {"spk": "speaker", "text": "text"}  # utt2spk gives the field speaker
_MEASURED = ("dur", "num_frames", "num_samples", "warp")  # of utt2NAME; no labels
_ARCHIVE = re.compile(r"\.ark:\d+$")


def folders_in(folder: Path) -> list[Path]:
    """Return a folder with a ``wav.scp``, or the folders below it that have one."""
    if is_named(folder / "wav.scp"):
        return [folder]
    return sorted(p.parent for p in folder.glob("*/wav.scp") if p.parent.name[0] != ".")


def read(pieces: Pieces, folders: list[Path]) -> None:
    """Add the utterances of data folders; several are called after the splits that they are.

    Raises:
        CorpusError: a file is damaged, names a command, or has no line for an utterance.
    """
    splits = splits_of([folder.name for folder in folders])
    if len(folders) > 1 and None in splits:
        names = ", ".join(folder.name for folder in folders)
        raise CorpusError(
            f"{folders[0].parent}: several data folders ({names}), not all called after a split "
            "(train, dev, test): name one as `source`"
        )
    for folder, split in zip(folders, splits, strict=True):
        pieces.file(folder / "wav.scp", split)
        paths, lines = _recordings(pieces, folder / "wav.scp")
        utterances: dict[str, int] = {}
        if is_named(folder / "segments"):
            pieces.file(folder / "segments", split)
            _read_segments(pieces, folder / "segments", paths, utterances)
        else:
            for name, path in paths.items():
                utterances[name] = pieces.add(name, path, lines[name], {})
        _read_fields(pieces, folder, utterances)


def _table(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, first word and the rest of each line of a table.

    Raises:
        CorpusError: a line has no first word, or the file is damaged.
    """
    for line, content in numbered_lines(path):
        key, _, rest = content.replace("\t", " ").partition(" ")
        if not key:
            raise CorpusError(f"{path}:{line}: begins with a blank; wanted an id, a blank and text")
        yield line, key, rest.strip()


def _recordings(pieces: Pieces, path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Return the path and the line of each recording of a ``wav.scp``."""
    paths: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, key, name in _table(path):
        where = f"{path}:{line}"
        if name.endswith("|") or name.startswith("|"):
            raise CorpusError(
                f"{where}: {key} is the output of a command, {name[:60]!r}, and no command of a "
                "manifest is run; wanted an audio file: run it yourself, and name its output"
            )
        if _ARCHIVE.search(name):
            raise CorpusError(
                f"{where}: {key} is within an archive, {name[-60:]!r}; wanted an audio file"
            )
        if key in paths:
            raise CorpusError(f"{where}: the id {key!r} is that of line {lines[key]}, too")
        paths[key], lines[key] = pieces.path(name, line), line
    return paths, lines


def _read_segments(
    pieces: Pieces, path: Path, paths: dict[str, str], utterances: dict[str, int]
) -> None:
    used = set()
    for line, key, rest in _table(path):
        where, words = f"{path}:{line}", rest.split()
        if len(words) != 3:
            more = "a channel, which is not read" if len(words) == 4 else f"{len(words)} more words"
            raise CorpusError(
                f"{where}: after the utterance {more}; wanted recording, start and end: save each "
                "channel to a file of its own"
            )
        if key in utterances:
            raise CorpusError(f"{where}: the id {key!r} is that of an earlier line, too")
        start, end = (_seconds(word, where) for word in words[1:])
        if words[0] not in paths:
            pieces.reject(key, line, f"wav.scp has no recording {words[0]!r}")
            continue
        used.add(words[0])
        if start < 0 or (end <= start and end != -1):
            reason = f"the part from {start:g} to {end:g} s is empty, or outside its recording"
            pieces.reject(paths[words[0]], line, reason)
            continue
        # An end of -1 is the end of the recording.
        utterances[key] = pieces.add(
            key, paths[words[0]], line, {}, start=start, end=None if end == -1 else end
        )
    if unused := len(paths) - len(used):
        pieces.skip("recording without a segment", unused)


def _seconds(word: str, where: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise CorpusError(f"{where}: {word!r} is no time; wanted seconds")
    return seconds


def _read_fields(pieces: Pieces, folder: Path, utterances: dict[str, int]) -> None:
    genders: dict[str, str] = {}
    if is_named(folder / "spk2gender"):
        genders = {speaker: gender for _, speaker, gender in _table(folder / "spk2gender")}
    for path in sorted([folder / "text", *folder.glob("utt2*")]):
        name = path.name.removeprefix("utt2")
        if not is_named(path) or name in _MEASURED:
            continue
        seen = 0
        for _, key, value in _table(path):
            if (piece := utterances.get(key)) is None:
                continue
            seen += 1
            pieces.set_field(piece, _NAMES.get(name, name), value)
            if name == "spk" and value in genders:
                pieces.set_field(piece, "gender", genders[value])
        if name == "spk" and seen < len(utterances):
            missing = len(utterances) - seen
            pieces.note(
                f"{path.name} names no speaker for {missing} of {len(utterances)} utterances"
            )
