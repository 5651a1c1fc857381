"""Where the windows begin that a recording is divided into."""

from __future__ import annotations

from antigram.pipeline.choices import LastWindow

__all__ = ["window_starts"]


def window_starts(
    count: int, window: int, hop: int, last_window: LastWindow = "pad"
) -> tuple[list[int], bool]:
    """Starts of the windows that cover ``count`` samples, and whether a last piece was left out.

    Windows follow each other by ``hop`` until the recording is covered. With ``pad`` a last piece
    that fills less than half a window is left out, unless it is the only one; with ``end`` the last
    window is moved back so that it ends with the recording.
    """
    starts = [0]
    while starts[-1] + window < count:
        starts.append(starts[-1] + hop)
    if last_window == "end":
        return [*starts[:-1], max(0, min(starts[-1], count - window))], False
    short = len(starts) > 1 and 2 * (count - starts[-1]) < window
    return (starts[:-1] if short else starts), short
