"""Rows: a teacher's feature maps in the form that the loss reads, one for each segment and layer.

With F the ``(C, positions)`` maps of a segment, G = F F^T and ||.|| the Frobenius norm, a row has
one of these forms (codecs):

* ``packed``: the upper triangle of G / ||G||, row by row, with off-diagonal entries multiplied by
  sqrt(2). The dot product of two such rows is the inner product of the two matrices.
* ``factor``: F / sqrt(||G||), whose product with its own transpose is G / ||G||. It is smaller than
  the triangle if there are few positions.
* ``lowrank``: ``(C, rank)`` vectors V. V V^T is the matrix of that rank nearest to G / ||G||.
* ``map``: the ``(positions,)`` values of another aggregation, divided by their norm.

A cache stores rows. A live teacher computes the rows that an exact float32 cache would hold, so
that both modes compute with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from antigram.model.choices import Aggregation, Codec
from antigram.model.loss.gram import aggregate, exact_norm, flat, gram, self_product
from antigram.pipeline.errors import InputError

__all__ = [
    "Rows",
    "Stack",
    "encode_rows",
    "exact_codec",
    "forget_tables",
    "pack",
    "packed_size",
    "row_shape",
    "unpack",
]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a batch at one layer.

    Attributes:
        codec: ``packed``, ``factor``, ``lowrank`` or ``map``.
        data: ``(batch, ...)`` values as stored, any float dtype.
        norm: ``(batch,)`` float32, the norm by which G or the map was divided.
        row_norm: ``(batch,)`` float32, norm of the matrix or map that the rounded ``data``
            represents. The cosine divides by it, so that rounding cannot bias the cosine.
        energy: ``(batch,)`` float32, share of ||G||^2 that a ``lowrank`` row keeps; None for other
            codecs.
    """

    codec: Codec
    data: Tensor
    norm: Tensor
    row_norm: Tensor
    energy: Tensor | None = None

    def to(self, device: torch.device) -> Rows:
        """Copy the rows to a device, without the energy, which the loss does not need."""
        return Rows(
            self.codec,
            *(t.to(device, non_blocking=True) for t in (self.data, self.norm, self.row_norm)),
        )

    def matrices(self, channels: int) -> Tensor:
        """Return ``(batch, C, C)`` float32 Grams, divided by their norm; not for ``map``."""
        if self.codec == "packed":
            return unpack(self.data, channels)
        return self_product(self.data.float())


@dataclass(frozen=True, slots=True)
class Stack:
    """Rows of several teachers at one layer that have the same form, for a single comparison.

    Attributes:
        codec: as in `Rows`.
        data: values as stored. ``packed`` and ``map``: ``(batch, teacher, ...)``; ``factor`` and
            ``lowrank``: ``(batch, C, teacher * columns)``, the teachers side by side.
        norm: ``(batch, teacher)`` float32.
        row_norm: ``(batch, teacher)`` float32.
    """

    codec: Codec
    data: Tensor
    norm: Tensor
    row_norm: Tensor

    @classmethod
    def of(cls, rows: Sequence[Rows]) -> Stack:
        """Stack rows of the same codec, dtype and shape; a single teacher's rows are not copied."""
        first = rows[0]
        side_by_side = first.codec in ("factor", "lowrank")
        if len(rows) == 1:
            data = first.data if side_by_side else first.data[:, None]
            return cls(first.codec, data, first.norm[:, None], first.row_norm[:, None])
        values = [teacher.data for teacher in rows]
        return cls(
            first.codec,
            torch.cat(values, 2) if side_by_side else torch.stack(values, 1),
            torch.stack([teacher.norm for teacher in rows], 1),
            torch.stack([teacher.row_norm for teacher in rows], 1),
        )

    @property
    def teachers(self) -> int:
        """Number of teachers."""
        return self.norm.shape[1]

    def part(self, segments: slice) -> Stack:
        """Return the rows of some of the batch's segments."""
        return Stack(self.codec, *(values[segments] for values in self.tensors()))

    def vectors(self) -> Tensor:
        """Return ``factor`` or ``lowrank`` rows as ``(batch, teacher, C, columns)`` float32."""
        split = self.data.float().reshape(*self.data.shape[:2], self.teachers, -1)
        return split.transpose(1, 2)

    def packed(self) -> Tensor:
        """Return rows of Grams in ``packed`` form: ``(batch, teacher, C(C+1)/2)`` float32."""
        if self.codec == "packed":
            return self.data.float()
        vectors = self.vectors()
        return pack((vectors @ vectors.mT).flatten(0, 1)).reshape(len(vectors), self.teachers, -1)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return data, norm and row_norm."""
        return self.data, self.norm, self.row_norm


def packed_size(channels: int) -> int:
    """Return the number of entries in the upper triangle of a ``(C, C)`` matrix."""
    return channels * (channels + 1) // 2


def exact_codec(aggregation: Aggregation, channels: int, positions: int) -> Codec:
    """Return the smaller of the lossless codecs for rows of an aggregation."""
    if aggregation != "gram":
        return "map"
    return "factor" if channels * positions < packed_size(channels) else "packed"


def row_shape(
    codec: Codec, channels: int, positions: int, rank: int | None = None
) -> tuple[int, ...]:
    """Return the shape of a row's values; ``rank`` is for ``lowrank``, 0 if not yet known."""
    shapes: dict[str, tuple[int, ...]] = {
        "packed": (packed_size(channels),),
        "factor": (channels, positions),
        "lowrank": (channels, rank or 0),
        "map": (positions,),
    }
    return shapes[codec]


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
    """Return the index into the packed row, and the factor, of each entry of the square matrix.

    The factor is 1 on the diagonal and 1/sqrt(2) elsewhere.
    """
    index, scale = _triangle(channels, device)
    packed_index = torch.empty(channels * channels, dtype=torch.long, device=device)
    packed_index[index] = torch.arange(index.numel(), device=device)
    square = packed_index.view(channels, channels)
    packed_index = torch.triu(square) + torch.triu(square, 1).mT
    return packed_index.flatten(), 1 / scale[packed_index.flatten()]


