"""Grad-CAM: which parts of a spectrogram speak for a class, at one layer of a network."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from antigram.model.choices import Layer
from antigram.model.nets.backbone import Backbone

__all__ = ["grad_cam", "on_input"]


def grad_cam(net: Backbone, x: Tensor, layer: Layer, target: int) -> tuple[Tensor, Tensor]:
    """Return where the maps of a layer speak for a class, and the network's outputs.

    Each channel of the layer's maps (after its ReLU) is weighted with the mean gradient of the
    class's logit over the positions; the weighted channels are summed, and a negative sum counts
    as zero.

    Args:
        net: network in eval mode; its weights get no gradient.
        x: ``(segment, 1, frame, freq)`` features, normalised.
        layer: number of a VGG's convolution layer, or name of a module.
        target: index of the class.

    Returns:
        ``(segment, height, width)`` float32, not negative and not scaled, with the size of the
        layer's maps; and logits ``(segment, class)``.

    References:
        Selvaraju and others (2017), Grad-CAM, ICCV; equations 1 and 2.
    """
    tapped: list[Tensor] = []
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        # The input needs a gradient in case that the weights below the layer have none.
        given = x.detach().float().requires_grad_()
        logits = net(given, [layer], "relu", lambda _layer, maps: tapped.append(maps))
        # The segments do not depend on each other: the gradient of the sum is that of each.
        (gradient,) = torch.autograd.grad(logits[:, target].sum(), tapped)
    maps = tapped[0].detach()
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * maps).sum(1).relu(), logits.detach()


def on_input(maps: Tensor, size: tuple[int, int], stride: int | tuple[int, int]) -> Tensor:
    """Enlarge maps of a layer to the size of its input.

    Position ``i`` of a layer is drawn where its receptive field is centred, ``stride`` bins after
    that of position ``i - 1``. In between, values are interpolated linearly; the border repeats
    the values beside it. Stretching a map over all of the input instead would move its positions,
    because poolings leave out a last odd row.

    Args:
        maps: ``(segment, height, width)``.
        size: ``(frame, freq)`` of the input.
        stride: bins of the input between two positions of the maps; one number, or those of frames
            and frequencies.

    Returns:
        ``(segment, frame, freq)``.
    """
    frames, freqs = (stride, stride) if isinstance(stride, int) else stride
    enlarged = maps.shape[1] * frames, maps.shape[2] * freqs
    large = F.interpolate(maps[:, None], enlarged, mode="bilinear", align_corners=False)
    missing = [max(0, wanted - n) for wanted, n in zip(size, large.shape[2:], strict=True)]
    padded = F.pad(large, (0, missing[1], 0, missing[0]), mode="replicate")
    return padded[:, 0, : size[0], : size[1]]
