"""Pairwise similarity: how alike two networks see the positions of a segment.

A segment's maps are averaged to a grid of positions and centred over them, so that each position
has a vector of channels. The products of all pairs of these vectors form a matrix that does not
depend on the order of the channels, nor on any rotation of them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from antigram.model.choices import Aggregation
from antigram.model.loss.gram import ShapeError, aggregate, flat
from antigram.pipeline.errors import InputError

__all__ = ["Grid", "compared", "debiased_cka", "default_grid", "pairwise_maps"]

# Frames and frequencies that maps are averaged to.
Grid = tuple[int, int]

_MOST = 16  # positions of the default grid along an axis
# Share of a channel's largest value below which its deviations from the mean are taken as rounding:
# windows of equal numbers have means that differ by up to 7e-7 of them (maps of 1 to 6 s).
_ROUNDING = 4e-6


def default_grid(size: Grid) -> Grid:
    """Return the grid that maps of a size are averaged to: at most 16 positions along each axis.

    Args:
        size: frames and frequencies of the maps.
    """
    return min(_MOST, size[0]), min(_MOST, size[1])


def pairwise_maps(maps: Tensor, grid: Grid | None = None) -> Tensor:
    """Average maps to a grid, and subtract from each channel its mean over the positions.

    Args:
        maps: ``(batch, channel, frame, freq)`` activations, any float dtype.
        grid: frames and frequencies to average to; by default `default_grid`.

    Returns:
        ``(batch, position, channel)`` float32: A^T, for A as in docs/method.md. Its product with
        its own transpose is K = A^T A. A channel that is constant but for rounding is all zeros.

    Raises:
        InputError: the maps are smaller than the grid.
        ShapeError: ``maps`` is not 4-D, or an axis other than the first is empty.
    """
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        got = tuple(maps.shape)
        raise ShapeError(f"maps must be (batch, channel>0, frame>0, freq>0), got {got}")
    size = maps.shape[2], maps.shape[3]
    grid = grid or default_grid(size)
    if size[0] < grid[0] or size[1] < grid[1]:
        raise InputError(
            f"maps of {size[0]} x {size[1]} positions are smaller than the grid {grid[0]} x "
            f"{grid[1]}: compare at a layer with larger maps, or with rows of a smaller grid"
        )
    with torch.autocast(maps.device.type, enabled=False):
        values = maps.float()
        values = flat(values if size == grid else functional.adaptive_avg_pool2d(values, grid))
        centred = values - values.mean(2, keepdim=True)
        with torch.no_grad():
            largest, deviation = (
                torch.linalg.vector_norm(each, torch.inf, dim=2, keepdim=True)
                for each in (values, centred)
            )
            varies = deviation > _ROUNDING * largest
        alive: Tensor = centred * varies
        return alive.mT


def compared(maps: Tensor, aggregation: Aggregation, grid: Grid | None = None) -> Tensor:
    """Return what an aggregation compares of feature maps, as `StudentMaps` takes it.

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: any of `AGGREGATIONS`.
        grid: for ``pairwise``, as in `pairwise_maps`.

    Returns:
        The maps themselves for ``gram``, `pairwise_maps` for ``pairwise``, else `aggregate`.
    """
    if aggregation == "gram":
        return maps
    return pairwise_maps(maps, grid) if aggregation == "pairwise" else aggregate(maps, aggregation)


def debiased_cka(first: Tensor, second: Tensor) -> Tensor:
    """Estimate linear CKA of two networks without its bias, from their matrices K.

    The plain value of independent maps is about C / (C + P - 1) for C channels and P positions,
    not 0; the expectation of the HSIC in this estimate is 0. The estimate may be negative.

    Args:
        first: ``(batch, P, P)`` matrices of one network: products of `pairwise_maps` with their
            own transpose, at any scale, or `Rows.matrices`.
        second: those of the other network, for the same segments and grid.

    Returns:
        ``(batch,)`` float64, at most 1; 0 if a matrix has no variance outside its diagonal.

    Raises:
        ShapeError: the shapes differ, or there are fewer than four positions.

    References:
        Song, Smola, Gretton, Bedo and Borgwardt (2012), Feature selection via dependence
        maximization, JMLR 13: HSIC_1. Kornblith, Norouzi, Lee and Hinton (2019), Similarity of
        neural network representations revisited, ICML: CKA.
    """
    shape, other = tuple(first.shape), tuple(second.shape)
    if shape != other or len(shape) != 3 or shape[1] != shape[2] or shape[1] < 4:
        raise ShapeError(f"matrices must be (batch, P>3, P) alike, got {shape} and {other}")
    one, two = _u_centred(first), _u_centred(second)
    inner = (one * two).sum((1, 2))
    norms = ((one * one).sum((1, 2)) * (two * two).sum((1, 2))).sqrt()
    return torch.where(norms > 0, inner / torch.where(norms > 0, norms, 1.0), 0.0)


def _u_centred(matrices: Tensor) -> Tensor:
    """Centre matrices so that inner products of them are n (n - 3) HSIC_1; the diagonal is zero."""
    n = matrices.shape[1]
    outside = 1 - torch.eye(n, dtype=torch.float64, device=matrices.device)
    values = matrices.double() * outside
    sums = values.sum(2, keepdim=True)
    total = sums.sum(1, keepdim=True)
    return (values - (sums + sums.mT) / (n - 2) + total / ((n - 1) * (n - 2))) * outside
