"""Build the student with its initial weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from antigram.model.choices import layer_order
from antigram.model.nets.backbone import Backbone
from antigram.model.nets.networks import build_net
from antigram.model.training.config import TrainConfig
from antigram.model.training.streams import weights_seed
from antigram.pipeline.errors import InputError

__all__ = ["build_student"]


def build_student(
    config: TrainConfig,
    classes: int,
    init: Mapping[str, Tensor] | None,
    shape: tuple[int, int] = (0, 0),
) -> Backbone:
    """Build the student with its initial weights, which depend on the seed only.

    The state of torch's global random generator is neither used nor changed.

    Args:
        config: settings of the training.
        classes: number of outputs.
        init: weights to start from, of all but the classifier, by torchvision's names; None to
            draw them.
        shape: ``(frame, freq)`` of a segment.

    Raises:
        InputError: ``init`` has weights of other names or shapes than the student.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed(config.seed))
        net = build_net(config.arch, classes, shape, config.dropout, config.init)
    if init is not None:
        _load_convolutions(net, init)
    if config.mode == "frozen":
        for layer in sorted(config.layers, key=layer_order):
            net.freeze_up_to(layer)
    net.set_tap(config.tap)
    return net


def _load_convolutions(net: Backbone, init: Mapping[str, Tensor]) -> None:
    state = net.state_dict()
    for name, tensor in init.items():
        if name not in state or state[name].shape != tensor.shape:
            wanted = tuple(state[name].shape) if name in state else "missing"
            raise InputError(
                f"initial weights: {name} is {tuple(tensor.shape)}, the student's is {wanted}. "
                "Give the same `arch` and `width` as those weights have."
            )
    net.load_state_dict({**state, **init})
