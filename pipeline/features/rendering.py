"""Tasks of the workers of `prepare`: decode, mix and transform segments; then normalise chunks.

A task depends only on files that it does not change, and its result is renamed into place when it
is complete. It can therefore be killed at any point and run again, by any executor, even while a
first copy still runs.

This module imports neither torch nor zarr, so that a worker starts in a fraction of a second, and
knows nothing of splits, labels or progress.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError
from antigram.pipeline.features.listing import Row
from antigram.pipeline.features.row_audio import Context, RowResult, render_audio
from antigram.pipeline.features.scale import normalised
from antigram.pipeline.features.sources import Reading, Source
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
from antigram.pipeline.storage.files import map_file, named
from antigram.pipeline.storage.folder import Folder

__all__ = [
    "CRASHES",
    "RawBlock",
    "Rendering",
    "block_is_intact",
    "normalise_chunk",
    "render_block",
    "render_row",
    "set_up",
    "write_chunks",
]


@dataclass(frozen=True, slots=True)
class RawBlock:
    """A file with the magnitudes of some rows, before normalisation.

    Attributes:
        index: index of the block.
        rows: number of rows in the block.
        crc32c: checksum of the file.
    """

    index: int
    rows: int
    crc32c: int

    def path(self, folder: Path) -> Path:
        """Return the path of the file: float32 (row, frame, freq)."""
        return folder / f"{self.index:08d}.f32"


Rendering = tuple[RawBlock, list[RowResult], list[Source]]

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
    crashing: Sequence[int] = (),
) -> Rendering:
    """Decode, mix and transform rows, and write their magnitudes as one raw block.

    The block is not flushed to disk. If a power cut damages it, its checksum shows that, and the
    block is rendered again.

    Args:
        index: index of the block.
        rows: rows of the block.
        noted_elsewhere: recordings whose checksum another block notes.
        crashing: positions of rows that are rejected without decoding, as that kills the process.

    Returns:
        The block, the result of each row, and the state of the recordings.
    """
    context, results, crc = _shared(), [], 0
    reading = Reading(context.home, frozenset(noted_elsewhere))
    target = RawBlock(index, len(rows), crc).path(context.raw)
    out = np.empty((_AT_ONCE, *context.recipe.shape), np.float32)
    with atomic_file(target, flush=False) as file:
        for first in range(0, len(rows), _AT_ONCE):
            group = rows[first : first + _AT_ONCE]
            part = out[: len(group)]
            results += _render(
                context, group, {position - first for position in crashing}, part, reading
            )
            data = part.reshape(-1).view(np.uint8)
            crc = crc32c(data, crc)
            file.write(data.data)
    return RawBlock(index, len(rows), crc), results, reading.of(rows)


def _shared() -> Context:
    if _context is None:
        raise RuntimeError("set_up() was not called in this process")
    return _context


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
    results = []
    for magnitudes, result in zip(out, partial_results, strict=True):
        values = magnitudes.reshape(-1).astype(np.float64)
        squares = float(np.dot(values, values))
        if not math.isfinite(squares):
            magnitudes[:] = 0
            reason = "samples so large that its spectrum is not finite"
            results.append(RowResult(reason=reason))
        else:
            total, low, high = float(np.add.reduce(values)), magnitudes.min(), magnitudes.max()
            results.append(
                result._replace(total=total, squares=squares, low=float(low), high=float(high))
            )
    return results


def block_is_intact(block: RawBlock, folder: Path, row_bytes: int) -> bool:
    """Whether a raw block exists and matches its checksum."""
    try:
        raw = map_file(block.path(folder))
    except OSError:
        return False
    return raw.size == block.rows * row_bytes and crc32c(raw) == block.crc32c


def normalise_chunk(
    store: Path,
    spec: ArraySpec,
    index: int,
    pieces: Sequence[tuple[RawBlock, Sequence[int]]],
    mean: float,
    std: float,
) -> Written | RawBlock:
    """Write one chunk of features: rows of raw blocks, normalised by mean and deviation.

    The chunk is not flushed to disk. The file system is flushed once, before the store is
    published; a chunk that is damaged by an earlier power cut is written again.

    Args:
        store: folder of the group.
        spec: layout of the array ``features``.
        index: index of the chunk.
        pieces: raw blocks and the rows to take from each, in the order of the chunk.
        mean: mean of the training split.
        std: standard deviation of the training split.

    Returns:
        The checksums of the chunk; or, if none was written, a raw block that does not match its
        checksum.
    """
    target, crc, sha = chunk_path(store, spec, index), 0, sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(target, flush=False) as file:
            for data in _normalised(spec, index, pieces, mean, std):
                crc = crc32c(data, crc)
                sha.update(data.data)
                file.write(data.data)
            file.write(crc.to_bytes(CRC_BYTES, "little"))
            begin_writeback(file)
    except _DamagedBlockError as error:
        return error.block
    return Written(crc, sha.hexdigest())


def _normalised(
    spec: ArraySpec,
    index: int,
    pieces: Sequence[tuple[RawBlock, Sequence[int]]],
    mean: float,
    std: float,
) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes of a chunk without its checksum, some rows at a time; see `chunks.encode`."""
    for block, rows in pieces:
        for part in _rows_of(block, rows, spec.shape[1:]):
            yield normalised(part, mean, std, spec.dtype).reshape(-1).view(np.uint8)
    span = spec.span(index)
    padding = (spec.rows - (span.stop - span.start), *spec.shape[1:])
    yield np.full(padding, spec.fill, spec.dtype).reshape(-1).view(np.uint8)


class _DamagedBlockError(ValueError):
    """A raw block does not match its checksum."""

    def __init__(self, block: RawBlock) -> None:
        super().__init__(block.index)
        self.block = block


def _rows_of(
    block: RawBlock, rows: Sequence[int], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Yield rows of a raw block, a few at a time, in a reused buffer; check the complete block.

    The parts fit into the CPU cache. They are read, not mapped: faulting pages in costs more.

    Raises:
        _DamagedBlockError: the block is missing or damaged; raised after the last part.
    """
    most, crc = max(1, _PART // math.prod(shape)), 0
    values = np.empty((most, *shape), np.float32)
    path = block.path(_shared().raw)
    try:
        with named(path), path.open("rb", buffering=0) as file:
            for first in range(0, block.rows, most):
                part = values[: min(most, block.rows - first)]
                data = part.reshape(-1).view(np.uint8)
                if file.readinto(data.data) != data.size:
                    raise _DamagedBlockError(block)
                crc = crc32c(data, crc)
                taken = [row - first for row in rows if first <= row < first + len(part)]
                if taken:
                    yield part if len(taken) == len(part) else part[taken]
            if file.read(1) or crc != block.crc32c:
                raise _DamagedBlockError(block)
    except FileNotFoundError:
        raise _DamagedBlockError(block) from None


def write_chunks(store: Path, chunks: Sequence[tuple[ArraySpec, int, bytes]]) -> list[Written]:
    """Write many chunks of small arrays in one task, as creating files takes most of the time."""
    group = Folder(store)
    return [write_chunk(group, spec, index, data, flush=False) for spec, index, data in chunks]
