"""Divide a recording into windows."""

from __future__ import annotations

from antigram.pipeline.choices import LastWindow

__all__ = ["window_starts"]


def window_starts(
    count: int, window: int, hop: int, last_window: LastWindow = "pad"
) -> tuple[list[int], bool]:
    """Return the starts of the windows of a recording.

    Windows follow each other by ``hop`` until the recording is covered.

    Args:
        count: length of the recording, in samples.
        window: length of a window, in samples.
        hop: samples from one start to the next.
        last_window: ``pad``: the last window is zero-padded, but left out if the recording fills
            less than half of it and it is not the only one; ``end``: the last window is moved back
            so that it ends with the recording.

    Returns:
        The first sample of each window, and whether a last window was left out.
    """
    starts = [0]
    while starts[-1] + window < count:
        starts.append(starts[-1] + hop)
    if last_window == "end":
        return [*starts[:-1], max(0, min(starts[-1], count - window))], False
    short = len(starts) > 1 and 2 * (count - starts[-1]) < window
    return (starts[:-1] if short else starts), short
