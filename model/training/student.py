"""The student: a network with the weights that its training begins with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from antigram.model.nets.vgg import Vgg
from antigram.model.training.config import TrainConfig
from antigram.model.training.streams import weights_seed
from antigram.pipeline.errors import InputError

__all__ = ["build_student"]


def build_student(config: TrainConfig, classes: int, init: Mapping[str, Tensor] | None) -> Vgg:
    """The net to train, its weights drawn from the seed alone, whatever was built before.

    Args:
        config: its shape, and the seed.
        classes: outputs.
        init: convolution weights to begin with (``wi``, ``frozen``, ``--init``).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed(config.seed))
        net = Vgg(config.arch, classes, config.dropout)
    if init is not None:
        _load_convolutions(net, init)
    if config.mode == "frozen":
        net.freeze_up_to(max(config.layers))
    net.set_tap(config.tap)
    return net


def _load_convolutions(net: Vgg, init: Mapping[str, Tensor]) -> None:
    own = net.state_dict()
    for name, tensor in init.items():
        if name not in own or own[name].shape != tensor.shape:
            found = tuple(own[name].shape) if name in own else "missing"
            raise InputError(
                f"initial weights: {name} is {tuple(tensor.shape)}, the net's is {found}. "
                "Give the same `arch` and `width` as those weights have."
            )
    net.load_state_dict({**own, **init})
