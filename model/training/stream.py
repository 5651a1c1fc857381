"""Predict windows of recordings of any length, as they come, in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from antigram.model.training.checkpoint import Checkpoint
from antigram.model.training.decide import average, segments_at_once
from antigram.model.training.precision import set_precision
from antigram.model.training.predict import (
    Prediction,
    Segment,
    Unreadable,
    grouped,
    predict_batch,
    recording_length,
    segment_features,
)
from antigram.pipeline.audio.decoding import AudioError
from antigram.pipeline.choices import LastWindow
from antigram.pipeline.errors import InputError
from antigram.pipeline.table import plain_text

__all__ = ["stream"]


def stream(
    checkpoint: Checkpoint,
    files: Sequence[Path],
    *,
    device: torch.device,
    hop_seconds: float | None = None,
) -> Iterator[Prediction | Unreadable]:
    """Predict recordings window by window.

    Windows have the length of the recipe's segments. They cover the complete recording, also where
    the recipe cuts longer recordings. Memory depends neither on the length of a recording nor on
    the number of windows.

    Args:
        checkpoint: the network, with its classes and preprocessing.
        files: audio files.
        device: device that the network runs on.
        hop_seconds: seconds from the start of a window to the next; by default, as the recipe
            segments recordings: the length of a segment, less its overlap.

    Yields:
        A prediction for each window, in the order of files and windows. After the last window of a
        file, the prediction of the recording, without ``start_s``: the softmax of the mean
        log-probabilities of its windows. Or, for a file that cannot be used, and where a file is
        damaged further on, an `Unreadable` instead of the rest.

    Raises:
        InputError: ``hop_seconds`` is less than a sample; or the network's outputs are not finite.
    """
    recipe = checkpoint.recipe
    hop = recipe.window_hop if hop_seconds is None else round(hop_seconds * recipe.sample_rate)
    if hop < 1:
        raise InputError(
            f"`hop_seconds` {hop_seconds}: wanted at least one sample, 1/{recipe.sample_rate} s"
        )
    set_precision("32")
    net = checkpoint.net().to(device)
    for path in files:
        name, total, count = plain_text(path), np.zeros(len(checkpoint.classes)), 0
        for group in grouped(_windows(checkpoint, path, hop), segments_at_once(recipe.shape[0])):
            segments = [item for item in group if isinstance(item, Segment)]
            for segment, row in zip(segments, predict_batch(net, segments, device), strict=True):
                total += row
                count += 1
                yield Prediction(name, checkpoint.classes, np.exp(row), segment.start_s)
            yield from (item for item in group if isinstance(item, Unreadable))
            if segments and segments[-1].last:
                yield Prediction(name, checkpoint.classes, average(total[None] / count))


def _windows(checkpoint: Checkpoint, path: Path, hop: int) -> Iterator[Segment | Unreadable]:
    """Yield the network's input for each window of a recording."""
    recipe, name = checkpoint.recipe, plain_text(path)
    length = recording_length(path, recipe)
    if isinstance(length, Unreadable):
        yield length
        return
    try:
        for start, last in _starts(length, recipe.samples, hop, recipe.last_window):
            samples = min(recipe.samples, length - start)
            x = segment_features(path, start, samples, recipe)
            x -= np.float32(checkpoint.mean)
            x *= np.float32(1 / checkpoint.std)
            yield Segment(name, start / recipe.sample_rate, x, last)
    except AudioError as error:
        yield Unreadable(name, str(error))


def _starts(
    count: int, window: int, hop: int, last_window: LastWindow
) -> Iterator[tuple[int, bool]]:
    """Yield what `window_starts` returns, one by one, and whether a window is the last."""
    start = 0
    while start + window < count:
        after = start + hop
        ends = after + window >= count
        if ends and last_window == "pad" and 2 * (count - after) < window:
            yield start, True
            return
        yield start, False
        start = after
    yield (max(0, min(start, count - window)) if last_window == "end" else start), True
