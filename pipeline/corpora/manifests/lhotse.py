"""Lhotse: recordings with their supervisions, or cuts, as JSON lines, plain or gzip.

A supervision is a part of a recording with what is known about it; each one is a piece. A cut is a
part of a recording with the supervisions in it; each supervision is a piece, and so is a cut
without supervisions that has custom fields. Fields are those of the supervision and its ``custom``.

Antigram averages the channels of a file, cannot run commands, and makes no mixtures of cuts:
manifests that need these are refused.

References:
    https://lhotse.readthedocs.io/en/latest/corpus.html and .../cuts.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from antigram.pipeline.corpora.manifests.lines import json_lines, number, text
from antigram.pipeline.corpora.manifests.pieces import Pieces
from antigram.pipeline.corpora.split_names import splits_of
from antigram.pipeline.corpus import CorpusError

__all__ = ["files_in", "is_lhotse", "pair_of", "read"]

_SUFFIXES = (".jsonl", ".jsonl.gz")
_CUTS, _RECORDINGS, _SUPERVISIONS = "cuts", "recordings", "supervisions"
# Fields of a supervision that are no labels.
_PLAIN = ("text", "speaker", "gender", "language")


class _Recording(NamedTuple):
    """A recording: its file, and its channels."""

    path: str
    channels: tuple[int, ...]


def _named(folder: Path, kind: str) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if kind in p.name and p.name.endswith(_SUFFIXES) and p.name[0] != "."
    )


def is_lhotse(folder: Path) -> bool:
    """Whether a folder has files that are called like manifests of lhotse."""
    return any(_named(folder, kind) for kind in (_CUTS, _RECORDINGS, _SUPERVISIONS))


def files_in(folder: Path) -> list[tuple[Path, ...]]:
    """Return the manifests of a folder: files of cuts, or pairs of recordings and supervisions.

    Raises:
        CorpusError: there are cuts and pairs, or a file has no counterpart.
    """
    cuts, recordings = _named(folder, _CUTS), _named(folder, _RECORDINGS)
    supervisions = _named(folder, _SUPERVISIONS)
    if cuts and (recordings or supervisions):
        raise CorpusError(
            f"{folder}: has cuts ({cuts[0].name}) and {(recordings + supervisions)[0].name}, which "
            "may say the same twice: name the file of cuts, or of supervisions, as `source`"
        )
    alone = [p for p in recordings if not _other(p, _RECORDINGS, _SUPERVISIONS)]
    if alone and not supervisions:
        raise CorpusError(f"{alone[0]}: there is no file of supervisions beside it, for labels")
    return [(path,) for path in cuts] or [pair_of(path) for path in supervisions]


def pair_of(path: Path) -> tuple[Path, Path]:
    """Return recordings and supervisions, given one of both files.

    Raises:
        CorpusError: the other file does not exist.
    """
    have, want = (_RECORDINGS, _SUPERVISIONS)
    if have not in path.name:
        have, want = want, have
    other = _other(path, have, want)
    if other is None:
        wanted = path.name.replace(have, want) if have in path.name else f"a name with {have} in it"
        raise CorpusError(f"{path}: there is no file of {want} beside it; wanted {wanted}")
    return (path, other) if have == _RECORDINGS else (other, path)


def _other(path: Path, have: str, want: str) -> Path | None:
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl").replace(have, want)
    if stem == path.name:
        return None
    beside = (path.with_name(stem + suffix) for suffix in _SUFFIXES)
    return next((p for p in beside if p != path and p.is_file()), None)


def read(pieces: Pieces, files: list[tuple[Path, ...]]) -> None:
    """Add the supervisions of some manifests: files of cuts, or pairs as from `pair_of`.

    If the names of all manifests end in names of splits, these are the official split.

    Raises:
        CorpusError: a file is damaged, or needs what antigram does not do.
    """
    stems = [paths[-1].name.removesuffix(".gz").removesuffix(".jsonl") for paths in files]
    splits = splits_of([stem.replace("-", "_").rpartition("_")[2] for stem in stems])
    for paths, split in zip(files, splits, strict=True):
        if len(paths) == 1:
            pieces.file(paths[0], split)
            _read_cuts(pieces, paths[0])
        else:
            pieces.file(paths[0], split)
            recordings = _recordings(pieces, paths[0])
            pieces.file(paths[1], split)
            _read_supervisions(pieces, paths[1], recordings)


def _recordings(pieces: Pieces, path: Path) -> dict[str, _Recording]:
    recordings: dict[str, _Recording] = {}
    for line, record in json_lines(path):
        where = pieces.where(line)
        id_ = text(record, "id", where)
        if id_ in recordings:
            raise CorpusError(f"{where}: the id {id_!r} is that of an earlier line, too")
        recordings[id_] = _recording(pieces, record, line)
    return recordings


def _recording(pieces: Pieces, record: Mapping[str, Any], line: int) -> _Recording:
    where, sources = pieces.where(line), record.get("sources")
    if not isinstance(sources, list) or not sources or not isinstance(sources[0], dict):
        raise CorpusError(f"{where}: sources is {sources!r:.40}; wanted a list of one file")
    kind = sources[0].get("type")
    if len(sources) > 1 or kind != "file":
        found = f"{len(sources)} sources" if len(sources) > 1 else f"a source of type {kind!r}"
        raise CorpusError(
            f"{where}: {found}; wanted one file: antigram runs no commands, downloads nothing, and "
            "joins no files. Save the audio to files, and their manifest, with lhotse"
        )
    if record.get("transforms"):
        raise CorpusError(
            f"{where}: the recording has transforms, which antigram does not compute: save the "
            "audio with lhotse"
        )
    channels = sources[0].get("channels")
    return _Recording(pieces.path(text(sources[0], "source", where), line), _channels(channels))


def _channels(value: object) -> tuple[int, ...]:
    """Return channels in order; empty if they are not stated."""
    listed = value if isinstance(value, list) else [value]
    return tuple(sorted(c for c in listed if isinstance(c, int)))


def _read_supervisions(pieces: Pieces, path: Path, recordings: dict[str, _Recording]) -> None:
    used = set()
    for line, record in json_lines(path):
        where = pieces.where(line)
        id_, name = text(record, "id", where), text(record, "recording_id", where)
        if (recording := recordings.get(name)) is None:
            pieces.reject(id_, line, f"no recording has the id {name!r}")
            continue
        used.add(name)
        _check_channels(recording, record, where)
        start = number(record, "start", where)
        _add(
            pieces, id_, recording, line, start, number(record, "duration", where), _fields(record)
        )
    if unused := len(recordings) - len(used):
        pieces.skip("recording without a supervision", unused)


def _read_cuts(pieces: Pieces, path: Path) -> None:
    for line, cut in json_lines(path):
        where = pieces.where(line)
        kind, id_ = cut.get("type", "MonoCut"), text(cut, "id", where)
        recording = cut.get("recording")
        if kind not in ("MonoCut", "MultiCut") or not isinstance(recording, dict):
            what = f"a {kind}" if isinstance(recording, dict) or "tracks" in cut else "no recording"
            raise CorpusError(
                f"{where}: the cut has {what}; wanted parts of recordings: save its audio, and the "
                "manifest of that, with lhotse (save_audios)"
            )
        of = _recording(pieces, recording, line)
        _check_channels(of, cut, where)
        start, duration = number(cut, "start", where), number(cut, "duration", where)
        custom = _custom(cut)
        supervisions = cut.get("supervisions") or []
        if not isinstance(supervisions, list) or not all(isinstance(s, dict) for s in supervisions):
            raise CorpusError(f"{where}: supervisions is no list of objects")
        if not supervisions and custom:
            _add(pieces, id_, of, line, start, duration, custom)
        elif not supervisions:
            pieces.skip("cut without a supervision")
        for supervision in supervisions:
            _check_channels(of, supervision, where)
            # Its start counts from that of the cut, which may hold a part of it only.
            first = number(supervision, "start", where)
            last = min(duration, first + number(supervision, "duration", where))
            first = max(0.0, first)
            name = id_ if len(supervisions) == 1 else f"{id_}/{text(supervision, 'id', where)}"
            fields = {**custom, **_fields(supervision)}
            _add(pieces, name, of, line, start + first, last - first, fields)


def _check_channels(recording: _Recording, record: Mapping[str, Any], where: str) -> None:
    """Raise if a part is of some channels of its file only: antigram averages all of them."""
    channels = _channels(record.get("channel"))
    if len(recording.channels) > 1 and channels and channels != recording.channels:
        raise CorpusError(
            f"{where}: is of channel {channels} of {recording.channels}; antigram averages all "
            "channels of a file: save each channel to a file of its own"
        )


def _add(
    pieces: Pieces,
    id_: str,
    recording: _Recording,
    line: int,
    start: float,
    duration: float,
    fields: Mapping[str, object],
) -> None:
    if start < 0 or duration <= 0:
        reason = f"a part from {start:g} s that lasts {duration:g} s is outside its recording"
        pieces.reject(recording.path, line, reason)
        return
    # Sums of decimal fractions are rounded, so that the sample is that of the sum.
    start, end = round(start, 9), round(start + duration, 9)
    pieces.add(id_, recording.path, line, fields, start=start, end=end)


def _fields(supervision: Mapping[str, Any]) -> dict[str, object]:
    fields = {name: supervision.get(name) for name in _PLAIN}
    return fields | {
        f"custom.{name}" if name in _PLAIN else name: value
        for name, value in _custom(supervision).items()
    }


def _custom(record: Mapping[str, Any]) -> dict[str, object]:
    custom = record.get("custom")
    return custom if isinstance(custom, dict) else {}
