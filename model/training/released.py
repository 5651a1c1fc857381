"""A training step as the paper's released code takes it, written from its description.

For comparisons only: the student runs twice, the teacher with gradients, and the batch is folded
into the channels of its Gram.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from antigram.model.choices import Precision
from antigram.model.loss.at_loss import released_loss
from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batch
from antigram.model.training.precision import autocast

__all__ = ["ReleasedStep"]


class ReleasedStep:
    """Forward passes and loss of a batch.

    Args:
        net: in training.
        teacher: its parameters take gradients, as they do there.
        layer: where the two are compared.
        precision: of the forward passes, of the teacher too: as `Step` has it.
    """

    def __init__(self, net: Vgg, teacher: Vgg, layer: int, precision: Precision = "32") -> None:
        self.net, self.teacher, self.layer = net, teacher, layer
        self.precision: Precision = precision

    def __call__(self, batch: Batch, _sums: object) -> Tensor:
        """Loss of a batch."""
        maps: list[Tensor] = []
        with autocast(batch.x.device, self.precision):
            logits = self.net(batch.x)
            for each in (self.teacher, self.net):
                each.run_features(
                    batch.x, [self.layer], "relu", lambda _, found: maps.append(found), stop=True
                )
        ce = functional.cross_entropy(logits.float(), batch.y)
        return ce + released_loss(maps[1], maps[0])
