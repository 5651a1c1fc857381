"""The formulas of docs/method.md as loops in float64, without torch or code of the product.

``maps`` of a clip are ``(channel, frame, freq)``; those of a batch have one more axis in front.
"""

from __future__ import annotations

import math

import numpy as np

from tests.reference.pairwise_loops import pairwise_loops


def gram_loops(maps):
    """Return the Gram ``(channel, channel)`` of a clip's maps: G[i, j] = <F_i, F_j>."""
    n = maps.shape[0]
    wide = maps.astype(np.float64)
    return np.array([[np.vdot(wide[i], wide[j]) for j in range(n)] for i in range(n)])


def aggregate_loops(maps, aggregation):
    """Aggregate a clip's maps over the channels into ``(frame * freq,)``."""
    wide = maps.astype(np.float64).reshape(maps.shape[0], -1)
    out = []
    for position in range(wide.shape[1]):
        values = [wide[channel, position] for channel in range(wide.shape[0])]
        if aggregation == "compmul":
            out.append(math.prod((value + 1e-10) ** 0.001 for value in values))
        else:
            total = math.fsum(values)
            out.append({"sum": total, "mean": total / len(values), "max": max(values)}[aggregation])
    return np.array(out)


def of_clip(maps, aggregation):
    """Return the Gram, the pairwise matrix, or the aggregated map, as a vector."""
    if aggregation == "gram":
        return gram_loops(maps).ravel()
    if aggregation == "pairwise":
        return pairwise_loops(maps).ravel()
    return aggregate_loops(maps, aggregation)


def packed_loops(matrix):
    """Return the upper triangle row by row, with off-diagonal entries times sqrt(2)."""
    n = len(matrix)
    return np.array(
        [matrix[i][j] * (1 if i == j else math.sqrt(2)) for i in range(n) for j in range(i, n)]
    )


def cosine_loops(one, two):
    """Return the cosine of two vectors; 0 if either is zero."""
    norms = math.sqrt(math.fsum(one**2)) * math.sqrt(math.fsum(two**2))
    return math.fsum(one * two) / norms if norms else 0.0


def similarity_loops(student, teacher, aggregation, similarity):
    """Return the AT loss of a clip before beta, from the maps of both networks."""
    own, theirs = of_clip(student, aggregation), of_clip(teacher, aggregation)
    if similarity == "cka":
        return cosine_loops(own, theirs)
    if similarity == "cos2":
        return cosine_loops(own, theirs) ** 2
    scale = 1000 / student.size if aggregation == "gram" else 1.0
    error = math.fsum((scale * own - scale * theirs) ** 2) / own.size
    return -1 / (1 + math.exp(-error))


def released_gram_loops(maps):
    """Return the released code's Gram: with folded batch, divided by B C P and 0.001.

    ``(batch, channel, frame, freq)`` -> ``(batch * channel, batch * channel)``.
    """
    folded = maps.reshape(-1, *maps.shape[2:])
    return gram_loops(folded) / maps.size / 0.001


def released_loops(student, teacher):
    """Return the released code's loss before beta: the squared mean of absolute row cosines."""
    ours, theirs = released_gram_loops(student), released_gram_loops(teacher)
    rows = [abs(cosine_loops(one, two)) for one, two in zip(ours, theirs, strict=True)]
    return (sum(rows) / len(rows)) ** 2
