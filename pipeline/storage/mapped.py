"""Read chunked arrays through memory maps; each chunk is checked by the manifest when first read.

A map stays valid if its file is replaced or deleted. If a file is overwritten in place, its map
changes too: `MappedArray.look` detects that, so that a caller can discard what it has read.
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
    """One array of a store or cache, memory-mapped.

    Args:
        group: group of the array.
        name: name of the array in the group.
        crcs: crc32c of each chunk, from the group's manifest.
        repair: what the user can do about damage, for messages.

    Raises:
        DamagedError: the metadata is unreadable, or does not describe an array of antigram.
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
        """Check the size of the first chunk against the shape, before memory is allocated.

        The manifest has the number of chunks, so no shape can claim more than the disk holds.
        """
        if self.spec.dtype == STRING or not self.spec.chunks:
            return
        first, wanted = chunk_key(self.spec, 0), self._layout.size
        entry = self.group.head(first)
        if entry is not None and entry.size != wanted:
            shape = self.spec.rows, *self.spec.shape[1:]
            raise DamagedError(
                f"{self.group.where(first)}: {entry.size} bytes, wanted {wanted}, as "
                f"{self.spec.name.rpartition('/')[2]}/zarr.json has {shape} {self.spec.dtype}: "
                f"truncated, or a chunk of another array. {self.repair}"
            )

    def require(self, dtypes: Collection[str], shape: tuple[int | None, ...]) -> None:
        """Raise if the array has another dtype or shape than the format requires.

        Args:
            dtypes: accepted dtypes.
            shape: required shape; None accepts any length of an axis.

        Raises:
            DamagedError: the message has the actual and the required dtype and shape.
        """
        if self.spec.dtype in dtypes and fits(self.shape, shape):
            return
        wanted_shape = ", ".join("any" if length is None else str(length) for length in shape)
        raise DamagedError(
            f"{self.where}: is {self.spec.dtype} {self.shape}, "
            f"wanted {' or '.join(dtypes)} ({wanted_shape}). {self.repair}"
        )

    def _forget(self) -> None:
        self._view: RowView | None = None
        self._chunks: dict[int, NDArray[Any]] = {}  # index -> rows of a checked chunk
        # Index of each row in the view's table, when all chunks are checked.
        self._table_rows: NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out, as each process opens its own."""
        names = ("group", "repair", "_crcs", "spec")
        return {key: vars(self)[key] for key in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def __len__(self) -> int:
        return self.spec.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array, rows first."""
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
        """Layout of each chunk."""
        return RowLayout(self.spec.rows, self.spec.row_bytes, CRC_BYTES)

    def chunk(self, index: int) -> NDArray[Any]:
        """Return a chunk's rows as a read-only array that includes the padding rows.

        The chunk is verified against its checksum at the first call only.

        Raises:
            DamagedError: the chunk is missing, truncated, or does not match its checksum.
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
        """Map a chunk into the view of all chunks, without reading it.

        Raises:
            DamagedError: the chunk is missing, or has another size.
            InputError: the process reaches its limit of memory maps.
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
            f"{self.group.where(key)}: its {size} bytes differ from what was written (crc32c). "
            f"{self.repair}"
        )

    def _unreadable(self, key: str, error: OSError) -> DamagedError:
        return self._replaced(key) or DamagedError(
            f"{self.group.where(key)}: {error.strerror}, wanted a chunk. {self.repair}"
        )

    def _replaced(self, key: str) -> DamagedError | None:
        """Return the error to raise if the group was replaced after it was opened; else None."""
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
            f"{error.where}: was overwritten in place while in use: its {error.size} bytes differ "
            "from what was written (crc32c). Results since the last check are not kept. "
            f"{self.repair}"
        )

    def hold(self) -> None:
        """Map all chunks, without reading them, so that replacing their files has no effect.

        This takes 10 microseconds a chunk and keeps no file descriptor open.

        Raises:
            DamagedError: a chunk is missing, or has another size.
            InputError: the process reaches its limit of memory maps.
        """
        for index in range(self.spec.chunks):
            if index not in self._chunks:
                self._open(index)

    def look(self, rows: slice | None = None) -> list[str]:
        """Check whether mapped chunks have changed since they were mapped.

        The map of a file that was replaced or deleted stays valid. A file that was written to is
        read again and accepted if it still matches its checksum in the manifest. Between two
        checks, a truncated file may still end the process with SIGBUS.

        Args:
            rows: rows whose chunks are checked; None checks all.

        Returns:
            Lines for the user about files that were replaced, or rewritten with the same bytes.

        Raises:
            DamagedError: a file was truncated or overwritten in place; the message names it.
        """
        if self._view is None:
            return []
        view, chunk_rows = self._view, self.spec.rows
        chosen = (
            range(self.spec.chunks)
            if rows is None
            else range(rows.start // chunk_rows, -(-rows.stop // chunk_rows))
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
        """Return rows, in any order, as an array (row, ...) of the stored dtype.

        Args:
            rows: indices of the rows.
            view: index along the second axis, if that is an axis of views; None takes all.
            out: array for the result; default: a new one.

        Raises:
            DamagedError: a chunk is missing, truncated, or does not match its checksum.
        """
        if self._table_rows is None:
            self._check_chunks(np.asarray(rows) // self.spec.rows)
        shape = len(rows), *self.shape[1 if view is None else 2 :]
        direct = out is None or (out.dtype == self._dtype and out.flags.c_contiguous)
        if self._table_rows is None or self._view is None or not direct:
            out = np.empty(shape, self._dtype) if out is None else out
            self.gather(rows, out, view)
            return out
        table_rows, table = self._table_rows[rows], self._view.table
        if view is not None:
            table = table.reshape(-1, table.shape[1] // self.shape[1])
            table_rows = table_rows * self.shape[1] + view
        # Gathered as bytes, as rows of an exported file may be unaligned. All indices are in range;
        # the mode "raise" would gather into a buffer and copy it.
        raw = None if out is None else out.reshape(len(rows), -1).view(np.uint8)
        raw = table.take(table_rows, axis=0, out=raw, mode="clip")
        return raw.view(self._dtype).reshape(shape) if out is None else out

    def _check_chunks(self, chunks: NDArray[np.integer]) -> None:
        """Check chunks; when all are checked, compute the index of each row in the table."""
        for index in np.unique(chunks).tolist():
            self.chunk(index)
        if self._view is not None and len(self._chunks) == self.spec.chunks:
            rows = np.arange(len(self))
            self._table_rows = rows + rows // self.spec.rows * (self._view.apart - self.spec.rows)

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """Write rows to ``out`` (row, ...), converted to its dtype; see `take`."""
        chunk, inner = np.divmod(rows, self.spec.rows)
        for position, (index, row) in enumerate(zip(chunk.tolist(), inner.tolist(), strict=True)):
            stored = self.chunk(index)[row]
            out[position] = stored if view is None else stored[view]

    def read(self) -> NDArray[Any]:
        """Return all rows as an array in memory."""
        return self.read_span(slice(0, len(self)))

    def read_span(self, span: slice) -> NDArray[Any]:
        """Return rows ``span.start`` to ``span.stop`` as an array in memory."""
        out = np.empty((span.stop - span.start, *self.shape[1:]), self.spec.dtype)
        chunk_rows = self.spec.rows
        for index in range(span.start // chunk_rows, -(-span.stop // chunk_rows)):
            begin = index * chunk_rows
            first, last = max(span.start, begin), min(span.stop, begin + chunk_rows)
            chunk = self.chunk(index)[first - begin : last - begin]
            out[first - span.start : last - span.start] = chunk
        return out

    def raw_chunk(self, index: int) -> NDArray[np.uint8]:
        """Return the stored bytes of a chunk without its checksum, after checking them."""
        if self.spec.dtype == STRING:
            return self._text_chunk(index)
        return self.chunk(index).reshape(-1).view(np.uint8)

    def read_text(self) -> list[str]:
        """Return all rows of an array of text."""
        out: list[str] = []
        for index in range(self.spec.chunks):
            try:
                out += decode_texts(self._text_chunk(index).tobytes(), self.spec.rows)
            except ValueError as error:
                path = self.group.where(chunk_key(self.spec, index))
                raise DamagedError(f"{path}: {error}. {self.repair}") from None
        return out[: len(self)]

    def _text_chunk(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of a chunk of text without its checksum, after checking them."""
        key = chunk_key(self.spec, index)
        try:
            data = self.group.view(key)[:-CRC_BYTES]
        except OSError as error:
            raise self._unreadable(key, error) from None
        if crc32c(data) != self._crcs[index]:
            raise self._damaged(key, data.size)
        return data
