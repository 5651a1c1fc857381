"""Rows rounded to int8, with one scale for each row of the matrix that they stand for.

A scale for each channel (with the aggregation ``pairwise``: each position) is what makes int8 exact
enough: with a single scale for a segment, the quiet channels are lost in the rounding of the
loudest one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from antigram.model.choices import Codec
from antigram.model.loss.packed import diagonal, pack
from antigram.pipeline.errors import InputError

__all__ = ["INT8_REFUSED", "LEVELS", "round_to_int8", "widen"]

INT8_REFUSED = (
    "`dtype=int8`: holds the aggregations gram and pairwise, whose scales are those of channels or "
    "positions; maps of the other aggregations are small: use `dtype=float16` or `float32`"
)
LEVELS = 127  # the largest stored value


def round_to_int8(values: Tensor, codec: Codec, side: int) -> tuple[Tensor, Tensor]:
    """Round rows to int8.

    Args:
        values: rows of norm 1, float32: ``packed`` ``(batch, side * (side + 1) / 2)``, ``factor``
            and ``lowrank`` ``(batch, side, columns)``.
        codec: one of these.
        side: number of rows of the square matrix.

    Returns:
        int8 values of the same shape, and the ``(batch, side)`` float16 scales from which `widen`
        restores the rows. For ``packed`` they are the square roots of the diagonal, as
        |G_ij| <= sqrt(G_ii G_jj); else the largest absolute value of each row.

    Raises:
        InputError: the codec is ``map``.
    """
    if codec == "map":
        raise InputError(INT8_REFUSED)
    if codec == "packed":
        scale = values.index_select(1, diagonal(side, values.device)).clamp_min(0).sqrt().half()
    else:
        scale = values.abs().amax(-1).half()
    unit = _unit(scale, codec)
    whole = (values / torch.where(unit > 0, unit, torch.inf)).round()
    return whole.clamp(-LEVELS, LEVELS).to(torch.int8), scale


def widen(data: Tensor, scale: Tensor, codec: Codec) -> Tensor:
    """Return the float32 rows for which int8 values stand: see `round_to_int8`."""
    return data * _unit(scale, codec)


def _unit(scale: Tensor, codec: Codec) -> Tensor:
    """Return the value of an int8 1, in a shape that broadcasts to that of the rows."""
    scale = scale.float()
    if codec == "packed":
        root = scale * LEVELS**-0.5
        return pack(root[:, :, None] * root[:, None, :])
    return scale[..., None] / LEVELS
