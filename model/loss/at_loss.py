"""The anti-transfer loss.

``L_AT = beta * similarity``, one value per clip and layer; beta is applied by the trainer, once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from antigram.model.choices import SIMILARITIES, Aggregation, Similarity, Tap
from antigram.model.loss.codecs import Rows, Stack, pack, packed_size, unpack
from antigram.model.loss.gram import aggregate, exact_norm, flat, self_product
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError

__all__ = [
    "SIMILARITIES",
    "StudentMaps",
    "at_loss",
    "at_losses",
    "check_combination",
    "compare",
    "flat_layers_note",
    "released_loss",
]

_TINY = torch.finfo(torch.float32).tiny
_DEAD = 1e-18  # a norm so small has a square and a reciprocal that float32 cannot hold
_MOST_FLOATS = 2**24
# First layer from which mse-sigmoid has such a gradient. Sums over the channels grow with their
# number, until 1 - sigmoid is below 1e-10; Grams, scaled by 1 / (C P), and means hardly differ: the
# norm of the gradient at the maps is below 1e-4, that of ``max`` is 1e-3 to 1e-2.
_FLAT_FROM = {"sum": (7, "no"), "gram": (5, "hardly any"), "mean": (1, "hardly any")}


def check_combination(
    aggregation: Aggregation, tap: Tap, similarity: Similarity, layers: Collection[int] = ()
) -> None:
    """Refuse what has no meaning.

    Raises:
        InputError: ``compmul`` on maps that may be negative, or an unknown similarity.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    # What enters layer 1 is the normalised spectrogram itself.
    if aggregation == "compmul" and (tap == "conv" or (tap == "released" and 1 in layers)):
        raise InputError(
            f"--aggregation compmul needs values >= 0, and --tap {tap} gives negative ones"
            f"{' at layer 1' if tap == 'released' else ''}: use --tap relu, or another aggregation"
        )


def flat_layers_note(
    aggregation: Aggregation, similarity: Similarity, layers: Collection[int]
) -> str:
    """Warning that a loss has next to no gradient at some layers; empty if it has."""
    first, size = _FLAT_FROM.get(aggregation, (0, ""))
    flat_ones = [n for n in sorted(layers) if n >= first]
    if similarity != "mse-sigmoid" or not size or not flat_ones:
        return ""
    return (
        f"--aggregation {aggregation} --similarity mse-sigmoid has {size} gradient at layer(s) "
        f"{', '.join(map(str, flat_ones))} (measured in VGG16 of width 64): AT does next to "
        "nothing there; --similarity cos2 has one at every layer"
    )


