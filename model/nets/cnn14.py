"""CNN14: the shape of the convolutional network of PANNs, with random weights.

References:
    Kong and others (2020), PANNs: large-scale pretrained audio neural networks for audio pattern
    recognition, IEEE/ACM TASLP 28, section III-A and table I.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Head

__all__ = ["Cnn14", "cnn14"]

_CHANNELS = (64, 128, 256, 512, 1024, 2048)
_BLOCK_DROPOUT = 0.2  # after each block
_POOLED = 5  # blocks that end in a pooling of 2 x 2


class _Block(nn.Module):
    """Two convolutions of 3 x 3 with batch norm and ReLU, then average pooling.

    Args:
        inputs: channels of the input.
        channels: channels of both convolutions.
        pooling: size of the pooling; 1 for none.
    """

    def __init__(self, inputs: int, channels: int, pooling: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.pooling = pooling
        for conv in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, channel, frame, freq)``, the last two divided by the pooling."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)))
        return functional.avg_pool2d(x, self.pooling) if self.pooling > 1 else x


class Cnn14(nn.Module):
    """Six blocks of two convolutions, and two linear layers over the mean and maximum over time.

    Args:
        arch: name and width.
        classes: number of outputs.
        dropout: dropout probability before the linear layers.
    """

    def __init__(self, arch: Arch, classes: int, dropout: float) -> None:
        super().__init__()
        sizes = [arch.scaled(channels) for channels in _CHANNELS]
        for index, (inputs, channels) in enumerate(zip([1, *sizes], sizes, strict=False)):
            block = _Block(inputs, channels, 2 if index < _POOLED else 1)
            setattr(self, f"conv_block{index + 1}", block)
        self.blocks = len(sizes)
        self.dropout = dropout
        self.fc1 = nn.Linear(sizes[-1], sizes[-1])
        self.fc_audioset = Head(sizes[-1], classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, class)`` of ``(batch, 1, frame, freq)``."""
        for index in range(1, self.blocks + 1):
            x = getattr(self, f"conv_block{index}")(x)
            x = functional.dropout(x, _BLOCK_DROPOUT, self.training)
        x = x.mean(3)
        x = x.amax(2) + x.mean(2)
        x = functional.dropout(x, self.dropout, self.training)
        logits: Tensor = self.fc_audioset(functional.relu(self.fc1(x)))
        return logits


def cnn14(arch: Arch, classes: int, dropout: float) -> nn.Module:
    """Build a `Cnn14`."""
    return Cnn14(arch, classes, dropout)
