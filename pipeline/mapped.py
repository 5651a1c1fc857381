"""Read chunked arrays at the speed of a memory map, checked against the manifest at first touch."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.chunks import CRC_BYTES, STRING, ArraySpec, chunk_path, crc32c
from pipeline.errors import DamagedError
from pipeline.files import HUGE_PAGE, Region, map_file
from pipeline.hdf5 import inside, read_bytes

__all__ = ["MappedArray", "is_whole"]

_MOST_ADDRESSES = 1 << 44  # bytes of address space an array takes for huge pages; there are 2^47


def is_whole(path: Path, size: int, crc: int) -> bool:
    """Whether a file of ``size`` bytes and a checksum is there as it was written."""
    try:
        raw = map_file(path)
    except OSError:
        return False
    tail = crc.to_bytes(CRC_BYTES, "little")  # other readers go by the checksum behind the data
    return (
        raw.size == size + CRC_BYTES
        and raw[-CRC_BYTES:].tobytes() == tail
        and crc32c(raw[:-CRC_BYTES]) == crc
    )


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
            meta = json.loads(read_bytes(path))
            text = meta["data_type"] == STRING
            if not text:
                np.dtype(meta["data_type"])
            codecs = [codec["name"] for codec in meta["codecs"]]
            shape = tuple(meta["shape"])
            grid = tuple(meta["chunk_grid"]["configuration"]["chunk_shape"])
            if not 1 <= grid[0] <= max(1, shape[0]):
                raise ValueError(f"{grid[0]} rows a chunk, of {shape[0]}")
            if codecs != ["vlen-utf8" if text else "bytes", "crc32c"] or grid[1:] != shape[1:]:
                raise ValueError(f"chunks {grid}, codecs {codecs}")
            self.spec = ArraySpec(name, shape, meta["data_type"], grid[0], meta["attributes"])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DamagedError(f"{path}: not an array of antigram's ({error}). {repair}") from None
        if len(crcs) != self.spec.chunks:
            raise DamagedError(
                f"{path}: {self.spec.chunks} chunks, but {len(crcs)} in the manifest. {repair}"
            )
        self._forget()

    def _forget(self) -> None:
        self._region: Region | None = None
        self._rows: NDArray[Any] = np.empty(0)  # of all chunks, and what is between them
        self._place = 0  # rows from one chunk to the next
        self._whole = np.zeros(self.spec.chunks, bool)  # those mapped and checked
        self._places: NDArray[np.int64] | None = None  # of each row, once all chunks are whole
        self._loose: dict[int, NDArray[Any]] = {}  # of a single file, which is mapped elsewhere

    def __getstate__(self) -> dict[str, Any]:
        """Maps are opened anew in each process."""
        mapped = ("_region", "_rows", "_place", "_whole", "_places", "_loose")
        return {key: value for key, value in vars(self).items() if key not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

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
        if self._whole[index]:
            if self._loose:
                return self._loose[index]
            return self._rows[index * self._place : index * self._place + self.spec.rows]
        if inside(self.folder) is not None:
            data = self._checked(index).view(np.dtype(self.spec.dtype).newbyteorder("<"))
            self._loose[index] = data.reshape(self.spec.rows, *self.spec.shape[1:])
        else:
            self._map(index)
        self._whole[index] = True
        return self.chunk(index)

    def _map(self, index: int) -> None:
        """Map a chunk's file at its place among the others, and check it."""
        size = self.spec.rows * self.spec.row_bytes + CRC_BYTES
        if self._region is None:
            self._region = self._reserve(size)
            dtype = np.dtype(self.spec.dtype).newbyteorder("<")
            shape = self._place * self.spec.chunks, *self.spec.shape[1:]
            self._rows = self._region.bytes.view(dtype).reshape(shape)
        stride = self._place * self.spec.row_bytes
        path = chunk_path(self.folder, self.spec, index)
        try:
            right_size = self._region.map(path, index * stride, size)
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}, wanted a chunk. {self.repair}") from None
        data = self._region.bytes[index * stride : index * stride + size - CRC_BYTES]
        if not right_size or crc32c(data) != self._crcs[index]:
            raise self._damaged(path, path.stat().st_size)

    def _reserve(self, size: int) -> Region:
        """Address space for all chunks, each of ``size`` bytes in its file.

        Places of a whole number of rows and of pages, so that all rows of all chunks lie at equal
        distances: numpy gathers by one index in half the time of two. Of huge pages, if the
        multiples of both do not lie so far apart that the address space ends.
        """
        row = self.spec.row_bytes
        for page in (HUGE_PAGE, mmap.PAGESIZE):
            whole = page // math.gcd(row, page)
            self._place = -(-size // (whole * row)) * whole
            if self._place * row * self.spec.chunks <= _MOST_ADDRESSES or page == mmap.PAGESIZE:
                try:
                    return Region(self._place * row * self.spec.chunks)
                except OSError:
                    if page == mmap.PAGESIZE:
                        raise
        raise AssertionError("the last page size returns or raises")

    def _damaged(self, path: Path, size: int) -> DamagedError:
        return DamagedError(
            f"{path}: {size} bytes that are not those that were written (crc32c). {self.repair}"
        )

    def take(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Rows, in any order, as an array (row, ...) of the stored dtype.

        Args:
            rows: their indices.
            view: index along the second axis, of an array that has one for views.
            out: where to put them; a new array if None.
        """
        if self._places is None:
            self._check_chunks(np.asarray(rows) // self.spec.rows)
        if self._places is None or self._loose:  # not all chunks were touched, or a single file
            if out is None:
                shape = self.shape[1 if view is None else 2 :]
                out = np.empty((len(rows), *shape), np.dtype(self.spec.dtype).newbyteorder("<"))
            self.gather(rows, out, view)
            return out
        places, flat = self._places[rows], self._rows
        if view is not None:
            flat = flat.reshape(-1, *self.shape[2:])
            places = places * self.shape[1] + view
        # All places are in range; "raise" would gather into a buffer and copy that.
        return flat.take(places, axis=0, out=out, mode="clip")

    def _check_chunks(self, chunks: NDArray[np.integer]) -> None:
        """Touch chunks; once all were, note where each row lies."""
        for index in np.unique(chunks).tolist():
            self.chunk(index)
        if self._whole.all():
            rows = np.arange(len(self))
            self._places = rows + rows // self.spec.rows * (self._place - self.spec.rows)

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """As `take`, into ``out`` (row, ...), converting to its dtype."""
        chunk, inner = np.divmod(rows, self.spec.rows)
        for place, (index, row) in enumerate(zip(chunk.tolist(), inner.tolist(), strict=True)):
            found = self.chunk(index)[row]
            out[place] = found if view is None else found[view]

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

    def raw_chunk(self, index: int) -> NDArray[np.uint8]:
        """Bytes of a chunk as they stand in its file, less the checksum; checked."""
        return self._checked(index)

    def read_text(self) -> list[str]:
        """All rows of an array of text."""
        import numcodecs

        out: list[str] = []
        for index in range(self.spec.chunks):
            rows = numcodecs.VLenUTF8().decode(self._checked(index).tobytes())
            out += rows.tolist()
        return out[: len(self)]

    def _checked(self, index: int) -> NDArray[np.uint8]:
        """Bytes of a chunk, without the checksum behind them, held against the manifest's."""
        path = chunk_path(self.folder, self.spec, index)
        try:
            if (there := inside(self.folder)) is not None:
                data = there[0].chunk(f"{there[1]}{self.spec.name}", self.spec, index)
            else:
                data = map_file(path)[:-CRC_BYTES]
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror}, wanted a chunk. {self.repair}") from None
        wrong_size = self.spec.dtype != STRING and data.size != self.spec.rows * self.spec.row_bytes
        if wrong_size or crc32c(data) != self._crcs[index]:
            raise self._damaged(path, data.size)
        return data
