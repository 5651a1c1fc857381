"""The backend of a folder: each object is a file, and is mapped into memory."""

from __future__ import annotations

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
from antigram.pipeline.storage.files import Identity, even_places, identity_at, map_file
from antigram.pipeline.storage.regular import read_regular

__all__ = ["Folder"]


@dataclass(frozen=True, slots=True)
class Folder:
    """A `Store` in a folder.

    Attributes:
        path: the folder; made when something is put.
    """

    path: Path

    def get(self, key: str) -> bytes:
        """Bytes of a file: see `Reader`."""
        return read_regular(self.path / key, MOST_DOCUMENT)

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Map of a file: see `Viewer`."""
        return map_file(self.path / key)[start:stop]

    def view_rows(self, name: str, keys: Sequence[str], layout: RowLayout) -> MappedFiles:
        """Maps of files at equal distances: see `RowViewer`."""
        return MappedFiles(self.path, name, keys, layout)

    def head(self, key: str) -> Entry | None:
        """See `Header`."""
        found = identity_at(self.path / key)
        return None if found is None else Entry(key, found.size, found)

    def list(self) -> Iterator[Entry]:
        """All files below the folder: see `Lister`."""
        for path in sorted(self.path.rglob("*")):
            try:
                status = path.stat()
            except OSError:  # deleted a moment ago, or a link to nothing
                continue
            if stat.S_ISREG(status.st_mode):
                key = path.relative_to(self.path).as_posix()
                yield Entry(key, status.st_size, Identity.of(status))

    def groups(self) -> Sequence[str]:
        """Names of the folders in it: see `Grouped`."""
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.is_dir())

    def below(self, name: str) -> Folder:
        """A folder in it: see `Grouped`."""
        return Folder(self.path / name)

    def reopened(self) -> Folder:
        """See `Grouped`; nothing of the folder is kept."""
        return self

    def where(self, key: str = "") -> str:
        """Path of a file: see `Grouped`."""
        return str(self.path / key)

    def put(self, key: str, *parts: bytes | memoryview, flush: bool = True) -> None:
        """Write a file: see `Writer`."""
        path = self.path / key
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, flush=flush) as file:
            for part in parts:
                write_in_parts(file, memoryview(part))
            if not flush:
                begin_writeback(file)

    def delete(self, key: str) -> None:
        """Delete a file: see `Deleter`."""
        (self.path / key).unlink(missing_ok=True)


class MappedFiles:
    """A `RowView` of files. A map keeps a file that others replace or delete.

    A file that is truncated while its map is read ends the process by SIGBUS: that is looked for
    beforehand, which leaves a moment, and no more.

    Args:
        folder: the backend's root.
        name: key that the files lie below, for messages.
        keys: of the files.
        layout: of each file.

    Raises:
        OSError: the process may not have so much address space.
    """

    def __init__(self, folder: Path, name: str, keys: Sequence[str], layout: RowLayout) -> None:
        self._folder, self._name, self._keys, self._layout = folder, name, keys, layout
        self._region, self.apart = even_places(layout.row_bytes, layout.size, len(keys))
        self._stride = self.apart * layout.row_bytes
        self.table = self._region.bytes.reshape(-1, layout.row_bytes)
        self._noted: dict[int, Identity] = {}  # of the files that can still change
        self._mapped = np.zeros(len(keys), bool)

    def open(self, index: int) -> None:
        """Map a file: see `RowView`."""
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

    def part(self, index: int) -> NDArray[np.uint8]:
        """Rows of a file that is mapped: see `RowView`."""
        if not self._mapped[index]:
            raise RuntimeError(f"{self._keys[index]} is not mapped")
        first = index * self._stride
        return self._region.bytes[first : first + self._layout.data]

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """See `RowView`: a file that was written to is read again."""
        there = [index for index in chosen if index in self._noted]
        found = Counter(self._look_at(index, intact) for index in there)
        return [
            f"{self._folder / self._name}: {found[event]} of {len(there)} chunks {event}"
            for event in (REPLACED, WRITTEN)
            if found[event]
        ]

    def _look_at(self, index: int, intact: Callable[[int], bool]) -> str:
        """Event that became of a file, or nothing."""
        was, path = self._noted[index], self._folder / self._keys[index]
        if (now := identity_at(path)) == was:
            return ""
        if now is None or not now.is_same_file(was):
            del self._noted[index]  # its map cannot change any more
            return REPLACED
        if now.size != was.size or not intact(index):
            raise OverwrittenError(str(path), now.size)
        self._noted[index] = now
        return WRITTEN
