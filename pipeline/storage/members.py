"""Parts of a file that are files themselves, without unpacking: ``data.arrow@OFFSET+BYTES``.

A data set that is saved as Arrow holds the bytes of its audio files, one after the other and
unchanged. Such a part is named by the path of the file, its offset and its size, and is read like a
file: it is copied into memory and has its own descriptor.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

from antigram.pipeline.storage.regular import regular

__all__ = ["is_member", "member_path", "open_recording", "stat_recording"]

_MEMBER = re.compile(r"(?P<file>.+\.arrow)@(?P<offset>\d{1,18})\+(?P<size>\d{1,18})", re.DOTALL)
_PART = 1 << 20  # bytes copied at once
_MOST = 1 << 31  # bytes; the longest recordings of the field have a tenth of it


def member_path(file: str, offset: int, size: int) -> str:
    """Return the path of a part of an Arrow file; ``offset`` and ``size`` are in bytes."""
    return f"{file}@{offset}+{size}"


def is_member(path: Path | str) -> bool:
    """Whether a path names a part of an Arrow file."""
    return _parse(path) is not None


def open_recording(path: Path | str) -> tuple[int, os.stat_result]:
    """Open a regular file, or a part of one, for reading; the caller closes the descriptor.

    The status of a part has its own size, and the time of change of the file that holds it.

    Raises:
        OSError: as for `regular`; or the file ends before the part does, or the part is too large.
    """
    member = _parse(path)
    if member is None:
        return regular(path)
    file, offset, size = member
    handle, status = regular(file)
    try:
        _check(path, offset, size, status)
        copy = _in_memory()
        try:
            _copy(handle, copy, offset, size)
            os.utime(copy, ns=(status.st_mtime_ns, status.st_mtime_ns))
            return copy, os.fstat(copy)
        except BaseException:
            os.close(copy)
            raise
    finally:
        os.close(handle)


def stat_recording(path: str) -> tuple[int, int]:
    """Return size in bytes and time of change in ns of a file, or of a part of one.

    Raises:
        OSError: there is no such file, or it ends before the part does.
    """
    member = _parse(path)
    if member is None:
        status = os.stat(path)  # noqa: PTH116 - as text: see `corpus.Clip.path`
        return status.st_size, status.st_mtime_ns
    file, offset, size = member
    status = os.stat(file)  # noqa: PTH116
    _check(path, offset, size, status)
    return size, status.st_mtime_ns


def _parse(path: Path | str) -> tuple[str, int, int] | None:
    """Return file, offset and size of a part of a file; None for any other path."""
    text = os.fspath(path)
    if ".arrow@" not in text or (match := _MEMBER.fullmatch(text)) is None:
        return None
    return match["file"], int(match["offset"]), int(match["size"])


def _check(path: Path | str, offset: int, size: int, status: os.stat_result) -> None:
    if offset + size > status.st_size:
        reason = f"truncated: it has {status.st_size} bytes, {offset + size} are wanted"
        raise OSError(errno.EIO, reason, os.fspath(path))
    if size > _MOST:
        raise OSError(errno.EFBIG, f"{size} bytes of audio in one row", os.fspath(path))


def _copy(handle: int, copy: int, offset: int, size: int) -> None:
    end = offset + size
    while offset < end:
        part = os.pread(handle, min(_PART, end - offset), offset)
        if not part:
            raise OSError(errno.EIO, "truncated while it was read")
        offset += os.write(copy, part)
    os.lseek(copy, 0, os.SEEK_SET)


def _in_memory() -> int:
    """Return the descriptor of a new file without a name, in memory where the system can."""
    if sys.platform == "linux":
        return os.memfd_create("recording")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
