"""Rows: what a teacher's maps become for the loss, one for each clip and layer.

A row has one of these forms (codecs), with ||.|| the Frobenius norm and G = F F^T:

* ``packed``: the upper triangle of G / ||G||, row by row, off-diagonal entries times sqrt(2), so
  that the dot product of two rows is the inner product of the matrices,
* ``factor``: F / sqrt(||G||), of which G / ||G|| is the product with itself; smaller than the
  triangle where positions are few,
* ``lowrank``: (C, rank) vectors V, V V^T being the nearest matrix of that rank to G / ||G||,
* ``map``: another aggregation's (positions,) values, divided by their norm.

A cache stores rows; a live net makes those that an exact cache of float32 would have, so that both
modes add up the same numbers.
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
    """One layer's rows of a batch.

    Attributes:
        codec: ``packed``, ``factor``, ``lowrank`` or ``map``.
        data: (batch, ...) values as stored, any float dtype.
        norm: (batch,) float32, ||G|| (or of the map) before it was divided by it.
        row_norm: (batch,) float32, norm of what ``data`` stands for after rounding: the cosine
            divides by it, so that rounding cannot bias it.
        energy: (batch,) float32, share of ||G||^2 that a ``lowrank`` row keeps; else None.
    """

    codec: Codec
    data: Tensor
    norm: Tensor
    row_norm: Tensor
    energy: Tensor | None = None

    def to(self, device: torch.device) -> Rows:
        """Copy to a device, as stored; the loss does not need the energy."""
        return Rows(
            self.codec,
            *(t.to(device, non_blocking=True) for t in (self.data, self.norm, self.row_norm)),
        )

    def matrices(self, channels: int) -> Tensor:
        """``(batch, C, C)`` float32 that the rows of a Gram stand for, divided by its norm."""
        if self.codec == "packed":
            return unpack(self.data, channels)
        return self_product(self.data.float())


@dataclass(frozen=True, slots=True)
class Stack:
    """Rows of several teachers at one layer, alike in form: one comparison serves them all.

    Attributes:
        codec: as in `Rows`.
        data: values as stored; ``packed`` and ``map``: (batch, net, ...); ``factor`` and
            ``lowrank``: (batch, C, net * columns), the nets side by side.
        norm: (batch, net) float32.
        row_norm: (batch, net) float32.
    """

    codec: Codec
    data: Tensor
    norm: Tensor
    row_norm: Tensor

    @classmethod
    def of(cls, rows: Sequence[Rows]) -> Stack:
        """Rows with the same codec, dtype and shape; those of one net are not copied."""
        first = rows[0]
        beside = first.codec in ("factor", "lowrank")
        if len(rows) == 1:
            data = first.data if beside else first.data[:, None]
            return cls(first.codec, data, first.norm[:, None], first.row_norm[:, None])
        values = [each.data for each in rows]
        return cls(
            first.codec,
            torch.cat(values, 2) if beside else torch.stack(values, 1),
            torch.stack([each.norm for each in rows], 1),
            torch.stack([each.row_norm for each in rows], 1),
        )

    @property
    def nets(self) -> int:
        """How many."""
        return self.norm.shape[1]

    def part(self, clips: slice) -> Stack:
        """Some of the clips."""
        return Stack(self.codec, *(values[clips] for values in self.tensors()))

    def vectors(self) -> Tensor:
        """``(batch, net, C, columns)`` float32 of a ``factor`` or ``lowrank``."""
        split = self.data.float().reshape(*self.data.shape[:2], self.nets, -1)
        return split.transpose(1, 2)

    def packed(self) -> Tensor:
        """``(batch, net, C(C+1)/2)`` float32: what the rows of Grams are as ``packed``."""
        if self.codec == "packed":
            return self.data.float()
        vectors = self.vectors()
        return pack((vectors @ vectors.mT).flatten(0, 1)).reshape(len(vectors), self.nets, -1)

    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.data, self.norm, self.row_norm


def packed_size(channels: int) -> int:
    """Entries of the upper triangle."""
    return channels * (channels + 1) // 2


def exact_codec(aggregation: Aggregation, channels: int, positions: int) -> Codec:
    """The smaller of the codecs that lose nothing."""
    if aggregation != "gram":
        return "map"
    return "factor" if channels * positions < packed_size(channels) else "packed"


def row_shape(
    codec: Codec, channels: int, positions: int, rank: int | None = None
) -> tuple[int, ...]:
    """Shape of a row's values."""
    shapes: dict[str, tuple[int, ...]] = {
        "packed": (packed_size(channels),),
        "factor": (channels, positions),
        "lowrank": (channels, rank or 0),
        "map": (positions,),
    }
    return shapes[codec]


