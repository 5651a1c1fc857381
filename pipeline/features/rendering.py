"""Tasks of the workers of `prepare`: render segments, then write normalised chunks of them.

Rendering is decoding, mixing and transforming. It is done twice in principle: for the sums from
which mean and deviation are known, and again for the chunks. The magnitudes of a block are kept in
memory that the workers share, where there is room, so that the second time is saved.

A task depends only on files that it does not change, and its result is renamed into place when it
is complete; what it keeps in memory is the same whoever writes it. A task can therefore be killed
at any point and run again, by any executor, even while a first copy still runs.

This module imports neither torch nor zarr, so that a worker starts in a fraction of a second, and
knows nothing of splits, labels or progress.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError
from antigram.pipeline.features.listing import Row
from antigram.pipeline.features.row_audio import Context, RowResult, render_audio
from antigram.pipeline.features.scale import normalised
from antigram.pipeline.features.sources import Reading, Source, paths_of
from antigram.pipeline.features.spectra import spectra
from antigram.pipeline.storage.chunks import (
    CRC_BYTES,
    ArraySpec,
    Written,
    chunk_path,
    crc32c,
    write_chunk,
)
from antigram.pipeline.storage.durable import atomic_file, begin_writeback
from antigram.pipeline.storage.folder import Folder

__all__ = [
    "CRASHES",
    "Again",
    "Piece",
    "Rendering",
    "render_block",
    "render_row",
    "set_up",
    "write_chunks",
    "write_features",
]


class Rendering(NamedTuple):
    """Result of rendering a block.

    Attributes:
        results: result of each row.
        sources: state of the recordings.
        kept: whether all magnitudes are in the shared memory.
    """

    results: list[RowResult]
    sources: list[Source]
    kept: bool


class Again(NamedTuple):
    """What is needed to render a block a second time.

    Attributes:
        rows: all rows of the block.
        results: results of the first time, which must be the same.
    """

    rows: Sequence[Row]
    results: Sequence[RowResult]


class Piece(NamedTuple):
    """Rows of one block that are in a chunk.

    Attributes:
        block: index of the block.
        taken: positions of the rows in the block, ascending.
        magnitudes: offset of the block in the shared memory, or how to render it again.
    """

    block: int
    taken: Sequence[int]
    magnitudes: int | Again


CRASHES = "its decoding crashes the decoder"
_AT_ONCE = 8  # segments in one transform: more do not fit into the CPU cache
_PART = 1 << 17  # values normalised at once, for the same reason

_context: Context | None = None


def set_up(context: Context) -> None:
    """Initialise a worker process."""
    global _context  # noqa: PLW0603 - a process pool shares state through globals only
    _context = context


def render_row(row: Row) -> None:
    """Decode one row and discard the result, to see whether the process survives."""
    context = _shared()
    with suppress(AudioError):
        y = np.zeros(context.recipe.samples, np.float32)
        render_audio(context, row, y, Reading(context.home, [row.path]))


def render_block(
    index: int,
    rows: Sequence[Row],
    noted_elsewhere: Sequence[str] = (),
    keep_at: int | None = None,
    crashing: Sequence[int] = (),
) -> Rendering:
    """Decode, mix and transform rows, for their sums; keep the magnitudes where there is room.

    Args:
        index: index of the block, by which the caller knows the task.
        rows: rows of the block.
        noted_elsewhere: recordings whose checksum another block notes.
        keep_at: offset in the shared memory where the magnitudes are kept; None: nowhere.
        crashing: positions of rows that are rejected without decoding, as that kills the process.
    """
    context = _shared()
    reading = Reading(context.home, frozenset(noted_elsewhere))
    results: list[RowResult] = []
    memory = context.memory if keep_at is not None else None
    for first, rendered, part in _in_groups(context, rows, frozenset(crashing), reading):
        results += rendered
        if memory is not None and not memory.write((keep_at or 0) + first * part[0].nbytes, part):
            memory = None
    return Rendering(results, reading.of(rows), memory is not None)


def _shared() -> Context:
    if _context is None:
        raise RuntimeError("set_up() was not called in this process")
    return _context


def _in_groups(
    context: Context,
    rows: Sequence[Row],
    crashing: Container[int],
    reading: Reading,
    wanted: Container[int] | None = None,
) -> Iterator[tuple[int, list[RowResult], NDArray[np.float32]]]:
    """Render rows of a block, some at a time.

    The groups are always the same ones, as the last bits of a transform may depend on how many are
    made at once.

    Args:
        context: recipe, corpus and noise.
        rows: rows of the block.
        crashing: positions of rows that are rejected without decoding.
        reading: notes the recordings that are read.
        wanted: positions of rows; groups without any of them are left out. Default: all rows.

    Yields:
        Position of the first row of a group, the results of its rows, and their magnitudes in an
        array that is reused.
    """
    out = np.empty((_AT_ONCE, *context.recipe.shape), np.float32)
    for first in range(0, len(rows), _AT_ONCE):
        group = rows[first : first + _AT_ONCE]
        positions = range(first, first + len(group))
        if wanted is None or any(position in wanted for position in positions):
            rejected = {position - first for position in positions if position in crashing}
            part = out[: len(group)]
            yield first, _render(context, group, rejected, part, reading), part


def _render(
    context: Context,
    rows: Sequence[Row],
    crashing: Container[int],
    out: NDArray[np.float32],
    reading: Reading,
) -> list[RowResult]:
    """Write the magnitudes (row, frame, freq) of some rows to ``out``; zeros for rejected rows."""
    recipe = context.recipe
    y = np.zeros((len(rows), recipe.samples), np.float32)
    partial_results = []
    for position, row in enumerate(rows):
        try:
            if position in crashing:
                raise AudioError(CRASHES)
            partial_results.append(render_audio(context, row, y[position], reading))
        except AudioError as error:
            y[position] = 0
            partial_results.append(RowResult(reason=str(error)))
    spectra(y, recipe, out=out)
    flat = out.reshape(len(out), -1)
    lows, highs = flat.min(axis=1).tolist(), flat.max(axis=1).tolist()
    wide = np.empty(flat.shape[1], np.float64)
    results = []
    for values, result, low, high in zip(flat, partial_results, lows, highs, strict=True):
        wide[:] = values
        squares = float(np.dot(wide, wide))
        if not math.isfinite(squares):
            values[:] = 0
            reason = "samples so large that its spectrum is not finite"
            results.append(RowResult(reason=reason))
        else:
            total = float(np.add.reduce(wide))
            results.append(result._replace(total=total, squares=squares, low=low, high=high))
    return results


def write_features(
    store: Path,
    spec: ArraySpec,
    index: int,
    pieces: Sequence[Piece],
    mean: float,
    std: float,
) -> Written | int:
    """Write one chunk of features: rows of blocks, normalised by mean and deviation.

    On one machine, the chunk is not flushed to disk. The file system is flushed once, before the
    store is published; a chunk that is damaged by an earlier power cut is written again.

    Args:
        store: folder of the group.
        spec: layout of the array ``features``.
        index: index of the chunk.
        pieces: the rows, in the order of the chunk.
        mean: mean of the training split.
        std: standard deviation of the training split.

    Returns:
        The checksums of the chunk; or, if none was written, the index of a block whose rows have
        changed since they were rendered first.
    """
    target, crc, sha = chunk_path(store, spec, index), 0, sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(target, flush=_shared().flush) as file:
            for data in _normalised(spec, index, pieces, mean, std):
                crc = crc32c(data, crc)
                sha.update(data.data)
                file.write(data.data)
            file.write(crc.to_bytes(CRC_BYTES, "little"))
            begin_writeback(file)
    except _ChangedError as error:
        return error.block
    return Written(crc, sha.hexdigest())


class _ChangedError(ValueError):
    """The rows of a block differ from what they were when they were rendered first."""

    def __init__(self, block: int) -> None:
        super().__init__(block)
        self.block = block


def _normalised(
    spec: ArraySpec, index: int, pieces: Sequence[Piece], mean: float, std: float
) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a chunk without its checksum, some rows at a time; see `chunks.encode`."""
    for piece in pieces:
        for part in _rows_of(piece, spec.shape[1:]):
            yield normalised(part, mean, std, spec.dtype).reshape(-1).view(np.uint8)
    span = spec.span(index)
    padding = (spec.rows - (span.stop - span.start), *spec.shape[1:])
    yield np.full(padding, spec.fill, spec.dtype).reshape(-1).view(np.uint8)


