"""Detect edited recordings: note size, time and checksum of each recording when it is read.

A worker notes the state of a recording before decoding it, so that any later edit shows as a
difference. A recording whose size or time differs is read and compared with its checksum, so that
a recording that was only copied or touched counts as unchanged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from antigram.pipeline.errors import InputError
from antigram.pipeline.features.listing import Row
from antigram.pipeline.storage.chunks import crc32c
from antigram.pipeline.storage.members import open_recording, stat_recording

__all__ = [
    "Compared",
    "Reading",
    "Source",
    "compare",
    "joined",
    "name_some",
    "paths_of",
    "shared_paths",
]

_PART = 1 << 20  # bytes read at once
_AHEAD = 256  # files submitted to the threads at once
# Resolution of the times of change on the coarsest file system (FAT). A file that changed less than
# this before it was read may change again and keep the same time.
_COARSE_NS = 2_000_000_000
_NAMED = 3


class Source(NamedTuple):
    """A recording as it was read.

    Attributes:
        path: relative to the corpus's folder.
        size: size in bytes; -1 if the file could not be read.
        mtime_ns: time of the last change.
        crc32c: checksum of all bytes; None if another task notes it.
        fresh: whether the last change was so recent that a further one may not change the time.
    """

    path: str
    size: int
    mtime_ns: int
    crc32c: int | None
    fresh: bool

    @property
    def version(self) -> tuple[str, int, int]:
        """Path, size and time: a difference in them is seen without reading the file."""
        return self.path, self.size, self.mtime_ns


def paths_of(rows: Iterable[Row]) -> list[str]:
    """Return the recordings that rows are made of, without duplicates, in order."""
    paths: dict[str, None] = {}
    for row in rows:
        for path in (row.path,) if row.mixture is None else (p for p, _ in row.mixture.clean):
            paths[path] = None
    return list(paths)


def shared_paths(blocks: Sequence[Sequence[Row]]) -> Iterator[list[str]]:
    """Yield, for each block of rows, its recordings that an earlier block uses too."""
    seen: set[str] = set()
    for rows in blocks:
        paths = paths_of(rows)
        yield [path for path in paths if path in seen]
        seen.update(paths)


def name_some(paths: Sequence[str]) -> str:
    """Return the first of some paths and the number of the others, for a message."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


class Reading:
    """Collects path, size, time and checksum of each recording that a task reads.

    Args:
        home: the corpus's folder.
        elsewhere: paths of recordings whose checksum another task computes. When a long recording
            is divided over several tasks, only one task reads the complete file for its checksum.
    """

    def __init__(self, home: Path, elsewhere: Collection[str] = ()) -> None:
        self._home, self._elsewhere = home, elsewhere
        self._seen: dict[tuple[str, int, int], Source] = {}

    def look(self, path: str) -> Callable[[int, os.stat_result, bytes], None]:
        """Return a callback for `audio.decoding.read` that notes a recording.

        The callback takes the file's descriptor, its status and its first bytes.
        """

        def look(handle: int, status: os.stat_result, head: bytes) -> None:
            version = path, status.st_size, status.st_mtime_ns
            if version not in self._seen:
                is_all = len(head) == status.st_size
                wanted = is_all or path not in self._elsewhere
                crc = _checksum(handle, head) if wanted else None
                fresh = time.time_ns() - status.st_mtime_ns < _COARSE_NS
                self._seen[version] = Source(*version, crc, fresh)

        return look

    def add(self, other: Reading) -> None:
        """Add the notes of another reading."""
        self._seen |= other._seen

    def of(self, rows: Iterable[Row]) -> list[Source]:
        """Return the noted states of the rows' recordings; a changed recording has two states."""
        read = {path for path, _, _ in self._seen}
        unread = [_now(self._home, path) for path in paths_of(rows) if path not in read]
        return [*self._seen.values(), *unread]


def _checksum(handle: int, head: bytes = b"") -> int:
    """Return the crc32c of an open file whose first bytes are known; its position is not moved."""
    crc, offset = crc32c(head), len(head)
    while part := os.pread(handle, _PART, offset):
        crc, offset = crc32c(part, crc), offset + len(part)
    return crc


def _now(home: Path, path: str) -> Source:
    """Return the present state of a recording, after reading the complete file."""
    reading = Reading(home)
    try:
        handle, status = open_recording(f"{home}/{path}")
        try:
            reading.look(path)(handle, status, b"")
        finally:
            os.close(handle)
    except OSError:
        return Source(path, -1, 0, 0, fresh=False)
    return next(iter(reading._seen.values()))


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing recordings with their noted states.

    Attributes:
        same: noted state -> present state of the recordings with unchanged content.
        changed: noted states of the other recordings.
        read: number of recordings that had to be read.
    """

    same: Mapping[Source, Source]
    changed: frozenset[Source]
    read: int


def compare(
    home: Path,
    noted: Iterable[Source],
    *,
    read_all: bool = False,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Compared:
    """Compare recordings with their noted states; read a recording if its size or time differs.

    Args:
        home: the corpus's folder.
        noted: noted states of the recordings.
        read_all: read all recordings.
        on_progress: called with the recordings read and the number to read.
    """
    noted = set(noted)
    checksums = {source.version: source.crc32c for source in noted if source.crc32c is not None}
    same: dict[Source, Source] = {}
    differ: list[Source] = []
    for source in noted:
        if read_all or source.fresh or _version_now(home, source.path) != source.version:
            differ.append(source)
        else:
            same[source] = source
    paths = sorted({source.path for source in differ})
    now: dict[str, Source] = {}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for first in range(0, len(paths), _AHEAD):
            part = paths[first : first + _AHEAD]
            now |= zip(part, threads.map(lambda path: _now(home, path), part), strict=True)
            on_progress(len(now), len(paths))
    for source in differ:
        present = now[source.path]
        if present.crc32c == checksums.get(source.version) and (present.size < 0) == (
            source.size < 0
        ):
            same[source] = present
    return Compared(same, frozenset(noted - same.keys()), len(paths))


def _version_now(home: Path, path: str) -> tuple[str, int, int] | None:
    try:
        return path, *stat_recording(f"{home}/{path}")
    except OSError:
        return None


def joined(parts: Iterable[Iterable[Source]], home: Path) -> list[Source]:
    """Merge the notes of several tasks into one note for each recording, sorted by path.

    Raises:
        InputError: tasks have read different versions of a recording.
    """
    merged: dict[str, Source] = {}
    changed: list[str] = []
    for source in (source for part in parts for source in part):
        earlier = merged.setdefault(source.path, source)
        if earlier.version == source.version:
            merged[source.path] = source if earlier.crc32c is None else earlier
        elif source.size < 0:
            merged[source.path] = source  # could not be read completely
        elif earlier.size >= 0:
            changed.append(source.path)
    if changed:
        raise InputError(
            f"{home}: recordings changed while they were read ({name_some(sorted(set(changed)))}). "
            "Let nothing write there, and run the same command again."
        )
    return [merged[path] for path in sorted(merged)]
