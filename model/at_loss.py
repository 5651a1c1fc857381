"""The anti-transfer loss.

``L_AT = beta * similarity``, one value per clip and layer; beta is applied by the trainer, once.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cached_property

import torch
from torch import Tensor

from model.codecs import Rows
from model.gram import aggregate, flat, self_product
from pipeline.errors import InputError

__all__ = ["SIMILARITIES", "Own", "at_loss", "check_combination", "released_loss"]

SIMILARITIES = ("cos2", "mse-sigmoid")


def check_combination(
    aggregation: str, tap: str, similarity: str, layers: Collection[int] = ()
) -> None:
    """Refuse what has no meaning.

    Raises:
        InputError: ``compmul`` on maps that may be negative, or an unknown similarity.
    """
    if similarity not in SIMILARITIES:
        raise InputError(f"--similarity {similarity!r}: wanted {', '.join(SIMILARITIES)}")
    # What enters layer 1 is the normalised spectrogram itself.
    if aggregation == "compmul" and (tap == "conv" or (tap == "released" and 1 in layers)):
        raise InputError(
            f"--aggregation compmul needs values >= 0, and --tap {tap} gives negative ones"
            f"{' at layer 1' if tap == 'released' else ''}: use --tap relu, or another aggregation"
        )


def _cosine(inner: Tensor, squared_norm: Tensor, row_norm: Tensor) -> Tensor:
    """Cosine, 0 where either side is zero, without NaN in value or gradient."""
    live = (squared_norm > 0) & (row_norm > 0)
    # The inner `where` keeps sqrt away from 0, whose gradient is infinite: times 0 it is NaN.
    own = torch.where(live, squared_norm, 1.0).sqrt()
    return torch.where(live, inner / (own * torch.where(live, row_norm, 1.0)), 0.0)


class Own:
    """The side of the net in training at one layer: made once, whatever the number of sources.

    Args:
        maps: ``(batch, channel, frame, freq)``.
        aggregation: what is compared.
    """

    def __init__(self, maps: Tensor, aggregation: str) -> None:
        self.channels, self.positions = maps.shape[1], maps[0, 0].numel()
        self.values = flat(maps) if aggregation == "gram" else aggregate(maps, aggregation)

    @cached_property
    def gram(self) -> Tensor:
        """``(batch, C, C)``."""
        return self_product(self.values)

    @cached_property
    def squared_norm(self) -> Tensor:
        """||G||^2, from the smaller of F F^T and F^T F, which have the same; or of the map."""
        if self.values.ndim == 2:
            return self.values.square().sum(1)
        few = self.positions < self.channels and "gram" not in vars(self)
        product = self_product(self.values.mT) if few else self.gram
        return product.square().sum((1, 2))

    def inner(self, rows: Rows) -> Tensor:
        """Inner product with rows, each in its own form: no Gram where a smaller product does."""
        if rows.codec == "map":
            return (self.values * rows.data.float()).sum(1)
        if rows.codec == "packed":
            return (self.gram * rows.matrices(self.channels)).sum((1, 2))
        vectors = rows.data.float()  # <V V^T, F F^T> = ||V^T F||^2 = <V, F F^T V>
        if self.positions < self.channels:
            return (vectors.mT @ self.values).square().sum((1, 2))
        return (vectors * (self.gram @ vectors)).sum((1, 2))


def at_loss(own: Own | Tensor, rows: Rows, aggregation: str, similarity: str = "cos2") -> Tensor:
    """Similarity of a net's maps to the rows of the frozen net, for each clip.

    Args:
        own: `Own` of the net in training, or its maps ``(batch, channel, frame, freq)``.
        rows: of the frozen net, same clips, same layer and tap.
        aggregation: what ``rows`` are.
        similarity: ``cos2``, the squared cosine; or ``mse-sigmoid``, minus the sigmoid of the mean
            squared error, of Grams scaled by 1000 / (C P) as in the paper's code, and of maps as
            they are.

    Returns:
        ``(batch,)`` float32, before beta: in [0, 1] for ``cos2``, in (-1, -0.5] for the other.

    References:
        Guizzo, Weyde and Tarroni (2021), equation of L_AT and 5.5.
    """
    with torch.autocast(rows.data.device.type, enabled=False):
        if isinstance(own, Tensor):
            own = Own(own, aggregation)
        if similarity == "cos2":
            # In this order: a Gram that the inner product needs gives the norm too.
            inner = own.inner(rows)
            return _cosine(inner, own.squared_norm, rows.row_norm).square()
        if aggregation == "gram":
            ours, theirs = own.gram.flatten(1), rows.matrices(own.channels).flatten(1)
            scale = 1000.0 / (own.channels * own.positions)
        else:
            ours, theirs, scale = own.values, rows.data.float(), 1.0
        # Not scale-free: the stored row was divided by its norm.
        whole = theirs * rows.norm[:, None]
        return -torch.sigmoid((scale * (ours - whole)).square().mean(1))


def released_loss(maps: Tensor, frozen: Tensor) -> Tensor:
    """Loss of the paper's released code, as a reference for comparisons.

    The batch is folded into the channels, so that clips are mixed; the cosine is taken row by row,
    its absolute values averaged and squared. There beta enters before the square: weigh by beta^2.

    Args:
        maps: ``(batch, channel, frame, freq)`` of the net in training.
        frozen: the same of the frozen net.

    Returns:
        Scalar in [0, 1], before beta.
    """
    with torch.autocast(maps.device.type, enabled=False):
        grams = []
        for each in (frozen, maps):
            rows = each.float().flatten(0, 1).flatten(1)
            grams.append(rows @ rows.mT * (1000.0 / each.numel()))
        cosine = torch.nn.functional.cosine_similarity(grams[0], grams[1], dim=1)
        return cosine.abs().mean().square()
