"""A training step as the paper's released code takes it, written from its description.

For comparisons only: the student runs twice, the teacher with gradients, and the batch is folded
into the channels of its Gram.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from antigram.model.loss.at_loss import released_loss
from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batch

__all__ = ["ReleasedStep"]


class ReleasedStep:
    """Forward passes and loss of a batch.

    Args:
        net: in training.
        teacher: its parameters take gradients, as they do there.
        layer: where the two are compared.
        precision: of the forward passes, of the teacher too: as `Step` has it.
    """

    def __init__(self, net: Vgg, teacher: Vgg, layer: int, precision: str = "32") -> None:
        self.net, self.teacher, self.layer = net, teacher, layer
        self.half = precision == "bf16"

    def __call__(self, batch: Batch, _sums: object) -> Tensor:
        """Loss of a batch."""
        maps: list[Tensor] = []
        with torch.autocast(batch.x.device.type, dtype=torch.bfloat16, enabled=self.half):
            logits = self.net(batch.x)
            for each in (self.teacher, self.net):
                each.run_features(
                    batch.x, [self.layer], "relu", lambda _, found: maps.append(found), stop=True
                )
        ce = functional.cross_entropy(logits.float(), batch.y)
        return ce + released_loss(maps[1], maps[0])
