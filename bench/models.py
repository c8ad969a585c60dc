"""Networks whose training steps ``bench.networks`` times: plain PyTorch, as their papers have them, 1000 classes.

ResNet (arXiv:1512.03385; the stride of a bottleneck is in its 3x3 convolution), MobileNetV2 (arXiv:1801.04381) and
DenseNet (arXiv:1608.06993) for images, and a fully connected network for rows. Weights are drawn so that activations
stay finite in float32 without batch normalization as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

CLASSES = 1000
FEATURES = 1024
"""Of a row, and of each hidden layer."""


def conv_bn(cin: int, cout: int, size: int, *, stride: int = 1, groups: int = 1, act: Any = None) -> list[nn.Module]:
    """Convolution that keeps the size of an image at stride 1, batch normalization, and the activation if any."""
    conv = nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(cout), *([act(inplace=True)] if act else [])]


class Residual(nn.Module):
    """``relu(branch(x) + shortcut(x))``, where the shortcut is a projection if shapes differ."""

    def __init__(self, branch: list[nn.Module], cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        projected = stride > 1 or cin != cout
        self.shortcut = nn.Sequential(*conv_bn(cin, cout, 1, stride=stride)) if projected else nn.Identity()

    def forward(self, x: Any) -> Any:
        return self.branch(x).add_(self.shortcut(x)).relu_()


def basic(cin: int, width: int, stride: int) -> Residual:
    """Two 3x3 convolutions."""
    branch = conv_bn(cin, width, 3, stride=stride, act=nn.ReLU) + conv_bn(width, width, 3)
    return Residual(branch, cin, width, stride)


def bottleneck(cin: int, width: int, stride: int) -> Residual:
    """1x1, 3x3 and 1x1 convolutions."""
    branch = conv_bn(cin, width, 1, act=nn.ReLU) + conv_bn(width, width, 3, stride=stride, act=nn.ReLU)
    return Residual(branch + conv_bn(width, 4 * width, 1), cin, 4 * width, stride)


def stem() -> list[nn.Module]:
    """The beginning of ResNet and DenseNet: a quarter of the image's size, 64 channels."""
    layers = conv_bn(3, 64, 7, stride=2, act=nn.ReLU)
    return [*layers, nn.MaxPool2d(3, 2, 1)]


def head(channels: int) -> list[nn.Module]:
    """The end of every network for images."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def resnet(block: Callable[[int, int, int], Residual], expansion: int, depths: tuple[int, ...]) -> nn.Module:
    """Stages of blocks, each with twice the channels on a quarter of the pixels."""
    layers, channels = stem(), 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for i in range(depth):
            layers.append(block(channels, width, 2 if i == 0 and stage > 0 else 1))
            channels = expansion * width
    return nn.Sequential(*layers, *head(channels))


class Inverted(nn.Module):
    """MobileNetV2's block: expand, filter each channel, project; added to ``x`` where shapes agree."""

    def __init__(self, cin: int, cout: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * cin
        layers = conv_bn(cin, width, 1, act=nn.ReLU6) if expansion > 1 else []
        layers += conv_bn(width, width, 3, stride=stride, groups=width, act=nn.ReLU6) + conv_bn(width, cout, 1)
        self.branch, self.added = nn.Sequential(*layers), stride == 1 and cin == cout

    def forward(self, x: Any) -> Any:
        return x + self.branch(x) if self.added else self.branch(x)


def mobilenet_v2() -> nn.Module:
    """Of width 1."""
    layers, channels = conv_bn(3, 32, 3, stride=2, act=nn.ReLU6), 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, depth, stride in stages:
        for i in range(depth):
            layers.append(Inverted(channels, width, stride if i == 0 else 1, expansion))
            channels = width
    layers += conv_bn(channels, 1280, 1, act=nn.ReLU6)
    pool, flatten, linear = head(1280)
    return nn.Sequential(*layers, pool, flatten, nn.Dropout(0.2), linear)


def bn_conv(cin: int, cout: int, size: int) -> list[nn.Module]:
    """DenseNet's order: batch normalization, ReLU, convolution."""
    conv = nn.Conv2d(cin, cout, size, padding=size // 2, bias=False)
    return [nn.BatchNorm2d(cin), nn.ReLU(inplace=True), conv]


class Dense(nn.Module):
    """DenseNet's layer: gives ``x`` and ``growth`` new channels."""

    def __init__(self, cin: int, growth: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(*bn_conv(cin, 4 * growth, 1), *bn_conv(4 * growth, growth, 3))

    def forward(self, x: Any) -> Any:
        return torch.cat([x, self.branch(x)], 1)


def densenet(growth: int, depths: tuple[int, ...]) -> nn.Module:
    """Blocks of layers; between two blocks, half of the channels on a quarter of the pixels."""
    layers, channels = stem(), 64
    for block, depth in enumerate(depths):
        if block > 0:
            layers += [*bn_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(depth):
            layers.append(Dense(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *head(channels))


def mlp() -> nn.Module:
    """Three hidden layers."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(FEATURES, FEATURES, bias=False), nn.BatchNorm1d(FEATURES), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(FEATURES, CLASSES))


class Network(NamedTuple):
    """A network, and the batch that it is timed with."""

    build: Callable[[], nn.Module]
    batch: int
    images: bool = True

    @property
    def layouts(self) -> tuple[str, ...]:
        """``NCHW`` and ``NHWC``, or ``NC``."""
        return ("NCHW", "NHWC") if self.images else ("NC",)

    def make(self, layout: str) -> nn.Module:
        """With the same weights at every call."""
        torch.manual_seed(0)
        model = self.build()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return model.to(memory_format=torch.channels_last) if layout == "NHWC" else model

    def data(self, layout: str, batch: int, image: int) -> tuple[Any, Any]:
        """Inputs and labels; the same at every call."""
        generator = torch.Generator().manual_seed(0)
        shape = (batch, 3, image, image) if self.images else (batch, FEATURES)
        x = torch.randn(shape, generator=generator)
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        return x.to(memory_format=torch.channels_last) if layout == "NHWC" else x, labels


NETWORKS = {
    "ResNet-18": Network(lambda: resnet(basic, 1, (2, 2, 2, 2)), 16),
    "ResNet-50": Network(lambda: resnet(bottleneck, 4, (3, 4, 6, 3)), 8),
    "MobileNetV2": Network(mobilenet_v2, 16),
    "DenseNet-121": Network(lambda: densenet(32, (6, 12, 24, 16)), 8),
    "MLP": Network(mlp, 1024, images=False),
}
"""Those that are timed, with images of 112x112 by default."""
