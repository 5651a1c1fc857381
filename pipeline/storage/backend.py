"""Storage backends: mappings from keys to bytes, with one small protocol for each capability.

A key is a path of names separated by ``/``, relative to the backend's root. A group of arrays is
the set of keys below a prefix. An object is complete or does not exist. Code that reads a store or
cache takes a `Backend` and never depends on its kind; only `pipeline.storage.opening` knows the
kinds. A folder can also be written to (`Store`). An exported file is read only:
`pipeline.storage.exchange` writes it as a unit.

The contract suite ``test_backends.py`` tests every backend against these protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "MOST_DOCUMENT",
    "REPLACED",
    "WRITTEN",
    "Backend",
    "ChangedError",
    "Deleter",
    "Entry",
    "Grouped",
    "Header",
    "Lister",
    "OverwrittenError",
    "Reader",
    "RowLayout",
    "RowView",
    "RowViewer",
    "Store",
    "Viewer",
    "Writer",
    "WrongSizeError",
]

MOST_DOCUMENT = 256 << 20  # bytes: a manifest of 20 million chunks

# Harmless changes of an object in use, as `RowView.look` reports them.
REPLACED = "were replaced or removed since they were opened; the opened ones remain in use"
WRITTEN = "were written to since they were opened; their content is as it was (crc32c)"


class WrongSizeError(Exception):
    """An object has another size than requested; ``size`` is its size in bytes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class ChangedError(Exception):
    """An object is no longer the one that was opened: replaced, or written to."""


class OverwrittenError(Exception):
    """An object was changed in place while in use; ``where`` names it, ``size`` is its size now."""

    def __init__(self, where: str, size: int) -> None:
        super().__init__(where, size)
        self.where, self.size = where, size


@dataclass(frozen=True, slots=True)
class Entry:
    """Key, size and identity of an object.

    Attributes:
        key: key of the object.
        size: size in bytes.
        identity: value that changes whenever the object is written to or replaced.
    """

    key: str
    size: int
    identity: object


@runtime_checkable
class Reader(Protocol):
    """A backend that reads small objects, such as ``zarr.json``, into memory."""

    def get(self, key: str) -> bytes:
        """Return the bytes of an object of at most `MOST_DOCUMENT` bytes.

        Raises:
            FileNotFoundError: the object does not exist.
            OSError: the object cannot be read, or is larger than that.
        """