def _rows_of(piece: Piece, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """Yield the magnitudes of a piece, a few rows at a time, in arrays that may be overwritten.

    Raises:
        _ChangedError: the rows have changed since they were rendered first.
    """
    if isinstance(piece.magnitudes, int):
        yield from _kept_rows(piece.magnitudes, piece.taken, shape)
        return
    context, (rows, noted), wanted = _shared(), piece.magnitudes, frozenset(piece.taken)
    crashing = {position for position, result in enumerate(noted) if result.reason == CRASHES}
    reading = Reading(context.home, frozenset(paths_of(rows)))
    for first, results, part in _in_groups(context, rows, crashing, reading, wanted):
        if results != noted[first : first + len(results)]:
            raise _ChangedError(piece.block)
        yield part[[i for i in range(len(part)) if first + i in wanted]]


def _kept_rows(
    offset: int, taken: Sequence[int], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Yield rows of a block in the shared memory, at most as many as fit into the CPU cache."""
    memory = _shared().memory
    if memory is None:
        raise RuntimeError("this process has no shared memory")
    buffer = np.empty((max(1, _PART // math.prod(shape)), *shape), np.float32)
    for run in _runs(taken, len(buffer)):
        part = buffer[: len(run)]
        memory.read(offset + run.start * part[0].nbytes, part)
        yield part


def _runs(positions: Sequence[int], most: int) -> Iterator[range]:
    """Divide ascending numbers into runs without a gap, of at most ``most`` numbers each."""
    begin = end = positions[0]
    for position in [*positions[1:], -1]:
        end += 1
        if position != end or end - begin == most:
            yield range(begin, end)
            begin = end = position


def write_chunks(store: Path, chunks: Sequence[tuple[ArraySpec, int, bytes]]) -> list[Written]:
    """Write many chunks of small arrays in one task, as creating files takes most of the time."""
    group, flush = Folder(store), _shared().flush
    return [write_chunk(group, spec, index, data, flush=flush) for spec, index, data in chunks]
