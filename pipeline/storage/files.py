"""Helpers for files and folders: mapping, identity, deletion, size, and names in errors."""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import shutil
import stat
import weakref
from collections.abc import Callable, Iterator
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
    "evenly_spaced",
    "fill",
    "identity_at",
    "map_file",
    "map_noted",
    "named",
    "read_now",
    "read_soon",
    "remove",
    "size_of",
    "size_text",
]

HUGE_PAGE = 2 << 20  # bytes; a file mapped at multiples of it can use huge pages
_MOST_ADDRESSES = 1 << 44  # bytes of address space that an array may use for huge pages, of 2^47

_AT_ONCE = 1 << 30  # bytes; one read returns at most 2 GB

_PROT_NONE, _MAP_FIXED = 0, 0x10  # from sys/mman.h; not in Python
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
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_READ_SOON, _READ_NOW = 3, 22  # MADV_WILLNEED, MADV_POPULATE_READ from sys/mman.h


class Identity(NamedTuple):
    """Identity and state of a file; writing changes ``mtime_ns``, replacing changes the inode.

    The inode of a mapped file is not reused.
    """

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        """Return the identity in a result of ``stat`` or ``fstat``."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)

    def is_same_file(self, other: Identity) -> bool:
        """Whether two identities belong to the same file, perhaps in different states."""
        return self[:2] == other[:2]


def fill(handle: int, data: NDArray[np.uint8], offset: int, path: Path | str) -> None:
    """Read bytes of an open file, from ``offset`` on, until an array is full.

    Raises:
        OSError: the file cannot be read, or ends before.
    """
    done = 0
    while done < data.size:
        count = os.preadv(handle, [data[done : done + _AT_ONCE].data], offset + done)
        if not count:
            raise OSError(errno.EIO, "truncated while it was read", os.fspath(path))
        done += count


def identity_at(path: Path) -> Identity | None:
    """Return the identity of the file at a path; None if it is missing or inaccessible."""
    try:
        return Identity.of(path.stat())
    except OSError:
        return None


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a file, read only, without keeping it open; see `map_noted`."""
    return map_noted(path)[0]


def map_noted(path: Path) -> tuple[NDArray[np.uint8], Identity]:
    """Map a file, read only, without keeping it open, and return its identity.

    Python's mmap keeps a file descriptor for each map, but a cache of a million segments has more
    chunks than a process may have open files (1,024 by default).

    If a file is truncated while its map is read, the process ends with SIGBUS. Long-running readers
    compare sizes before each read (`RowView.look`), which leaves only a short interval.

    If the process has reached its limit of maps, the file is read into memory.

    Returns:
        The bytes of the file, and its identity when it was mapped.

    Raises:
        OSError: the file does not exist, is not a regular file, or cannot be mapped.
    """
    handle, status = regular(path)
    size = status.st_size
    array = np.empty(0, np.uint8)  # an empty file cannot be mapped
    try:
        address = size and _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
        if size and _has_failed(address):
            if (code := ctypes.get_errno()) != errno.ENOMEM:
                raise OSError(code, os.strerror(code), os.fspath(path))
            array = np.empty(size, np.uint8)
            fill(handle, array, 0, path)
    finally:
        os.close(handle)
    if size and not array.size:
        buffer = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(buffer, _LIBC.munmap, address, size)
        array = np.frombuffer(memoryview(buffer), np.uint8)
    array.flags.writeable = False
    return array, Identity.of(status)


def read_soon(address: int, size: int) -> None:
    """Have the system read mapped pages into memory in the background; it may ignore this."""
    _advise(address, size, _READ_SOON)


def read_now(address: int, size: int) -> None:
    """Read mapped pages into memory, while other threads of this process go on.

    A thread that touches the pages instead waits for the disk with the interpreter's lock held.
    Systems that do not know this advice (Linux before 5.14) ignore it.
    """
    _advise(address, size, _READ_NOW)


def _advise(address: int, size: int, advice: int) -> None:
    before = address % mmap.PAGESIZE
    _LIBC.madvise(address - before, size + before, advice)  # without the interpreter's lock


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add a file's name to an OSError that lacks it, for example if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with its contents, if it exists.

    Raises:
        OSError: the file, link or folder cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int:
    """Return the size of a file or folder in bytes, 0 if missing; links are not followed."""
    try:
        if path.is_dir() and not path.is_symlink():
            return sum(size_of(inner) for inner in path.iterdir())
        return path.lstat().st_size
    except FileNotFoundError:  # never there, or just deleted
        return 0


