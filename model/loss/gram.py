"""Gram matrices and the other aggregations of feature maps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor

from antigram.model.choices import AGGREGATIONS, Aggregation
from antigram.pipeline.errors import InputError

__all__ = [
    "COMPMUL_EPS",
    "COMPMUL_POWER",
    "Context",
    "ShapeError",
    "aggregate",
    "exact_norm",
    "flat",
    "gram",
    "self_product",
    "upper_product",
]

# Rows of the matrix that a CPU multiplies at once, as a share of all, and the least number of rows
# at which the smaller products are faster than the complete one.
_BANDS, _LEAST_SIDE = 4, 64
COMPMUL_EPS, COMPMUL_POWER = 1e-10, 0.001
# What torch gives to a Function: it takes any attribute, which torch's own types do not say.
Context: TypeAlias = Any


class ShapeError(ValueError):
    """A tensor does not have the documented shape."""


class _SelfProduct(torch.autograd.Function):
    """``x @ x.T`` for each segment; its gradient takes one product, where autograd takes two."""

    @staticmethod
    def forward(ctx: Context, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ x.mT

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return (grad + grad.mT) @ x


def self_product(x: Tensor) -> Tensor:
    """Multiply each matrix by its own transpose: ``(batch, a, b)`` -> ``(batch, a, a)``."""
    product: Tensor = _SelfProduct.apply(x)
    return product


def upper_product(x: Tensor) -> Tensor:
    """Multiply each matrix by its own transpose, with an upper triangle that is complete.

    On a CPU the rest is not computed, which saves a third of the time. It is then of any value.

    Args:
        x: ``(batch, a, b)``, without gradient.

    Returns:
        ``(batch, a, a)``.
    """
    side = x.shape[1]
    if x.device.type != "cpu" or side < _LEAST_SIDE:
        return x @ x.mT
    product = x.new_empty(len(x), side, side)
    ends = [side * band // _BANDS for band in range(_BANDS + 1)]
    for first, last in pairwise(ends):
        product[:, first:last, first:] = x[:, first:last] @ x[:, first:].mT
    return product


def flat(maps: Tensor) -> Tensor:
    """Flatten maps ``(batch, channel, frame, freq)`` to ``(batch, channel, position)`` float32.

    Raises:
        ShapeError: ``maps`` is not 4-D, or an axis other than the first is empty.
    """
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        got = tuple(maps.shape)
        raise ShapeError(f"maps must be (batch, channel>0, frame>0, freq>0), got {got}")
    return maps.float().flatten(2)


def exact_norm(rows: Tensor) -> Tensor:
    """Return the Euclidean norm of each row: ``(batch, ...)`` -> ``(batch,)`` float64.

    The squares are summed in float64. In float32, torch's norm of a packed row of 512 channels is
    off by up to 2e-6 on a CPU, and squared entries of a Gram of activations of 1e10 overflow.
    """
    norm: Tensor = rows.flatten(1).double().norm(dim=1)
    return norm


def gram(maps: Tensor) -> Tensor:
    """Compute the Gram matrix ``G = F F^T`` of each segment's maps, F being ``(C, positions)``.

    Args:
        maps: ``(batch, channel, frame, freq)`` activations, any float dtype.

    Returns:
        ``(batch, channel, channel)`` float32 for any input dtype (float16 overflows at 65,504);
        symmetric, positive semi-definite, in squared activation units.

    Raises:
        ShapeError: ``maps`` is not 4-D, or an axis other than the first is empty.

    Notes:
        Each segment has its own matrix, so it can be cached. The paper's code folds the batch into
        the channels, which mixes segments: the two agree at batch size 1 only (see the tests).

    References:
        Guizzo, Weyde and Tarroni (2021), Neural Networks 142, doi:10.1016/j.neunet.2021.05.012.
    """
    with torch.autocast(maps.device.type, enabled=False):  # else autocast multiplies in half
        return self_product(flat(maps))


def aggregate(maps: Tensor, aggregation: Aggregation) -> Tensor:
    """Aggregate each segment's maps over the channels (paper, 5.5).

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: ``mean``, ``sum``, ``max``, or ``compmul``: the product over the channels of
            (value + 1e-10)^0.001, which is defined for values >= 0 only.

    Returns:
        ``(batch, positions)`` float32.

    Raises:
        InputError: there is no such aggregation.
        ShapeError: as for `gram`.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows = flat(maps)
        if aggregation == "mean":
            return rows.mean(1)
        if aggregation == "sum":
            return rows.sum(1)
        if aggregation == "max":
            return rows.amax(1)
        if aggregation == "compmul":
            # The product as a sum of logarithms: 512 factors near 0.98 do not underflow either
            # way, but the gradient of a product divides by each factor.
            return torch.exp(COMPMUL_POWER * torch.log(rows + COMPMUL_EPS).sum(1))
    raise InputError(f"aggregation is {aggregation!r}; wanted: {', '.join(AGGREGATIONS)}")
