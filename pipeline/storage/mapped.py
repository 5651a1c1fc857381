"""Read chunked arrays at the speed of a memory map, checked against the manifest at first touch.

Maps keep files that others replace or delete. A file that is written to in place changes under its
map: `MappedArray.look` finds that afterwards, before anything is made of what was read.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.chunks import CRC_BYTES, STRING, chunk_path, crc32c, decode_texts
from antigram.pipeline.storage.files import Identity, Region, even_places, identity_at, map_file
from antigram.pipeline.storage.hdf5 import SingleFile, inside, read_bytes
from antigram.pipeline.storage.layout import fits, spec_of
from antigram.pipeline.storage.manifest import read_manifest

__all__ = ["MappedArray", "is_whole"]

# What may happen to a file in use without harm, as `MappedArray.look` finds it.
_EVENTS = {
    "replaced": "were replaced or removed since they were opened; what was opened is used on",
    "written": "were written to since they were opened; their content is as it was (crc32c)",
}


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
            self.spec = spec_of(name, json.loads(read_bytes(path)))
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise DamagedError(f"{path}: not an array of antigram's ({error}). {repair}") from None
        if len(crcs) != self.spec.chunks:
            raise DamagedError(
                f"{path}: {self.spec.chunks} chunks, but {len(crcs)} in the manifest. {repair}"
            )
        self._forget()
        self._check_size(path)

    def _check_size(self, path: Path) -> None:
        """Hold the shape against the first chunk's file, before memory is taken for so many rows.

        With as many chunks as the manifest has, no shape then promises more than the disk holds.
        """
        if self._file is not None or self.spec.dtype == STRING or not self.spec.chunks:
            return  # in a single file each array is held against its dataset
        first = chunk_path(self.folder, self.spec, 0)
        there, wanted = identity_at(first), self.spec.rows * self.spec.row_bytes + CRC_BYTES
        if there is not None and there.size != wanted:
            shape = self.spec.rows, *self.spec.shape[1:]
            raise DamagedError(
                f"{first}: {there.size} bytes, wanted {wanted} of {shape} {self.spec.dtype} as "
                f"{path.parent.name}/{path.name} has it: truncated, or another's. {self.repair}"
            )

    def require(self, dtypes: Collection[str], shape: tuple[int | None, ...]) -> None:
        """Refuse an array that is not what the format names.

        Args:
            dtypes: that it may have.
            shape: that it must have; None where any length will do.

        Raises:
            DamagedError: naming the array, what it is and what was wanted.
        """
        if self.spec.dtype in dtypes and fits(self.shape, shape):
            return
        asked = ", ".join("any" if want is None else str(want) for want in shape)
        raise DamagedError(
            f"{self.folder / self.spec.name}: is {self.spec.dtype} {self.shape}, "
            f"wanted {' or '.join(dtypes)} ({asked}). {self.repair}"
        )

    def _forget(self) -> None:
        self._file: tuple[SingleFile, str] | None = inside(self.folder)
        self._noted: dict[int, Identity] = {}  # of the files that can still change, by chunk
        self._mapped: set[int] = set()
        self._region: Region | None = None
        self._rows: NDArray[Any] = np.empty(0)  # of all chunks, and what is between them
        self._place = 0  # rows from one chunk to the next
        self._whole = np.zeros(self.spec.chunks, bool)  # those mapped and checked
        self._places: NDArray[np.int64] | None = None  # of each row, once all chunks are whole
        self._loose: dict[int, NDArray[Any]] = {}  # of a single file, which is mapped elsewhere

    def __getstate__(self) -> dict[str, Any]:
        """Maps are opened anew in each process."""
        kept = ("folder", "repair", "_crcs", "spec")
        return {key: vars(self)[key] for key in kept}

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
        if self._file is not None:
            data = self._checked(index).view(np.dtype(self.spec.dtype).newbyteorder("<"))
            self._loose[index] = data.reshape(self.spec.rows, *self.spec.shape[1:])
        else:
            path = chunk_path(self.folder, self.spec, index)
            if index in self._mapped:
                self._check_uncut(path, index)
            else:
                self._map(index)
            if crc32c(self._bytes(index)) != self._crcs[index]:
                raise self._damaged(path, self._size)
        self._whole[index] = True
        return self.chunk(index)

    @property
    def _size(self) -> int:
        """Bytes of a chunk's file."""
        return self.spec.rows * self.spec.row_bytes + CRC_BYTES

    def _bytes(self, index: int) -> NDArray[np.uint8]:
        """Bytes of a mapped chunk, less the checksum."""
        if self._region is None:
            raise RuntimeError("nothing is mapped")
        first = index * self._place * self.spec.row_bytes
        return self._region.bytes[first : first + self._size - CRC_BYTES]

    def _map(self, index: int) -> None:
        """Map a chunk's file at its place among the others; nothing of it is read.

        Raises:
            DamagedError: it is not there, or of another size.
            InputError: the process may not map so many files.
        """
        size = self._size
        if self._region is None:
            self._region, self._place = even_places(self.spec.row_bytes, size, self.spec.chunks)
            dtype = np.dtype(self.spec.dtype).newbyteorder("<")
            shape = self._place * self.spec.chunks, *self.spec.shape[1:]
            self._rows = self._region.bytes.view(dtype).reshape(shape)
        stride = self._place * self.spec.row_bytes
        path = chunk_path(self.folder, self.spec, index)
        try:
            noted = self._region.map(path, index * stride, size, stride)
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise InputError(
                    f"{self.folder}: its {self.spec.chunks} chunks, with those of other data, are "
                    "more files than a process may map here. Raise the limit (as root: sysctl -w "
                    "vm.max_map_count=1000000), or read fewer layers or caches at once."
                ) from None
            raise self._unreadable(path, error) from None
        if noted.size != size:
            raise self._damaged(path, noted.size)
        self._noted[index] = noted
        self._mapped.add(index)

    def _damaged(self, path: Path, size: int) -> DamagedError:
        return self._replaced(path) or DamagedError(
            f"{path}: {size} bytes that are not those that were written (crc32c). {self.repair}"
        )

    def _unreadable(self, path: Path, error: OSError) -> DamagedError:
        return self._replaced(path) or DamagedError(
            f"{path}: {error.strerror}, wanted a chunk. {self.repair}"
        )

    def _replaced(self, path: Path) -> DamagedError | None:
        """Not damage that `verify` would find: others took the place of what was opened."""
        with suppress(StoredDataError, InputError, KeyError):
            if list(read_manifest(self.folder).crcs(self.spec.name)) != list(self._crcs):
                return DamagedError(
                    f"{path}: {self.folder} was replaced by another after it was opened. "
                    "Run the same command again."
                )
        return None

    def hold(self) -> None:
        """Map all chunks, unread: they stay there, whatever others put in the place of their files.

        Cheap: 10 microseconds a chunk, and no descriptor stays open.

        Raises:
            DamagedError: a chunk is missing, or of another size.
            InputError: the process may not map so many files.
        """
        if self._file is None:
            for index in range(self.spec.chunks):
                if index not in self._mapped:
                    self._map(index)

    def look(self, rows: slice | None = None) -> list[str]:
        """Hold the files that are mapped against what they were when they were mapped.

        A file that another one replaced, or that was deleted, is kept by its map. One that was
        written to is read again, and taken if its content is what the manifest names: `verify`
        then finds what this finds. Between two looks a truncated file may end the process by
        SIGBUS; nothing can exclude that.

        Args:
            rows: whose chunks are looked at; None: all.

        Returns:
            Lines for people: what was replaced, or written to without a change.

        Raises:
            DamagedError: a file was truncated or overwritten in place; names it.
        """
        if self._file is not None:
            return self._look_at_file(self._file[0])
        per = self.spec.rows
        chunks = (
            list(self._noted)
            if rows is None
            else [i for i in range(rows.start // per, -(-rows.stop // per)) if i in self._noted]
        )
        found = [self._look_at(index) for index in chunks]
        where = self.folder / self.spec.name
        return [
            f"{where}: {found.count(event)} of {len(chunks)} chunks {what}"
            for event, what in _EVENTS.items()
            if event in found
        ]

    def _look_at(self, index: int) -> str:
        """`look` at a chunk; returns what happened to it, one of `_EVENTS`, or nothing."""
        was = self._noted.get(index)
        path = chunk_path(self.folder, self.spec, index)
        if was is None or (now := identity_at(path)) == was:
            return ""
        if now is None or not now.is_same_file(was):
            del self._noted[index]  # its map cannot change any more
            return "replaced"
        if now.size != was.size or crc32c(self._bytes(index)) != self._crcs[index]:
            raise self._overwritten(path, now.size)
        self._noted[index] = now
        return "written"

    def _check_uncut(self, path: Path, index: int) -> None:
        """Refuse a file that was truncated since it was mapped: to read it would end the process.

        Raises:
            DamagedError: it was.
        """
        was, now = self._noted.get(index), identity_at(path)
        if was and now and now.is_same_file(was) and now.size != was.size:
            raise self._overwritten(path, now.size)

    def _look_at_file(self, file: SingleFile) -> list[str]:
        """`look` at the single file that holds the array."""
        was, now = self._noted.get(0, file.identity), identity_at(file.path)
        if now == was:
            return []
        self._noted[0] = now or was
        if now is None or not now.is_same_file(file.identity):
            return [] if now == was else [f"{file.path}: {_EVENTS['replaced']}"]
        if now.size != was.size:
            raise self._overwritten(file.path, now.size)
        for index in range(self.spec.chunks):
            self._checked(index)
        return [f"{file.path}: {_EVENTS['written']}"]

    def _overwritten(self, path: Path, size: int) -> DamagedError:
        return DamagedError(
            f"{path}: was overwritten in place while it was in use, {size} bytes that are not "
            f"those that were written (crc32c); what was made since it was last looked at is not "
            f"kept. {self.repair}"
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
        out: list[str] = []
        for index in range(self.spec.chunks):
            raw = self._checked(index)
            try:
                out += decode_texts(raw.tobytes(), self.spec.rows)
            except ValueError as error:
                path = chunk_path(self.folder, self.spec, index)
                raise DamagedError(f"{path}: {error}. {self.repair}") from None
        return out[: len(self)]

    def _checked(self, index: int) -> NDArray[np.uint8]:
        """Bytes of a chunk, without the checksum behind them, held against the manifest's."""
        path = chunk_path(self.folder, self.spec, index)
        try:
            if self._file is not None:
                data = self._file[0].chunk(f"{self._file[1]}{self.spec.name}", self.spec, index)
            else:
                data = map_file(path)[:-CRC_BYTES]
        except OSError as error:
            raise self._unreadable(path, error) from None
        wrong_size = self.spec.dtype != STRING and data.size != self.spec.rows * self.spec.row_bytes
        if wrong_size or crc32c(data) != self._crcs[index]:
            raise self._damaged(path, data.size)
        return data
