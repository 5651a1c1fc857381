"""VGGs for one-channel spectrograms, with taps at convolution layers 1, 2, 3, ..."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Mapping

from torch import Tensor, nn

from antigram.model.choices import TAPS, Init, Layer, Tap
from antigram.model.nets.arch import FULL_WIDTH, Arch
from antigram.model.nets.backbone import Backbone, OnTap
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError

__all__ = ["Vgg", "conv_state"]


class Vgg(Backbone):
    """A VGG with or without batch norm, with one input channel and torchvision's module names.

    Weights are initialised from torch's global random generator. The network is run in slices
    between the taps, which needs no hooks.

    Args:
        arch: name and width.
        classes: number of outputs; 0 leaves out the classifier, which a teacher does not need.
        dropout: dropout probability of the two hidden linear layers.
        init: ``torchvision`` draws the weights of linear layers from N(0, 0.01^2), which is made
            for inputs of full width: in narrow networks the logits hardly vary. ``scaled``
            multiplies them with sqrt(64 / width) below width 64, so that activations vary as much
            as at full width. docs/networks.md compares the two.
    """

    def __init__(
        self, arch: Arch, classes: int, dropout: float = 0.5, init: Init = "scaled"
    ) -> None:
        super().__init__()
        self.arch = arch
        self.features = _features(arch)
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
        scaled = init == "scaled" and arch.scales_init
        self._init_weights(0.01 * math.sqrt(FULL_WIDTH / arch.width) if scaled else 0.01)

    def _init_weights(self, deviation: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # never None in a VGG
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, deviation)
                nn.init.zeros_(module.bias)

    @property
    def conv_indices(self) -> list[int]:
        """Index in ``features`` of convolution layer 1, 2, ..."""
        return [i for i, module in enumerate(self.features) if isinstance(module, nn.Conv2d)]

    def _tap_end(self, layer: Layer, tap: Tap) -> int:
        """Return how many modules of ``features`` run before the tap of a layer."""
        if isinstance(layer, str):
            name = re.fullmatch(r"features\.([0-9]+)", layer)
            if name is None or int(name[1]) >= len(self.features):
                known = [f"features.{index}" for index in range(len(self.features))]
                close = difflib.get_close_matches(layer, known, n=3)
                raise InputError(
                    f"`layers` {layer!r}: a VGG is tapped at the number of a convolution layer, 1 "
                    f"to {self.arch.layers}, or at {', '.join(close or (known[0], known[-1]))}"
                )
            return int(name[1]) + 1
        normed = int(self.arch.normed)
        after = {"relu": 2 + normed, "conv": 1 + normed, "released": 0}
        return self.conv_indices[layer - 1] + after[tap]

    def names_below(self, layer: Layer, tap: Tap) -> list[str]:
        """Return the names of the tensors that the maps of a tap depend on, in their order."""
        kinds = ("weight", "bias", "running_mean", "running_var")
        modules = range(self._tap_end(layer, tap))
        return [f"features.{index}.{kind}" for index in modules for kind in kinds]

    def strides(self, layer: Layer, shape: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """See `Backbone`; the same in both directions, for segments of any shape."""
        del shape
        before = self.features[: self._tap_end(layer, "relu")]
        stride = int(2 ** sum(isinstance(module, nn.MaxPool2d) for module in before))
        return stride, stride

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
        self, x: Tensor, layers: Collection[Layer], tap: Tap, on_tap: OnTap, *, stop: bool = False
    ) -> Tensor:
        """Run the convolution part in slices and call ``on_tap`` at each of ``layers``.

        Args:
            x: ``(batch, 1, frame, freq)``.
            layers: convolution layers, 1 to 13 for VGG16; or names of modules of ``features``.
            tap: as in `Backbone.run_features`.
            on_tap: as in `Backbone.run_features`.
            stop: whether to stop at the deepest tap.

        Returns:
            Output of the last module that ran.
        """
        start = 0
        ends = {layer: self._tap_end(layer, tap) for layer in layers}
        for layer in sorted(ends, key=ends.__getitem__):
            end = ends[layer]
            x = self.features[start:end](x)
            start = end
            on_tap(layer, x)
            if isinstance(layer, str) and end < len(self.features):
                following = self.features[end]
                if isinstance(following, nn.ReLU) and following.inplace:
                    x = x.clone()  # the ReLU would overwrite the maps
        return x if stop else self.features[start:](x)

    def forward(
        self,
        x: Tensor,
        layers: Collection[Layer] = (),
        tap: Tap = "relu",
        on_tap: OnTap = lambda _layer, _maps: None,
        on_features: Callable[[Tensor], None] | None = None,
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
        if on_features is not None:
            on_features(x)
        logits: Tensor = self.classifier(x)
        return logits

    def frozen_below(self, layer: Layer) -> tuple[list[nn.Parameter], list[nn.Module]]:
        """See `Backbone`."""
        modules = list(self.features[: self._tap_end(layer, "conv")])
        norms: list[nn.Module] = [m for m in modules if isinstance(m, nn.BatchNorm2d)]
        return [p for module in modules for p in module.parameters()], norms

    @property
    def head_sizes(self) -> tuple[int, int]:
        """See `Backbone`."""
        first, *_, last = [m for m in self.classifier if isinstance(m, nn.Linear)]
        return first.in_features, last.in_features

    def body(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """See `conv_state`."""
        return conv_state(state)


def _features(arch: Arch) -> nn.Sequential:
    """Build the convolution part in torchvision's order, so that weights have torchvision's names.

    A first layer of three input channels is drawn and then replaced, as when torchvision built
    the network: so a seed gives the same weights as in earlier versions.
    """
    modules: list[nn.Module] = []
    channels = 3
    for size in arch.blocks:
        if isinstance(size, str):
            modules.append(nn.MaxPool2d(kernel_size=2, stride=2))
        else:
            modules.append(nn.Conv2d(channels, size, kernel_size=3, padding=1))
            modules += [nn.BatchNorm2d(size)] if arch.normed else []
            modules.append(nn.ReLU(inplace=True))
            channels = size
    first = modules[0].out_channels
    modules[0] = nn.Conv2d(1, first, kernel_size=3, padding=1)  # type: ignore[arg-type]
    return nn.Sequential(*modules)


def conv_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state dict that belong to the convolution part."""
    return {
        name: tensor
        for name, tensor in state.items()
        if isinstance(name, str) and name.startswith("features.")
    }
