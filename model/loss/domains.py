"""Losses that make a student's features alike between the classes of another label.

These classes, such as speakers, are called *domains*, as in the literature on domain adaptation.
The features are those between the convolution part and the classifier, flattened.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from antigram.pipeline.draw import draw

__all__ = ["Adversary", "reversal_strength", "reverse_gradient"]

_STEEPNESS = 10.0  # of the schedule, as in the paper


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


class Adversary(nn.Module):
    """Domain-adversarial loss: a discriminator that learns the domain behind a gradient reversal.

    The discriminator is linear, ReLU, dropout, linear. It learns at full rate at all times; beta
    and the schedule scale the reversed gradient only, so that with a beta of 0 the student is that
    of mode ``baseline`` and the discriminator observes it. Its weights and dropout masks have
    seeds of their own: torch's global random generator is neither used nor changed.

    Args:
        features: number of features of a segment.
        hidden: width of the discriminator.
        domains: number of domains.
        dropout: dropout probability of the discriminator.
        beta: factor of the reversed gradient, times that of the schedule.
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
            # outweighs that of the task from the first steps on, and the student hardly learns.
            for layer in (self.hidden, self.output):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.zeros_(layer.bias)
        self.dropout, self.beta, self.steps, self.seed = dropout, beta, steps, seed
        self._factor = 0.0
        self._masks: torch.Generator | None = None

    def begin(self, step: int) -> None:
        """Set strength and dropout masks of a training step.

        Args:
            step: number of steps taken before it.
        """
        self._factor = self.beta * reversal_strength(min(1.0, step / self.steps))
        if self._masks is None:
            self._masks = torch.Generator(self.hidden.weight.device)
        self._masks.manual_seed(draw(self.seed, "dropout of the discriminator", str(step))[0])

    def forward(self, features: Tensor, domains: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch, and its sums over segments.

        Args:
            features: ``(batch, feature)`` features of the student.
            domains: ``(batch,)`` int64 domains; -1 for none. Segments without one have no part in
                the loss.

        Returns:
            The mean cross-entropy of the domains, 0 if no segment has one; and ``(3,)`` float64:
            the number of segments with a domain, the sum of their cross-entropy, and how many the
            discriminator predicted correctly.
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
