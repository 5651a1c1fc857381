"""The AT loss of a layer in a training step: value and gradient in closed form, in few operations.

Starting an operation costs time on a GPU, whatever its size. So all teachers of a layer are
compared at once, and the gradient is written out instead of left to autograd. With G the Gram of a
segment, R_t the matrix of teacher t with norm r_t, and w_t its weight, the squared cosine and its
gradient are

    s_t = <R_t, G>^2 / (r_t^2 |G|^2),  dL/dG = sum_t a_t R_t - c G,  with
    a_t = 2 w_t <R_t, G> / (r_t^2 |G|^2)  and  c = sum_t a_t <R_t, G> / |G|^2.

The cosine has a_t = w_t / (r_t |G|) and the same c. So the student's own matrix is one more row
beside those of the teachers: one sum gives all inner products and |G|^2, and one product with the
coefficients gives the gradient. If maps have fewer positions than channels, the same is done with
products of the maps: <V V^T, F F^T> = |V^T F|^2. `at_losses` defines the similarities; the two are
compared by the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from antigram.model.choices import Aggregation, Similarity, similarity_of
from antigram.model.loss.at_loss import grid_of
from antigram.model.loss.codecs import Stack, constant
from antigram.model.loss.gram import Context, flat
from antigram.model.loss.pairwise import compared

__all__ = ["compare"]

_MOST_FLOATS = 2**26  # 256 MiB of temporary memory
# Added to each product of a sum. A student without activations then has similarities below 1e-29
# instead of 0 / 0, and one whose Gram has a norm above 1e-12 is not affected.
_TINY = 1e-37


def compare(
    maps: Tensor,
    stacks: Sequence[Stack],
    weights: Sequence[float],
    aggregation: Aggregation,
    similarity: Similarity | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the AT loss of a layer: the weighted sum over teachers of the mean similarity.

    Args:
        maps: maps of the student, ``(batch, channel, frame, freq)``.
        stacks: rows of the teachers, for the same segments, layer and tap.
        weights: a factor for each teacher, in the order of the stacks.
        aggregation: aggregation of the rows.
        similarity: as for `at_loss`.

    Returns:
        The loss, a scalar; and ``(teacher,)`` similarities averaged over the batch, before they
        are weighted and without gradient. The loss is not a number if the norm of a Gram is above
        1.8e19, whose square is beyond float32.

    Raises:
        InputError: the maps are smaller than the grid of the rows, the teachers' grids differ, or
            the aggregation cannot have the similarity.
    """
    similarity = similarity_of(aggregation, similarity)
    with torch.autocast(maps.device.type, enabled=False):
        x = compared(maps, aggregation, grid_of(stacks, aggregation))
        given = tuple(map(float, weights))
        loss_and_means: tuple[Tensor, Tensor] = _Compare.apply(x, stacks, given, similarity)
        return loss_and_means


class _Compare(torch.autograd.Function):
    """Loss of a layer, with its gradient computed in the forward pass, in parts of the batch.

    The rows and the products of each part are freed before the backward pass, in which the memory
    of a step has its peak. Only the gradient at the Gram or at the maps is kept, whichever is
    smaller.
    """

    @staticmethod
    def forward(
        ctx: Context,
        maps: Tensor,
        stacks: Sequence[Stack],
        weights: tuple[float, ...],
        similarity: Similarity,
    ) -> tuple[Tensor, Tensor]:
        needs_grad = ctx.needs_input_grad[0]
        # The gradient gets the layout of the maps, as it is added to that of the layers above.
        ctx.channels_last = maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last)
        by_positions = _is_by_positions(maps, stacks, similarity)
        ctx.of_gram = maps.ndim > 2 and not by_positions
        ctx.parts = _parts(maps, stacks, by_positions=by_positions)
        totals, means, slopes = [], [], []
        for part in ctx.parts:
            values = flat(maps[part]) if maps.ndim == 4 else maps[part]
            rows = stacks if len(ctx.parts) == 1 else [stack.part(part) for stack in stacks]
            given = _Given(weights, similarity, 1 / len(maps))
            if by_positions:
                total, mean, slope = _by_positions(values, rows, given, needs_grad=needs_grad)
            else:
                total, mean, slope = _by_matrices(values, rows, given, needs_grad=needs_grad)
            totals.append(total)
            means.append(mean)
            slopes.append(slope)
            del rows, slope  # freed before the next part is computed
        if needs_grad:
            known = [slope for slope in slopes if slope is not None]
            slope = known[0] if len(known) == 1 else torch.cat(known)
            ctx.save_for_backward(maps if ctx.of_gram else None, slope)
            ctx.shape, ctx.dtype = maps.shape, maps.dtype
        of_teachers = sum(means[1:], start=means[0])
        ctx.mark_non_differentiable(of_teachers)
        ctx.set_materialize_grads(False)
        return sum(totals[1:], start=totals[0]), of_teachers

    @staticmethod
    def backward(ctx: Context, grad: Tensor, _: None) -> tuple[Tensor, None, None, None]:
        maps, slope = ctx.saved_tensors
        slope = slope * grad
        if not ctx.of_gram:
            gradient = slope.mT if slope.ndim == 3 else slope
            gradient = gradient.reshape(ctx.shape)
            if not ctx.channels_last:
                gradient = gradient.contiguous()
            return gradient.to(ctx.dtype), None, None, None
        gradients = []
        for part in ctx.parts:
            values = flat(maps[part]) if maps.ndim == 4 else maps[part]
            of_part = (values.mT @ slope[part]).mT if ctx.channels_last else slope[part] @ values
            gradients.append(of_part.to(ctx.dtype).reshape(maps[part].shape))
        gradient = gradients[0] if len(gradients) == 1 else torch.cat(gradients)
        return gradient, None, None, None


