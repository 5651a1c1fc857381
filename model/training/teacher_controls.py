"""Teachers for control experiments.

Anti-transfer from these teachers cannot teach invariance to a task, so a claim of invariance has to
beat them (docs/method.md, "What is doubtful").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from antigram.model.choices import CONTROLS, Control
from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import build_net
from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import Teacher
from antigram.pipeline.choices import check_choice
from antigram.pipeline.draw import check_seed, draw
from antigram.pipeline.errors import InputError

__all__ = ["control_teacher"]


def control_teacher(teacher: Teacher, control: Control | None, seed: int = 0) -> Teacher:
    """Return the teacher of a control experiment.

    Args:
        teacher: the trained teacher.
        control: ``permuted``: the channels of every convolution are shuffled, and the inputs of the
            next layer in the same way, so that each layer computes the same maps in another order.
            ``random``: the same architecture with untrained weights. ``mean-gram`` and None: the
            teacher itself, as ``mean-gram`` changes rows instead of weights.
        seed: seed of the permutations or the weights.

    Raises:
        InputError: there is no such control, the network cannot have it, or the seed is out of
            range.
    """
    check_choice("teacher_control", control, (None, *CONTROLS))
    check_seed(seed)
    if control == "permuted":
        if not teacher.arch.numbered:
            raise InputError(
                f"`teacher_control=permuted`: is for VGGs, whose layers follow each other; "
                f"{teacher.arch.name} can have random or mean-gram"
            )
        return replace(teacher, state=_permuted(teacher.state, teacher.arch, seed))
    if control == "random":
        return replace(teacher, state=_untrained(teacher, seed), scores={}, task="")
    return teacher


def _permuted(state: Mapping[str, Tensor], arch: Arch, seed: int) -> dict[str, Tensor]:
    with torch.device("meta"):
        indices = Vgg(arch, 0).conv_indices
    changed, before = dict(state), torch.arange(1)  # the one input channel
    for layer, index in enumerate(indices, 1):
        weight, bias = (state[f"features.{index}.{kind}"] for kind in ("weight", "bias"))
        keys = [draw(seed, "permuted teacher", f"{layer}/{c}")[0] for c in range(len(bias))]
        order = torch.tensor(sorted(range(len(bias)), key=keys.__getitem__))
        changed[f"features.{index}.weight"] = weight[order][:, before]
        changed[f"features.{index}.bias"] = bias[order]
        if arch.normed:
            for kind in ("weight", "bias", "running_mean", "running_var"):
                name = f"features.{index + 1}.{kind}"
                changed[name] = state[name][order]
        before = order
    return changed


def _untrained(teacher: Teacher, seed: int) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(seed, "random teacher", "weights")[0])
        net = build_net(teacher.arch, teacher.classes, teacher.shape)
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