class _Pack(torch.autograd.Function):
    """`pack`; its gradient is a gather, where autograd would scatter."""

    @staticmethod
    def forward(ctx: Any, matrices: Tensor) -> Tensor:  # noqa: ANN401 - torch's own context
        ctx.channels = matrices.shape[-1]
        return pack(matrices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        return unpack(grad, ctx.channels)


class _Norm(torch.autograd.Function):
    """Euclidean norm of each row, whose gradient at zero is zero."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # noqa: ANN401
        norm = exact_norm(rows).float()
        ctx.save_for_backward(rows, norm)
        return norm

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ANN401
        rows, norm = ctx.saved_tensors
        slope: Tensor = rows * (grad / norm.clamp_min(_TINY))[:, None]
        return slope


class _SquaredCosine(torch.autograd.Function):
    """(inner / (norm * row_norm))^2; 0 with a gradient of 0 where either side is dead."""

    @staticmethod
    def forward(ctx: Any, inner: Tensor, norm: Tensor, row_norm: Tensor) -> Tensor:  # noqa: ANN401
        both = norm[:, None] * row_norm
        both = both.masked_fill(both < _DEAD, torch.inf)
        cosine = inner / both
        ctx.save_for_backward(cosine, both, norm)
        return cosine.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        cosine, both, norm = ctx.saved_tensors
        slope = grad * cosine * 2
        return slope / both, -(slope * cosine).sum(1) / norm.clamp_min(_TINY), None


class StudentMaps:
    """The side of the student at one layer: made once, whatever the number of teachers.

    A step's time on a GPU is partly that of starting its operations, so there are few of them:
    hence the gradients written by hand.

    Args:
        maps: ``(batch, channel, frame, freq)``, or ``(batch, channel, position)``, of which Grams
            are compared; or what `aggregate` made of them, ``(batch, position)``, which is compared
            as it is.
        gram: ``(batch, C, C)`` of these maps, where it is known; else it is made when asked for.
    """

    def __init__(self, maps: Tensor, gram: Tensor | None = None) -> None:
        self.values = flat(maps) if maps.ndim == 4 else maps
        self.channels, self.positions = self.values.shape[-2], self.values.shape[-1]
        self._gram = gram
        self._packed: Tensor | None = None

    @classmethod
    def cut(cls, maps: Tensor) -> tuple[StudentMaps, Tensor]:
        """Maps whose gradients begin where the fewest numbers are, and the tensor that these are.

        It is the Gram, or else the values.
        """
        own = cls(maps)
        if own.begins_at_gram:
            leaf = own.gram.detach().requires_grad_()
            return cls(own.values, leaf), leaf
        leaf = own.values.detach().requires_grad_()
        return cls(leaf), leaf

    @property
    def begins_at_gram(self) -> bool:
        """The Gram has fewer numbers than the maps."""
        return self.values.ndim == 3 and self.positions >= self.channels

    @property
    def gram(self) -> Tensor:
        """``(batch, C, C)``."""
        if self._gram is None:
            self._gram = self_product(self.values)
        return self._gram

    @property
    def packed(self) -> Tensor:
        """``(batch, C(C+1)/2)``: `gram` as a packed row, not divided by its norm."""
        if self._packed is None:
            self._packed = _Pack.apply(self.gram)
        return self._packed

    @cached_property
    def norm(self) -> Tensor:
        """||G||, from the smallest that is there of G, its triangle and F^T F; or of the map."""
        if self.values.ndim == 2:
            rows = self.values
        elif self._packed is not None:
            rows = self._packed
        elif self._gram is not None or self.positions >= self.channels:
            rows = self.gram.flatten(1)
        else:
            rows = self_product(self.values.mT).flatten(1)
        norm: Tensor = _Norm.apply(rows)
        return norm

    def normed(self, *, packed: bool) -> int:
        """How many numbers of a clip `norm` is taken of; ``packed``: a row to compare with is."""
        if self.values.ndim == 2:
            return self.positions
        return packed_size(self.channels) if packed else min(self.channels, self.positions) ** 2

    def inner(self, stack: Stack) -> Tensor:
        """``(batch, net)`` inner products, in the rows' own form: no Gram where less will do."""
        if stack.codec in ("map", "packed"):
            rows = self.packed if stack.codec == "packed" else self.values
            return (stack.data * rows[:, None]).sum(2)
        vectors = stack.data.float()  # <V V^T, F F^T> = ||V^T F||^2 = <V, F F^T V>
        if self.positions < self.channels:
            products = (vectors.mT @ self.values).square()
            return products.reshape(len(products), stack.teachers, -1).sum(2)
        products = vectors * (self.gram @ vectors)
        return products.reshape(*products.shape[:2], stack.teachers, -1).sum((1, 3))


def at_losses(own: StudentMaps, stack: Stack, similarity: Similarity = "cos2") -> Tensor:
    """Similarity of a net's maps to those of several teachers, for each clip.

    Args:
        own: of the student.
        stack: rows of the teachers, same clips, same layer and tap.
        similarity: ``cos2``, the squared cosine; or ``mse-sigmoid``, minus the sigmoid of the mean
            squared error, of Grams scaled by 1000 / (C P) as in the paper's code, and of maps as
            they are.

    Returns:
        ``(batch, net)`` float32, before beta: in [0, 1] for ``cos2``, in (-1, -0.5] for the other.

    References:
        Guizzo, Weyde and Tarroni (2021), equation of L_AT and 5.5.
    """
    with torch.autocast(stack.data.device.type, enabled=False):
        if similarity == "cos2":
            # In this order: what the inner product needs gives the norm too.
            inner = own.inner(stack)
            squared: Tensor = _SquaredCosine.apply(inner, own.norm, stack.row_norm)
            return squared
        # Not scale-free: the stored row was divided by its norm.
        if own.values.ndim == 3:
            scale, entries = 1000.0 / (own.channels * own.positions), own.channels**2
            apart = own.packed[:, None] - stack.packed() * stack.norm[:, :, None]
        else:
            scale, entries = 1.0, own.positions
            apart = own.values[:, None] - stack.data.float() * stack.norm[:, :, None]
        return -torch.sigmoid((scale * apart).square().sum(2) / entries)


def at_loss(
    own: StudentMaps | Tensor,
    rows: Rows,
    aggregation: Aggregation = "gram",
    similarity: Similarity = "cos2",
) -> Tensor:
    """Similarity of a net's maps to the rows of one teacher: `at_losses` of it alone.

    Args:
        own: `StudentMaps` of the student, or its maps ``(batch, channel, frame, freq)``.
        rows: of the teacher.
        aggregation: as for `at_losses`.
        similarity: as for `at_losses`.

    Returns:
        ``(batch,)`` float32.

    Raises:
        InputError: maps are not 4-D, or rows are of other segments or of another number of
            channels or positions.
    """
    with torch.autocast(rows.data.device.type, enabled=False):
        if isinstance(own, Tensor):
            if own.ndim != 4 or 0 in own.shape:
                raise InputError(
                    f"at_loss: maps are {tuple(own.shape)}, wanted (batch, channel, frame, freq)"
                )
            own = StudentMaps(own if aggregation == "gram" else aggregate(own, aggregation))
        _check_rows(own, rows)
        return at_losses(own, Stack.of([rows]), similarity)[:, 0]


def _check_rows(own: StudentMaps, rows: Rows) -> None:
    wanted = {
        "packed": (packed_size(own.channels),),
        "factor": (own.channels, own.positions),
        "lowrank": (own.channels, *rows.data.shape[2:]),
        "map": (own.positions,),
    }[rows.codec]
    if tuple(rows.data.shape) != (len(own.values), *wanted):
        raise InputError(
            f"at_loss: rows of codec {rows.codec} are {tuple(rows.data.shape)}, these maps need "
            f"{(len(own.values), *wanted)}: the same segments, and a layer of the same size"
        )


class _Compare(torch.autograd.Function):
    """The loss of a layer, its gradient taken at once, some clips after others if they are many.

    Rows and products then are gone before the backward pass, in which a step's memory has its
    peak. What stays is one slope, of the Gram or of the maps, whichever is smaller.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        stacks: Sequence[Stack],
        weights: Tensor,
        similarity: Similarity,
    ) -> tuple[Tensor, Tensor]:
        wanted = ctx.needs_input_grad[0]
        ctx.parts = _parts(maps, stacks, similarity)
        totals, means = [], []
        slopes: list[Tensor] = []
        for part in ctx.parts:
            own, leaf = StudentMaps.cut(maps[part]) if wanted else (StudentMaps(maps[part]), None)
            with torch.set_grad_enabled(wanted):
                found = [at_losses(own, stack.part(part), similarity).sum(0) for stack in stacks]
                mean = (found[0] if len(found) == 1 else torch.cat(found)) / len(maps)
                total = torch.dot(mean, weights)
                if leaf is not None:
                    slopes += torch.autograd.grad(total, leaf)
            totals.append(total.detach())
            means.append(mean.detach())
            of_gram = own.begins_at_gram
            del own, leaf, found, total  # before the next part has its own
        if wanted:
            slope = slopes[0] if len(slopes) == 1 else torch.cat(slopes)
            ctx.of_gram = of_gram
            # In the layout of the maps, as it is added to what comes from the layers above.
            ctx.last = maps.ndim == 4 and maps.is_contiguous(memory_format=torch.channels_last)
            ctx.save_for_backward(maps if of_gram else None, slope)
            ctx.shape, ctx.dtype = maps.shape, maps.dtype
        mean = sum(means[1:], start=means[0])
        ctx.mark_non_differentiable(mean)
        ctx.set_materialize_grads(False)
        return sum(totals[1:], start=totals[0]), mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        maps, slope = ctx.saved_tensors
        if not ctx.of_gram:
            whole = (slope * grad).to(ctx.dtype).reshape(ctx.shape)
            if ctx.last:
                whole = whole.contiguous(memory_format=torch.channels_last)
            return whole, None, None, None
        twice = slope * (grad * 2)  # d(F F^T) on both sides, and the slope is symmetric
        found = []
        for part in ctx.parts:
            values = flat(maps[part])
            one = (values.mT @ twice[part]).mT if ctx.last else twice[part] @ values
            found.append(one.to(ctx.dtype).reshape(maps[part].shape))
        return found[0] if len(found) == 1 else torch.cat(found), None, None, None


def _parts(maps: Tensor, stacks: Sequence[Stack], similarity: Similarity) -> list[slice]:
    """Slices of a batch, whose comparison takes no more than 64 MiB beside what is there."""
    own = StudentMaps(maps[:1])
    floats = 2 * sum(stack.data[0].numel() for stack in stacks)
    if own.values.ndim == 3 and similarity == "mse-sigmoid":  # whole Grams, of each net
        floats += 4 * own.channels**2 * sum(stack.teachers for stack in stacks)
    floats += 2 * own.channels**2 if own.begins_at_gram else 0
    floats += own.values.numel() if maps.dtype != torch.float32 else 0
    floats += 2 * own.normed(packed=any(stack.codec == "packed" for stack in stacks))
    size = max(1, _MOST_FLOATS // floats)
    return [slice(first, first + size) for first in range(0, len(maps), size)]


def compare(
    maps: Tensor,
    stacks: Sequence[Stack],
    weights: Tensor,
    aggregation: Aggregation,
    similarity: Similarity = "cos2",
) -> tuple[Tensor, Tensor]:
    """Loss of a layer: `at_losses` of all its stacks, averaged over the clips, weighted, added up.

    Args:
        maps: ``(batch, channel, frame, freq)`` of the student.
        stacks: rows of the teachers.
        weights: (net,) float32, in the order of the stacks.
        aggregation: what the rows are.
        similarity: as for `at_losses`.

    Returns:
        The sum, and ``(net,)`` means over the clips before they were weighted, without gradient.
    """
    with torch.autocast(maps.device.type, enabled=False):
        x = maps if aggregation == "gram" else aggregate(maps, aggregation)
        both: tuple[Tensor, Tensor] = _Compare.apply(x, stacks, weights, similarity)
        return both


def released_loss(maps: Tensor, teacher: Tensor) -> Tensor:
    """Loss of the paper's released code, as a reference for comparisons.

    The batch is folded into the channels, so that clips are mixed; the cosine is taken row by row,
    its absolute values averaged and squared. There beta enters before the square: weigh by beta^2.

    Args:
        maps: ``(batch, channel, frame, freq)`` of the student.
        teacher: the same of the teacher.

    Returns:
        Scalar in [0, 1], before beta.
    """
    with torch.autocast(maps.device.type, enabled=False):
        grams = []
        for each in (teacher, maps):
            rows = each.float().flatten(0, 1).flatten(1)
            grams.append(rows @ rows.mT * (1000.0 / each.numel()))
        cosine = torch.nn.functional.cosine_similarity(grams[0], grams[1], dim=1)
        return cosine.abs().mean().square()
