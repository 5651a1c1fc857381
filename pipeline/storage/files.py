"""Files and folders: mapped into memory, told apart, removed, measured; names in errors."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import shutil
import stat
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.regular import regular

__all__ = [
    "HUGE_PAGE",
    "Identity",
    "Region",
    "check_replaceable",
    "even_places",
    "identity_at",
    "map_file",
    "map_noted",
    "named",
    "remove",
    "size_of",
    "size_text",
]

HUGE_PAGE = 2 << 20  # bytes; a file that lies at multiples of it can be mapped by such pages
_MOST_ADDRESSES = 1 << 44  # bytes of address space an array takes for huge pages; there are 2^47

_PROT_NONE, _MAP_FIXED = 0, 0x10  # of sys/mman.h; Python does not name them
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Identity(NamedTuple):
    """Which file it is, and in which state: a write changes ``mtime_ns``, a rename the inode.

    The inode of a file that is mapped is not given to another file.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Take it from what ``stat`` or ``fstat`` found."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_same_file(self, other: Identity) -> bool:
        """Whether the other is this file, in whatever state."""
        return self[:2] == other[:2]


def identity_at(path: Path) -> Identity | None:
    """Of the file that has a name now; None if there is none, or it cannot be looked at."""
    try:
        return Identity.of(path.stat())
    except OSError:
        return None


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a file, read only, without keeping it open: `map_noted` without what is noted."""
    return map_noted(path)[0]


def map_noted(path: Path) -> tuple[NDArray[np.uint8], Identity]:
    """Map a file, read only, without keeping it open, and note which it is.

    Python's own mmap keeps a descriptor for each map, and a cache of a million clips has more
    chunks than a process may open files (1,024 by default).

    A file that is truncated while its map is read ends the process by SIGBUS: whoever reads for
    long compares sizes beforehand (`RowView.look`), which leaves a moment, and no more.

    Raises:
        OSError: not there, no regular file, or not mappable.
    """
    handle, status = regular(path)
    size = status.st_size
    try:
        place = size and _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
    finally:
        os.close(handle)
    array = np.empty(0, np.uint8)  # a map of nothing cannot be had
    if size:
        _raise_if_failed(place, path)
        buffer = (ctypes.c_uint8 * size).from_address(place)
        weakref.finalize(buffer, _LIBC.munmap, place, size)
        array = np.frombuffer(memoryview(buffer), np.uint8)
    array.flags.writeable = False
    return array, Identity.of(status)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that does not: a write to a full disk, say."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it; nothing, if nothing is there.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; links are not followed. 0: nothing is there."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(size_of(inner) for inner in path.iterdir())
        return path.lstat().st_size
    except FileNotFoundError:  # until a moment ago
        return 0


def check_replaceable(path: Path) -> None:
    """Refuse a goal that a rename would take away for ever: a device, a pipe, a folder.

    Raises:
        InputError: it is one of these.
        OSError: it cannot be looked at: its name is too long, or a loop of links.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"{path}: is {kind}; wanted the name of a file")


def size_text(size: float) -> str:
    """``0.9 MB``, ``26 MB``, ``1.4 GB``: of bytes, for people."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 1e6:.1f} MB"


class Region:
    """Address space in which files are mapped at places of one's choice, read only.

    So the chunks of an array lie at equal distances, and one numpy call gathers rows from many.

    Args:
        size: bytes of address space; no memory is taken.

    Raises:
        OSError: the process may not have so much.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        found = _LIBC.mmap(None, size + HUGE_PAGE, _PROT_NONE, flags, -1, 0)
        _raise_if_failed(found, "address space")
        self._place = -(-found // HUGE_PAGE) * HUGE_PAGE
        buffer = (ctypes.c_uint8 * size).from_address(self._place)
        weakref.finalize(buffer, _LIBC.munmap, found, size + HUGE_PAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(memoryview(buffer), np.uint8)
        self.bytes.flags.writeable = False

    def map(self, path: Path, offset: int, size: int, room: int) -> Identity:
        """Map a file at ``offset``, a multiple of a page, if it has ``size`` bytes.

        The map takes all ``room`` up to the next file, behind whose bytes nothing may be read: the
        address space between two files would count as one more map, of 65,530 in a process.

        Returns:
            Which file is there. If it has another size it is not mapped.

        Raises:
            OSError: not there, no regular file, or not mappable.
        """
        handle, status = regular(path)
        try:
            if status.st_size == size:
                flags = mmap.MAP_SHARED | _MAP_FIXED
                place = self._place + offset
                _raise_if_failed(_LIBC.mmap(place, room, mmap.PROT_READ, flags, handle, 0), path)
        finally:
            os.close(handle)
        return Identity.of(status)


def even_places(row_bytes: int, size: int, count: int) -> tuple[Region, int]:
    """Address space for ``count`` files of rows, and how many rows lie from one file to the next.

    Places of a whole number of rows and of pages, so that all rows of all files lie at equal
    distances: numpy gathers by one index in half the time of two. Of huge pages, if the multiples
    of both do not lie so far apart that the address space ends.

    Args:
        row_bytes: bytes of a row.
        size: bytes of each file.
        count: how many there are.

    Raises:
        OSError: the process may not have so much address space.
    """
    for page in (HUGE_PAGE, mmap.PAGESIZE):
        whole = page // math.gcd(row_bytes, page)
        place = -(-size // (whole * row_bytes)) * whole
        if place * row_bytes * count <= _MOST_ADDRESSES or page == mmap.PAGESIZE:
            try:
                return Region(place * row_bytes * count), place
            except OSError:
                if page == mmap.PAGESIZE:
                    raise
    raise AssertionError("the last page size returns or raises")


def _raise_if_failed(place: int | None, what: Path | str) -> None:
    if place is None or place == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(what))
