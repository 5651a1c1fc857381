"""What the workers of `prepare` do: decode, mix and transform clips; then normalise chunks.

Imports no torch and no zarr, so that a worker starts in a fraction of a second. Nothing here knows
of splits, labels or progress.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.audio import AudioError, read
from pipeline.chunks import ArraySpec, Written, crc32c, encode, write_chunk
from pipeline.mapped import map_file
from pipeline.noise import NoiseBank, mix_noise
from pipeline.recipe import Recipe
from pipeline.rows import Row
from pipeline.stft import stft

__all__ = ["Context", "RawBlock", "RowResult", "normalise_chunk", "render_block", "set_up"]


@dataclass(frozen=True, slots=True)
class Context:
    """What every task of a run shares."""

    recipe: Recipe
    home: Path
    raw: Path  # folder of the raw blocks
    bank: NoiseBank | None


@dataclass(frozen=True, slots=True)
class RowResult:
    """What became of one row.

    Attributes:
        reason: why it was rejected; empty if it was not.
        total: sum of its magnitudes (float64).
        squares: sum of their squares.
        silent: no sample of the recording differs from zero.
        noise: index of the noise class, -1 for none.
        snr_db: nominal; None for none (JSON has no NaN).
    """

    reason: str = ""
    total: float = 0.0
    squares: float = 0.0
    silent: bool = False
    noise: int = -1
    snr_db: float | None = None


@dataclass(frozen=True, slots=True)
class RawBlock:
    """Where the magnitudes of some rows wait to be normalised."""

    index: int
    rows: int
    crc32c: int

    def path(self, folder: Path) -> Path:
        """Its file: float32 (row, frame, freq)."""
        return folder / f"{self.index:08d}.f32"


_context: Context | None = None
_noise: NDArray[np.float32] | None = None


def set_up(context: Context) -> None:
    """Initialise a worker process."""
    global _context, _noise  # noqa: PLW0603 - a process pool has no other place for shared state
    _context = context
    _noise = context.bank.samples() if context.bank else None
    if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides, and says what is kept
        threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent was killed: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def render_block(index: int, rows: Sequence[Row]) -> tuple[RawBlock, list[RowResult]]:
    """Decode, mix and transform rows, and write their magnitudes as one raw block.

    The block is not flushed to disk: its checksum is kept, and a block that a power cut damaged is
    made again.
    """
    context, results = _shared(), []
    block = np.zeros((len(rows), *context.recipe.shape), np.float32)
    for place, row in enumerate(rows):
        try:
            results.append(_render(context, row, block[place]))
        except AudioError as error:
            results.append(RowResult(reason=str(error)))
    flat = block.reshape(-1)
    done = RawBlock(index, len(rows), crc32c(flat))
    beside = done.path(context.raw).with_suffix(".partial")
    with beside.open("wb") as file:
        file.write(flat.data)
    beside.replace(done.path(context.raw))
    return done, results


def _shared() -> Context:
    if _context is None:
        raise RuntimeError("set_up() was not called in this process")
    return _context


def _render(context: Context, row: Row, out: NDArray[np.float32]) -> RowResult:
    recipe = context.recipe
    y = np.zeros(recipe.samples, np.float32)
    heard = read(
        context.home / row.path, start=row.start, count=row.count, sample_rate=recipe.sample_rate
    )
    if heard.size == 0:
        raise AudioError(f"no audio at {row.start / recipe.sample_rate:g} s")
    y[: heard.size] = heard
    silent = not heard.any()
    noise, snr_db = -1, None
    if context.bank is not None and _noise is not None and not silent:
        mixed = mix_noise(
            y,
            context.bank,
            _noise,
            level=recipe.noise,
            snr_mode=recipe.snr_mode,
            seed=recipe.seed,
            clip_id=row.clip_id,
        )
        y, noise, snr_db = mixed.y, mixed.noise, mixed.snr_db
    out[:] = stft(y, n_fft=recipe.n_fft, hop=recipe.hop, window=recipe.window)
    wide = out.astype(np.float64).ravel()
    squares = float(np.dot(wide, wide))
    if not np.isfinite(squares):
        raise AudioError("samples so large that its spectrum is not finite")
    return RowResult(
        total=float(wide.sum()), squares=squares, silent=silent, noise=noise, snr_db=snr_db
    )


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
) -> Written:
    """Write one chunk of features: rows of raw blocks, less the mean, over the deviation.

    Args:
        store: the group.
        spec: of the array ``features``.
        index: of the chunk.
        pieces: raw blocks, each with the rows to take, in the order they are to stand.
        mean: of the training split.
        std: of the training split.
    """
    context = _shared()
    shape = context.recipe.shape
    parts = []
    for block, rows in pieces:
        raw = np.memmap(block.path(context.raw), np.float32, mode="r").reshape(-1, *shape)
        parts.append(raw if len(rows) == len(raw) else raw[list(rows)])
    values = parts[0] if len(parts) == 1 else np.concatenate(parts)
    normalised = (values - np.float32(mean)) * np.float32(1 / std)
    return write_chunk(store, spec, index, encode(spec, index, normalised))
