"""Durable writes: a file is complete or not there, and what was flushed survives a power cut.

`pipeline.storage.publish` puts finished folders in place, `pipeline.storage.journal` notes what is
done of unfinished ones.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from antigram.pipeline.storage.files import check_replaceable, named

__all__ = [
    "PARTIAL",
    "atomic_file",
    "atomic_path",
    "begin_writeback",
    "flush_filesystem",
    "fsync_folder",
    "write_durably",
    "write_in_parts",
    "write_text",
]

PARTIAL = ".partial"  # suffix of a file that is being written
_LIBC = ctypes.CDLL(None, use_errno=True)
_SYNC_FILE_RANGE_WRITE = 2
_AT_ONCE = 64 << 20  # bytes
_WORTH_STARTING = 1 << 20  # bytes: for a small file the asking costs more than it gains


def write_in_parts(file: BinaryIO, raw: memoryview) -> None:
    """Write many bytes, a little at a time but not too little.

    For a write of megabytes Linux takes pages of 2 MB, which `Region` then maps as such: random
    rows are gathered up to a third faster. A process that is told to stop need not wait for long.
    """
    for place in range(0, raw.nbytes, _AT_ONCE):
        file.write(raw[place : place + _AT_ONCE])


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a small file atomically."""
    with atomic_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def atomic_file(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """Open a file beside its goal, and rename it when the block ends well.

    Several processes may write the same goal at once: each has a name of its own beside it.

    Args:
        path: the goal; a file that is there is replaced.
        flush: to disk, the file before it is renamed and its folder thereafter.

    Raises:
        InputError: the goal is a device, a pipe or a folder.
        OSError: names the goal.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{PARTIAL}")
    with _renamed(beside, path, flush=flush), beside.open("wb") as file:
        yield file
        if flush:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path, beside: Path, *, flush: bool = True) -> Iterator[Path]:
    """As `atomic_file`, for a library that opens files itself.

    Args:
        path: the goal; a file that is there is replaced.
        beside: what is written and renamed, in the goal's folder.
        flush: as of `atomic_file`.

    Raises:
        InputError: the goal is a device, a pipe or a folder.
        OSError: names the goal.
    """
    with _renamed(beside, path, flush=flush):
        yield beside
        if flush:
            with beside.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _renamed(beside: Path, path: Path, *, flush: bool) -> Iterator[None]:
    """Rename what the block wrote, and flush the folder; delete it if the block fails."""
    check_replaceable(path)
    try:
        with named(path):
            yield
        beside.replace(path)
        if flush:
            fsync_folder(path.absolute().parent)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def begin_writeback(file: BinaryIO) -> None:
    """Ask the system to begin writing a file to disk, and do not wait; no promise is made."""
    file.flush()
    function = getattr(_LIBC, "sync_file_range", None)
    if function is not None and file.tell() >= _WORTH_STARTING:
        function(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def write_text(path: Path, text: str) -> None:
    """`write_durably` for text."""
    write_durably(path, text.encode())


def fsync_folder(folder: Path) -> None:
    """Flush a folder, without which a rename may not survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_filesystem(folder: Path) -> None:
    """Flush everything that was written to a folder's filesystem, in one go."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if (syncfs := getattr(_LIBC, "syncfs", None)) is None:
            os.sync()  # macOS has no other
        elif syncfs(handle) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(folder))
    finally:
        os.close(handle)
