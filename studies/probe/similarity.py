"""Linear CKA of two representations of the same segments, plain and debiased.

References:
    Kornblith, Norouzi, Lee and Hinton (2019), Similarity of Neural Network Representations
    Revisited. Song, Smola, Gretton, Bedo and Borgwardt (2012), Feature Selection via Dependence
    Maximization, equation 5 (HSIC_1). Davari and others (2023), Reliability of CKA.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_SEGMENTS", "linear_cka"]

Floats = NDArray[np.float64]
MOST_SEGMENTS = 2000  # two matrices of 32 MB


def linear_cka(one: NDArray[np.floating], two: NDArray[np.floating]) -> tuple[float, float]:
    """Return linear CKA and debiased linear CKA.

    CKA does not change if columns are permuted or rotated, or all are scaled by one factor. With
    few segments and many columns it is large even for independent representations; the debiased
    value, which divides unbiased estimates of HSIC, is 0 for them on average.

    Args:
        one: ``(segment, column)``, at least 4 segments.
        two: ``(segment, column)``, the same segments; the number of columns may differ.

    Returns:
        CKA in [0, 1], and the debiased value, at most 1; NaN if a representation is constant.
    """
    kernels = [_kernel(each) for each in (one, two)]
    return _ratio(*map(_centred, kernels)), _ratio(*map(_u_centred, kernels))


def _kernel(x: NDArray[np.floating]) -> Floats:
    rows = x.astype(np.float64)
    rows = rows - rows.mean(0)  # changes neither value, and avoids cancellation
    kernel: Floats = rows @ rows.T
    return kernel


def _centred(kernel: Floats) -> Floats:
    means = kernel.mean(0)
    centred: Floats = kernel - means - means[:, None] + means.mean()
    return centred


def _u_centred(kernel: Floats) -> Floats:
    """Centre a kernel such that inner products of two are proportional to HSIC_1."""
    n = len(kernel)
    off = kernel.copy()
    np.fill_diagonal(off, 0.0)
    sums = off.sum(0)
    off -= (sums + sums[:, None]) / (n - 2)
    off += sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(off, 0.0)
    return off


def _ratio(one: Floats, two: Floats) -> float:
    scale = float(np.vdot(one, one)) * float(np.vdot(two, two))
    return float(np.vdot(one, two)) / math.sqrt(scale) if scale else math.nan
