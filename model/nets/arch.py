"""Shapes of the VGGs: their convolution layers and widths.

This module does not import torch, so that options are parsed and caches are listed without it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from antigram.model.choices import ARCHS, ArchName
from antigram.pipeline.choices import check_choice
from antigram.pipeline.errors import InputError

__all__ = ["Arch", "archs_by_layers"]

# Convolutions in each block; every block ends in a pooling layer (Simonyan and Zisserman 2015,
# table 1, columns A, B, D and E).
_BLOCKS: dict[ArchName, tuple[int, ...]] = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_CHANNELS = (64, 128, 256, 512, 512)  # of the blocks
FULL_WIDTH = 64  # channels of the first block of a standard VGG


@dataclass(frozen=True, slots=True)
class Arch:
    """Name and width of a VGG.

    Attributes:
        name: ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19``.
        width: channels of the first block; 64 is the standard VGG. All other layers scale with it.

    Raises:
        InputError: there is no such VGG, or the width is not 1 to 1024.
    """

    name: ArchName = "vgg16"
    width: int = FULL_WIDTH

    def __post_init__(self) -> None:
        check_choice("arch", self.name, ARCHS)
        if not 1 <= self.width <= 1024:
            raise InputError(f"`width` {self.width}: wanted 1 to 1024; 64 is the real VGG")

    @property
    def blocks(self) -> list[int | str]:
        """Channels of each convolution, and ``"M"`` for a pooling, in torchvision's notation."""
        sizes: list[int | str] = []
        for channels, convolutions in zip(_CHANNELS, _BLOCKS[self.name], strict=True):
            sizes += [max(1, channels * self.width // FULL_WIDTH)] * convolutions
            sizes.append("M")
        return sizes

    @property
    def layers(self) -> int:
        """Number of convolution layers."""
        return sum(_BLOCKS[self.name])

    def check_layers(self, layers: Collection[int]) -> tuple[int, ...]:
        """Return layer numbers, sorted and without duplicates.

        Raises:
            InputError: this network has no convolution layer with one of the numbers.
        """
        if wrong := sorted(set(layers) - set(range(1, self.layers + 1))):
            raise InputError(
                f"`layers` {wrong[0]}: {self.name} has convolution layers 1 to {self.layers}"
            )
        return tuple(sorted(set(layers)))


def archs_by_layers() -> dict[int, ArchName]:
    """Return a mapping from a number of convolution layers to the name of the VGG."""
    return {Arch(name).layers: name for name in ARCHS}
