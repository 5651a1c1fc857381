"""Render the audio of a store's segments again: exactly the audio of which its features were made.

A store holds no audio. Its recipe says how to make it: the corpus is listed again, restricted to
the store's recordings, its rows are matched by id, and the noise is mixed in with the same draws.
Recordings are compared with the checksums in the store's record
(`pipeline.features.source_record`), and the features of each segment that is read with those that
the store has, so that other audio is noticed even if there is no record.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from antigram.pipeline.audio.decoding import AudioError
from antigram.pipeline.audio.noise import NoiseBank
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.corpus import Corpus
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.listing import Row, list_rows
from antigram.pipeline.features.row_audio import Context, render_audio
from antigram.pipeline.features.scale import normalised
from antigram.pipeline.features.source_record import path_of, read_sources
from antigram.pipeline.features.sources import Reading, compare, name_some, paths_of
from antigram.pipeline.features.spectra import spectra
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.within import all_of

__all__ = ["SegmentAudio", "open_audio"]

# Largest mean difference from the stored features, in standard deviations. Another version of a
# library changes them by rounding, which is far less; another recording or noise by far more.
_ROUNDING = 1e-3


class SegmentAudio:
    """The audio of a store's segments, rendered again from the recordings when it is read.

    Args:
        store: the feature store, or a fold of one.
        rows: row of the listing of each segment, in the order of the store.
        context: recipe, corpus and noise.
        sample_rate: rate of the audio in Hz; default: the rate of the store.

    Attributes:
        sample_rate: rate of the audio, in Hz.
        samples: length of a segment, in samples at this rate.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Sequence[Row],
        context: Context,
        sample_rate: int | None = None,
    ) -> None:
        recipe = context.recipe
        self._store, self._rows, self._context = store.base or store, rows, context
        self.sample_rate = sample_rate or recipe.sample_rate
        self.samples = round(recipe.samples * self.sample_rate / recipe.sample_rate)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, segments: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the audio of some segments.

        Args:
            segments: indices into the store, in any order.

        Returns:
            ``(segment, sample)`` float32, mono, full scale 1 (more with noise); zeros where a
            recording is shorter than a segment. If `sample_rate` is not the store's, each segment
            is resampled by soxr (HQ).

        Raises:
            InputError: a recording cannot be read, or its features are not those of the store.
        """
        recipe, home = self._context.recipe, self._context.home
        y = np.zeros((len(segments), recipe.samples), np.float32)
        reading = Reading(home, paths_of(self._rows[int(i)] for i in segments))
        for samples, segment in zip(y, segments, strict=True):
            row = self._rows[int(segment)]
            try:
                render_audio(self._context, row, samples, reading)
            except AudioError as error:
                raise InputError(f"{home}/{row.path}: {error}") from None
        self._check(np.asarray(segments, np.int64), y)
        return self._resampled(y)

    def _check(self, segments: NDArray[np.int64], y: NDArray[np.float32]) -> None:
        """Raise if the features of some audio are not the stored features of its segments."""
        store, recipe = self._store, self._context.recipe
        stored = np.empty((len(y), *store.shape), recipe.dtype)
        store.features.gather(segments, stored)
        rendered = normalised(spectra(y, recipe), store.mean, store.std, recipe.dtype)
        if np.array_equal(rendered, stored):
            return
        apart = np.abs(rendered.astype(np.float32) - stored.astype(np.float32)).mean(axis=(1, 2))
        worst = int(apart.argmax())
        if not apart[worst] <= _ROUNDING:
            row = self._rows[int(segments[worst])]
            raise InputError(
                f"{self._context.home}/{row.path}: the segment {row.clip_id} of {store.name} was "
                f"made of other audio: its features now differ by {float(apart[worst]):.2g} "
                "standard deviations on average. Name the folder that the store was prepared from "
                "with `source`, or prepare the store again."
            )

    def _resampled(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        rate = self._context.recipe.sample_rate
        if self.sample_rate == rate:
            return y
        result = np.zeros((len(y), self.samples), np.float32)
        for target, samples in zip(result, y, strict=True):
            resampled = soxr.resample(samples, rate, self.sample_rate, quality="HQ")
            count = min(self.samples, len(resampled))  # the resampler rounds
            target[:count] = resampled[:count]
        return result


def open_audio(
    store: FeatureStore,
    corpus: Corpus,
    home: Path,
    noise: Mapping[str, list[Path]] | None = None,
    *,
    sample_rate: int | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> SegmentAudio:
    """List the corpus of a store again, and return the audio of the store's segments.

    Args:
        store: the feature store, or a fold of one.
        corpus: the adapter, adapted to the options in the store's recipe.
        home: folder of the recordings: see `prepare`.
        noise: class -> recordings, if the store was made with noise.
        sample_rate: rate of the audio in Hz; default: the rate of the store.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line if the store has no record of its recordings.

    Raises:
        InputError: the noise is not that of the store, recordings have changed since the store was
            prepared, or segments of the store are not among the corpus's.
        StoredDataError: the store is damaged.
    """
    original, recipe = store.base or store, store.recipe
    bank, samples = None, None
    if noise:
        if NoiseBank.digest_of(dict(noise)) != recipe.noise_files:
            where = next(iter(noise.values()))[0].parent
            raise InputError(
                f"{where}: holds other noise recordings than {original.name} was prepared with. "
                "Name their folder with `noise_source`, or prepare the store again."
            )
        with tempfile.TemporaryDirectory(prefix="antigram-") as folder:
            bank = NoiseBank.build(dict(noise), recipe.sample_rate, Path(folder) / "noise.f32")
            samples = bank.samples()  # remains mapped when the file is deleted
    listing = list_rows(
        corpus,
        home,
        replace(recipe, limit=0, limit_per_class=0, balance=False),
        noise,
        only=all_of(original),
        on_progress=lambda done, total: on_progress("headers", done, total),
    )
    rows = _rows_of_store(original, listing.rows, home)
    _check_recordings(original, home, rows, on_progress, on_message)
    return SegmentAudio(store, rows, Context(recipe, home, bank, samples), sample_rate)


def _rows_of_store(store: FeatureStore, listed: Sequence[Row], home: Path) -> list[Row]:
    """Return the rows of a listing that are a store's, in its order.

    Raises:
        InputError: a segment is not listed, or begins elsewhere than it did.
    """
    of_id = {row.clip_id: row for row in listed}
    rows = [of_id.get(clip_id) for clip_id in store.clip_ids]
    rate = store.recipe.sample_rate
    for clip_id, row, source in zip(store.clip_ids, rows, store.sources, strict=True):
        now = "not there" if row is None else f"at {row.source(rate)}"
        if row is None or row.source(rate) != source:
            raise InputError(
                f"{home}: the segment {clip_id} of {store.name} was at {source}, and is now {now}. "
                "Name the folder that the store was prepared from with `source`, or prepare the "
                "store again."
            )
    return [row for row in rows if row is not None]


def _check_recordings(
    store: FeatureStore,
    home: Path,
    rows: Sequence[Row],
    on_progress: OnProgress,
    on_message: OnMessage,
) -> None:
    """Raise if recordings differ from the record of a store; report that there is no record."""
    try:
        noted = read_sources(path_of(store.path), store.fingerprint)
        why = "there is no record of them"
    except (DamagedError, OSError) as error:
        noted, why = None, str(error)
    if noted is None:
        on_message(
            f"{store.name}: whether its recordings are as they were cannot be known from their "
            f"checksums: {why}. The features of each segment are compared instead."
        )
        return
    used = set(paths_of(rows))
    compared = compare(
        home,
        [source for source in noted if source.path in used],
        on_progress=lambda done, total: on_progress("recordings compared", done, total),
    )
    known = {source.path for source in noted}
    changed = sorted({source.path for source in compared.changed} | (used - known))
    if changed:
        raise InputError(
            f"{home}: {len(changed)} recordings are not as they were when {store.name} was "
            f"prepared ({name_some(changed)}). Prepare the store again, or name the folder of the "
            "recordings as they were with `source`."
        )
