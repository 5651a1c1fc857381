"""A training step as the paper's released code takes it, written from its description.

For comparisons only: the student runs twice, the frozen net with gradients, and the batch is folded
into the channels of its Gram.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from model.at_loss import released_loss
from model.batches import Batch
from model.vgg import Vgg

__all__ = ["ReleasedStep"]


class ReleasedStep:
    """Forward passes and loss of a batch.

    Args:
        net: in training.
        frozen: its parameters take gradients, as they do there.
        layer: where the two are compared.
    """

    def __init__(self, net: Vgg, frozen: Vgg, layer: int) -> None:
        self.net, self.frozen, self.layer = net, frozen, layer

    def __call__(self, batch: Batch, _sums: object) -> Tensor:
        """Loss of a batch."""
        ce = functional.cross_entropy(self.net(batch.x), batch.y)
        maps: list[Tensor] = []
        for each in (self.frozen, self.net):
            each.run_features(
                batch.x, [self.layer], "relu", lambda _, found: maps.append(found), stop=True
            )
        return ce + released_loss(maps[1], maps[0])