@runtime_checkable
class Viewer(Protocol):
    """A backend that reads objects, without a copy if possible."""

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return bytes ``start`` to ``stop`` of an object, read only.

        The bytes stay valid if the object is replaced or deleted.

        Args:
            key: key of the object.
            start: first byte.
            stop: byte after the last one; None: the end of the object.

        Raises:
            FileNotFoundError: the object does not exist.
            OSError: the object cannot be read.
        """


@dataclass(frozen=True, slots=True)
class RowLayout:
    """Layout of each object of a `RowView`: rows of equal size, and a tail.

    Attributes:
        rows: number of rows.
        row_bytes: size of a row in bytes.
        tail: number of bytes after the rows.
    """

    rows: int
    row_bytes: int
    tail: int

    @property
    def data(self) -> int:
        """Size of all rows in bytes."""
        return self.rows * self.row_bytes

    @property
    def size(self) -> int:
        """Size of an object in bytes."""
        return self.data + self.tail


class RowView(Protocol):
    """Objects of equal size, which consist of rows.

    Mapped objects lie at equal distances in memory, so that one call gathers rows of many of them.
    More objects than a process may map are read instead, at each call.
    """

    @property
    def table(self) -> NDArray[np.uint8] | None:
        """(row, byte of the row) uint8, of which only rows of opened objects may be read.

        None if the objects are not mapped.
        """

    @property
    def apart(self) -> int:
        """Number of table rows from the first row of one object to the first row of the next."""

    def open(self, index: int) -> None:
        """Map an object into the table, without reading it; replacing it has no effect then.

        An object that is not mapped is noted instead.

        Raises:
            WrongSizeError: the object has another size.
            OverwrittenError: the object was opened before, and has been truncated since.
            OSError: the object does not exist or cannot be read; ENOMEM: too many are open.
        """

    def expect(self, index: int, first: int, size: int) -> None:
        """Have some bytes of an opened object read into memory in the background.

        This is a hint: nothing depends on it but the time that a later read takes.
        """

    def fetch(self, index: int) -> None:
        """Read the rows of an opened object into memory, while other threads go on.

        Where that has no use, as for objects that are not mapped, this does nothing.
        """

    def part(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of the rows of an opened object.

        If objects are not mapped, this raises as `open` does, and notes the object as it is now.
        """

    def read(self, index: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Return some bytes of an opened object.

        Args:
            index: index of the object.
            offsets: first byte of each piece.
            size: size of each piece in bytes.

        Returns:
            ``(piece, byte)``.

        Raises:
            ChangedError: the object is not mapped, and not as it was when it was noted.
            OSError: the object is not mapped, and cannot be read.
        """

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """Check whether opened objects have changed since they were opened.

        Args:
            chosen: indices of the objects to check; objects that are not open are ignored.
            intact: called with an index; returns whether the bytes of that object are valid.

        Returns:
            Lines for the user about objects that were replaced, or rewritten with the same bytes.

        Raises:
            OverwrittenError: an object was truncated, or its bytes are no longer valid.
        """


@runtime_checkable
class RowViewer(Protocol):
    """A backend that maps many objects as one table of rows."""

    def view_rows(
        self, name: str, keys: Sequence[str], layout: RowLayout, *, mapped: bool = True
    ) -> RowView:
        """Return a view of objects that consist of rows.

        Args:
            name: common prefix of the keys, for messages.
            keys: keys of the objects, in order.
            layout: layout of each object.
            mapped: whether to map the objects, if the process may map as many; a backend that needs
                no map for each object ignores it.
        """


@runtime_checkable
class Header(Protocol):
    """A backend that gets size and identity of an object without reading it."""

    def head(self, key: str) -> Entry | None:
        """Return size and identity of an object; None if it does not exist or is inaccessible."""


@runtime_checkable
class Lister(Protocol):
    """A backend that lists its objects."""

    def list(self) -> Iterator[Entry]:
        """Yield all objects, sorted by the names that their keys consist of."""


@runtime_checkable
class Grouped(Protocol):
    """A backend that divides its objects into groups, by the prefixes of their keys."""

    def groups(self) -> Sequence[str]:
        """Return the sorted names of the groups directly below the root, empty folders included."""

    def below(self, name: str) -> Self:
        """Return a backend whose root is a group of this backend."""

    def reopened(self) -> Self:
        """Return a backend for the data now at the same path, which may have been replaced."""

    def where(self, key: str = "") -> str:
        """Return the path of an object, or of the root if ``key`` is empty, for messages."""


class Backend(Reader, Viewer, RowViewer, Header, Lister, Grouped, Protocol):
    """All capabilities needed to read a store or cache."""


@runtime_checkable
class Writer(Protocol):
    """A backend that writes objects."""

    def put(self, key: str, *parts: bytes | memoryview, flush: bool = True) -> None:
        """Write an object atomically; an object with the same key is replaced.

        Args:
            key: key of the object.
            parts: bytes of the object, one part after the other.
            flush: flush to disk before returning. Without it, the object survives a kill but not
                necessarily a power cut; the caller flushes everything before publishing.

        Raises:
            InputError: the key names something that is not an object.
            OSError: the disk is full, or writing is not permitted.
        """


@runtime_checkable
class Deleter(Protocol):
    """A backend that deletes objects."""

    def delete(self, key: str) -> None:
        """Delete an object if it exists."""


class Store(Backend, Writer, Deleter, Protocol):
    """A backend that can be read and written."""
