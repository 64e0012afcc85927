"""dlib's face recogniser in torch: a residual network whose blocks pad their shortcuts with zeros.

    x = (image - mean) / 256
    x = max_pool_3/2(relu(a * conv_7/2(x) + b))
    block: relu(f(x) + shortcut(x)),   f = affine(conv_3(relu(affine(conv_3/s(x)))))
    embedding = W^T mean over places(x)

A shortcut is x, or where s = 2 the 2x2 mean of x; what is smaller, in rows, columns or channels, gets zeros at its end.
Convolutions of stride 1 pad by one pixel, those of stride 2 not at all. King, "High Quality Face Recognition with Deep
Metric Learning", 2017, after He et al., "Deep Residual Learning", 2016; weights: davisking/dlib-models, CC0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import LikenessError
from .align import Template
from .dlib_file import Layer, read_dlib

MEAN_RGB = (122.782, 117.001, 104.298)
# Where a detector's five points lie in the chips that dlib cuts by its own: fitted on YuNet's points, in pixels of 150.
CHIP = Template(np.array([(47.4, 46.0), (99.4, 45.2), (73.9, 75.5), (52.3, 100.1), (97.7, 99.8)]), 150, halves=True)


class ScaledConvolution(nn.Module):
    """A convolution and then a scale and shift of each channel."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, stride, padding=kernel // 2 if stride == 1 else 0)
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x) * self.scale[:, None, None] + self.shift[:, None, None]


class DlibBlock(nn.Module):
    """Two convolutions beside a shortcut; `down` halves the image."""

    def __init__(self, first: ScaledConvolution, second: ScaledConvolution, down: bool):
        super().__init__()
        self.first, self.second, self.down = first, second, down

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.second(F.relu(self.first(x)))
        return F.relu(_sum(residual, F.avg_pool2d(x, 2) if self.down else x))


def _sum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a + b, zeros added at the end of each axis of whichever is shorter there."""
    if a.shape == b.shape:
        return a + b
    channels, rows, columns = (max(a.shape[axis], b.shape[axis]) for axis in (1, 2, 3))

    def padded(x: torch.Tensor) -> torch.Tensor:
        return F.pad(x, (0, columns - x.shape[3], 0, rows - x.shape[2], 0, channels - x.shape[1]))

    return padded(a) + padded(b)


class DlibResNet(nn.Module):
    """Chips (B, 3, 150, 150), RGB 0..255, on dlib's template to raw embeddings (B, 128)."""

    mean: torch.Tensor

    def __init__(self, stem: ScaledConvolution, blocks: Sequence[DlibBlock], outputs: int):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN_RGB).reshape(1, 3, 1, 1), persistent=False)
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(_width(blocks[-1].second), outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem((x - self.mean) / 256))
        return self.fc(self.blocks(F.max_pool2d(x, 3, 2)).mean((2, 3)))


class Centred(nn.Module):
    """A recogniser whose embeddings are counted from the mean of faces, so that cosines of strangers lie about 0."""

    centre: torch.Tensor

    def __init__(self, network: nn.Module, centre: np.ndarray):
        super().__init__()
        self.network = network
        self.register_buffer("centre", torch.from_numpy(centre), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x) - self.centre


def dlib_resnet(path: Path | str) -> DlibResNet:
    """The network in a file of dlib's, any depth and width, frozen, in evaluation mode; LikenessError for others."""
    path = Path(path)
    layers = read_dlib(path)
    unfit = LikenessError(
        f"The file {path.name} is damaged, or another network than dlib's face recogniser: choose "
        "dlib_face_recognition_resnet_model_v1.dat, and download it again if this is it."
    )
    if not all(np.isfinite(layer.values).all() for layer in layers):
        raise unfit
    try:
        return _network(layers).float().eval().requires_grad_(False)
    except (ValueError, IndexError, RuntimeError, StopIteration):
        raise unfit from None


def _network(layers: Sequence[Layer]) -> DlibResNet:
    """The stem up to the first pooling, a block up to each sum, then the mean and the last layer."""
    pooled = next(place for place, layer in enumerate(layers) if layer.kind == "max_pool")
    (stem,) = _convolutions(layers[:pooled], 3, [2])
    blocks, start, width = [], pooled + 1, _width(stem)
    for place, layer in enumerate(layers):
        if layer.kind == "add_prev":
            blocks.append(_block(layers[start:place], width))
            start, width = place + 1, _width(blocks[-1].second)
    last = layers[-1]
    if last.kind != "fc" or layers[-2].kind != "avg_pool" or last.outputs * width != len(last.values):
        raise ValueError("not the end of a recogniser")
    network = DlibResNet(stem, blocks, last.outputs)
    network.fc.weight.data = torch.from_numpy(last.values).reshape(width, last.outputs).T.contiguous()
    return network


def _block(layers: Sequence[Layer], width_in: int) -> DlibBlock:
    down = any(layer.kind == "avg_pool" for layer in layers)
    first, second = _convolutions(layers, width_in, [2 if down else 1, 1])
    return DlibBlock(first, second, down)


def _convolutions(layers: Sequence[Layer], width: int, strides: Sequence[int]) -> list[ScaledConvolution]:
    """Pairs of a convolution (its filters, then its biases) and an affine (its scales, then its shifts)."""
    found = [layer for layer in layers if layer.kind in ("con", "affine")]
    if [layer.kind for layer in found] != ["con", "affine"] * len(strides):
        raise ValueError("not the layers of a block")
    made = []
    for filters, affine, stride in zip(found[::2], found[1::2], strides, strict=True):
        outputs = len(affine.values) // 2
        if not outputs:
            raise ValueError("an affine layer without channels")
        kernel = math.isqrt((len(filters.values) - outputs) // (outputs * width))
        module = ScaledConvolution(width, outputs, kernel, stride)
        weights, biases = np.split(filters.values, [len(filters.values) - outputs])
        module.conv.weight.data = torch.from_numpy(weights.copy()).reshape(outputs, width, kernel, kernel)
        module.conv.bias = nn.Parameter(torch.from_numpy(biases.copy()))
        scales, shifts = np.split(affine.values, 2)
        module.scale.data, module.shift.data = torch.from_numpy(scales.copy()), torch.from_numpy(shifts.copy())
        made.append(module)
        width = outputs
    return made


def _width(module: ScaledConvolution) -> int:
    return module.conv.out_channels
