"""The squeeze-excitation recogniser of facexlib (IR-SE50), in the layout of TreB1eN/InsightFace_Pytorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .weights import Weights, block_count, builds


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate computed from their means."""

    def __init__(self, width: int, squeezed: int):
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1, bias=False)
        self.fc2 = nn.Conv2d(squeezed, width, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(means))))


class Bottleneck(nn.Module):
    """One block. Where the width stays, the shortcut only skips pixels."""

    def __init__(self, width_in: int, width: int, stride: int, squeezed: int | None):
        super().__init__()
        if width_in == width:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(shortcut, nn.BatchNorm2d(width))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(width_in),
            nn.Conv2d(width_in, width, 3, padding=1, bias=False),
            nn.PReLU(width),
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            *([] if squeezed is None else [SqueezeExcitation(width, squeezed)]),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


def bottleneck(weights: Weights, prefix: str, stride: int) -> Bottleneck:
    """The (empty) block that fits the weights below `prefix`; the stride leaves no trace in weights."""
    width, width_in = weights[f"{prefix}res_layer.1.weight"].shape[:2]
    gate = weights.get(f"{prefix}res_layer.5.fc1.weight")
    return Bottleneck(width_in, width, stride, None if gate is None else gate.shape[0])


class IrSe(nn.Module):
    """Aligned crops (B, 3, 112, 112), RGB -1..1, to embeddings (B, D) of length 1, as officially."""

    def __init__(self, blocks: list[Bottleneck], stem: int, width: int, flat: int, dim: int):
        super().__init__()
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
        )
        self.body = nn.Sequential(*blocks)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width), nn.Dropout(), nn.Flatten(), nn.Linear(flat, dim), nn.BatchNorm1d(dim)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.output_layer(self.body(self.input_layer(x))))


def is_ir_se(weights: Weights) -> bool:
    """Whether these are weights of this family."""
    return {"input_layer.0.weight", "body.0.res_layer.1.weight", "output_layer.3.weight"} <= set(weights)


@builds("an IR-SE50 recogniser")
def ir_se(weights: Weights) -> IrSe:
    """The IR or IR-SE network that fits the weights, frozen, in evaluation mode, float32.

    A stage begins, and halves the image, where the width grows, and at the very first block.
    """
    blocks = []
    for number in range(block_count(weights, "body.")):
        width, width_in = weights[f"body.{number}.res_layer.1.weight"].shape[:2]
        stride = 2 if number == 0 or width != width_in else 1
        blocks.append(bottleneck(weights, f"body.{number}.", stride))
    dim, flat = weights["output_layer.3.weight"].shape
    stem, width = weights["input_layer.0.weight"].shape[0], weights["output_layer.0.weight"].shape[0]
    return IrSe(blocks, stem, width, flat, dim)
