"""The online code length of labels: how many bits a segment's class takes, given a representation.

Sender and receiver share the representation. The classes of a first block are sent with a uniform
code; then a probe is trained on what was sent, and encodes the classes of the next block, which is
twice as large. A representation from which the label is easy to learn makes a short code; accuracy
alone does not tell how many examples it took.

References:
    Voita and Titov (2020), Information-Theoretic Probing with Minimum Description Length.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from antigram.studies.probe.classifiers import (
    best_strength,
    log_probabilities,
    one_thread,
    standardised,
)
from antigram.studies.probe.division import Integers, Sample, divide, shuffled_order

__all__ = ["block_ends", "code_length"]

_BLOCKS = 6  # the first has 1/32 of the segments
_INNER_PARTS = 3


def block_ends(recordings: Integers, blocks: int = _BLOCKS) -> list[int]:
    """Return where the blocks end; no recording is divided, and the last block ends with the rows.

    Args:
        recordings: ``(segment,)`` recording of each segment, those of one recording in a row.
        blocks: number of blocks, each as large as all before it; fewer if segments are few.
    """
    count = len(recordings)
    ends = np.flatnonzero(np.append(recordings[1:] != recordings[:-1], [True])) + 1
    wanted = [max(1, count >> (blocks - 1 - i)) for i in range(blocks)]
    return sorted({int(ends[ends >= end][0]) for end in wanted})


def code_length(x: NDArray[np.floating], sample: Sample, seed: int) -> float:
    """Return the bits per segment of the online code with linear probes.

    Recordings are sent in a random order; a recording's segments are sent together. C is chosen
    within the segments that were sent before, divided by recording.

    Args:
        x: ``(segment, column)`` representation.
        sample: classes and recordings of the segments.
        seed: seed of the order and of the inner divisions.

    Returns:
        Bits per segment; the uniform code takes log2 of the number of classes.
    """
    classes = len(sample.classes)
    _, recording = np.unique(sample.recordings, return_inverse=True)
    place = np.argsort(shuffled_order(int(recording.max()) + 1, seed, "code order"))
    order = np.argsort(place[recording], kind="stable")
    x, y, recording = x[order], sample.y[order], recording[order]
    ends = block_ends(recording)
    bits = ends[0] * math.log2(classes)
    with one_thread():
        for start, end in pairwise(ends):
            sent = np.arange(start)
            parts = divide(recording[:start], _INNER_PARTS, seed, f"code parts {start}")
            inner = [(sent[parts != part], sent[parts == part]) for part in range(parts.max() + 1)]
            inner = [pair for pair in inner if len(pair[0])]
            best = best_strength("linear", x, y, classes, inner, seed)
            scaled = standardised(x[:start], x[start:end])
            (log_p,) = log_probabilities("linear", *scaled, y[:start], classes, [best], seed)
            bits -= log_p[np.arange(end - start), y[start:end]].sum() / math.log(2)
    return float(bits / len(y))
