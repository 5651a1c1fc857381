"""What stored data lies in: keys to bytes, one small protocol for each capability.

A key is a string of names with ``/`` between them, below the backend's root; a group of arrays is
what lies below a key. An object is complete or not there. Whoever reads a store or cache is given a
`Backend` and asks it for keys, and never which kind of backend it is; `pipeline.storage.opening`
alone knows the kinds. A folder can be written to as well (`Store`); an exported file cannot: it is
written in one go by `pipeline.storage.exchange`, and is then read only.

One contract suite of the tests, ``test_backends.py``, holds each backend to what stands here.
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

# What may happen to an object in use without harm, as `RowView.look` says it.
REPLACED = "were replaced or removed since they were opened; what was opened is used on"
WRITTEN = "were written to since they were opened; their content is as it was (crc32c)"


class WrongSizeError(Exception):
    """An object has ``size`` bytes and not those that were asked for."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class OverwrittenError(Exception):
    """An object was changed in place while it was in use; ``where`` it is, its ``size`` now."""

    def __init__(self, where: str, size: int) -> None:
        super().__init__(where, size)
        self.where, self.size = where, size


@dataclass(frozen=True, slots=True)
class Entry:
    """An object that is there.

    Attributes:
        key: its key.
        size: in bytes.
        identity: equal to that of an earlier look if nothing wrote to the object in between.
    """

    key: str
    size: int
    identity: object


@runtime_checkable
class Reader(Protocol):
    """Reads documents."""

    def get(self, key: str) -> bytes:
        """All bytes of an object of at most `MOST_DOCUMENT` bytes.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read, or is larger.
        """


@runtime_checkable
class Viewer(Protocol):
    """Shows objects without a copy, where it can."""

    def view(self, key: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Bytes ``start`` to ``stop`` of an object, read only; to its end if ``stop`` is None.

        They stay what they are when another object takes the key.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read.
        """


@dataclass(frozen=True, slots=True)
class RowLayout:
    """What each of the objects of a `RowView` consists of.

    Attributes:
        rows: their number.
        row_bytes: bytes of a row.
        tail: bytes behind the rows.
    """

    rows: int
    row_bytes: int
    tail: int

    @property
    def data(self) -> int:
        """Bytes of the rows."""
        return self.rows * self.row_bytes

    @property
    def size(self) -> int:
        """Bytes of an object."""
        return self.data + self.tail


class RowView(Protocol):
    """Objects of one size at equal distances in memory, so that one call gathers rows of many.

    Attributes:
        table: (row, byte of the row); of what is not open nothing may be read.
        apart: rows of the table from the first row of an object to that of the next.
    """

    table: NDArray[np.uint8]
    apart: int

    def open(self, index: int) -> None:
        """Show an object from now on as it is now, whatever takes its key. Nothing is read.

        Raises:
            WrongSizeError: it has another size.
            OverwrittenError: it was opened before, and has been truncated since.
            OSError: it is not there or cannot be read; ENOMEM: too many are open.
        """

    def part(self, index: int) -> NDArray[np.uint8]:
        """Bytes of the rows of an object that is open."""

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """Hold objects that are open against what they were when they were opened.

        Args:
            chosen: their indices; those that are not open are passed over.
            intact: whether the part of an object is what it should be.

        Returns:
            Lines for people: what was replaced, or written to and still intact.

        Raises:
            OverwrittenError: one was truncated, or is not intact any more.
        """


@runtime_checkable
class RowViewer(Protocol):
    """Shows many objects as one table of rows."""

    def view_rows(self, name: str, keys: Sequence[str], layout: RowLayout) -> RowView:
        """Objects that each begin with rows.

        Args:
            name: key that they lie below, for messages.
            keys: of the objects, in order.
            layout: of each of them.
        """


@runtime_checkable
class Header(Protocol):
    """Looks at an object without reading it."""

    def head(self, key: str) -> Entry | None:
        """Size and identity of an object; None if it is not there or cannot be looked at."""


@runtime_checkable
class Lister(Protocol):
    """Lists objects."""

    def list(self) -> Iterator[Entry]:
        """All objects, sorted by the names of their keys."""


@runtime_checkable
class Grouped(Protocol):
    """Knows groups: what lies below a key."""

    def groups(self) -> Sequence[str]:
        """First names of the keys that have more than one, sorted; of an empty folder, too."""

    def below(self, name: str) -> Self:
        """The same backend with its root at a group."""

    def reopened(self) -> Self:
        """What lies in the same place now, which others may have replaced."""

    def where(self, key: str = "") -> str:
        """Name of an object or of the root, for messages."""


class Backend(Reader, Viewer, RowViewer, Header, Lister, Grouped, Protocol):
    """All that reading a store or cache takes."""


@runtime_checkable
class Writer(Protocol):
    """Takes objects."""

    def put(self, key: str, *parts: bytes | memoryview, flush: bool = True) -> None:
        """Store an object, all of it or nothing; one that has the key is replaced.

        Args:
            key: its key.
            parts: its bytes, one after the other.
            flush: return when it would survive a power cut. Without, a kill cannot harm it, a
                power cut may: for what is flushed with all else before it is published.

        Raises:
            InputError: what has the key is no object.
            OSError: there is no room, or no right to write.
        """


@runtime_checkable
class Deleter(Protocol):
    """Deletes objects."""

    def delete(self, key: str) -> None:
        """Delete an object; nothing happens if it is not there."""


class Store(Backend, Writer, Deleter, Protocol):
    """A backend that groups are made in."""
