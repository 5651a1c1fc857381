"""Read chunked arrays at the speed of a memory map, checked against the manifest at first touch.

Maps keep files that others replace or delete. A file that is written to in place changes under its
map: `MappedArray.look` finds that afterwards, before anything is made of what was read.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.backend import (
    Backend,
    OverwrittenError,
    RowLayout,
    RowView,
    WrongSizeError,
)
from antigram.pipeline.storage.chunks import CRC_BYTES, STRING, chunk_key, crc32c, decode_texts
from antigram.pipeline.storage.layout import fits, spec_of
from antigram.pipeline.storage.manifest import read_manifest

__all__ = ["MappedArray"]


class MappedArray:
    """One array of a store: rows by index, straight from the page cache.

    Args:
        group: that the array is in.
        name: the array's, in the group.
        crcs: crc32c of each chunk, from the group's manifest.
        repair: what to tell the user to do when a chunk is damaged.

    Raises:
        DamagedError: the array's metadata is not what antigram writes.
    """

    def __init__(self, group: Backend, name: str, crcs: Sequence[int], repair: str) -> None:
        self.group = group
        self.repair = repair
        self._crcs = crcs
        path = group.where(f"{name}/zarr.json")
        try:
            self.spec = spec_of(name, json.loads(group.get(f"{name}/zarr.json")))
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise DamagedError(f"{path}: not an array of antigram's ({error}). {repair}") from None
        if len(crcs) != self.spec.chunks:
            raise DamagedError(
                f"{path}: {self.spec.chunks} chunks, but {len(crcs)} in the manifest. {repair}"
            )
        self._forget()
        self._check_size()

    def _check_size(self) -> None:
        """Hold the shape against the first chunk, before memory is taken for so many rows.

        With as many chunks as the manifest has, no shape then promises more than the disk holds.
        """
        if self.spec.dtype == STRING or not self.spec.chunks:
            return
        first, wanted = chunk_key(self.spec, 0), self._layout.size
        there = self.group.head(first)
        if there is not None and there.size != wanted:
            shape = self.spec.rows, *self.spec.shape[1:]
            raise DamagedError(
                f"{self.group.where(first)}: {there.size} bytes, wanted {wanted} of {shape} "
                f"{self.spec.dtype} as {self.spec.name.rpartition('/')[2]}/zarr.json has it: "
                f"truncated, or another's. {self.repair}"
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
            f"{self.where}: is {self.spec.dtype} {self.shape}, "
            f"wanted {' or '.join(dtypes)} ({asked}). {self.repair}"
        )

    def _forget(self) -> None:
        self._view: RowView | None = None
        self._chunks: dict[int, NDArray[Any]] = {}  # rows of those that were checked, by index
        self._places: NDArray[np.int64] | None = None  # of each row, once all chunks were checked

    def __getstate__(self) -> dict[str, Any]:
        """Maps are opened anew in each process."""
        kept = ("group", "repair", "_crcs", "spec")
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

    @property
    def where(self) -> str:
        """Name of the array, for messages."""
        return self.group.where(self.spec.name)

    @property
    def _dtype(self) -> np.dtype[Any]:
        return np.dtype(self.spec.dtype).newbyteorder("<")

    @property
    def _layout(self) -> RowLayout:
        """Of each chunk."""
        return RowLayout(self.spec.rows, self.spec.row_bytes, CRC_BYTES)

    def chunk(self, index: int) -> NDArray[Any]:
        """Rows of one chunk, padding included, mapped and read only; checked the first time.

        Raises:
            DamagedError: missing, truncated, or not the bytes that the manifest names.
        """
        if (rows := self._chunks.get(index)) is not None:
            return rows
        part = self._open(index).part(index)
        if crc32c(part) != self._crcs[index]:
            raise self._damaged(chunk_key(self.spec, index), self._layout.size)
        rows = part.view(self._dtype).reshape(self.spec.rows, *self.spec.shape[1:])
        rows.flags.writeable = False
        self._chunks[index] = rows
        return rows

    def _open(self, index: int) -> RowView:
        """Open a chunk in the view of all; nothing of it is read.

        Raises:
            DamagedError: it is not there, or of another size.
            InputError: the process may not map so many files.
        """
        key = chunk_key(self.spec, index)
        if self._view is None:
            keys = [chunk_key(self.spec, number) for number in range(self.spec.chunks)]
            self._view = self.group.view_rows(self.spec.name, keys, self._layout)
        try:
            self._view.open(index)
        except WrongSizeError as error:
            raise self._damaged(key, error.size) from None
        except OverwrittenError as error:
            raise self._overwritten(error) from None
        except OSError as error:
            if error.errno == errno.ENOMEM:
                raise InputError(
                    f"{self.group.where()}: its {self.spec.chunks} chunks, with those of other "
                    "data, are more files than a process may map here. Raise the limit (as root: "
                    "sysctl -w vm.max_map_count=1000000), or read fewer layers or caches at once."
                ) from None
            raise self._unreadable(key, error) from None
        return self._view

    def _damaged(self, key: str, size: int) -> DamagedError:
        return self._replaced(key) or DamagedError(
            f"{self.group.where(key)}: {size} bytes that are not those that were written (crc32c). "
            f"{self.repair}"
        )

    def _unreadable(self, key: str, error: OSError) -> DamagedError:
        return self._replaced(key) or DamagedError(
            f"{self.group.where(key)}: {error.strerror}, wanted a chunk. {self.repair}"
        )

    def _replaced(self, key: str) -> DamagedError | None:
        """Not damage that `verify` would find: others took the place of what was opened."""
        with suppress(StoredDataError, InputError, KeyError):
            now = read_manifest(self.group.reopened())
            if list(now.crcs(self.spec.name)) != list(self._crcs):
                return DamagedError(
                    f"{self.group.where(key)}: {self.group.where()} was replaced by another after "
                    "it was opened. Run the same command again."
                )
        return None

    def _overwritten(self, error: OverwrittenError) -> DamagedError:
        return DamagedError(
            f"{error.where}: was overwritten in place while it was in use, {error.size} bytes that "
            "are not those that were written (crc32c); what was made since it was last looked at "
            f"is not kept. {self.repair}"
        )

    def hold(self) -> None:
        """Map all chunks, unread: they stay there, whatever others put in the place of their files.

        Cheap: 10 microseconds a chunk, and no descriptor stays open.

        Raises:
            DamagedError: a chunk is missing, or of another size.
            InputError: the process may not map so many files.
        """
        for index in range(self.spec.chunks):
            if index not in self._chunks:
                self._open(index)

    def look(self, rows: slice | None = None) -> list[str]:
        """Hold the chunks that are mapped against what they were when they were mapped.

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
        if self._view is None:
            return []
        view, per = self._view, self.spec.rows
        chosen = (
            range(self.spec.chunks)
            if rows is None
            else range(rows.start // per, -(-rows.stop // per))
        )
        try:
            return view.look(chosen, lambda i: crc32c(view.part(i)) == self._crcs[i])
        except OverwrittenError as error:
            raise self._overwritten(error) from None

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
        shape = len(rows), *self.shape[1 if view is None else 2 :]
        direct = out is None or (out.dtype == self._dtype and out.flags.c_contiguous)
        if self._places is None or self._view is None or not direct:  # not all were touched
            out = np.empty(shape, self._dtype) if out is None else out
            self.gather(rows, out, view)
            return out
        places, table = self._places[rows], self._view.table
        if view is not None:
            table = table.reshape(-1, table.shape[1] // self.shape[1])
            places = places * self.shape[1] + view
        # Bytes, as rows of an exported file may lie at any address. All places are in range;
        # "raise" would gather into a buffer and copy that.
        raw = None if out is None else out.reshape(len(rows), -1).view(np.uint8)
        raw = table.take(places, axis=0, out=raw, mode="clip")
        return raw.view(self._dtype).reshape(shape) if out is None else out

    def _check_chunks(self, chunks: NDArray[np.integer]) -> None:
        """Touch chunks; once all were, note where each row lies."""
        for index in np.unique(chunks).tolist():
            self.chunk(index)
        if self._view is not None and len(self._chunks) == self.spec.chunks:
            rows = np.arange(len(self))
            self._places = rows + rows // self.spec.rows * (self._view.apart - self.spec.rows)

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """As `take`, into ``out`` (row, ...), converting to its dtype."""
        chunk, inner = np.divmod(rows, self.spec.rows)
        for place, (index, row) in enumerate(zip(chunk.tolist(), inner.tolist(), strict=True)):
            stored = self.chunk(index)[row]
            out[place] = stored if view is None else stored[view]

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
        """Bytes of a chunk as they are stored, less the checksum behind them; checked."""
        if self.spec.dtype == STRING:
            return self._text_chunk(index)
        return self.chunk(index).reshape(-1).view(np.uint8)

    def read_text(self) -> list[str]:
        """All rows of an array of text."""
        out: list[str] = []
        for index in range(self.spec.chunks):
            try:
                out += decode_texts(self._text_chunk(index).tobytes(), self.spec.rows)
            except ValueError as error:
                path = self.group.where(chunk_key(self.spec, index))
                raise DamagedError(f"{path}: {error}. {self.repair}") from None
        return out[: len(self)]

    def _text_chunk(self, index: int) -> NDArray[np.uint8]:
        """Bytes of a chunk of text, less the checksum behind them; checked."""
        key = chunk_key(self.spec, index)
        try:
            data = self.group.view(key)[:-CRC_BYTES]
        except OSError as error:
            raise self._unreadable(key, error) from None
        if crc32c(data) != self._crcs[index]:
            raise self._damaged(key, data.size)
        return data
