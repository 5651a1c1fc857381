"""Pairwise similarity as loops in float64, without torch or code of the product.

``maps`` of a clip are ``(channel, frame, freq)``; ``grid`` is ``(frames, freqs)``.
"""

from __future__ import annotations

import math

import numpy as np


def grid_of(maps):
    """Return the default grid of a clip's maps: at most 16 positions along each axis."""
    return min(16, maps.shape[1]), min(16, maps.shape[2])


def centred_loops(maps, grid=None):
    """Return A ``(channel, position)``: maps averaged to a grid, minus the mean of each channel.

    Cell i of n along an axis of size s is the mean of entries floor(i s / n) to
    ceil((i + 1) s / n) - 1.
    """
    rows, columns = grid or grid_of(maps)
    channels, frames, freqs = maps.shape
    wide = maps.astype(np.float64)
    out = np.zeros((channels, rows * columns))
    for channel in range(channels):
        for i in range(rows):
            first, last = i * frames // rows, -(-(i + 1) * frames // rows)
            for j in range(columns):
                left, right = j * freqs // columns, -(-(j + 1) * freqs // columns)
                cell = wide[channel, first:last, left:right].ravel().tolist()
                out[channel, i * columns + j] = math.fsum(cell) / len(cell)
        out[channel] -= math.fsum(out[channel].tolist()) / (rows * columns)
    return out


def pairwise_loops(maps, grid=None):
    """Return K ``(position, position)``: K[i, j] = the product of the channels at i and at j."""
    centred = centred_loops(maps, grid)
    n = centred.shape[1]
    return np.array([[np.vdot(centred[:, i], centred[:, j]) for j in range(n)] for i in range(n)])


def cka_loops(first, second, grid=None):
    """Return ||A B^T||^2 / (||A A^T|| ||B B^T||) of the maps of two networks; 0 if either is 0."""
    a, b = centred_loops(first, grid), centred_loops(second, grid)
    between, own, theirs = (
        math.sqrt(sum(float(np.vdot(r, s)) ** 2 for r in one for s in two))
        for one, two in ((a, b), (a, a), (b, b))
    )
    return between**2 / (own * theirs) if own * theirs else 0.0


def hsic1_loops(first, second):
    """Return HSIC_1 (Song and others 2012, equation 5) of two kernel matrices, from sums."""
    n = len(first)
    trace = total_one = total_two = between = 0.0
    for i in range(n):
        for j in range(n):
            if i == j:
                continue
            trace += first[i, j] * second[j, i]
            total_one += first[i, j]
            total_two += second[i, j]
            between += first[i, j] * sum(second[j, k] for k in range(n) if k != j)
    both = total_one * total_two / ((n - 1) * (n - 2))
    return (trace + both - 2 / (n - 2) * between) / (n * (n - 3))


def debiased_cka_loops(first, second):
    """Return HSIC_1 of two kernel matrices over the root of the product of their own."""
    norms = hsic1_loops(first, first) * hsic1_loops(second, second)
    return hsic1_loops(first, second) / math.sqrt(norms)
