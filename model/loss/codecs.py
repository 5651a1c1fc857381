"""Rows: a teacher's feature maps in the form that the loss reads, one for each segment and layer.

With F the ``(C, positions)`` maps of a segment, G = F F^T and ||.|| the Frobenius norm, a row has
one of these forms (codecs):

* ``packed``: the upper triangle of G / ||G||, row by row, with off-diagonal entries multiplied by
  sqrt(2). The dot product of two such rows is the inner product of the two matrices.
* ``factor``: F / sqrt(||G||), whose product with its own transpose is G / ||G||. It is smaller than
  the triangle if there are few positions.
* ``lowrank``: ``(C, rank)`` vectors V. V V^T is the matrix of that rank nearest to G / ||G||.
* ``map``: the ``(positions,)`` values of another aggregation, divided by their norm.

With the aggregation ``pairwise`` the same holds of the transposed centred maps A^T (see
`pairwise_maps`) in place of F, and of K = A^T A in place of G; a ``factor`` is stored as
A / sqrt(||K||), ``(C, positions)``, all the same.

A cache stores rows as float32 or float16, or as int8 with scales (see `model.loss.int8`), which are
widened before they are compared. A live teacher computes the rows that an exact float32 cache would
hold, so that both modes compute with the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from antigram.model.choices import Aggregation, Codec, matrix_side
from antigram.model.loss.gram import aggregate, exact_norm, flat, self_product, upper_product
from antigram.model.loss.int8 import round_to_int8, widen
from antigram.model.loss.packed import forget_indices, pack, packed_size, unpack
from antigram.model.loss.pairwise import Grid, default_grid, pairwise_maps
from antigram.pipeline.errors import InputError

__all__ = [
    "Rows",
    "Stack",
    "constant",
    "encode_rows",
    "exact_codec",
    "forget_tables",
    "inverse_square",
    "pack",
    "packed_size",
    "row_shape",
    "stored_rows",
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
        grid: frames and frequencies that maps of the aggregation ``pairwise`` are averaged to; None
            for other aggregations.
        inverse: ``(batch,)`` float32, `inverse_square` of ``row_norm``, if it is known beforehand.
        scale: ``(batch, side)`` float16 scales of int8 ``data``; None for other dtypes. The loss
            takes rows without scales: see `widened`.
    """

    codec: Codec
    data: Tensor
    norm: Tensor
    row_norm: Tensor
    energy: Tensor | None = None
    grid: Grid | None = None
    inverse: Tensor | None = None
    scale: Tensor | None = None

    def arrays(self) -> tuple[Tensor, ...]:
        """Return the tensors that a cache stores, in the order of its arrays."""
        stored = (self.data, self.norm, self.row_norm, self.energy, self.scale)
        return tuple(tensor for tensor in stored if tensor is not None)

    def widened(self) -> Rows:
        """Return int8 rows as the float32 rows for which they stand; other rows as they are."""
        if self.scale is None:
            return self
        data = self._turned(widen(self.columns, self.scale, self.codec))
        return replace(self, data=data, scale=None)

    def to(self, device: torch.device) -> Rows:
        """Copy the rows to a device, without the energy, which the loss does not need."""
        rows = self.widened()
        data, norm, row_norm = (
            t.to(device, non_blocking=True) for t in (rows.data, rows.norm, rows.row_norm)
        )
        inverse = None if self.inverse is None else self.inverse.to(device, non_blocking=True)
        return Rows(self.codec, data, norm, row_norm, grid=self.grid, inverse=inverse)

    @property
    def columns(self) -> Tensor:
        """Values whose product with their transpose is the matrix: ``pairwise`` has A^T here."""
        return self._turned(self.data)

    def _turned(self, data: Tensor) -> Tensor:
        return data.mT if self.codec == "factor" and self.grid else data

    def matrices(self, side: int) -> Tensor:
        """Return ``(batch, side, side)`` float32 matrices of norm 1: Grams or K; not for ``map``.

        Args:
            side: number of channels, or with ``pairwise`` of positions.
        """
        if self.codec == "packed":
            return unpack(self.data, side)
        return self_product(self.columns.float())


