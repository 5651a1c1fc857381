"""What the workers of `prepare` do: decode, mix and transform clips; then normalise chunks.

Each task is a function of what lies on disk, which it does not change: it may be killed anywhere
and run again, by any engine, even while it still runs elsewhere. A result gets its name when it is
complete.

Imports no torch and no zarr, so that a worker starts in a fraction of a second. Nothing here knows
of splits, labels or progress.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError, read
from antigram.pipeline.audio.noise import NoiseBank, mix, mix_noise
from antigram.pipeline.audio.stft import stft
from antigram.pipeline.corpus import Mixture
from antigram.pipeline.features.listing import Row
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.scale import normalised
from antigram.pipeline.features.sources import Reading, Source
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

__all__ = [
    "CRASHES",
    "Context",
    "RawBlock",
    "Rendering",
    "RowResult",
    "block_is_whole",
    "normalise_chunk",
    "render_block",
    "render_row",
    "set_up",
    "write_chunks",
]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What every task of a run shares."""

    recipe: Recipe
    home: Path
    raw: Path  # folder of the raw blocks
    bank: NoiseBank | None


class RowResult(NamedTuple):
    """What became of one row.

    Attributes:
        reason: why it was rejected; empty if it was not.
        total: sum of its magnitudes (float64).
        squares: sum of their squares.
        silent: no sample of the recording differs from zero.
        noise: index of the noise class, -1 for none.
        snr_db: nominal; None for none (JSON has no NaN).
        low: its least magnitude.
        high: its greatest.
    """

    reason: str = ""
    total: float = 0.0
    squares: float = 0.0
    silent: bool = False
    noise: int = -1
    snr_db: float | None = None
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Where the magnitudes of some rows wait to be normalised."""

    index: int
    rows: int
    crc32c: int

    def path(self, folder: Path) -> Path:
        """Its file: float32 (row, frame, freq)."""
        return folder / f"{self.index:08d}.f32"


Rendering = tuple[RawBlock, list[RowResult], list[Source]]

CRASHES = "its decoding crashes the decoder"
_AT_ONCE = 8  # clips in a transform: more do not fit into the cache
_PART = 1 << 17  # values that are normalised at once, for the same reason

_context: Context | None = None
_noise: NDArray[np.float32] | None = None


def set_up(context: Context) -> None:
    """Initialise a worker process."""
    global _context, _noise  # noqa: PLW0603 - a process pool has no other place for shared state
    _context = context
    _noise = context.bank.samples() if context.bank else None


def render_row(row: Row) -> None:
    """Decode one row and forget it: to see whether this process survives."""
    context = _shared()
    with suppress(AudioError):
        y = np.zeros(context.recipe.samples, np.float32)
        _sound(context, row, y, Reading(context.home, [row.path]))


def render_block(
    index: int, rows: Sequence[Row], elsewhere: Sequence[str] = (), dead: Sequence[int] = ()
) -> Rendering:
    """Decode, mix and transform rows, and write their magnitudes as one raw block.

    The block is not flushed to disk: its checksum is kept, and a block that a power cut damaged is
    made again.

    Args:
        index: of the block.
        rows: in it.
        elsewhere: recordings of which another block notes the checksum.
        dead: places of rows that are rejected unseen: decoding them kills the process.

    Returns:
        The block, what became of each row, and what the recordings were.
    """
    context, results, crc = _shared(), [], 0
    reading = Reading(context.home, frozenset(elsewhere))
    goal = RawBlock(index, len(rows), crc).path(context.raw)
    out = np.empty((_AT_ONCE, *context.recipe.shape), np.float32)
    with atomic_file(goal, flush=False) as file:
        for first in range(0, len(rows), _AT_ONCE):
            group = rows[first : first + _AT_ONCE]
            part = out[: len(group)]
            results += _render(context, group, {place - first for place in dead}, part, reading)
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
    dead: Container[int],
    out: NDArray[np.float32],
    reading: Reading,
) -> list[RowResult]:
    """Magnitudes (row, frame, freq) of some rows, zeros for those that cannot be used."""
    recipe = context.recipe
    y = np.zeros((len(rows), recipe.samples), np.float32)
    heard = []
    for place, row in enumerate(rows):
        try:
            if place in dead:
                raise AudioError(CRASHES)
            heard.append(_sound(context, row, y[place], reading))
        except AudioError as error:
            y[place] = 0
            heard.append(RowResult(reason=str(error)))
    stft(y, n_fft=recipe.n_fft, hop=recipe.hop, window=recipe.window, out=out)
    results = []
    for magnitudes, result in zip(out, heard, strict=True):
        wide = magnitudes.reshape(-1).astype(np.float64)
        squares = float(np.dot(wide, wide))
        if not math.isfinite(squares):
            magnitudes[:] = 0
            reason = "samples so large that its spectrum is not finite"
            results.append(RowResult(reason=reason))
        else:
            total, low, high = float(np.add.reduce(wide)), magnitudes.min(), magnitudes.max()
            results.append(
                result._replace(total=total, squares=squares, low=float(low), high=float(high))
            )
    return results


def _sound(context: Context, row: Row, y: NDArray[np.float32], reading: Reading) -> RowResult:
    """Put a row's samples, noise and all, into ``y`` (zeros); say what is in them."""
    recipe = context.recipe
    if row.mixture is not None:
        whole, read_for_it = _mixed(context, row.mixture)
        reading.add(read_for_it)
        y[: row.samples] = whole[row.offset : row.offset + row.samples]
        return RowResult(snr_db=row.mixture.snr_db)
    heard = _listed(context, row.path, row.start, row.samples, reading)
    y[: heard.size] = heard
    if context.bank is None or _noise is None:
        return RowResult(silent=not heard.any())
    mixed = mix_noise(
        y,
        context.bank,
        _noise,
        level=recipe.noise,
        snr_mode=recipe.snr_mode,
        seed=recipe.seed,
        clip_id=row.clip_id,
    )
    if mixed.noise < 0:
        return RowResult(silent=True)
    y[:] = mixed.y
    return RowResult(noise=mixed.noise, snr_db=mixed.snr_db)


