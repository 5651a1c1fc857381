"""What recordings were as they were read, so that edited ones are noticed: size, time, checksum.

A worker notes what it reads before it is decoded: an edit at any later moment shows as a
difference. What differs in size or time is read and held against its checksum, so that a recording
that was only copied or touched counts as the same.
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
from antigram.pipeline.storage.regular import regular

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
_AHEAD = 256  # files handed to the threads at once
# File systems keep times of change in steps, up to this coarse (FAT): a file that changed less than
# that before it was read may change once more and show the same time.
_COARSE_NS = 2_000_000_000
_NAMED = 3


class Source(NamedTuple):
    """A recording as it was read.

    Attributes:
        path: relative to the corpus's folder.
        size: bytes; -1 if it could not be read.
        mtime_ns: time of its last change.
        crc32c: of all its bytes; None where another task notes it.
        fresh: its last change was so recent that its time does not tell of another one.
    """

    path: str
    size: int
    mtime_ns: int
    crc32c: int | None
    fresh: bool

    @property
    def version(self) -> tuple[str, int, int]:
        """What tells without reading that it has changed."""
        return self.path, self.size, self.mtime_ns


def paths_of(rows: Iterable[Row]) -> list[str]:
    """Recordings that rows are made of, each once, in order."""
    found: dict[str, None] = {}
    for row in rows:
        for path in (row.path,) if row.mixture is None else (p for p, _ in row.mixture.clean):
            found[path] = None
    return list(found)


def shared_paths(blocks: Sequence[Sequence[Row]]) -> Iterator[list[str]]:
    """Of each of several lists of rows: the recordings that one before it is made of, too."""
    seen: set[str] = set()
    for rows in blocks:
        paths = paths_of(rows)
        yield [path for path in paths if path in seen]
        seen.update(paths)


def name_some(paths: Sequence[str]) -> str:
    """The first of some paths, and how many there are: for a message."""
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


class Reading:
    """What a task reads: noted file by file.

    Args:
        home: the corpus's folder.
        elsewhere: recordings whose checksum another task notes: those that many tasks read, each a
            part, are not summed up by each.
    """

    def __init__(self, home: Path, elsewhere: Collection[str] = ()) -> None:
        self._home, self._elsewhere = home, elsewhere
        self._seen: dict[tuple[str, int, int], Source] = {}

    def look(self, path: str) -> Callable[[int, os.stat_result, bytes], None]:
        """What `audio.read` is to call with the open file before it decodes it.

        It takes the descriptor, the file's status and its first bytes.
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
        """Take over what another one noted."""
        self._seen |= other._seen

    def of(self, rows: Iterable[Row]) -> list[Source]:
        """What the recordings of some rows were; one that changed meanwhile is there twice."""
        read = {path for path, _, _ in self._seen}
        unread = [_now(self._home, path) for path in paths_of(rows) if path not in read]
        return [*self._seen.values(), *unread]


def _checksum(handle: int, head: bytes = b"") -> int:
    """crc32c of an open file whose first bytes are known; its position is not used."""
    crc, place = crc32c(head), len(head)
    while part := os.pread(handle, _PART, place):
        crc, place = crc32c(part, crc), place + len(part)
    return crc


def _now(home: Path, path: str) -> Source:
    """A recording as it is now, read from its first to its last byte."""
    reading = Reading(home)
    try:
        handle, status = regular(f"{home}/{path}")
        try:
            reading.look(path)(handle, status, b"")
        finally:
            os.close(handle)
    except OSError:
        return Source(path, -1, 0, 0, fresh=False)
    return next(iter(reading._seen.values()))


@dataclass(frozen=True, slots=True)
class Compared:
    """Recordings held against what they were.

    Attributes:
        same: each that has the same content, as it was noted -> as it is now.
        changed: the others, as they were noted.
        read: how many had to be read.
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
    """Look at recordings, and read those whose size or time differs from what was noted.

    Args:
        home: the corpus's folder.
        noted: what they were.
        read_all: read all of them.
        on_progress: called with (recordings read, those to be read).
    """
    noted = set(noted)
    sums = {source.version: source.crc32c for source in noted if source.crc32c is not None}
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
        found = now[source.path]
        if found.crc32c == sums.get(source.version) and (found.size < 0) == (source.size < 0):
            same[source] = found
    return Compared(same, frozenset(noted - same.keys()), len(paths))


def _version_now(home: Path, path: str) -> tuple[str, int, int] | None:
    try:
        status = os.stat(f"{home}/{path}")  # noqa: PTH116 - as text: see `corpus.Clip.path`
    except OSError:
        return None
    return path, status.st_size, status.st_mtime_ns


def joined(parts: Iterable[Iterable[Source]], home: Path) -> list[Source]:
    """What tasks noted, each recording once, by path.

    Raises:
        InputError: tasks read different versions of a recording.
    """
    found: dict[str, Source] = {}
    torn: list[str] = []
    for source in (source for part in parts for source in part):
        before = found.setdefault(source.path, source)
        if before.version == source.version:
            found[source.path] = source if before.crc32c is None else before
        elif source.size < 0:
            found[source.path] = source  # not readable as a whole
        elif before.size >= 0:
            torn.append(source.path)
    if torn:
        raise InputError(
            f"{home}: recordings changed while they were read ({name_some(sorted(set(torn)))}). "
            "Let nothing write there, and run the same command again."
        )
    return [found[path] for path in sorted(found)]