@dataclass(frozen=True, slots=True)
class Stack:
    """Rows of several teachers at one layer that have the same form, for a single comparison.

    Attributes:
        codec: as in `Rows`.
        data: values as stored. ``packed`` and ``map``: ``(teacher, batch, ...)``; ``factor`` and
            ``lowrank``: ``(teacher, batch, columns, C)``, and with ``pairwise``
            ``(teacher, batch, columns, positions)``.
        norm: ``(teacher, batch)`` float32.
        row_norm: ``(teacher, batch)`` float32.
        inverse: ``(teacher, batch)`` float32, one over the square of ``row_norm``; 0 for 0.
        grid: as in `Rows`; the same for all teachers.
    """

    codec: Codec
    data: Tensor
    norm: Tensor
    row_norm: Tensor
    inverse: Tensor
    grid: Grid | None = None

    @classmethod
    def of(cls, rows: Sequence[Rows]) -> Stack:
        """Stack rows of one codec, dtype, shape and grid; those of one teacher are not copied."""
        rows = [each.widened() for each in rows]
        first = rows[0]
        side_by_side = first.codec in ("factor", "lowrank")
        data, norm, row_norm, inverse = (
            each[0][None] if len(rows) == 1 else torch.stack(each)
            for each in zip(
                *(
                    (
                        teacher.columns.mT if side_by_side else teacher.data,
                        teacher.norm,
                        teacher.row_norm,
                        inverse_square(teacher.row_norm)
                        if teacher.inverse is None
                        else teacher.inverse,
                    )
                    for teacher in rows
                ),
                strict=True,
            )
        )
        return cls(first.codec, data, norm, row_norm, inverse, first.grid)

    @property
    def teachers(self) -> int:
        """Number of teachers."""
        return self.norm.shape[0]

    def part(self, segments: slice) -> Stack:
        """Return the rows of some of the batch's segments."""
        data, norm, row_norm, inverse = (values[:, segments] for values in self.tensors())
        return Stack(self.codec, data, norm, row_norm, inverse, self.grid)

    def write_matrices(self, out: Tensor, side: int) -> None:
        """Write the matrices of norm 1 that the rows stand for; not for ``map``.

        Args:
            out: ``(teacher, batch, side * side)`` float32.
            side: number of channels, or with ``pairwise`` of positions.
        """
        if self.codec == "packed":
            unpack(self.data.flatten(0, 1), side, out=out.flatten(0, 1))
            return
        rows = self.data.flatten(0, 1).float()
        torch.bmm(rows.mT, rows, out=out.view(-1, side, side))

    def packed(self) -> Tensor:
        """Return rows of Grams in ``packed`` form: ``(teacher, batch, C(C+1)/2)`` float32."""
        if self.codec == "packed":
            return self.data.float()
        rows = self.data.float()
        return pack((rows.mT @ rows).flatten(0, 1)).view(*self.data.shape[:2], -1)

    def tensors(self) -> tuple[Tensor, ...]:
        """Return data, norm, row_norm and inverse."""
        return self.data, self.norm, self.row_norm, self.inverse


def inverse_square(norm: Tensor) -> Tensor:
    """Return one over the square of each norm: 0 for a row of zeros, NaN for a damaged one."""
    inverse = torch.where(norm == 0, 0.0, norm.square().reciprocal())
    return torch.where(norm.isinf(), torch.nan, inverse)


def exact_codec(aggregation: Aggregation, channels: int, positions: int) -> Codec:
    """Return the smaller of the lossless codecs for rows of an aggregation.

    ``factor`` is taken if it is at least a tenth smaller. Where both are of about the same size (at
    layers 8 to 10 of VGG16, for one second), a step takes as many FLOPs with any number of
    ``packed`` rows as with two rows of ``factor``.

    Args:
        aggregation: what is stored.
        channels: channels of the maps.
        positions: positions of the maps, for ``pairwise`` of the grid.
    """
    if aggregation not in ("gram", "pairwise"):
        return "map"
    triangle = packed_size(matrix_side(aggregation, channels, positions))
    return "factor" if 10 * channels * positions <= 9 * triangle else "packed"


def row_shape(
    codec: Codec,
    channels: int,
    positions: int,
    rank: int | None = None,
    aggregation: Aggregation = "gram",
) -> tuple[int, ...]:
    """Return the shape of a row's values.

    Args:
        codec: form of the row.
        channels: channels of the maps.
        positions: positions of the maps, for ``pairwise`` of the grid.
        rank: columns of ``lowrank``; None if not yet known, which counts as 0.
        aggregation: what is stored.
    """
    side = matrix_side(aggregation, channels, positions)
    shapes: dict[str, tuple[int, ...]] = {
        "packed": (packed_size(side),),
        "factor": (channels, positions),
        "lowrank": (side, rank or 0),
        "map": (positions,),
    }
    return shapes[codec]


@lru_cache(maxsize=256)
def constant(value: float | tuple[float, ...], device: torch.device) -> Tensor:
    """Return a float32 tensor of fixed numbers on a device, which is copied there only once."""
    return torch.tensor(value, dtype=torch.float32, device=device)


def forget_tables() -> None:
    """Free the tensors that `pack`, `unpack` and `constant` keep between calls."""
    forget_indices()
    constant.cache_clear()


