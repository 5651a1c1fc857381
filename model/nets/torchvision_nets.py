"""torchvision's ResNets, ConvNeXt and EfficientNet with one input channel, at any width.

The modules have torchvision's names. At width 64 only the first convolution (one input channel) and
the classifier (dropout before it) differ from torchvision's networks.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import ResNet
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.efficientnet import EfficientNet, _efficientnet_conf
from torchvision.models.resnet import BasicBlock, Bottleneck

from antigram.model.nets.arch import FULL_WIDTH, Arch
from antigram.model.nets.backbone import Head

__all__ = ["convnext_tiny", "efficientnet_b0", "resnet"]

# Blocks of each stage (He and others 2016, table 1).
_RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet34": (BasicBlock, [3, 4, 6, 3]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
# Channels and blocks of each stage (Liu and others 2022, section 3, ConvNeXt-T).
_CONVNEXT = ((96, 3), (192, 3), (384, 9), (768, 3))


class _ResNet(ResNet):  # type: ignore[misc]  # torchvision has no types
    """torchvision's ResNet, whose own constructor makes stages of one width only.

    Args:
        block: class of the blocks.
        counts: blocks of each stage.
        arch: name and width.
        classes: number of outputs.
        dropout: dropout probability before the last linear layer.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: list[int],
        arch: Arch,
        classes: int,
        dropout: float,
    ) -> None:
        nn.Module.__init__(self)
        self._norm_layer = nn.BatchNorm2d  # what `ResNet._make_layer` reads
        self.inplanes, self.dilation, self.groups, self.base_width = arch.scaled(64), 1, 1, 64
        self.conv1 = nn.Conv2d(1, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for index, count in enumerate(counts):
            stage = self._make_layer(block, arch.scaled(64 << index), count, 1 if not index else 2)
            setattr(self, f"layer{index + 1}", stage)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = Head(self.inplanes, classes, dropout)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet(arch: Arch, classes: int, dropout: float) -> nn.Module:
    """Build ResNet-18, -34 or -50 (He and others 2016).

    Args:
        arch: name and width.
        classes: number of outputs.
        dropout: dropout probability before the last linear layer.
    """
    block, counts = _RESNETS[arch.name]
    return _ResNet(block, counts, arch, classes, dropout)


def convnext_tiny(arch: Arch, classes: int, dropout: float) -> Any:  # noqa: ANN401 - torchvision's modules have untyped attributes
    """Build ConvNeXt-T (Liu and others 2022).

    Args:
        arch: name and width.
        classes: number of outputs.
        dropout: dropout probability before the last linear layer.
    """
    sizes = [(arch.scaled(channels), count) for channels, count in _CONVNEXT]
    following = [*(channels for channels, _ in sizes[1:]), None]
    settings = [
        CNBlockConfig(channels, after, count)
        for (channels, count), after in zip(sizes, following, strict=True)
    ]
    net: Any = ConvNeXt(settings, stochastic_depth_prob=0.1, num_classes=classes)
    first = net.features[0][0]
    net.features[0][0] = nn.Conv2d(1, first.out_channels, kernel_size=4, stride=4)
    nn.init.trunc_normal_(net.features[0][0].weight, std=0.02)
    nn.init.zeros_(net.features[0][0].bias)
    net.classifier[2] = Head(sizes[-1][0], classes, dropout)
    return net


def efficientnet_b0(arch: Arch, classes: int, dropout: float) -> Any:  # noqa: ANN401 - torchvision's modules have untyped attributes
    """Build EfficientNet-B0 (Tan and Le 2019).

    Args:
        arch: name and width; torchvision rounds channels to multiples of 8.
        classes: number of outputs.
        dropout: dropout probability before the last linear layer.
    """
    settings, _ = _efficientnet_conf(
        "efficientnet_b0", width_mult=arch.width / FULL_WIDTH, depth_mult=1.0
    )
    net: Any = EfficientNet(settings, dropout, num_classes=classes)
    first = net.features[0][0]
    net.features[0][0] = nn.Conv2d(
        1, first.out_channels, kernel_size=3, stride=2, padding=1, bias=False
    )
    nn.init.kaiming_normal_(net.features[0][0].weight, mode="fan_out")
    return net
