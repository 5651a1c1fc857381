"""VGGs for one-channel spectrograms, with taps at convolution layers 1, 2, 3, ..."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from antigram.model.choices import TAPS, Tap
from antigram.model.nets.arch import FULL_WIDTH, Arch
from antigram.pipeline.choices import check_choice

__all__ = [
    "Vgg",
    "channels_last",
    "conv_state",
    "extractor_digest",
    "map_shape",
    "tap_shape",
]

# Called with a layer's number and its feature maps (batch, channel, frame, freq).
OnTap = Callable[[int, Tensor], None]


class Vgg(nn.Module):
    """A VGG without batch norm, with one input channel and torchvision's module names.

    Weights are initialised as in torchvision, from torch's global random generator.

    Args:
        arch: name and width.
        classes: number of outputs; 0 leaves out the classifier, which a teacher does not need.
        dropout: dropout probability of the two hidden linear layers.
    """

    def __init__(self, arch: Arch, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.arch = arch
        self.features = _features(arch.blocks)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        channels = next(size for size in reversed(arch.blocks) if isinstance(size, int))
        hidden = max(1, 4096 * arch.width // FULL_WIDTH)
        if classes:
            self.classifier = nn.Sequential(
                nn.Linear(channels * 7 * 7, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, classes),
            )
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # never None in a VGG
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    @property
    def conv_indices(self) -> list[int]:
        """Index in ``features`` of convolution layer 1, 2, ..."""
        return [i for i, module in enumerate(self.features) if isinstance(module, nn.Conv2d)]

    def _tap_end(self, layer: int, tap: Tap) -> int:
        """Return how many modules of ``features`` run before the tap of a layer."""
        return self.conv_indices[layer - 1] + {"relu": 2, "conv": 1, "released": 0}[tap]

    def stride(self, layer: int) -> int:
        """Return how many bins of the input lie between two positions of a layer's maps."""
        before = self.features[: self._tap_end(layer, "relu")]
        return int(2 ** sum(isinstance(module, nn.MaxPool2d) for module in before))

    def set_tap(self, tap: Tap) -> None:
        """Keep the next module from overwriting the maps of a tap.

        torchvision's ReLUs work in place. With the tap before the ReLU, they would overwrite the
        maps that the gradient of the Gram needs, and are therefore switched to copies.
        """
        check_choice("tap", tap, TAPS)
        for module in self.features:
            if isinstance(module, nn.ReLU):
                module.inplace = tap != "conv"

    def run_features(
        self, x: Tensor, layers: Collection[int], tap: Tap, on_tap: OnTap, *, stop: bool = False
    ) -> Tensor:
        """Run the convolution part in slices and call ``on_tap`` at each of ``layers``.

        Args:
            x: ``(batch, 1, frame, freq)``.
            layers: convolution layers, 1 to 13 for VGG16.
            tap: ``relu`` (the output of the layer's ReLU), ``conv`` (the input of that ReLU) or
                ``released`` (the input of the layer, as in the paper's code).
            on_tap: called during the forward pass with the layer and its maps. The backward pass
                then frees the part of the graph that it adds before it reaches the layers below.
            stop: whether to stop at the deepest tap.

        Returns:
            Output of the last module that ran.
        """
        start = 0
        for layer in sorted(layers):
            end = self._tap_end(layer, tap)
            x = self.features[start:end](x)
            start = end
            on_tap(layer, x)
        return x if stop else self.features[start:](x)

    def forward(
        self,
        x: Tensor,
        layers: Collection[int] = (),
        tap: Tap = "relu",
        on_tap: OnTap = lambda _layer, _maps: None,
        on_features: Callable[[Tensor], None] = lambda _: None,
    ) -> Tensor:
        """Return logits ``(batch, class)`` of ``(batch, 1, frame, freq)``.

        Args:
            x: as in `run_features`.
            layers: as in `run_features`.
            tap: as in `run_features`.
            on_tap: as in `run_features`.
            on_features: called with the input of the classifier, ``(batch, feature)``.
        """
        x = self.avgpool(self.run_features(x, layers, tap, on_tap)).flatten(1)
        on_features(x)
        logits: Tensor = self.classifier(x)
        return logits

    def freeze_up_to(self, layer: int) -> None:
        """Switch off the gradients of the weights of convolution layers 1 to ``layer``."""
        for module in self.features[: self._tap_end(layer, "conv")]:
            module.requires_grad_(requires_grad=False)


def channels_last(net: Vgg) -> Vgg:
    """Change the memory format of a network's convolution weights to channels last.

    The weights are replaced by new parameters, as tensors on the meta device cannot change their
    format. So create an optimiser after this call.

    Returns:
        The same network.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().to(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    return net


def _features(blocks: Sequence[int | str]) -> nn.Sequential:
    """Build the convolution part in torchvision's order, so that weights have torchvision's names.

    A first layer of three input channels is drawn and then replaced, as when torchvision built
    the network: so a seed gives the same weights as in earlier versions.
    """
    modules: list[nn.Module] = []
    channels = 3
    for size in blocks:
        if isinstance(size, str):
            modules.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            modules += [nn.Conv2d(channels, size, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            channels = size
    first = modules[0].out_channels
    modules[0] = nn.Conv2d(1, first, kernel_size=3, padding=1)  # type: ignore[arg-type]
    return nn.Sequential(*modules)


def map_shape(arch: Arch, layer: int, tap: Tap, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Return the number of channels, frames and frequencies of a layer's maps at a tap.

    Args:
        arch: architecture of the network.
        layer: convolution layer, counted from 1.
        tap: as in `Vgg.run_features`.
        shape: ``(frame, freq)`` of a segment.
    """
    with torch.device("meta"):
        net = Vgg(arch, 0)
        shapes: list[tuple[int, int, int]] = []
        net.run_features(
            torch.empty(1, 1, *shape),
            [layer],
            tap,
            lambda _layer, maps: shapes.append((maps.shape[1], maps.shape[2], maps.shape[3])),
            stop=True,
        )
    return shapes[0]


def tap_shape(arch: Arch, layer: int, tap: Tap, shape: tuple[int, int]) -> tuple[int, int]:
    """Return the number of channels and positions of a layer's maps at a tap: see `map_shape`."""
    channels, frames, freqs = map_shape(arch, layer, tap, shape)
    return channels, frames * freqs


def conv_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state dict that belong to the convolution part."""
    return {
        name: tensor
        for name, tensor in state.items()
        if isinstance(name, str) and name.startswith("features.")
    }


def extractor_digest(state: Mapping[str, Tensor], net: Vgg, layer: int, tap: Tap) -> str:
    """Return the SHA-256 over name, dtype, shape and little-endian bytes of tensors up to a tap."""
    total = hashlib.sha256()
    for index in range(net._tap_end(layer, tap)):
        for kind in ("weight", "bias"):
            if (tensor := state.get(name := f"features.{index}.{kind}")) is None:
                continue
            array: np.ndarray[Any, Any] = tensor.detach().cpu().contiguous().numpy()
            little = array.astype(array.dtype.newbyteorder("<"), copy=False)
            total.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
            total.update(little.tobytes())
    return total.hexdigest()
