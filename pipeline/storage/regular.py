"""Open files of unknown origin safely: regular files only, up to an expected size.

Reading a pipe could wait for ever for a writer, and a device may have no end. Links to regular
files are followed.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

__all__ = ["is_named", "open_regular", "read_regular", "regular"]


def is_named(path: Path) -> bool:
    """Whether a path exists as an entry of its folder; a broken link counts."""
    return os.path.lexists(path)


def regular(path: Path | str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; the caller closes the descriptor.

    Raises:
        OSError: the file does not exist, cannot be opened, or is a folder, pipe, socket or device.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not block
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    except OSError:
        os.close(handle)
        raise
    return handle, status


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading, as a file object; see `regular`."""
    return os.fdopen(regular(path)[0], "rb")


def read_regular(path: Path | str, most: int) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        OSError: as for `regular`, or the file has more than ``most`` bytes (EFBIG).
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # limits the memory that `read` allocates
        data = file.read(size + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"more than {most >> 20} MB of text", os.fspath(path))
    return data
