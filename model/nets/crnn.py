"""A convolutional recurrent network: convolutions over the spectrogram, then a GRU over time.

References:
    Choi and others (2017), Convolutional recurrent neural networks for music classification,
    ICASSP: the idea; sizes are antigram's.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from antigram.model.nets.arch import Arch
from antigram.model.nets.backbone import Head

__all__ = ["Crnn", "crnn"]

_CHANNELS = (64, 128, 256)
_HIDDEN = 128  # of each direction


class _Block(nn.Module):
    """A convolution of 3 x 3, batch norm, ReLU, and maximum pooling of 2 x 2.

    Args:
        inputs: channels of the input.
        channels: channels of the output.
    """

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(batch, channel, frame / 2, freq / 2)``."""
        return functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)


class Crnn(nn.Module):
    """Three blocks of convolution, batch norm, ReLU and pooling, and a GRU in both directions.

    Frequencies are averaged before the GRU, so that segments may have any size of at least 8 x 8.

    Args:
        arch: name and width.
        classes: number of outputs.
        dropout: dropout probability before the last linear layer.
    """

    def __init__(self, arch: Arch, classes: int, dropout: float) -> None:
        super().__init__()
        sizes = [arch.scaled(channels) for channels in _CHANNELS]
        pairs = zip([1, *sizes], sizes, strict=False)
        self.convs = nn.Sequential(*(_Block(inputs, channels) for inputs, channels in pairs))
        hidden = arch.scaled(_HIDDEN)
        self.gru = nn.GRU(sizes[-1], hidden, batch_first=True, bidirectional=True)
        self.fc = Head(2 * hidden, classes, dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(batch, class)`` of ``(batch, 1, frame, freq)``."""
        frames = self.convs(x).mean(3).transpose(1, 2)  # (batch, frame, channel)
        outputs, _ = self.gru(frames)
        logits: Tensor = self.fc(outputs.mean(1))
        return logits


def crnn(arch: Arch, classes: int, dropout: float) -> nn.Module:
    """Build a `Crnn`."""
    return Crnn(arch, classes, dropout)
