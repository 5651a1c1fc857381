"""Feature maps of a student at one layer, for comparison with the rows of its teachers."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from antigram.model.loss.codecs import Stack, pack, unpack
from antigram.model.loss.gram import Context, exact_norm, flat, self_product

__all__ = ["StudentMaps"]

_TINY = torch.finfo(torch.float32).tiny


class _Pack(torch.autograd.Function):
    """`pack`, with a gradient that gathers entries; autograd's gradient would scatter them."""

    @staticmethod
    def forward(ctx: Context, matrices: Tensor) -> Tensor:
        ctx.channels = matrices.shape[-1]
        return pack(matrices)

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        return unpack(grad, ctx.channels)


class _Norm(torch.autograd.Function):
    """Euclidean norm of each row, with a gradient of zero at zero."""

    @staticmethod
    def forward(ctx: Context, rows: Tensor) -> Tensor:
        norm = exact_norm(rows).float()
        ctx.save_for_backward(rows, norm)
        return norm

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Tensor:
        rows, norm = ctx.saved_tensors
        slope: Tensor = rows * (grad / norm.clamp_min(_TINY))[:, None]
        return slope


class StudentMaps:
    """Student feature maps at one layer, with Gram and norm computed once for all teachers.

    Args:
        maps: ``(batch, channel, frame, freq)`` or ``(batch, channel, position)`` maps, whose Grams
            are compared; the output of `pairwise_maps`, whose positions stand for channels here,
            and channels for positions; or ``(batch, position)``, the output of `aggregate`,
            compared as it is.
        gram: ``(batch, C, C)`` Grams of these maps, if known; by default computed on first use.
    """

    def __init__(self, maps: Tensor, gram: Tensor | None = None) -> None:
        self.values = flat(maps) if maps.ndim == 4 else maps
        self.channels, self.positions = self.values.shape[-2], self.values.shape[-1]
        self._gram = gram
        self._packed: Tensor | None = None

    @property
    def gram(self) -> Tensor:
        """Gram matrices ``(batch, C, C)``."""
        if self._gram is None:
            self._gram = self_product(self.values)
        return self._gram

    @property
    def packed(self) -> Tensor:
        """Grams as packed rows ``(batch, C(C+1)/2)``, not divided by their norm."""
        if self._packed is None:
            self._packed = _Pack.apply(self.gram)
        return self._packed

    @cached_property
    def norm(self) -> Tensor:
        """``(batch,)`` float32, ||G||, or the norm of an aggregated map.

        ||G|| is taken from the packed row or from G if either is already computed, else from the
        smaller of F F^T and F^T F, which have the same norm.
        """
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

    def inner(self, stack: Stack) -> Tensor:
        """Return ``(batch, teacher)`` inner products with the teachers' rows.

        They are computed in the form of the rows, so that no Gram is built if a smaller product
        is enough.
        """
        if stack.codec in ("map", "packed"):
            rows = self.packed if stack.codec == "packed" else self.values
            return (stack.data * rows).sum(2).mT
        vectors = stack.data.float()  # V^T; <V V^T, F F^T> = ||V^T F||^2 = <V, F F^T V>
        if self.positions < self.channels:
            return (vectors @ self.values).square().sum((2, 3)).mT
        return ((vectors @ self.gram) * vectors).sum((2, 3)).mT