def check_replaceable(path: Path) -> None:
    """Raise if renaming a file to ``path`` would destroy a device, a pipe or a folder.

    Raises:
        InputError: ``path`` is one of these.
        OSError: ``path`` is inaccessible: the name is too long, or there is a cycle of links.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise InputError(f"{path}: is {kind}; wanted the name of a file")


def size_text(size: float) -> str:
    """Format a number of bytes: ``0.9 MB``, ``26 MB``, ``1.4 GB``."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}" if size < 10 * unit else f"{size / unit:.0f} {name}"
    return f"{size / 1e6:.1f} MB"


class Region:
    """Address space in which files are mapped, read only, at chosen offsets.

    With the chunks of an array at equal distances, one numpy call gathers rows from many of them.

    Args:
        size: bytes of address space; no memory is allocated.

    Raises:
        OSError: the process may not reserve so much address space.
    """

    def __init__(self, size: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        address = _LIBC.mmap(None, size + HUGE_PAGE, _PROT_NONE, flags, -1, 0)
        _raise_if_failed(address, "address space")
        self.address = -(-address // HUGE_PAGE) * HUGE_PAGE
        buffer = (ctypes.c_uint8 * size).from_address(self.address)
        weakref.finalize(buffer, _LIBC.munmap, address, size + HUGE_PAGE)
        self._buffer = weakref.ref(buffer)
        self.bytes: NDArray[np.uint8] = np.frombuffer(memoryview(buffer), np.uint8)
        self.bytes.flags.writeable = False

    def when_unmapped(self, call: Callable[[int], None], maps: int) -> None:
        """Call a function with a number when the address space is given back."""
        weakref.finalize(self._buffer(), call, maps)

    def map(self, path: Path, offset: int, size: int, room: int) -> Identity:
        """Map a file at ``offset``, if it has the expected size.

        The map covers all ``room`` bytes up to the next file, although only the first ``size`` may
        be read. Otherwise the gap would count as another map, of which a process has 65,530.

        Args:
            path: the file.
            offset: where to map it, in bytes; a multiple of the page size.
            size: expected size of the file in bytes.
            room: bytes of address space for the file.

        Returns:
            Identity of the file. If its size differs from ``size``, it is not mapped.

        Raises:
            OSError: the file does not exist, is not a regular file, or cannot be mapped.
        """
        handle, status = regular(path)
        try:
            if status.st_size == size:
                flags = mmap.MAP_SHARED | _MAP_FIXED
                address = self.address + offset
                _raise_if_failed(_LIBC.mmap(address, room, mmap.PROT_READ, flags, handle, 0), path)
        finally:
            os.close(handle)
        return Identity.of(status)


def evenly_spaced(row_bytes: int, size: int, count: int) -> tuple[Region, int]:
    """Reserve address space for files of rows, in which all rows are at equal distances.

    The distance between files is a multiple of the row size and of the page size, so that rows of
    all files have a common index: numpy gathers with one index in half the time of two. Huge pages
    are used unless the common multiples are so large that the address space does not suffice.

    Args:
        row_bytes: size of a row in bytes.
        size: size of each file in bytes.
        count: number of files.

    Returns:
        The address space, and the distance from one file to the next in rows.

    Raises:
        OSError: the process may not reserve so much address space.
    """
    for page in (HUGE_PAGE, mmap.PAGESIZE):
        step = page // math.gcd(row_bytes, page)
        distance = -(-size // (step * row_bytes)) * step
        if distance * row_bytes * count <= _MOST_ADDRESSES or page == mmap.PAGESIZE:
            try:
                return Region(distance * row_bytes * count), distance
            except OSError:
                if page == mmap.PAGESIZE:
                    raise
    raise AssertionError("the last page size returns or raises")


def _has_failed(address: int | None) -> bool:
    return address is None or address == ctypes.c_void_p(-1).value


def _raise_if_failed(address: int | None, what: Path | str) -> None:
    if _has_failed(address):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(what))
