"""The audio of one row of a store: decoded, cut, and mixed with noise or from a mixture.

`prepare` makes features of it; the reader of a store's audio renders it again. This module imports
neither torch nor zarr, as workers load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError, read
from antigram.pipeline.audio.noise import NoiseBank, mix, mix_noise
from antigram.pipeline.corpus import Mixture
from antigram.pipeline.execution.memory import SharedMemory, file_in_memory
from antigram.pipeline.features.listing import Row
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.sources import Reading
from antigram.pipeline.storage.durable import PARTIAL
from antigram.pipeline.storage.files import size_of

__all__ = ["Context", "RowResult", "noise_bank", "render_audio"]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """Data shared by all tasks of a run."""

    recipe: Recipe
    home: Path
    bank: NoiseBank | None
    noise: NDArray[np.float32] | None = None  # samples of the bank, if they are mapped already
    memory: SharedMemory | None = None  # where workers keep magnitudes
    flush: bool = False  # whether workers flush what they write: the driver cannot, elsewhere


@contextmanager
def noise_bank(
    noise: Mapping[str, Sequence[Path]], sample_rate: int, on_disk: Path, memory: int
) -> Iterator[tuple[NoiseBank | None, int]]:
    """Yield the decoded noise, which is held in memory if there is room.

    Args:
        noise: class -> recordings; empty: no noise.
        sample_rate: rate of the bank, in Hz.
        on_disk: file for noise that has no room in memory.
        memory: bytes that may be taken.

    Yields:
        The bank, None if there is no noise; and the bytes of memory that are left.
    """
    if not noise:
        yield None, memory
        return
    recordings = {label: list(paths) for label, paths in noise.items()}
    sizes = sum(size_of(path) for paths in recordings.values() for path in paths)
    if 4 * sizes > memory:  # what 16-bit recordings take as float32 at twice their rate
        # Not written in place: workers of a killed run may still have the former file mapped.
        unfinished = on_disk.with_suffix(PARTIAL)
        bank = NoiseBank.build(recordings, sample_rate, unfinished)
        unfinished.replace(on_disk)
        yield replace(bank, path=on_disk), memory
        return
    with file_in_memory(on_disk) as file:
        bank = NoiseBank.build(recordings, sample_rate, file)
        yield bank, max(0, memory - bank.bytes)


class RowResult(NamedTuple):
    """Result of rendering one row.

    Attributes:
        reason: why the row was rejected; empty if it was not.
        total: sum of the row's magnitudes, in float64.
        squares: sum of the squared magnitudes, in float64.
        silent: whether all samples of the recording are zero.
        noise: index of the noise class, -1 for none.
        snr_db: nominal SNR; None without noise (JSON has no NaN).
        low: lowest magnitude.
        high: highest magnitude.
    """

    reason: str = ""
    total: float = 0.0
    squares: float = 0.0
    silent: bool = False
    noise: int = -1
    snr_db: float | None = None
    low: float = 0.0
    high: float = 0.0


def render_audio(context: Context, row: Row, y: NDArray[np.float32], reading: Reading) -> RowResult:
    """Write the audio of a row, with noise if wanted, to an array.

    Args:
        context: recipe, corpus and noise.
        row: the row.
        y: ``(sample,)`` zeros, a segment long; what the recording does not fill stays zero.
        reading: notes the recordings that are read.

    Returns:
        The noise that was mixed in; without magnitudes.

    Raises:
        AudioError: a recording is unreadable or too short.
    """
    recipe, bank = context.recipe, context.bank
    if row.mixture is not None:
        samples, mixture_reading = _mixed(context, row.mixture)
        reading.add(mixture_reading)
        y[: row.samples] = samples[row.offset : row.offset + row.samples]
        return RowResult(snr_db=row.mixture.snr_db)
    heard = _listed(context, row.path, row.start, row.samples, reading)
    y[: heard.size] = heard
    if bank is None:
        return RowResult(silent=not heard.any())
    mixed = mix_noise(
        y,
        bank,
        _noise_of(context, bank),
        level=recipe.noise,
        snr_mode=recipe.snr_mode,
        seed=recipe.seed,
        clip_id=row.clip_id,
        out=y,
    )
    if mixed.noise < 0:
        return RowResult(silent=True)
    return RowResult(noise=mixed.noise, snr_db=mixed.snr_db)


def _listed(
    context: Context, path: str, start: int, count: int, reading: Reading
) -> NDArray[np.float32]:
    """Read the samples of a listed row.

    If a file has fewer samples than its header stated when it was listed, the header is wrong or
    the file has changed. One sample less is accepted, as the resampler rounds.

    Raises:
        AudioError: the file is unreadable or too short.
    """
    rate = context.recipe.sample_rate
    name, look = f"{context.home}/{path}", reading.look(path)
    samples = read(name, start=start, count=count, sample_rate=rate, look=look)
    if samples.size < max(1, count - 1):
        raise AudioError(f"truncated: {samples.size} of {count} samples are at {start / rate:g} s")
    return samples


@lru_cache(maxsize=1)
def _noise_of(context: Context, bank: NoiseBank) -> NDArray[np.float32]:
    """Map the noise of a context once: another context may have another file at the same path."""
    return bank.samples() if context.noise is None else context.noise


@lru_cache(maxsize=2)
def _mixed(context: Context, mixture: Mixture) -> tuple[NDArray[np.float32], Reading]:
    """Return a complete mixture, cached because its segments are rendered one after the other."""
    reading = Reading(context.home)
    if context.bank is None:
        raise RuntimeError("a mixture needs noise")
    speech = np.zeros(mixture.samples, np.float32)
    offset = 0
    for path, count in mixture.clean:
        samples = _listed(context, path, 0, count, reading)
        speech[offset : offset + samples.size] = samples
        offset += count
    if not speech.any():
        raise AudioError("clean speech is silent from end to end")
    noise = context.bank.take(
        _noise_of(context, context.bank),
        mixture.noise,
        mixture.recording,
        mixture.offset,
        mixture.samples,
    )
    released = context.recipe.snr_mode == "released"
    return mix(speech, noise, mixture.snr_db, released=released), reading
