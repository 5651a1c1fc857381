"""Windows of a recording, found by marking each sample that a window covers."""

from __future__ import annotations


def cover(count: int, window: int, hop: int) -> tuple[list[int], bool]:
    """Return the starts, and whether a last piece shorter than half a window was left out."""
    heard = [False] * count
    starts: list[int] = []
    while not all(heard):
        start = hop * len(starts)
        starts.append(start)
        for sample in range(start, min(start + window, count)):
            heard[sample] = True
    last = sum(1 for sample in range(count) if sample >= starts[-1])
    short = len(starts) > 1 and last < window / 2
    return (starts[:-1] if short else starts), short
