"""Open files that came with somebody's data: regular files only, and no more of them than expected.

A pipe would make us wait for ever for a writer, and a link to a device has no end. Links to regular
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
    """Whether a folder has an entry of that name, whatever it is: a link to nothing counts."""
    return os.path.lexists(path)


def regular(path: Path | str) -> tuple[int, os.stat_result]:
    """Open a regular file for reading; the caller closes the descriptor.

    Raises:
        OSError: it is not there, cannot be opened, or is a folder, pipe, socket or device.
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
    """As `regular`, as a file object."""
    return os.fdopen(regular(path)[0], "rb")


def read_regular(path: Path | str, most: int) -> bytes:
    """All bytes of a regular file.

    Raises:
        OSError: as from `regular`, or the file has more than ``most`` bytes (EFBIG).
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # of memory no more is asked for
        data = file.read(size + 1) if size <= most else b""
    if max(size, len(data)) > most:
        raise OSError(errno.EFBIG, f"more than {most >> 20} MB of text", os.fspath(path))
    return data
