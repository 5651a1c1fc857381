"""Atomic and durable writes: a file is complete or does not exist, and survives a power cut.

`pipeline.storage.publish` renames finished folders into place; `pipeline.storage.journal` records
the progress of unfinished folders.
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
_WORTH_STARTING = 1 << 20  # bytes: below this, the system call costs more than it saves


def write_in_parts(file: BinaryIO, raw: memoryview) -> None:
    """Write many bytes in parts of 64 MB.

    For large writes Linux allocates pages of 2 MB, which `Region` maps as such; random rows are
    then gathered up to a third faster. Parts are limited so that a signal is handled soon.
    """
    for offset in range(0, raw.nbytes, _AT_ONCE):
        file.write(raw[offset : offset + _AT_ONCE])


def write_durably(path: Path, *parts: bytes | memoryview) -> None:
    """Write a small file atomically."""
    with atomic_file(path) as file:
        for part in parts:
            file.write(part)


@contextmanager
def atomic_file(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file, and rename it to ``path`` when the block ends without an exception.

    Several processes may write the same path at once, as their temporary names differ.

    Args:
        path: the file to write; an existing file is replaced.
        flush: flush the file before the rename, and its folder after it.

    Yields:
        The temporary file, open for writing.

    Raises:
        InputError: ``path`` is a device, a pipe or a folder.
        OSError: the file cannot be written; the error names ``path``.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}{PARTIAL}")
    with _renamed(temporary, path, flush=flush), temporary.open("wb") as file:
        yield file
        if flush:
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def atomic_path(path: Path, temporary: Path, *, flush: bool = True) -> Iterator[Path]:
    """Like `atomic_file`, for a library that opens files itself.

    Args:
        path: the file to write; an existing file is replaced.
        temporary: name to write to, in the folder of ``path``.
        flush: flush the file before the rename, and its folder after it.

    Yields:
        ``temporary``.

    Raises:
        InputError: ``path`` is a device, a pipe or a folder.
        OSError: the file cannot be written; the error names ``path``.
    """
    with _renamed(temporary, path, flush=flush):
        yield temporary
        if flush:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _renamed(temporary: Path, path: Path, *, flush: bool) -> Iterator[None]:
    """Rename the file that the block wrote; delete the file instead if the block raises."""
    check_replaceable(path)
    try:
        with named(path):
            yield
        temporary.replace(path)
        if flush:
            fsync_folder(path.absolute().parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def begin_writeback(file: BinaryIO) -> None:
    """Ask the system to start writing a file to disk, without waiting and without a guarantee."""
    file.flush()
    function = getattr(_LIBC, "sync_file_range", None)
    if function is not None and file.tell() >= _WORTH_STARTING:
        function(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically, in UTF-8."""
    write_durably(path, text.encode())


def fsync_folder(folder: Path) -> None:
    """Flush a folder, so that renames in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_filesystem(folder: Path) -> None:
    """Flush everything that was written to a folder's file system."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if (syncfs := getattr(_LIBC, "syncfs", None)) is None:
            os.sync()  # macOS lacks syncfs
        elif syncfs(handle) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), os.fspath(folder))
    finally:
        os.close(handle)
