"""Divide the clips of a corpus into the rows of a store, by their headers alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from antigram.pipeline.audio.decoding import AudioInfo
from antigram.pipeline.audio.windows import window_starts
from antigram.pipeline.corpus import Clip, Mixture, Skipped
from antigram.pipeline.features.recipe import Recipe

__all__ = ["Labels", "Reject", "Row", "labels_of", "rows_of", "segments_of", "values_of"]

# Times in tables are rounded: a part may end this much after its recording, and is shortened.
_OVERSHOOT_S = 0.05
SHORT_PIECE = "piece shorter than half a window"

Labels = tuple[tuple[str, str], ...]


class Row(NamedTuple):
    """One row of a store: the position of its audio, and its labels.

    It is a tuple because all rows are sent to workers, and a dataclass takes ten times as long to
    pickle.
    """

    clip_id: str
    path: str  # relative to the corpus's folder, with /
    start: int  # first sample, at the recipe's rate
    samples: int  # length of the audio; the rest of the row is zeros
    labels: Labels
    group: str
    official: str | None
    mixture: Mixture | None = None  # `path` and `start` then belong to its recording at `offset`
    offset: int = 0  # first sample within the mixture
    length: int = 0  # samples of the complete recording

    def source(self, sample_rate: int) -> str:
        """Return the row's source, ``PATH#START_S``."""
        seconds = f"{self.start / sample_rate:.6f}".rstrip("0").rstrip(".")
        return f"{self.path}#{seconds}"


@dataclass(frozen=True, slots=True)
class Reject:
    """A recording or segment that is missing or cannot be used, and the reason."""

    source: str
    reason: str


def segments_of(count: int, recipe: Recipe) -> tuple[list[tuple[int, int]], bool]:
    """Divide a recording into segments, for `prepare` and `predict` alike.

    Args:
        count: samples of the recording, at the recipe's rate.
        recipe: defines length and overlap of segments, and whether recordings are cut.

    Returns:
        First sample and number of samples of each segment (the rest of a segment is zeros); and
        whether a last piece was left out.
    """
    starts, short = [0], False
    if recipe.longer == "segment":
        starts, short = window_starts(count, recipe.samples, recipe.window_hop, recipe.last_window)
    return [(start, min(recipe.samples, count - start)) for start in starts], short


def labels_of(clip: Clip, shared: dict[Labels, Labels]) -> Labels:
    """Return the known labels of a clip, sorted; equal ones are one object, to save memory."""
    labels = tuple(sorted((k, v) for k, v in clip.labels.items() if v))
    return shared.setdefault(labels, labels)


def values_of(rows: Iterable[Row], label: str) -> list[str | None]:
    """Return the value of a label in each row, None where it is not known.

    Rows share their labels, so that there is one string for each class.
    """
    values: dict[Labels, str | None] = {}
    of_rows = []
    for row in rows:
        if row.labels not in values:
            values[row.labels] = dict(row.labels).get(label)
        of_rows.append(values[row.labels])
    return of_rows


def rows_of(
    clip: Clip, info: AudioInfo | str | None, recipe: Recipe, labels: Labels
) -> Iterator[Row | Skipped | Reject]:
    """Yield the rows of a clip, and a reason for each part that gives no row.

    Args:
        clip: a recording, a part of a recording, or a mixture.
        info: header of the recording, or the reason why it has none; None for a mixture.
        recipe: defines how the clip is divided.
        labels: the labels of the clip.
    """
    if clip.mixture is not None:
        return _rows_of_mixture(clip, clip.mixture, recipe, labels)
    if isinstance(info, AudioInfo):
        return _rows_of_recording(clip, info, recipe, labels)
    return iter([_reject(clip, info or "its header was not read")])


def _reject(clip: Clip, reason: str) -> Reject:
    """Return a reject, with the line of the user's file that names the clip."""
    return Reject(clip.path, f"{clip.where}: {reason}" if clip.where else reason)


def _rows_of_recording(
    clip: Clip, info: AudioInfo, recipe: Recipe, labels: Labels
) -> Iterator[Row | Skipped | Reject]:
    total = info.samples_at(recipe.sample_rate)
    start_s, end_s = clip.start_s, clip.end_s
    if clip.frames is not None:
        begin, end = clip.frames
        start_s = begin / info.sample_rate
        end_s = None if end is None else end / info.sample_rate
    first = round(start_s * recipe.sample_rate)
    last = total if end_s is None else min(total, round(end_s * recipe.sample_rate))
    path, seconds = clip.path, info.frames / info.sample_rate
    if clip.where and end_s is not None and end_s > seconds + _OVERSHOOT_S:
        reason = f"the part from {start_s:g} to {end_s:g} s ends after its recording"
        yield _reject(clip, f"{reason}, which has {seconds:g} s")
        return
    if first >= last:
        reason = f"the part from {start_s:g} s begins after its end ({total} samples)"
        yield _reject(clip, reason)
        return
    segments, short = segments_of(last - first, recipe)
    if short:
        yield Skipped(SHORT_PIECE)
    for index, (start, samples) in enumerate(segments):
        yield Row(
            clip_id=recipe.segment_id(clip.id, index),
            path=path,
            start=first + start,
            samples=samples,
            labels=labels,
            group=clip.group or clip.id,
            official=clip.split,
            length=last - first,
        )


def _rows_of_mixture(
    clip: Clip, mixture: Mixture, recipe: Recipe, labels: Labels
) -> Iterator[Row | Skipped]:
    """Yield the segments of a mixture; the source of each is the recording in which it begins."""
    segments, short = segments_of(mixture.samples, recipe)
    if short:
        yield Skipped(SHORT_PIECE)
    ends = list(accumulate(count for _, count in mixture.clean))
    for index, (start, samples) in enumerate(segments):
        part = bisect_right(ends, start)
        yield Row(
            clip_id=recipe.segment_id(clip.id, index),
            path=mixture.clean[part][0],
            start=start - (ends[part - 1] if part else 0),
            samples=samples,
            labels=labels,
            group=clip.id,
            official=clip.split,
            mixture=mixture,
            offset=start,
            length=mixture.samples,
        )