@lru_cache(maxsize=64)
def _triangle(channels: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat indices of the upper triangle, row by row; and sqrt(2), 1 on the diagonal."""
    row, column = torch.triu_indices(channels, channels, device=device)
    scale = torch.where(row == column, 1.0, 2**0.5)
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


def forget_tables() -> None:
    """Forget the index tables that are kept from call to call."""
    _triangle.cache_clear()
    _square.cache_clear()


def pack(matrices: Tensor) -> Tensor:
    """Symmetric ``(batch, C, C)`` -> ``(batch, C(C+1)/2)``: dot products are inner products."""
    index, scale = _triangle(matrices.shape[-1], matrices.device)
    return matrices.flatten(1).index_select(1, index) * scale


def unpack(rows: Tensor, channels: int) -> Tensor:
    """``(batch, C(C+1)/2)`` -> symmetric ``(batch, C, C)`` float32: inverse of `pack`."""
    place, scale = _square(channels, rows.device)
    return (rows.float().index_select(1, place) * scale).view(-1, channels, channels)


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
        aggregation: gram, mean, sum, max or compmul.
        dtype: float16 or float32, of the stored values.
        codec: form of the rows; None is ``packed``, or ``map`` where there is no Gram.
        rank: of ``lowrank``.

    Returns:
        Rows divided by their norm; a row of zeros where the norm is zero.

    Raises:
        InputError: the codec cannot hold the aggregation.
    """
    codec = codec or ("packed" if aggregation == "gram" else "map")
    if (codec == "map") == (aggregation == "gram"):
        raise InputError(f"--codec {codec}: cannot hold the aggregation {aggregation}; use auto")
    if codec == "lowrank":
        return _lowrank_rows(maps, rank or maps.shape[1], dtype)
    if codec == "factor":
        with torch.autocast(maps.device.type, enabled=False):
            values = flat(maps)
            norm = exact_norm(_smaller_product(values))
            data = (values / _divisor(norm).sqrt()[:, None, None]).to(dtype)
            row_norm = exact_norm(_smaller_product(data.float()))
        return Rows(codec, data, norm.float(), row_norm.float())
    whole = gram(maps) if aggregation == "gram" else aggregate(maps, aggregation)
    norm = exact_norm(whole)
    if codec == "packed":
        whole = pack(whole)
    scaled = whole / _divisor(norm).view(-1, *(1 for _ in whole.shape[1:]))
    data = scaled.to(dtype)
    return Rows(codec, data, norm.float(), exact_norm(data).float())


def _divisor(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm, 1.0).float()


def _smaller_product(values: Tensor) -> Tensor:
    """F F^T or F^T F, whichever is smaller: both have the same norm and eigenvalues."""
    channels, positions = values.shape[1:]
    return self_product(values if channels <= positions else values.mT)


def _lowrank_rows(maps: Tensor, rank: int, dtype: torch.dtype) -> Rows:
    """The nearest matrices of a rank, by the eigenvectors of the smaller product."""
    with torch.autocast(maps.device.type, enabled=False):
        values = flat(maps)
        product = _smaller_product(values)
        norm = exact_norm(product)
        divisor = _divisor(norm)
        scaled = product / divisor[:, None, None]
        squares, vectors = torch.linalg.eigh(scaled)  # ascending
        squares = squares.clamp_min(0).double()
        kept = min(rank, squares.shape[1])
        top, vectors = squares[:, -kept:].flip(1), vectors[:, :, -kept:].flip(2)
        if values.shape[1] <= values.shape[2]:
            data = vectors * top.sqrt().float()[:, None, :]
        else:  # an eigenvector u of F^T F gives F u of F F^T, its length the root of the eigenvalue
            data = values @ vectors / divisor.sqrt()[:, None, None]
        data = torch.nn.functional.pad(data, (0, rank - kept)).to(dtype)
        energy = top.square().sum(1) / squares.square().sum(1).clamp_min(1e-300)
        energy = torch.where(norm > 0, energy, 1.0)
        row_norm = exact_norm(self_product(data.float().mT))
    return Rows("lowrank", data, norm.float(), row_norm.float(), energy.float())
