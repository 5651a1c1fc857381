"""Narrow networks that train in milliseconds, and their feature maps."""

from __future__ import annotations

import torch

from antigram.model.nets.arch import Arch

CPU = torch.device("cpu")
VGG11, VGG16 = Arch("vgg11", 2), Arch("vgg16", 2)
LAYERS = (1, 5, 13)  # layers of VGG16 that the paper uses


def maps_of(net, x, layers, tap):
    found = {}
    with torch.no_grad():
        net.set_tap(tap)
        net.run_features(
            x, layers, tap, lambda n, maps: found.setdefault(n, maps.clone()), stop=True
        )
    return found