def _listed(
    context: Context, path: str, start: int, count: int, reading: Reading
) -> NDArray[np.float32]:
    """Samples that were listed: a file that has fewer is another one now, or its header is wrong.

    Resampled, a file may end one sample earlier than its length says: the resampler rounds.
    """
    rate = context.recipe.sample_rate
    name, look = f"{context.home}/{path}", reading.look(path)
    heard = read(name, start=start, count=count, sample_rate=rate, look=look)
    if heard.size < max(1, count - 1):
        raise AudioError(f"truncated: {heard.size} of {count} samples are at {start / rate:g} s")
    return heard


@lru_cache(maxsize=2)
def _mixed(context: Context, mixture: Mixture) -> tuple[NDArray[np.float32], Reading]:
    """A whole mixture: its fragments are rendered one after the other, from this."""
    reading = Reading(context.home)
    if context.bank is None or _noise is None:
        raise RuntimeError("a mixture needs noise")
    speech = np.zeros(mixture.samples, np.float32)
    place = 0
    for path, count in mixture.clean:
        heard = _listed(context, path, 0, count, reading)
        speech[place : place + heard.size] = heard
        place += count
    if not speech.any():
        raise AudioError("clean speech is silent from end to end")
    noise = context.bank.take(
        _noise, mixture.noise, mixture.recording, mixture.offset, mixture.samples
    )
    released = context.recipe.snr_mode == "released"
    return mix(speech, noise, mixture.snr_db, released=released), reading


def block_is_whole(block: RawBlock, folder: Path, row_bytes: int) -> bool:
    """Whether a raw block is there as it was written."""
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
    """Write one chunk of features: rows of raw blocks, less the mean, over the deviation.

    It is not flushed by itself: the store is, as a whole, before it is published, and a chunk that
    a power cut damaged meanwhile is made again.

    Args:
        store: the group.
        spec: of the array ``features``.
        index: of the chunk.
        pieces: raw blocks, each with the rows to take, in the order they are to stand.
        mean: of the training split.
        std: of the training split.

    Returns:
        What was written; or, if nothing was, a raw block that does not match its checksum.
    """
    goal, crc, sha = chunk_path(store, spec, index), 0, sha256()
    goal.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_file(goal, flush=False) as file:
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
    """Bytes of a chunk, less the checksum, some rows at a time: see `chunks.encode`."""
    for block, rows in pieces:
        for part in _rows_of(block, rows, spec.shape[1:]):
            yield normalised(part, mean, std, spec.dtype).reshape(-1).view(np.uint8)
    span = spec.span(index)
    missing = (spec.rows - (span.stop - span.start), *spec.shape[1:])
    yield np.full(missing, spec.fill, spec.dtype).reshape(-1).view(np.uint8)


class _DamagedBlockError(ValueError):
    """A raw block does not match its checksum."""

    def __init__(self, block: RawBlock) -> None:
        super().__init__(block.index)
        self.block = block


def _rows_of(
    block: RawBlock, rows: Sequence[int], shape: tuple[int, ...]
) -> Iterator[NDArray[np.float32]]:
    """Rows of a raw block, some at a time, in memory that is used again; all of it is checked.

    Parts that stay in the processor's cache, read and not mapped: faulting pages in costs more.

    Raises:
        _DamagedBlockError: it is missing or not as it was written; known after the last part.
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
    """Write chunks of small arrays: making a file can cost more than what stands in it."""
    return [write_chunk(store, spec, index, data, flush=False) for spec, index, data in chunks]
