"""The training step of the paper's released code, written from its description.

It is for comparisons only. The student runs twice, the teacher runs with gradients, and the batch
is folded into the channels of the Gram.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from antigram.model.choices import Layer, Precision
from antigram.model.loss.at_loss import released_loss
from antigram.model.nets.backbone import Backbone
from antigram.model.training.batches import Batch
from antigram.model.training.precision import autocast

__all__ = ["ReleasedStep"]


class ReleasedStep:
    """Forward passes and loss of a batch, as in the released code.

    Args:
        net: the student.
        teacher: the teacher; its parameters require gradients, as in the released code.
        layer: layer at which the two are compared.
        precision: precision of the forward passes of both, as in `Step`.
    """

    def __init__(
        self, net: Backbone, teacher: Backbone, layer: Layer, precision: Precision = "32"
    ) -> None:
        self.net, self.teacher, self.layer = net, teacher, layer
        self.precision: Precision = precision

    def __call__(self, batch: Batch, _sums: object) -> Tensor:
        """Return the loss of a batch, with a beta of 1."""
        maps: list[Tensor] = []
        with autocast(batch.x.device, self.precision):
            logits = self.net(batch.x)
            for net in (self.teacher, self.net):
                net.run_features(
                    batch.x, [self.layer], "relu", lambda _, tapped: maps.append(tapped), stop=True
                )
        ce = functional.cross_entropy(logits.float(), batch.y)
        return ce + released_loss(maps[1], maps[0])
