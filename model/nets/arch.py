"""Architectures: names, widths, and the numbered convolution layers of VGGs.

This module does not import torch, so that options are parsed and caches are listed without it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from antigram.model.choices import ARCHS, ArchName, Layer, layer_order
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError

__all__ = ["EXTERNAL", "OWN", "Arch", "archs_by_layers"]

# Convolutions in each block; every block ends in a pooling layer (Simonyan and Zisserman 2015,
# table 1, columns A, B, D and E).
_BLOCKS: dict[str, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)  # of the blocks
_NORMED = "_bn"  # end of the name of a VGG with batch norm
FULL_WIDTH = 64  # channels of the first block of a standard VGG
OWN = ".py:"  # in the name of a user's own network, FILE.py:function
EXTERNAL = "teacher:"  # before the name of a teacher that antigram did not train


@dataclass(frozen=True, slots=True)
class Arch:
    """Name and width of a network.

    Attributes:
        name: one of `ARCHS`, such as ``vgg16`` or ``resnet18``; or ``FILE.py:function`` for a
            network of the user's own, without the folder of the file: see `own_arch`; or
            ``teacher:NAME`` for a teacher that antigram did not train: see `external_arch`.
        width: 64 is the standard network. Others have ``width / 64`` times as many channels in
            every layer; a VGG has ``width`` channels in its first block.
        source: SHA-256 of the file of a user's own network, or of what defines a teacher's code;
            else empty.

    Raises:
        InputError: there is no such network, or the width is not 1 to 1024.
    """

    name: str = "vgg16"
    width: int = FULL_WIDTH
    source: str = ""

    def __post_init__(self) -> None:
        if not self.source or not (self.external or OWN in self.name):
            if OWN in str(self.name):
                raise InputError(f"`arch` {self.name}: the file's SHA-256 is not known")
            check_choice("arch", self.name, ARCHS)
        if not 1 <= self.width <= 1024:
            raise InputError(f"`width` {self.width}: wanted 1 to 1024; 64 is the standard network")

    @property
    def external(self) -> bool:
        """Whether this is a teacher that antigram did not train, and no network of a student."""
        return str(self.name).startswith(EXTERNAL)

    @property
    def numbered(self) -> bool:
        """Whether the network is a VGG, whose convolution layers are numbered."""
        return not self.source and self.name.startswith("vgg")

    @property
    def normed(self) -> bool:
        """Whether the network is a VGG with batch norm."""
        return self.numbered and self.name.endswith(_NORMED)

    @property
    def _convolutions(self) -> tuple[int, ...]:
        return _BLOCKS[self.name.removesuffix(_NORMED)]

    @property
    def blocks(self) -> list[int | str]:
        """Channels of a VGG's convolutions, and ``"M"`` for a pooling, in torchvision's form."""
        sizes: list[int | str] = []
        for channels, convolutions in zip(_CHANNELS, self._convolutions, strict=True):
            sizes += [self.scaled(channels)] * convolutions
            sizes.append("M")
        return sizes

    @property
    def layers(self) -> int:
        """Number of convolution layers of a VGG."""
        return sum(self._convolutions)

    @property
    def scales_init(self) -> bool:
        """Whether initial weights depend on the setting ``init``: see `Vgg`."""
        return self.numbered and self.width < FULL_WIDTH

    def scaled(self, channels: int) -> int:
        """Return a number of channels of the standard network at this width, at least 1."""
        return max(1, channels * self.width // FULL_WIDTH)

    def check_layers(self, layers: Collection[Layer]) -> tuple[Layer, ...]:
        """Return layers, sorted and without duplicates.

        Args:
            layers: names of modules, which are not checked here; or numbers of a VGG's convolution
                layers. Digits in a text are a number in a VGG, and a name in other networks.

        Raises:
            InputError: this VGG has no convolution layer with one of the numbers.
        """
        parsed: set[Layer] = {
            int(layer) if self.numbered and str(layer).isdecimal() else layer for layer in layers
        }
        if not self.numbered:
            parsed = {str(layer) for layer in parsed}
        numbers = sorted(layer for layer in parsed if isinstance(layer, int))
        if wrong := [n for n in numbers if not 1 <= n <= self.layers]:
            raise InputError(
                f"`layers` {wrong[0]}: {self.name} has convolution layers 1 to {self.layers}"
            )
        return tuple(sorted(parsed, key=layer_order))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain types; without ``source`` for antigram's own networks."""
        plain: dict[str, Any] = {"name": self.name, "width": self.width}
        return {**plain, "source": self.source} if self.source else plain

    def __str__(self) -> str:
        """Return a description for messages, such as ``vgg16, width 64``."""
        if self.external:
            return self.name.removeprefix(EXTERNAL)
        return f"{self.name}, width {self.width}"


def archs_by_layers(*, normed: bool = False) -> dict[int, ArchName]:
    """Return a mapping from a number of convolution layers to the name of the VGG.

    Args:
        normed: whether the VGGs are those with batch norm.
    """
    vgg = [name for name in ARCHS if name.removesuffix(_NORMED) in _BLOCKS]
    return {Arch(name).layers: name for name in vgg if name.endswith(_NORMED) == normed}
