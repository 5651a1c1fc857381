"""Read chunked arrays through memory maps; each chunk is checked by the manifest when first read.

A map stays valid if its file is replaced or deleted. If a file is overwritten in place, its map
changes too: `MappedArray.look` detects that, so that a caller can discard what it has read.

An array with more chunks than the process may map is read with positional reads, with the same
checks and results. A chunk that was replaced or written to is then checked again when it is read.

The module is longer than most, as all ways of reading an array share the state of its checks.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.backend import (
    Backend,
    ChangedError,
    OverwrittenError,
    RowLayout,
    RowView,
    WrongSizeError,
)
from antigram.pipeline.storage.chunk_errors import ChunkErrors
from antigram.pipeline.storage.chunks import CRC_BYTES, STRING, chunk_key, crc32c, decode_texts
from antigram.pipeline.storage.gathering import gather
from antigram.pipeline.storage.layout import fits, spec_of
from antigram.pipeline.storage.text_table import TextTable

__all__ = ["MappedArray"]

Result = TypeVar("Result")


class MappedArray:
    """One array of a store or cache, memory-mapped unless its chunks are too many.

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
        self._errors = ChunkErrors(group, name, crcs, repair)
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
        self._chunks: dict[int, NDArray[Any]] = {}  # index -> rows of a checked chunk, if mapped
        self._checked: set[int] = set()  # indices of checked chunks that are not mapped
        # Index of each row in the view's table, when all chunks are checked.
        self._table_rows: NDArray[np.int64] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out, as each process opens its own."""
        names = ("group", "repair", "_crcs", "_errors", "spec")
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

        The chunk is verified against its checksum: at the first call, if it is mapped, else at
        each call.

        Raises:
            DamagedError: the chunk is missing, truncated, or does not match its checksum.
        """
        if (rows := self._chunks.get(index)) is not None:
            return rows
        self._open(index)
        self._files.fetch(index)  # else the checksum waits for the disk with the interpreter's lock
        part = self._reading(index, lambda view: view.part(index))
        if crc32c(part) != self._crcs[index]:
            raise self._errors.damaged(chunk_key(self.spec, index), self._layout.size)
        rows = part.view(self._dtype).reshape(self.spec.rows, *self.spec.shape[1:])
        rows.flags.writeable = False
        if self._files.table is None:
            self._checked.add(index)
        else:
            self._chunks[index] = rows
        return rows

    @property
    def _files(self) -> RowView:
        """View of all chunks."""
        if self._view is None:
            self._view = self._view_rows()
        return self._view

    def _view_rows(self, *, mapped: bool = True) -> RowView:
        keys = [chunk_key(self.spec, number) for number in range(self.spec.chunks)]
        return self.group.view_rows(self.spec.name, keys, self._layout, mapped=mapped)

    def _open(self, index: int) -> None:
        """Map or note a chunk, without reading it.

        Raises:
            DamagedError: the chunk is missing, or has another size.
        """
        self._reading(index, lambda view: view.open(index))

    def _reading(self, index: int, read: Callable[[RowView], Result]) -> Result:
        """Call a function that reads a chunk, and turn its errors into those of this class.

        If the process cannot map any more files, this and all other chunks are read from now on.
        """
        key = chunk_key(self.spec, index)
        try:
            try:
                return read(self._files)
            except OSError as error:
                if error.errno != errno.ENOMEM or self._files.table is None:
                    raise
                self._forget()
                self._view = self._view_rows(mapped=False)
                return read(self._view)
        except WrongSizeError as error:
            raise self._errors.damaged(key, error.size) from None
        except OverwrittenError as error:
            raise self._errors.overwritten(error) from None
        except OSError as error:
            raise self._errors.unreadable(key, error) from None

    def hold(self) -> None:
        """Map all chunks, without reading them, so that replacing their files has no effect.

        This takes 10 microseconds a chunk and keeps no file descriptor open. Chunks that are too
        many to be mapped are noted instead: if they are replaced, reading them raises.

        Raises:
            DamagedError: a chunk is missing, or has another size.
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
            raise self._errors.overwritten(error) from None

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
            out: array for the result; default: a new one. If it is large, as of a batch in pinned
                memory, several threads fill it.

        Raises:
            DamagedError: a chunk is missing, truncated, or does not match its checksum.
        """
        if self._table_rows is None and self._files.table is not None:
            self._check_chunks(np.asarray(rows) // self.spec.rows)
        shape = len(rows), *self.shape[1 if view is None else 2 :]
        direct = out is None or (out.dtype == self._dtype and out.flags.c_contiguous)
        table = self._files.table
        if self._table_rows is None or table is None or not direct:
            out = np.empty(shape, self._dtype) if out is None else out
            self.gather(rows, out, view)
            return out
        table_rows = self._table_rows[rows]
        if view is not None:
            table = table.reshape(-1, table.shape[1] // self.shape[1])
            table_rows = table_rows * self.shape[1] + view
        # Gathered as bytes, as rows of an exported file may be unaligned. All indices are in range;
        # the mode "raise" would gather into a buffer and copy it.
        if out is None:
            taken = table.take(table_rows, axis=0, mode="clip")
            return taken.view(self._dtype).reshape(shape)
        gather(table, table_rows, out.reshape(len(rows), -1).view(np.uint8))
        return out

    def expect(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        view: int | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Have rows that are taken soon read into memory in the background.

        Chunks that were not checked before are read completely. Damage is raised by `take`.

        Args:
            rows: indices of the rows.
            view: as for `take`.
            again: read rows of checked chunks, too, which may have left the memory meanwhile.
        """
        if not again and self._table_rows is not None:
            return
        size = self.spec.row_bytes if view is None else self.spec.row_bytes // self.shape[1]
        expected: set[int] = set()
        with suppress(StoredDataError, InputError):
            for row in np.asarray(rows).tolist():
                index, inner = divmod(row, self.spec.rows)
                if index in self._chunks or index in self._checked:
                    if again:
                        first = inner * self.spec.row_bytes + (view or 0) * size
                        self._files.expect(index, first, size)
                elif index not in expected:
                    expected.add(index)
                    self._open(index)
                    self._files.expect(index, 0, self._layout.data)

    def _check_chunks(self, chunks: NDArray[np.integer]) -> None:
        """Check chunks; when all are checked, compute the index of each row in the table."""
        for index in np.unique(chunks).tolist():
            self.chunk(index)
        if len(self._chunks) == self.spec.chunks:
            rows = np.arange(len(self))
            self._table_rows = rows + rows // self.spec.rows * (self._files.apart - self.spec.rows)

    def gather(
        self,
        rows: Sequence[int] | NDArray[np.integer],
        out: NDArray[Any],
        view: int | None = None,
    ) -> None:
        """Write rows to ``out`` (row, ...), converted to its dtype; see `take`."""
        chunk, inner = np.divmod(rows, self.spec.rows)
        if self._files.table is None:
            shape = self.shape[1 if view is None else 2 :]
            positions: dict[int, list[int]] = {}
            for position, index in enumerate(chunk.tolist()):
                positions.setdefault(index, []).append(position)
            for index, chosen in positions.items():
                raw = self._read_rows(index, inner[chosen], view)
                out[chosen] = raw.view(self._dtype).reshape(-1, *shape)
            return
        for position, (index, row) in enumerate(zip(chunk.tolist(), inner.tolist(), strict=True)):
            stored = self.chunk(index)[row]
            out[position] = stored if view is None else stored[view]

    def _read_rows(
        self, index: int, rows: NDArray[np.int64], view: int | None = None
    ) -> NDArray[np.uint8]:
        """Return rows of a chunk that is not mapped, after checking the chunk once.

        Args:
            index: index of the chunk.
            rows: indices of rows in the chunk.
            view: as for `take`.

        Returns:
            ``(row, byte)``.
        """
        row_bytes = self.spec.row_bytes
        size = row_bytes if view is None else row_bytes // self.shape[1]
        offsets = rows * row_bytes + (view or 0) * size
        if index in self._checked:
            with suppress(ChangedError):
                return self._reading(index, lambda files: files.read(index, offsets, size))
        pieces = self.chunk(index).reshape(-1).view(np.uint8).reshape(-1, size)
        return pieces[offsets // size]

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
            if index in self._checked and last - first < chunk_rows:
                raw = self._read_rows(index, np.arange(first - begin, last - begin))
                part = raw.view(self._dtype).reshape(-1, *self.shape[1:])
            else:
                part = self.chunk(index)[first - begin : last - begin]
            out[first - span.start : last - span.start] = part
        return out

    def raw_chunk(self, index: int) -> NDArray[np.uint8]:
        """Return the stored bytes of a chunk without its checksum, after checking them."""
        if self.spec.dtype == STRING:
            return self._text_chunk(index)
        return self.chunk(index).reshape(-1).view(np.uint8)

    def text_chunks(self) -> Iterator[list[str]]:
        """Yield the rows of an array of text, chunk by chunk.

        Raises:
            DamagedError: a chunk is missing, or not as it was written.
        """
        for index in range(self.spec.chunks):
            span = self.spec.span(index)
            try:
                texts = decode_texts(self._text_chunk(index).tobytes(), self.spec.rows)
            except ValueError as error:
                path = self.group.where(chunk_key(self.spec, index))
                raise DamagedError(f"{path}: {error}. {self.repair}") from None
            yield texts[: span.stop - span.start]

    def read_text(self) -> TextTable:
        """Return all rows of an array of text."""
        return TextTable.of(self.text_chunks())

    def _text_chunk(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of a chunk of text without its checksum, after checking them."""
        key = chunk_key(self.spec, index)
        try:
            data = self.group.view(key)[:-CRC_BYTES]
        except OSError as error:
            raise self._errors.unreadable(key, error) from None
        if crc32c(data) != self._crcs[index]:
            raise self._errors.damaged(key, data.size)
        return data