def forget_tables() -> None:
    """Free the index tables that `pack` and `unpack` keep between calls."""
    _triangle.cache_clear()
    _square.cache_clear()


def pack(matrices: Tensor) -> Tensor:
    """Pack symmetric ``(batch, C, C)`` matrices into ``(batch, C(C+1)/2)`` rows.

    The dot product of two rows is the inner product of the two matrices.
    """
    index, scale = _triangle(matrices.shape[-1], matrices.device)
    return matrices.flatten(1).index_select(1, index) * scale


def unpack(rows: Tensor, channels: int) -> Tensor:
    """Unpack ``(batch, C(C+1)/2)`` rows into symmetric ``(batch, C, C)`` float32 matrices."""
    packed_index, scale = _square(channels, rows.device)
    return (rows.float().index_select(1, packed_index) * scale).view(-1, channels, channels)


def encode_rows(
    maps: Tensor,
    aggregation: Aggregation,
    dtype: torch.dtype,
    codec: Codec | None = None,
    rank: int | None = None,
) -> Rows:
    """Turn a teacher's maps into rows, as a cache stores them.

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: ``gram``, ``mean``, ``sum``, ``max`` or ``compmul``.
        dtype: dtype of the values: float16 or float32.
        codec: form of the rows; by default ``packed`` for Grams, ``map`` for other aggregations.
        rank: columns of a ``lowrank`` row; by default the number of channels.

    Returns:
        Rows divided by their norm; a row whose norm is zero is all zeros.

    Raises:
        InputError: the codec cannot hold the aggregation.
    """
    codec = codec or ("packed" if aggregation == "gram" else "map")
    if (codec == "map") == (aggregation == "gram"):
        raise InputError(f"`codec={codec}`: cannot hold the aggregation {aggregation}; use auto")
    if codec == "lowrank":
        return _lowrank_rows(maps, rank or maps.shape[1], dtype)
    if codec == "factor":
        with torch.autocast(maps.device.type, enabled=False):
            values = flat(maps)
            norm = exact_norm(_smaller_product(values))
            data = (values / _divisor(norm).sqrt()[:, None, None]).to(dtype)
            row_norm = exact_norm(_smaller_product(data.float()))
        return Rows(codec, data, norm.float(), row_norm.float())
    values = gram(maps) if aggregation == "gram" else aggregate(maps, aggregation)
    norm = exact_norm(values)
    if codec == "packed":
        values = pack(values)
    scaled = values / _divisor(norm).view(-1, *(1 for _ in values.shape[1:]))
    data = scaled.to(dtype)
    return Rows(codec, data, norm.float(), exact_norm(data).float())


def _divisor(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm, 1.0).float()


def _smaller_product(values: Tensor) -> Tensor:
    """Return F F^T or F^T F, whichever is smaller: they share norm and nonzero eigenvalues."""
    channels, positions = values.shape[1:]
    return self_product(values if channels <= positions else values.mT)


def _lowrank_rows(maps: Tensor, rank: int, dtype: torch.dtype) -> Rows:
    """Return the nearest rank-``rank`` approximations, from the smaller product's eigenvectors."""
    with torch.autocast(maps.device.type, enabled=False):
        values = flat(maps)
        product = _smaller_product(values)
        norm = exact_norm(product)
        divisor = _divisor(norm)
        scaled = product / divisor[:, None, None]
        squares, vectors = torch.linalg.eigh(scaled)  # ascending
        squares = squares.clamp_min(0).double()
        leading = min(rank, squares.shape[1])
        top, vectors = squares[:, -leading:].flip(1), vectors[:, :, -leading:].flip(2)
        if values.shape[1] <= values.shape[2]:
            data = vectors * top.sqrt().float()[:, None, :]
        else:  # a unit eigenvector u of F^T F gives F u, one of F F^T, of length sqrt(eigenvalue)
            data = values @ vectors / divisor.sqrt()[:, None, None]
        data = torch.nn.functional.pad(data, (0, rank - leading)).to(dtype)
        energy = top.square().sum(1) / squares.square().sum(1).clamp_min(1e-300)
        energy = torch.where(norm > 0, energy, 1.0)
        row_norm = exact_norm(self_product(data.float().mT))
    return Rows("lowrank", data, norm.float(), row_norm.float(), energy.float())
