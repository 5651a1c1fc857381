"""Read rows of many files with positional reads: for arrays of more files than may be mapped.

A file is opened for each read and closed again, as a process may have fewer open files than an
array has chunks. Whatever is read belongs to the file that was noted when its content was checked:
identity, size and time of change are compared after each read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.storage.backend import ChangedError, RowLayout, WrongSizeError
from antigram.pipeline.storage.files import Identity, fill
from antigram.pipeline.storage.regular import regular

__all__ = ["ReadFiles"]

_BITS = (1 << 64) - 1
_STATE = struct.Struct(f"<{len(Identity._fields)}Q")


class ReadFiles:
    """A `RowView` of files that are read, not mapped.

    Unlike a map, it needs the files for as long as it is used: a file that was replaced or removed
    cannot be read any more, and one that was written to is noticed at the next read.

    Args:
        folder: root of the backend.
        keys: keys of the files.
        layout: layout of each file.
    """

    table = None
    apart = 0

    def __init__(self, folder: Path, keys: Sequence[str], layout: RowLayout) -> None:
        self._folder, self._keys, self._layout = os.fspath(folder), keys, layout
        self._noted: list[bytes] = [b""] * len(keys)  # `_state` of each file that was noted

    def _path(self, index: int) -> str:
        return f"{self._folder}/{self._keys[index]}"

    def open(self, index: int) -> None:
        """Note a file and check its size, without reading it; see `RowView`."""
        if self._noted[index]:
            return
        handle, status = regular(self._path(index))
        os.close(handle)
        if status.st_size != self._layout.size:
            raise WrongSizeError(status.st_size)
        self._noted[index] = _state(status)

    def expect(self, index: int, first: int, size: int) -> None:
        """Have some bytes of a file read soon; see `RowView`."""
        with suppress(OSError):  # reading it raises
            handle, _ = regular(self._path(index))
            try:
                os.posix_fadvise(handle, first, size, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)

    def fetch(self, index: int) -> None:
        """Do nothing, as reading does not stop other threads; see `RowView`."""

    def part(self, index: int) -> NDArray[np.uint8]:
        """Read the bytes of all rows of a file, and note the file as it is now; see `RowView`."""
        path = self._path(index)
        handle, status = regular(path)
        try:
            if status.st_size != self._layout.size:
                raise WrongSizeError(status.st_size)
            data = np.empty(self._layout.data, np.uint8)
            fill(handle, data, 0, path)
        finally:
            os.close(handle)
        self._noted[index] = _state(status)  # as before reading, so that a later write is noticed
        return data

    def read(self, index: int, offsets: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
        """Read some bytes of a file that is as it was noted; see `RowView`."""
        path = self._path(index)
        data = np.empty((len(offsets), size), np.uint8)
        handle, status = regular(path)
        try:
            if status.st_size != self._layout.size:
                raise ChangedError(path)
            for row, offset in _joined(data, offsets.tolist()):
                fill(handle, row, offset, path)
            if _state(os.fstat(handle)) != self._noted[index]:
                raise ChangedError(path)
        finally:
            os.close(handle)
        return data

    def look(self, chosen: Sequence[int], intact: Callable[[int], bool]) -> list[str]:
        """Do nothing, as each read compares the file with what was noted; see `RowView`."""
        return []


def _state(status: os.stat_result) -> bytes:
    """Return the identity of a file in few bytes, as an array may have a million files."""
    now = Identity.of(status)
    return _STATE.pack(*(value & _BITS for value in now))


def _joined(data: NDArray[np.uint8], offsets: list[int]) -> Iterator[tuple[NDArray[np.uint8], int]]:
    """Yield the pieces to read, as one piece if they lie one after the other."""
    size = data.shape[1]
    if len(offsets) > 1 and offsets == list(range(offsets[0], offsets[-1] + 1, size)):
        yield data.reshape(-1), offsets[0]
    else:
        yield from zip(data, offsets, strict=True)
