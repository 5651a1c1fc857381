"""Gram matrices and the other aggregations of feature maps, and the rows that stand for them.

A row is what a frozen net's maps become for the loss, one for each clip and layer, in one of these
forms (codecs), with ||.|| the Frobenius norm:

* ``packed``: the upper triangle of G / ||G||, row by row, off-diagonal entries times sqrt(2), so
  that the dot product of two rows is the inner product of the matrices,
* ``map``: another aggregation's (positions,) values, divided by their norm.

A cache stores rows and a live net makes them; the loss takes either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.errors import InputError

__all__ = [
    "AGGREGATIONS",
    "COMPMUL_EPS",
    "COMPMUL_POWER",
    "Rows",
    "ShapeError",
    "aggregate",
    "encode_rows",
    "gram",
    "pack",
    "packed_size",
    "row_size",
    "unpack",
]

AGGREGATIONS = ("gram", "mean", "sum", "max", "compmul")
COMPMUL_EPS, COMPMUL_POWER = 1e-10, 0.001


class ShapeError(ValueError):
    """A tensor has not the shape that was promised."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One layer's rows of a batch.

    Attributes:
        codec: ``packed`` or ``map``.
        data: (batch, ...) values as stored, any float dtype.
        norm: (batch,) float32, ||G|| (or of the map) before it was divided by it.
        row_norm: (batch,) float32, norm of what ``data`` stands for after rounding: the cosine
            divides by it, so that rounding cannot bias it.
    """

    codec: str
    data: Tensor
    norm: Tensor
    row_norm: Tensor

    def to(self, device: torch.device) -> Rows:
        """Copy to a device, as stored."""
        return Rows(
            self.codec,
            *(t.to(device, non_blocking=True) for t in (self.data, self.norm, self.row_norm)),
        )


def _flat(maps: Tensor) -> Tensor:
    if maps.ndim != 4 or 0 in maps.shape[1:]:
        got = tuple(maps.shape)
        raise ShapeError(f"maps must be (batch, channel>0, frame>0, freq>0), got {got}")
    return maps.float().flatten(2)


def gram(maps: Tensor) -> Tensor:
    """Gram matrix of each clip's feature maps: ``G = F F^T``, F being ``(C, H*W)``.

    Args:
        maps: ``(batch, channel, frame, freq)`` activations, any float dtype.

    Returns:
        ``(batch, channel, channel)`` float32 whatever came in (float16 overflows at 65,504);
        symmetric, positive semi-definite, in squared activation units.

    Raises:
        ShapeError: ``maps`` is not 4-D, or an axis but the first is empty.

    Notes:
        One matrix per clip, so it can be cached. The paper's code folds the batch into the
        channels, which mixes clips: the two are the same at batch 1 only (see the tests).

    References:
        Guizzo, Weyde and Tarroni (2021), Neural Networks 142, doi:10.1016/j.neunet.2021.05.012.
    """
    with torch.autocast(maps.device.type, enabled=False):  # else autocast multiplies in half
        rows = _flat(maps)
        return rows @ rows.mT


def aggregate(maps: Tensor, aggregation: str) -> Tensor:
    """Aggregate each clip's maps over the channels (paper, 5.5).

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: ``mean``, ``sum``, ``max``, or ``compmul`` (values + 1e-10, raised to 0.001,
            multiplied over the channels; for values >= 0 only).

    Returns:
        ``(batch, positions)`` float32.

    Raises:
        InputError: no such aggregation.
        ShapeError: as for `gram`.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows = _flat(maps)
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
    raise InputError(f"--aggregation {aggregation!r}: wanted {', '.join(AGGREGATIONS)}")


def packed_size(channels: int) -> int:
    """Entries of the upper triangle."""
    return channels * (channels + 1) // 2


def row_size(aggregation: str, channels: int, positions: int) -> int:
    """Values in a row."""
    return packed_size(channels) if aggregation == "gram" else positions


@lru_cache(maxsize=64)
def _triangle(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat indices of the upper triangle, row by row; and sqrt(2), 1 on the diagonal."""
    row, column = torch.triu_indices(channels, channels, device=device)
    scale = torch.full((row.numel(),), 2**0.5, device=device)
    scale[row == column] = 1.0
    return row * channels + column, scale


@lru_cache(maxsize=64)
def _square(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Place in the packed row of each entry of the square; and 1/sqrt(2), 1 on the diagonal."""
    index, scale = _triangle(channels, device)
    place = torch.empty(channels * channels, dtype=torch.long, device=device)
    place[index] = torch.arange(index.numel(), device=device)
    square = place.view(channels, channels)
    place = torch.triu(square) + torch.triu(square, 1).mT
    return place.flatten(), 1 / scale[place.flatten()]


def pack(matrices: Tensor) -> Tensor:
    """Symmetric ``(batch, C, C)`` -> ``(batch, C(C+1)/2)``: dot products are inner products."""
    index, scale = _triangle(matrices.shape[-1], matrices.device)
    return matrices.flatten(1).index_select(1, index) * scale


def unpack(rows: Tensor, channels: int) -> Tensor:
    """``(batch, C(C+1)/2)`` -> symmetric ``(batch, C, C)`` float32: inverse of `pack`."""
    place, scale = _square(channels, rows.device)
    return (rows.float().index_select(1, place) * scale).view(-1, channels, channels)


def encode_rows(maps: Tensor, aggregation: str, dtype: torch.dtype) -> Rows:
    """Turn a frozen net's maps into rows, as a cache stores them.

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: one of `AGGREGATIONS`.
        dtype: float16 or float32, of the stored values.

    Returns:
        Rows divided by their norm; a row of zeros where the norm is zero.
    """
    codec = "packed" if aggregation == "gram" else "map"
    whole = pack(gram(maps)) if aggregation == "gram" else aggregate(maps, aggregation)
    # In float64: the sum of squares of activations of 1e10 and more leaves float32.
    norm = whole.double().norm(dim=1)
    scaled = whole / torch.where(norm > 0, norm, 1.0)[:, None].float()
    data = scaled.to(dtype)
    return Rows(codec, data, norm.float(), data.double().norm(dim=1).float())
