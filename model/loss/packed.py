"""Symmetric matrices as packed rows: the upper triangle, off-diagonal entries times sqrt(2)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["diagonal", "forget_indices", "pack", "packed_size", "unpack"]


def packed_size(channels: int) -> int:
    """Return the number of entries in the upper triangle of a ``(C, C)`` matrix."""
    return channels * (channels + 1) // 2


@lru_cache(maxsize=64)
def diagonal(channels: int, device: torch.device) -> Tensor:
    """Return the ``(channels,)`` indices of the diagonal in a packed row."""
    number = torch.arange(channels, device=device)
    return number * (2 * channels - number + 1) // 2


@lru_cache(maxsize=64)
def _triangle(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return flat indices of the upper triangle, row by row, and the factor of each entry.

    The factor is 1 on the diagonal and sqrt(2) elsewhere.
    """
    row, column = torch.triu_indices(channels, channels, device=device)
    scale = torch.where(row == column, 1.0, 2**0.5)
    return row * channels + column, scale


@lru_cache(maxsize=64)
def _square(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the index into the packed row of each entry of the square matrix, and a factor.

    The factor is that of each entry of the packed row: 1 on the diagonal and 1/sqrt(2) elsewhere.
    """
    index, scale = _triangle(channels, device)
    packed_index = torch.empty(channels * channels, dtype=torch.long, device=device)
    packed_index[index] = torch.arange(index.numel(), device=device)
    square = packed_index.view(channels, channels)
    packed_index = torch.triu(square) + torch.triu(square, 1).mT
    return packed_index.flatten(), 1 / scale


def forget_indices() -> None:
    """Free the index tables that are kept between calls."""
    _triangle.cache_clear()
    _square.cache_clear()
    diagonal.cache_clear()


def pack(matrices: Tensor) -> Tensor:
    """Pack symmetric ``(batch, C, C)`` matrices into ``(batch, C(C+1)/2)`` rows.

    The dot product of two rows is the inner product of the two matrices.
    """
    index, scale = _triangle(matrices.shape[-1], matrices.device)
    return matrices.flatten(1).index_select(1, index) * scale


def unpack(rows: Tensor, channels: int, *, out: Tensor | None = None) -> Tensor:
    """Unpack ``(batch, C(C+1)/2)`` rows into symmetric ``(batch, C, C)`` float32 matrices.

    Args:
        rows: packed rows of any dtype.
        channels: C.
        out: ``(batch, C * C)`` float32, to write the matrices to.
    """
    index, scale = _square(channels, rows.device)
    # On a CPU, selecting from two axes of float32 is several times as fast as from any other input.
    matrices = torch.index_select(rows * scale, 1, index, out=out)
    return matrices.view(-1, channels, channels)
