"""Losses that make a student's features alike between the classes of another label.

These classes, such as speakers, are called *domains*, as in the literature on domain adaptation.
The features are the flattened output of the convolution part, which enters the classifier.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antigram.pipeline.draw import draw

__all__ = [
    "Adversary",
    "Coral",
    "DomainLoss",
    "coral_distances",
    "reversal_strength",
    "reverse_gradient",
]

_STEEPNESS = 10.0  # steepness of the schedule, as in the paper


class DomainLoss(nn.Module):
    """A loss that makes a student's features alike between domains.

    Attributes:
        measures: names of the values that an epoch reports.
    """

    measures: tuple[str, ...]

    def begin(self, step: int) -> None:
        """Prepare a training step.

        Args:
            step: number of steps taken before this step.
        """

    def forward(self, features: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its sums.

        Args:
            features: ``(batch, feature)`` features of the student.
            domains: ``(batch,)`` int64 domains; segments without a domain have -1 and do not count.

        Returns:
            The loss to minimise, a scalar; and ``(1 + measure,)`` float64: the count by which the
            measures are divided, and the sum of each measure.
        """
        raise NotImplementedError


def reversal_strength(progress: float) -> float:
    """Return the factor of the reversed gradient: 2 / (1 + exp(-10 p)) - 1.

    Args:
        progress: share p of the training that is done, 0 to 1.

    References:
        Ganin and others (2016), section 5.2.2.
    """
    return 2 / (1 + math.exp(-_STEEPNESS * progress)) - 1


class _Reversal(torch.autograd.Function):
    """See `reverse_gradient`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:  # noqa: ANN401 - torch's
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401 - torch's
        return -ctx.factor * slopes[0], None


def reverse_gradient(values: Tensor, factor: float) -> Tensor:
    """Return values unchanged; in the backward pass, their gradient is multiplied by -``factor``.

    References:
        Ganin and others (2016), section 4.2.
    """
    reversed_: Tensor = _Reversal.apply(values, factor)
    return reversed_


class Adversary(DomainLoss):
    """Domain-adversarial loss: a discriminator that learns the domain behind a gradient reversal.

    The discriminator is linear, ReLU, dropout, linear. It learns at full rate at all times; beta
    and the schedule scale the reversed gradient only. With a beta of 0, the student is therefore
    the student of mode ``baseline``, and the discriminator only observes it. The discriminator's
    weights and dropout masks have separate seeds: torch's global random generator is neither used
    nor changed.

    Args:
        features: number of features of a segment.
        hidden: width of the discriminator.
        domains: number of domains.
        dropout: dropout probability of the discriminator.
        beta: factor of the reversed gradient, in addition to the factor of the schedule.
        steps: number of steps over which the schedule runs.
        seed: the seed that the user gave.

    References:
        Ganin, Ustinova, Ajakan, Germain, Larochelle, Laviolette, Marchand and Lempitsky (2016),
        "Domain-adversarial training of neural networks", JMLR 17(59).
    """

    measures = ("adversarial", "discriminator_accuracy")

    def __init__(
        self,
        features: int,
        hidden: int,
        domains: int,
        *,
        dropout: float,
        beta: float,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw(seed, "weights", "discriminator")[0])
            self.hidden = nn.Linear(features, hidden)
            self.output = nn.Linear(hidden, domains)
            # As in the student's classifier. With PyTorch's larger weights, the reversed gradient
            # outweighs the task's gradient from the first steps on, and the student hardly learns.
            for layer in (self.hidden, self.output):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)
        self.dropout, self.beta, self.steps, self.seed = dropout, beta, steps, seed
        self._factor = 0.0
        self._masks: torch.Generator | None = None

    def begin(self, step: int) -> None:
        """Set strength and dropout masks of a training step; see `DomainLoss`."""
        self._factor = self.beta * reversal_strength(min(1.0, step / self.steps))
        if self._masks is None:
            self._masks = torch.Generator(self.hidden.weight.device)
        self._masks.manual_seed(draw(self.seed, "dropout of the discriminator", str(step))[0])

    def forward(self, features: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its sums over segments; see `DomainLoss`.

        Returns:
            The mean cross-entropy of the domains, 0 if no segment has a domain; and ``(3,)``
            float64: the number of segments with a domain, the sum of their cross-entropies, and the
            number of correct predictions.
        """
        if self.training:
            features = reverse_gradient(features, self._factor)
        hidden = self.hidden(features.float()).relu()
        if self.training and self.dropout:
            drawn = torch.rand(hidden.shape, generator=self._masks, device=hidden.device)
            hidden = hidden * (drawn >= self.dropout) / (1 - self.dropout)
        logits = self.output(hidden)
        total = functional.cross_entropy(logits, domains, ignore_index=-1, reduction="sum")
        known = (domains >= 0).sum()
        correct = (logits.argmax(1) == domains).sum()
        sums = torch.stack([known.double(), total.detach().double(), correct.double()])
        return total / known.clamp_min(1), sums


