"""The improved residual network of ArcFace, in the weight layout of deepinsight/insightface `arcface_torch`.

Duta et al., "Improved Residual Networks for Image and Video Recognition", 2020; Deng et al., "ArcFace", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .weights import Weights, block_count, builds


class IResNetBlock(nn.Module):
    """BN, conv, BN, PReLU, strided conv, BN, plus the shortcut; nothing after the sum."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return residual + (x if self.downsample is None else self.downsample(x))


def _layer(width_in: int, width: int, count: int) -> nn.Sequential:
    return nn.Sequential(IResNetBlock(width_in, width, 2), *(IResNetBlock(width, width, 1) for _ in range(count - 1)))


class IResNet(nn.Module):
    """Aligned crops (B, 3, 112, 112), RGB -1..1, to raw embeddings (B, D)."""

    def __init__(self, stem: int, widths: Sequence[int], blocks: Sequence[int], cells: int, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.prelu = nn.PReLU(stem)
        self.layer1 = _layer(stem, widths[0], blocks[0])
        self.layer2 = _layer(widths[0], widths[1], blocks[1])
        self.layer3 = _layer(widths[1], widths[2], blocks[2])
        self.layer4 = _layer(widths[2], widths[3], blocks[3])
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.fc = nn.Linear(widths[-1] * cells, dim)
        self.features = nn.BatchNorm1d(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


def is_iresnet(weights: Weights) -> bool:
    """Whether these are iresnet weights."""
    return {"conv1.weight", "layer4.0.bn3.weight", "fc.weight", "features.weight"} <= set(weights)


@builds("an iresnet recogniser")
def iresnet(weights: Weights) -> IResNet:
    """The iresnet (any depth and width) that fits the weights, frozen, in evaluation mode, float32."""
    widths = [weights[f"layer{n}.0.conv1.weight"].shape[0] for n in range(1, 5)]
    dim, flat = weights["fc.weight"].shape
    return IResNet(
        stem=weights["conv1.weight"].shape[0],
        widths=widths,
        blocks=[block_count(weights, f"layer{n}.") for n in range(1, 5)],
        cells=flat // widths[-1],
        dim=dim,
    )
