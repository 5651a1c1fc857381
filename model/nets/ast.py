"""A small transformer over patches of a spectrogram.

References:
    Gong, Chung and Glass (2021), AST: audio spectrogram transformer, Interspeech: patches of
    16 x 16 that overlap by 6; here fewer and narrower blocks, fixed positions, and the mean of
    all tokens in place of a class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Head

__all__ = ["Ast", "ast"]

_PATCH, _STRIDE = 16, 10
_CHANNELS, _HEADS, _BLOCKS = 192, 3, 6
_SLOWEST = 1000.0  # patches in the longest period of the positions' waves, over 2 pi


class Ast(nn.Module):
    """Patches, fixed positions of time and frequency, transformer blocks, and a linear layer.

    The blocks give tokens ``(batch, token, channel)``. Positions are computed, so that segments may
    have any size of at least 16 x 16.

    Args:
        arch: name and width.
        classes: number of outputs.
        dropout: dropout probability before the last linear layer.
    """

    def __init__(self, arch: Arch, classes: int, dropout: float) -> None:
        super().__init__()
        # Each head has a multiple of 4 channels, for sine and cosine of two axes.
        channels = 4 * _HEADS * max(1, arch.scaled(_CHANNELS) // (4 * _HEADS))
        self.patches = nn.Conv2d(1, channels, _PATCH, _STRIDE)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                channels,
                _HEADS,
                4 * channels,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(_BLOCKS)
        )
        self.norm = nn.LayerNorm(channels)
        self.head = Head(channels, classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, class)`` of ``(batch, 1, frame, freq)``."""
        maps = self.patches(x)
        tokens = maps.flatten(2).transpose(1, 2) + _positions(maps)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.norm(tokens).mean(1))
        return logits


def _positions(maps: Tensor) -> Tensor:
    """Return ``(token, channel)``: waves of time in one half, of frequency in the other.

    Args:
        maps: ``(batch, channel, time, frequency)``.
    """
    channels, height, width = maps.shape[1:]
    rates = torch.linspace(0, 1, channels // 4, device=maps.device)
    rates = _SLOWEST**-rates
    axes = []
    for count in (height, width):
        angles = torch.arange(count, device=maps.device)[:, None] * rates
        axes.append(torch.cat([angles.sin(), angles.cos()], 1))
    time = axes[0][:, None].expand(height, width, -1)
    freq = axes[1][None].expand(height, width, -1)
    return torch.cat([time, freq], 2).flatten(0, 1).to(maps.dtype)


def ast(arch: Arch, classes: int, dropout: float) -> nn.Module:
    """Build an `Ast`."""
    return Ast(arch, classes, dropout)