def coral_distances(features: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance between each domain's covariance and the other segments' covariance.

    For a domain with covariance C_a and the segments of all other domains together with covariance
    C_b, the distance is ||C_a - C_b||_F^2 / (4 d^2), with d features; covariances divide by n - 1.
    A domain is compared if the batch has at least two segments of it and two of others. Covariances
    are never formed: with the centred features X_a and X_b, the distance follows from the inner
    products of segments, so that it takes ``batch`` x ``batch`` numbers for each domain, not d x d.

    Args:
        features: ``(batch, feature)``.
        domains: ``(batch,)`` int64; -1 for none. Segments without a domain are left out.

    Returns:
        ``(domain,)`` float64 distances of the domains that are compared, in the order of their
        numbers; and ``(domain,)`` int64 numbers of segments.

    References:
        Sun and Saenko (2016), equation 1.
    """
    known = domains >= 0
    inside = domains == torch.unique(domains[known])[:, None]
    outside = known & ~inside
    compared = (inside.sum(1) >= 2) & (outside.sum(1) >= 2)
    inside, outside = inside[compared], outside[compared]
    # A shift changes no covariance, and no gradient; it is for precision.
    centred = features.float() - features.detach().float().mean(0)
    products = (centred @ centred.T).double()
    # With X^T W X = C_a - C_b, the squared norm is the trace of W K W K, K being X X^T.
    weighted = (_covariance_weights(inside) - _covariance_weights(outside)) @ products
    distances = (weighted * weighted.mT).sum((1, 2)) / (4 * features.shape[1] ** 2)
    return distances, inside.sum(1)


def _covariance_weights(members: Tensor) -> Tensor:
    """Return ``(domain, batch, batch)`` W with X^T W X the covariance of each domain's members."""
    chosen = members.double()
    count = chosen.sum(1)[:, None, None]
    means = chosen[:, :, None] * chosen[:, None, :] / count
    return (torch.diag_embed(chosen) - means) / (count - 1)


class Coral(DomainLoss):
    """Deep CORAL: brings the covariances of the features of different domains together.

    The original compares a batch of a source domain with a batch of a target domain. Here a batch
    has segments of several domains, and each domain is compared with the other segments of the
    batch: see `coral_distances`. The loss is beta times the mean distance over the domains that are
    compared, or 0 if there are none.

    Args:
        beta: weight of the loss.

    References:
        Sun and Saenko (2016), "Deep CORAL: correlation alignment for deep domain adaptation", ECCV
        workshops, arXiv:1607.01719.
    """

    measures = ("coral", "coral_segments")

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, features: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch and its sums over domains; see `DomainLoss`.

        Returns:
            The loss; and ``(3,)`` float64: the number of compared domains, the sum of their
            distances, before beta, and the sum of their numbers of segments.
        """
        distances, segments = coral_distances(features, domains)
        total, count = distances.sum(), max(1, len(distances))
        sums = [torch.full_like(total, len(distances)), total.detach(), segments.sum().double()]
        return (self.beta * total / count).float(), torch.stack(sums)
