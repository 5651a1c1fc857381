"""The anti-transfer loss: similarity between the feature maps of a student and its teachers.

``L_AT = beta * similarity``, one value per segment and layer. The trainer applies beta, once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from antigram.model.choices import (
    SIMILARITIES,
    Aggregation,
    Layer,
    Similarity,
    Tap,
    similarity_of,
)
from antigram.model.loss.codecs import Rows, Stack, packed_size
from antigram.model.loss.gram import Context
from antigram.model.loss.pairwise import Grid, compared
from antigram.model.loss.student_maps import StudentMaps
from antigram.pipeline.errors import InputError

__all__ = [
    "SIMILARITIES",
    "at_loss",
    "at_losses",
    "check_combination",
    "flat_layers_note",
    "grid_of",
    "released_loss",
]

_TINY = torch.finfo(torch.float32).tiny
_DEAD = 1e-18  # the square of a smaller norm underflows in float32, and its reciprocal overflows
# First layer at which mse-sigmoid has little or no gradient, and how much of it. Sums over the
# channels grow with their number, until 1 - sigmoid is below 1e-10. Grams, scaled by 1 / (C P), and
# means differ little between networks: the norm of the gradient at the maps is below 1e-4; that of
# ``max`` is 1e-3 to 1e-2.
_FLAT_FROM = {"sum": (7, "no"), "gram": (5, "hardly any"), "mean": (1, "hardly any")}


def check_combination(
    aggregation: Aggregation, tap: Tap, similarity: Similarity, layers: Collection[Layer] = ()
) -> None:
    """Raise if an aggregation cannot be used at a tap, or cannot have a similarity.

    Raises:
        InputError: ``compmul`` is to be used on maps that may be negative, there is no such
            similarity, or the aggregation cannot have it.
    """
    similarity_of(aggregation, similarity)
    named = [layer for layer in layers if isinstance(layer, str)]
    if aggregation == "compmul" and named:
        raise InputError(
            f"`aggregation=compmul` needs values >= 0, which the output of {named[0]} may not be: "
            "use another one"
        )
    # The input of layer 1 is the normalised spectrogram, which has negative values.
    if aggregation == "compmul" and (tap == "conv" or (tap == "released" and 1 in layers)):
        raise InputError(
            f"`aggregation=compmul` needs values >= 0, and `tap={tap}` gives negative ones"
            f"{' at layer 1' if tap == 'released' else ''}: use `tap=relu`, or another one"
        )


def flat_layers_note(
    aggregation: Aggregation, similarity: Similarity, layers: Collection[Layer]
) -> str:
    """Return a warning if the loss has next to no gradient at some layers, else an empty text."""
    first, size = _FLAT_FROM.get(aggregation, (0, ""))
    numbers = [layer for layer in layers if isinstance(layer, int)]  # of a VGG, measured
    flat_layers = [n for n in sorted(numbers) if n >= first]
    if similarity != "mse-sigmoid" or not size or not flat_layers:
        return ""
    return (
        f"`aggregation={aggregation}` `similarity=mse-sigmoid` has {size} gradient at layer(s) "
        f"{', '.join(map(str, flat_layers))} (measured in VGG16 of width 64): AT does next to "
        "nothing there; `similarity=cos2` has one at every layer"
    )


class _Cosine(torch.autograd.Function):
    """``inner / (norm * row_norm)``, or its square; it is a flat 0 if a norm is near zero."""

    @staticmethod
    def forward(
        ctx: Context,
        inner: Tensor,
        norm: Tensor,
        row_norm: Tensor,
        squared: bool,  # noqa: FBT001 - autograd takes positions alone
    ) -> Tensor:
        divisor = norm[:, None] * row_norm
        divisor = divisor.masked_fill(divisor < _DEAD, torch.inf)
        cosine = inner / divisor
        ctx.save_for_backward(cosine, divisor, norm)
        ctx.squared = squared
        return cosine.square() if squared else cosine

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        cosine, divisor, norm = ctx.saved_tensors
        slope = grad * cosine * 2 if ctx.squared else grad
        return slope / divisor, -(slope * cosine).sum(1) / norm.clamp_min(_TINY), None, None


def at_losses(student: StudentMaps, stack: Stack, similarity: Similarity = "cos2") -> Tensor:
    """Compute the similarity of a student's maps to the rows of several teachers, per segment.

    Args:
        student: maps of the student.
        stack: rows of the teachers for the same segments, layer and tap.
        similarity: ``cos2``, the squared cosine; ``mse-sigmoid``, minus the sigmoid of the mean
            squared error; or ``cka``, the cosine, which with the aggregation ``pairwise`` is linear
            CKA over positions. The error is computed from Grams scaled by 1000 / (C P), as in the
            paper's code, or from aggregated maps without scaling.

    Returns:
        ``(batch, teacher)`` float32, before beta: in [0, 1] for ``cos2`` and ``cka``, in (-1, -0.5]
        for ``mse-sigmoid``.

    References:
        Guizzo, Weyde and Tarroni (2021), equation of L_AT and 5.5. Kornblith, Norouzi, Lee and
        Hinton (2019), Similarity of neural network representations revisited: CKA.
    """
    with torch.autocast(stack.data.device.type, enabled=False):
        if similarity != "mse-sigmoid":
            # The inner product comes first, as the norm reuses the tensors that it computes.
            inner, squared = student.inner(stack), similarity == "cos2"
            cosine: Tensor = _Cosine.apply(inner, student.norm, stack.row_norm.mT, squared)
            return cosine
        # The error depends on scale, so the division of the stored row by its norm is undone.
        if student.values.ndim == 3:
            scale, entries = 1000.0 / (student.channels * student.positions), student.channels**2
            error = student.packed - stack.packed() * stack.norm[:, :, None]
        else:
            scale, entries = 1.0, student.positions
            error = student.values - stack.data.float() * stack.norm[:, :, None]
        return -torch.sigmoid((scale * error).square().sum(2) / entries).mT


def at_loss(
    maps: StudentMaps | Tensor,
    rows: Rows,
    aggregation: Aggregation = "gram",
    similarity: Similarity | None = None,
) -> Tensor:
    """Compute the similarity of a student's maps to the rows of one teacher, per segment.

    Args:
        maps: maps of the student, ``(batch, channel, frame, freq)``, or a `StudentMaps`.
        rows: rows of the teacher for the same segments, layer and tap.
        aggregation: aggregation of ``rows``; it is applied to ``maps``, except to a `StudentMaps`.
        similarity: as for `at_losses`; by default ``cka`` with ``pairwise``, else ``cos2``.

    Returns:
        ``(batch,)`` float32, before beta.

    Raises:
        InputError: ``maps`` is not 4-D, or smaller than the grid of the rows; ``rows`` has another
            number of segments, channels or positions, or another aggregation; or the aggregation
            cannot have the similarity.
    """
    similarity = similarity_of(aggregation, similarity)
    grid = grid_of([rows], aggregation)
    with torch.autocast(rows.data.device.type, enabled=False):
        if isinstance(maps, Tensor):
            if maps.ndim != 4 or 0 in maps.shape:
                raise InputError(
                    f"at_loss: maps are {tuple(maps.shape)}, wanted (batch, channel, frame, freq)"
                )
            maps = StudentMaps(compared(maps, aggregation, grid))
        _check_rows(maps, rows)
        return at_losses(maps, Stack.of([rows]), similarity)[:, 0]


def grid_of(rows: Sequence[Rows | Stack], aggregation: Aggregation) -> Grid | None:
    """Return the grid of rows, None if they have none; raise if they differ or do not fit."""
    grids = {each.grid for each in rows}
    if len(grids) > 1:
        raise InputError(f"rows of one layer have different grids, {grids}; wanted the same")
    grid = rows[0].grid
    if (grid is not None) != (aggregation == "pairwise"):
        of = "not pairwise" if grid is None else "pairwise"
        raise InputError(f"`aggregation={aggregation}`: the rows are {of}; give their aggregation")
    return grid


def _check_rows(student: StudentMaps, rows: Rows) -> None:
    # With a grid, only positions, which are the student's `channels`, need to be equal.
    factor = (
        (student.channels, student.positions)
        if rows.grid is None
        else (*rows.data.shape[1:2], student.channels)
    )
    wanted = {
        "packed": (packed_size(student.channels),),
        "factor": factor,
        "lowrank": (student.channels, *rows.data.shape[2:]),
        "map": (student.positions,),
    }[rows.codec]
    if tuple(rows.data.shape) != (len(student.values), *wanted):
        raise InputError(
            f"at_loss: rows of codec {rows.codec} are {tuple(rows.data.shape)}, these maps need "
            f"{(len(student.values), *wanted)}: the same segments, and a layer of the same size"
        )


def released_loss(maps: Tensor, teacher: Tensor) -> Tensor:
    """Compute the loss of the paper's released code, as a reference for comparisons.

    The batch is folded into the channels, so that segments are mixed. The cosine is computed row
    by row; its absolute values are averaged, and the mean is squared. The released code applies
    beta before squaring, so weight this loss by beta^2.

    Args:
        maps: maps of the student, ``(batch, channel, frame, freq)``.
        teacher: maps of the teacher, of the same shape.

    Returns:
        Scalar in [0, 1], before beta.
    """
    with torch.autocast(maps.device.type, enabled=False):
        grams = []
        for features in (teacher, maps):
            rows = features.float().flatten(0, 1).flatten(1)
            grams.append(rows @ rows.mT * (1000.0 / features.numel()))
        cosine = torch.nn.functional.cosine_similarity(grams[0], grams[1], dim=1)
        return cosine.abs().mean().square()
