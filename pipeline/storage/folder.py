"""The folder backend: each object is a file, mapped as long as the process may map as many."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.backend import (
    MOST_DOCUMENT,
    REPLACED,
    WRITTEN,
    Entry,
    OverwrittenError,
    RowLayout,
    WrongSizeError,
)
from antigram.pipeline.storage.durable import atomic_file, begin_writeback, write_in_parts
from antigram.pipeline.storage.files import (
    Identity,
    evenly_spaced,
    identity_at,
    map_file,
    read_now,
    read_soon,
)
from antigram.pipeline.storage.map_limit import MapLimit
from antigram.pipeline.storage.read_files import ReadFiles
from antigram.pipeline.storage.regular import read_regular

__all__ = ["Folder"]

_MAPS = MapLimit()


@dataclass(frozen=True, slots=True)
class Folder:
    """A `Store` in a folder.

    Attributes:
        path: the folder; it is made when the first object is written.
    """

    path: Path

    def get(self, key: str) -> bytes:
        """Return the bytes of a file; see `Reader`."""
        return read_regular(self.path / key, MOST_DOCUMENT)

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Map a file; see `Viewer`."""
        return map_file(self.path / key)[start:stop]

    def view_rows(
        self, name: str, keys: Sequence[str], layout: RowLayout, *, mapped: bool = True
    ) -> MappedFiles | ReadFiles:
        """Map files at evenly spaced addresses, so that all their rows are one array.

        More files than the process may map, or than its address space has room for, are read at
        each call instead. See `RowViewer`.
        """
        if mapped and _MAPS.reserve(len(keys)):
            try:
                files = MappedFiles(self.path, name, keys, layout)
            except OSError as error:
                _MAPS.release(len(keys))
                if error.errno != errno.ENOMEM:
                    raise
            else:
                files.when_unmapped(_MAPS.release, len(keys))
                return files
        return ReadFiles(self.path, keys, layout)

    def head(self, key: str) -> Entry | None:
        """Return size and identity of a file; see `Header`."""
        identity = identity_at(self.path / key)
        return None if identity is None else Entry(key, identity.size, identity)

    def list(self) -> Iterator[Entry]:
        """Yield all files below the folder; see `Lister`."""
        yield from _entries(os.fspath(self.path), "")

    def groups(self) -> Sequence[str]:
        """Return the names of the subfolders; see `Grouped`."""
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    def below(self, name: str) -> Folder:
        """Return the backend of a subfolder; see `Grouped`."""
        return Folder(self.path / name)

    def reopened(self) -> Folder:
        """Return this backend, as it always reads the present files; see `Grouped`."""
        return self

    def where(self, key: str = "") -> str:
        """Return the path of a file; see `Grouped`."""
        return str(self.path / key)

    def put(self, key: str, *parts: bytes | memoryview, flush: bool = True) -> None:
        """Write a file atomically; see `Writer`."""
        path = self.path / key
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, flush=flush) as file:
            for part in parts:
                write_in_parts(file, memoryview(part))
            if not flush:
                begin_writeback(file)

    def delete(self, key: str) -> None:
        """Delete a file; see `Deleter`."""
        (self.path / key).unlink(missing_ok=True)


class MappedFiles:
    """A `RowView` of files. A map stays valid if its file is replaced or deleted.

    If a file is truncated while its map is read, the process ends with SIGBUS. `open` and `look`
    compare sizes first, which leaves only a short interval.

    Args:
        folder: root of the backend.
        name: common prefix of the keys, for messages.
        keys: keys of the files.
        layout: layout of each file.

    Raises:
        OSError: the process may not reserve so much address space.
    """

    def __init__(self, folder: Path, name: str, keys: Sequence[str], layout: RowLayout) -> None:
        self._folder, self._name, self._keys, self._layout = folder, name, keys, layout
        self._region, self.apart = evenly_spaced(layout.row_bytes, layout.size, len(keys))
        self._stride = self.apart * layout.row_bytes
        self.table = self._region.bytes.reshape(-1, layout.row_bytes)
        self._noted: dict[int, Identity] = {}  # identities of the files that can still change
        self._mapped = np.zeros(len(keys), bool)

    def when_unmapped(self, call: Callable[[int], None], maps: int) -> None:
        """Call a function when the last array of these maps is gone."""
        self._region.when_unmapped(call, maps)

    def open(self, index: int) -> None:
        """Map a file; see `RowView`."""
        path = self._folder / self._keys[index]
        if self._mapped[index]:
            was, now = self._noted.get(index), identity_at(path)
            if was and now and now.is_same_file(was) and now.size != was.size:
                raise OverwrittenError(str(path), now.size)
            return
        noted = self._region.map(path, index * self._stride, self._layout.size, self._stride)
        if noted.size != self._layout.size:
            raise WrongSizeError(noted.size)
        self._noted[index] = noted
        self._mapped[index] = True

    def expect(self, index: int, first: int, size: int) -> None:
        """Have some bytes of a mapped file read soon; see `RowView`."""
        read_soon(self._region.address + index * self._stride + first, size)

    def fetch(self, index: int) -> None:
        """Read a mapped file into memory; see `RowView`."""
        read_now(self._region.address + index * self._stride, self._layout.data)

    def part(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of the rows of a mapped file; see `RowView`."""
        if not self._mapped[index]:
            raise RuntimeError(f"{self._keys[index]} is not mapped")
        first = index * self._stride
        return self._region.bytes[first : first + self._layout.data]

    def read(self, index: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Return some bytes of a mapped file; see `RowView`."""
        pieces: NDArray[np.uint8] = self.part(index)[offsets[:, None] + np.arange(size)]
        return pieces

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """Check mapped files; a file that was written to is read again. See `RowView`."""
        mapped = [index for index in chosen if index in self._noted]
        events = Counter(self._look_at(index, intact) for index in mapped)
        return [
            f"{self._folder / self._name}: {events[event]} of {len(mapped)} chunks {event}"
            for event in (REPLACED, WRITTEN)
            if events[event]
        ]

    def _look_at(self, index: int, intact: Callable[[int], bool]) -> str:
        """Return `REPLACED` or `WRITTEN`, or an empty string if a file has not changed."""
        was, path = self._noted[index], self._folder / self._keys[index]
        if (now := identity_at(path)) == was:
            return ""
        if now is None or not now.is_same_file(was):
            del self._noted[index]  # its map can no longer change
            return REPLACED
        if now.size != was.size or not intact(index):
            raise OverwrittenError(str(path), now.size)
        self._noted[index] = now
        return WRITTEN


def _entries(folder: str, prefix: str) -> Iterator[Entry]:
    """Yield the files below a folder; a store may have a million, so there are no `Path` objects.

    Args:
        folder: the folder.
        prefix: what the keys of its files begin with.
    """
    try:
        with os.scandir(folder) as scanned:
            found = sorted(scanned, key=lambda entry: entry.name)
    except OSError:  # just deleted, or not there
        return
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(entry.path, f"{prefix}{entry.name}/")
            continue
        try:
            status = entry.stat()
        except OSError:  # just deleted, or a broken link
            continue
        if stat.S_ISREG(status.st_mode):
            yield Entry(prefix + entry.name, status.st_size, Identity.of(status))