def encode_rows(
    maps: Tensor,
    aggregation: Aggregation,
    dtype: torch.dtype,
    codec: Codec | None = None,
    rank: int | None = None,
    grid: Grid | None = None,
) -> Rows:
    """Turn a teacher's maps into rows, as a cache stores them.

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: ``gram``, ``mean``, ``sum``, ``max``, ``compmul`` or ``pairwise``.
        dtype: dtype of the values: float32, float16 or int8.
        codec: form of the rows; by default ``packed`` for Grams and ``pairwise``, ``map`` for other
            aggregations.
        rank: columns of a ``lowrank`` row; by default the rows of the matrix.
        grid: for ``pairwise``, positions to average to; by default `default_grid`.

    Returns:
        Rows divided by their norm; a row whose norm is zero is all zeros.

    Raises:
        InputError: the codec cannot hold the aggregation, or the maps are smaller than the grid.
    """
    of_matrix = aggregation in ("gram", "pairwise")
    codec = codec or ("packed" if of_matrix else "map")
    if (codec == "map") == of_matrix:
        raise InputError(f"`codec={codec}`: cannot hold the aggregation {aggregation}; use auto")
    if aggregation == "pairwise":
        grid = grid or default_grid((maps.shape[2], maps.shape[3]))
    elif grid is not None:
        raise InputError(f"grid: belongs to the aggregation pairwise, this one is {aggregation}")
    with torch.autocast(maps.device.type, enabled=False):
        if not of_matrix:
            values = aggregate(maps, aggregation)
            norm = exact_norm(values)
            return stored_rows(codec, values / _divisor(norm)[:, None], norm, dtype)
        values = flat(maps) if grid is None else pairwise_maps(maps, grid)
        if codec == "lowrank":
            return _lowrank_rows(values, rank or values.shape[1], dtype, grid)
        if codec == "factor":
            norm = _norm_of_product(values)
            data = values / _divisor(norm).sqrt()[:, None, None]
            return stored_rows(codec, data, norm, dtype, grid=grid)
        packed = pack(upper_product(values))
        norm = exact_norm(packed)
        data = packed / _divisor(norm)[:, None]
        return stored_rows(codec, data, norm, dtype, side=values.shape[1], grid=grid)


def stored_rows(
    codec: Codec,
    values: Tensor,
    norm: Tensor,
    dtype: torch.dtype,
    *,
    side: int = 0,
    energy: Tensor | None = None,
    grid: Grid | None = None,
) -> Rows:
    """Round values to a dtype, and take the norm of what the rounded values represent.

    Args:
        codec: form of the rows.
        values: rows of norm 1, ``factor`` as in `Rows.columns`; float32 or float64.
        norm: ``(batch,)`` float64 norm by which G or the map was divided.
        dtype: float32, float16 or int8.
        side: for ``packed``, rows of the matrix.
        energy: for ``lowrank``, as in `Rows`.
        grid: as in `Rows`.
    """
    scale = None
    if dtype == torch.int8:
        data, scale = round_to_int8(values, codec, side)
        represented = widen(data, scale, codec)
    else:
        data = represented = values.to(dtype)
    if codec == "factor" or codec == "lowrank":
        row_norm = _norm_of_product(represented.float())
    else:
        row_norm = exact_norm(represented)
    if codec == "factor" and grid is not None:
        data = data.mT
    return Rows(codec, data, norm.float(), row_norm.float(), energy, grid, scale=scale)


def _divisor(norm: Tensor) -> Tensor:
    return torch.where(norm > 0, norm, 1.0).float()


def _smaller(values: Tensor) -> Tensor:
    """Return F or F^T, whichever gives the smaller of the products F F^T and F^T F.

    The two products share norm and nonzero eigenvalues.
    """
    side, columns = values.shape[1:]
    return values if side <= columns else values.mT


def _norm_of_product(values: Tensor) -> Tensor:
    """Return the norm of F F^T, ``(batch,)`` float64."""
    return exact_norm(pack(upper_product(_smaller(values))))


def _lowrank_rows(values: Tensor, rank: int, dtype: torch.dtype, grid: Grid | None) -> Rows:
    """Return the nearest rank-``rank`` approximations, from the smaller product's eigenvectors."""
    with torch.autocast(values.device.type, enabled=False):
        product = self_product(_smaller(values))
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
        data = torch.nn.functional.pad(data, (0, rank - leading))
        energy = top.square().sum(1) / squares.square().sum(1).clamp_min(1e-300)
        energy = torch.where(norm > 0, energy, 1.0)
        return stored_rows("lowrank", data, norm, dtype, energy=energy.float(), grid=grid)