class _Given(NamedTuple):
    """What a loss is made of beside maps and rows.

    Attributes:
        weights: a factor for each teacher.
        similarity: as for `compare`.
        share: one over the number of segments of the batch.
    """

    weights: tuple[float, ...]
    similarity: Similarity
    share: float

    def tensor(self, like: Tensor) -> Tensor:
        """Return the weights as ``(teacher, 1)`` on a device."""
        return constant(self.weights, like.device)[:, None]


def _tiny(device: torch.device) -> Tensor:
    return constant(_TINY, device)


def _is_by_positions(maps: Tensor, stacks: Sequence[Stack], similarity: Similarity) -> bool:
    """Return whether products of maps are smaller than Grams, and enough to compare them."""
    if maps.ndim == 2 or similarity == "mse-sigmoid":
        return False
    fewer = math.prod(maps.shape[2:]) < maps.shape[1]
    return fewer and all(stack.codec in ("factor", "lowrank") for stack in stacks)


def _parts(maps: Tensor, stacks: Sequence[Stack], *, by_positions: bool) -> list[slice]:
    """Return slices of a batch, each small enough to be compared in 256 MiB of temporary memory."""
    rows, channels = sum(stack.teachers for stack in stacks) + 1, maps.shape[1]
    positions = math.prod(maps.shape[2:])
    if by_positions:
        columns = max(positions, *(stack.data.shape[2] for stack in stacks))
        floats = rows * columns * (channels + 2 * positions)
    else:
        floats = 3 * rows * (channels if maps.ndim == 2 else channels**2)
    floats += channels * positions if maps.dtype != torch.float32 else 0
    size = max(1, _MOST_FLOATS // floats)
    return [slice(first, first + size) for first in range(0, len(maps), size)]


def _by_matrices(
    values: Tensor, stacks: Sequence[Stack], given: _Given, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compare matrices, or the maps of another aggregation.

    Args:
        values: ``(batch, C, position)`` maps, whose Grams are compared, or ``(batch, position)``.
        stacks: rows of the teachers.
        given: weights and similarity.
        needs_grad: whether the slope is wanted.

    Returns:
        Loss, ``(teacher,)`` means, and the slope: ``(batch, C, C)``, whose product with the maps is
        the gradient; or the gradient itself.
    """
    of_gram = values.ndim == 3
    if of_gram:
        side, teachers = values.shape[1], sum(stack.teachers for stack in stacks)
        every = values.new_empty(teachers + 1, len(values), side * side)
        first = 0
        for stack in stacks:
            stack.write_matrices(every[first : first + stack.teachers], side)
            first += stack.teachers
        torch.bmm(values, values.mT, out=every[-1].view(-1, side, side))
    else:
        every = torch.cat([*(stack.data for stack in stacks), values[None]])
    if given.similarity == "mse-sigmoid":
        total, means, compared, coefficients, factor = _errors(values, every, stacks, given)
    else:
        if of_gram:
            products = torch.addcmul(_tiny(values.device), every, every[-1]).sum(2)
        else:  # the slope is the gradient, which a product with maps of zero does not make zero
            products = (every * every[-1]).sum(2)
            products[-1] += _TINY
        total, means, coefficients, factor = _cosines(products, stacks, given)
        compared = every
    if not needs_grad:
        return total, means, None
    slope = torch.baddbmm(
        _tiny(values.device),
        coefficients.mT[:, None],
        compared.transpose(0, 1),
        beta=0,
        alpha=factor * (2 if of_gram else 1),  # F is both factors of F F^T
    )
    return total, means, slope.view(-1, side, side) if of_gram else slope[:, 0]


def _by_positions(
    values: Tensor, stacks: Sequence[Stack], given: _Given, *, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compare maps with fewer positions than channels, without their Grams.

    Args:
        values: ``(batch, C, position)`` maps.
        stacks: rows of the teachers, ``factor`` or ``lowrank``.
        given: weights and similarity.
        needs_grad: whether the slope is wanted.

    Returns:
        Loss, ``(teacher,)`` means, and the gradient, ``(batch, position, C)``.
    """
    own, teachers = values.mT, [rows for stack in stacks for rows in stack.data]
    columns = max(own.shape[1], *(rows.shape[1] for rows in teachers))
    every = torch.cat([_padded(rows, columns) for rows in (*teachers, own)], 1)
    products = every @ values  # of all teachers' maps and the student's own with the student's
    shape = len(values), len(teachers) + 1, -1
    squares = torch.addcmul(_tiny(values.device), products, products).view(shape).sum(2)
    total, means, coefficients, factor = _cosines(squares.mT, stacks, given)
    if not needs_grad:
        return total, means, None
    weighted = (products.view(shape) * coefficients.mT[:, :, None]).view(products.shape)
    tiny = _tiny(values.device)
    slope = torch.baddbmm(tiny, weighted.mT, every, beta=0, alpha=2 * factor)
    return total, means, slope


def _padded(rows: Tensor, columns: int) -> Tensor:
    missing = columns - rows.shape[1]
    return functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _cosines(
    products: Tensor, stacks: Sequence[Stack], given: _Given
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Compute loss, means and gradient from inner products.

    Args:
        products: ``(teacher + 1, batch)`` inner products of the rows with the student's matrix; the
            last is the square of its norm.
        stacks: rows of the teachers, for their norms.
        given: weights and similarity.

    Returns:
        Loss, ``(teacher,)`` means, coefficients ``(teacher + 1, batch)`` of the matrices in the
        slope, and a factor of all of them.
    """
    inner, square = products[:-1], products[-1]
    tiny, (weight, *others) = _tiny(products.device), given.weights
    inverse = stacks[0].inverse
    if len(stacks) > 1:
        inverse = torch.cat([stack.inverse for stack in stacks])
    relative = inner / square
    coefficients = torch.empty_like(products, memory_format=torch.contiguous_format)
    of_teachers, of_own = coefficients[:-1], coefficients[-1]
    if given.similarity == "cos2":
        torch.mul(relative, inverse, out=of_teachers)
    else:
        torch.div(inverse.sqrt(), square.sqrt(), out=of_teachers)
    each = of_teachers[:, None], inner[:, :, None]
    means = torch.baddbmm(tiny, *each, beta=0, alpha=given.share).flatten()
    factor = given.share
    if all(other == weight for other in others):
        factor *= weight
    else:
        of_teachers.mul_(given.tensor(products))
    each = relative.mT[:, None], of_teachers.mT[:, :, None]
    torch.baddbmm(tiny, *each, beta=0, alpha=-1, out=of_own.view(-1, 1, 1))
    total = torch.addmv(tiny, of_own[None], square, beta=0, alpha=-factor).view(())
    return total, means, coefficients, factor * (2 if given.similarity == "cos2" else 1)


def _errors(
    values: Tensor, every: Tensor, stacks: Sequence[Stack], given: _Given
) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Compute minus the sigmoid of the mean squared error, its means, and its gradient.

    Args:
        values: as in `_by_matrices`.
        every: ``(teacher + 1, batch, value)`` matrices or maps, the student's own last.
        stacks: rows of the teachers, for their norms.
        given: weights and similarity.

    Returns:
        Loss, ``(teacher,)`` means, ``(teacher, batch, value)`` differences, their coefficients
        ``(teacher, batch)`` in the slope, and a factor of all of them.
    """
    scale = 1000.0 / values[0].numel() if values.ndim == 3 else 1.0
    by = scale**2 / every.shape[2]
    norm = torch.cat([stack.norm for stack in stacks])
    # The error depends on scale, so the division of the stored row by its norm is undone.
    differences = torch.addcmul(every[-1], every[:-1], norm[:, :, None], value=-1)
    sigmoid = torch.sigmoid(by * differences.square().sum(2))
    weights = given.tensor(every)
    means = -given.share * sigmoid.sum(1)
    coefficients = weights * sigmoid * (sigmoid - 1)
    return torch.dot(means, weights[:, 0]), means, differences, coefficients, 2 * by * given.share
