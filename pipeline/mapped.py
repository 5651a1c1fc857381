"""Read chunked arrays at the speed of a memory map, checked against the manifest at first touch."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chunks import CRC_BYTES, STRING, ArraySpec, chunk_path, crc32c
from pipeline.errors import DamagedError

__all__ = ["MappedArray", "is_whole", "map_file"]

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


def map_file(path: Path) -> NDArray[np.uint8]:
    """Map a file, read only, without keeping it open.

    Python's own mmap keeps a descriptor for each map, and a cache of a million clips has more
    chunks than a process may open files (1,024 by default).

    Raises:
        OSError: not there, empty, or not mappable.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(handle).st_size
        place = _LIBC.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, handle, 0)
    finally:
        os.close(handle)
    if place is None or place == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(path))
    buffer = (ctypes.c_uint8 * size).from_address(place)
    weakref.finalize(buffer, _LIBC.munmap, place, size)
    array: NDArray[np.uint8] = np.frombuffer(memoryview(buffer), np.uint8)
    array.flags.writeable = False
    return array


def is_whole(path: Path, size: int, crc: int) -> bool:
    """Whether a file of ``size`` bytes and a checksum is there as it was written."""
    try:
        raw = map_file(path)
    except OSError:
        return False
    return raw.size == size + CRC_BYTES and crc32c(raw[:-CRC_BYTES]) == crc


class MappedArray:
    """One array of a store: rows by index, straight from the page cache.

    Args:
        folder: the group.
        name: the array's, in the group.
        crcs: crc32c of each chunk, from the group's manifest.
        repair: what to tell the user to do when a chunk is damaged.

    Raises:
        DamagedError: the array's metadata is not what antigram writes.
    """

    def __init__(self, folder: Path, name: str, crcs: Sequence[int], repair: str) -> None:
        self.folder = folder
        self.repair = repair
        self._crcs = crcs
        path = folder / name / "zarr.json"
        try:
            meta = json.loads(path.read_bytes())
            text = meta["data_type"] == STRING
            if not text:
                np.dtype(meta["data_type"])
            codecs = [codec["name"] for codec in meta["codecs"]]
            shape = tuple(meta["shape"])
            grid = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
            if codecs != ["vlen-utf8" if text else "bytes", "crc32c"] or grid[1:] != shape[1:]:
                raise ValueError(f"chunks {grid}, codecs {codecs}")
            self.spec = ArraySpec(name, shape, meta["data_type"], grid[0], meta["attributes"])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedError(f"{path}: not an array of antigram's ({error}). {repair}") from None
        if len(crcs) != self.spec.chunks:
            raise DamagedError(
                f"{path}: {self.spec.chunks} chunks, but {len(crcs)} in the manifest. {repair}"
            )
        self._maps: dict[int, NDArray[Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Maps are opened anew in each process."""
        return {**self.__dict__, "_maps": {}}

    def __len__(self) -> int:
        return self.spec.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """All axes, rows first."""
        return self.spec.shape

    def chunk(self, index: int) -> NDArray[Any]:
        """Rows of one chunk, padding included, mapped and read only; checked the first time.

        Raises:
            DamagedError: missing, truncated, or not the bytes that the manifest names.
        """
        if (mapped := self._maps.get(index)) is None:
            raw = self._checked(index)
            data = raw[:-CRC_BYTES].view(np.dtype(self.spec.dtype).newbyteorder("<"))
            mapped = data.reshape(self.spec.rows, *self.spec.shape[1:])
            self._maps[index] = mapped
        return mapped

    def gather(self, rows: Sequence[int] | NDArray[np.integer], out: NDArray[Any]) -> None:
        """Copy rows, in any order, into ``out`` (row, ...), converting to its dtype."""
        per = self.spec.rows
        for place, row in enumerate(rows):
            index, inner = divmod(int(row), per)
            out[place] = self.chunk(index)[inner]

    def read(self) -> NDArray[Any]:
        """All rows, as an array in memory."""
        return self.read_span(slice(0, len(self)))

    def read_span(self, span: slice) -> NDArray[Any]:
        """Rows ``span.start`` to ``span.stop``, as an array in memory."""
        out = np.empty((span.stop - span.start, *self.shape[1:]), self.spec.dtype)
        per = self.spec.rows
        for index in range(span.start // per, -(-span.stop // per)):
            first, last = max(span.start, index * per), min(span.stop, (index + 1) * per)
            chunk = self.chunk(index)[first - index * per : last - index * per]
            out[first - span.start : last - span.start] = chunk
        return out

    def read_text(self) -> list[str]:
        """All rows of an array of text."""
        import numcodecs

        out: list[str] = []
        for index in range(self.spec.chunks):
            rows = numcodecs.VLenUTF8().decode(self._checked(index)[:-CRC_BYTES].tobytes())
            out += rows.tolist()
        return out[: len(self)]

    def _checked(self, index: int) -> NDArray[np.uint8]:
        path = chunk_path(self.folder, self.spec, index)
        try:
            raw = map_file(path)
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}, wanted a chunk. {self.repair}") from None
        wrong_size = self.spec.dtype != STRING and (
            raw.size != self.spec.rows * self.spec.row_bytes + CRC_BYTES
        )
        if wrong_size or crc32c(raw[:-CRC_BYTES]) != self._crcs[index]:
            raise DamagedError(
                f"{path}: {raw.size} bytes that are not those that were written (crc32c). "
                f"{self.repair}"
            )
        return raw
