"""RetinaFace, the five-point detector of facexlib, in its weight layout (biubug6/Pytorch_Retinaface).

Deng et al., "RetinaFace: Single-shot Multi-level Face Localisation in the Wild", 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .detection import SCORE_FLOOR, Detection, non_maximum_suppression, shrink_to
from .weights import Weights, block_count, builds, read_network_weights

BGR_MEAN = (104.0, 117.0, 123.0)
STRIDES = (8, 16, 32)
MIN_SIZES = ((16, 32), (64, 128), (256, 512))  # anchor sides in pixels, per stride
VARIANCES = (0.1, 0.2)
NMS_OVERLAP = 0.4
SMALL_WIDTH = 64  # from this width down the activations leak


def _conv(width_in: int, width: int, side: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(width_in, width, side, stride, side // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class MobileNet(nn.Module):
    """MobileNet v1 with three stages, leaky by 0.1: features at strides 8, 16 and 32."""

    STAGE_STRIDES = ((2, 1, 2, 1, 2, 1), (2, 1, 1, 1, 1, 1), (2, 1))

    def __init__(self, widths: Sequence[Sequence[int]]):
        super().__init__()
        width_in = 3
        stages = []
        for stage_widths, strides in zip(widths, self.STAGE_STRIDES, strict=True):
            layers = []
            for width, stride in zip(stage_widths, strides, strict=True):
                if width_in == 3:
                    layer = [*_conv(3, width, 3, stride), nn.LeakyReLU(0.1)]
                else:
                    depthwise = [*_conv(width_in, width_in, 3, stride, width_in), nn.LeakyReLU(0.1)]
                    layer = [*depthwise, *_conv(width_in, width, 1), nn.LeakyReLU(0.1)]
                layers.append(nn.Sequential(*layer))
                width_in = width
            stages.append(nn.Sequential(*layers))
        self.stage1, self.stage2, self.stage3 = stages

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        fine = self.stage1(x)
        middle = self.stage2(fine)
        return [fine, middle, self.stage3(middle)]


class ResNet50(nn.Module):
    """torchvision's network without its classifier: features at strides 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        from torchvision.models import resnet50

        whole = resnet50(weights=None)
        self.conv1, self.bn1, self.maxpool = whole.conv1, whole.bn1, whole.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = whole.layer1, whole.layer2, whole.layer3, whole.layer4

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        fine = self.layer2(x)
        middle = self.layer3(fine)
        return [fine, middle, self.layer4(middle)]


class FeaturePyramid(nn.Module):
    """Each level brought to one width, coarse ones added to the next finer."""

    def __init__(self, widths: Sequence[int], width: int):
        super().__init__()
        slope = 0.1 if width <= SMALL_WIDTH else 0.0
        self.output1, self.output2, self.output3 = (
            nn.Sequential(*_conv(level, width, 1), nn.LeakyReLU(slope)) for level in widths
        )
        self.merge1, self.merge2 = (nn.Sequential(*_conv(width, width, 3), nn.LeakyReLU(slope)) for _ in range(2))

    def forward(self, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        fine, middle, coarse = self.output1(levels[0]), self.output2(levels[1]), self.output3(levels[2])
        middle = self.merge2(middle + F.interpolate(coarse, size=middle.shape[2:], mode="nearest"))
        fine = self.merge1(fine + F.interpolate(middle, size=fine.shape[2:], mode="nearest"))
        return [fine, middle, coarse]


class ContextHead(nn.Module):
    """SSH: three receptive fields side by side, the larger ones as stacks of 3x3 convolutions."""

    def __init__(self, width: int):
        super().__init__()
        slope, quarter = (0.1 if width <= SMALL_WIDTH else 0.0), width // 4
        self.conv3X3 = nn.Sequential(*_conv(width, width // 2, 3))
        self.conv5X5_1 = nn.Sequential(*_conv(width, quarter, 3), nn.LeakyReLU(slope))
        self.conv5X5_2 = nn.Sequential(*_conv(quarter, quarter, 3))
        self.conv7X7_2 = nn.Sequential(*_conv(quarter, quarter, 3), nn.LeakyReLU(slope))
        self.conv7x7_3 = nn.Sequential(*_conv(quarter, quarter, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = self.conv5X5_1(x)
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(shared), self.conv7x7_3(self.conv7X7_2(shared))], 1))


class Head(nn.Module):
    """`values` numbers for each of two anchors at each cell: (B, cells * 2, values)."""

    def __init__(self, width: int, values: int):
        super().__init__()
        self.conv1x1 = nn.Conv2d(width, 2 * values, 1)
        self.values = values

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).reshape(len(x), -1, self.values)


class RetinaFace(nn.Module):
    """BGR 0..255 less `BGR_MEAN` (B, 3, H, W) to offsets (B, A, 4), probabilities (B, A, 2), points (B, A, 10)."""

    def __init__(self, body: nn.Module, widths: Sequence[int], width: int):
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramid(widths, width)
        self.ssh1, self.ssh2, self.ssh3 = (ContextHead(width) for _ in range(3))
        self.BboxHead = nn.ModuleList(Head(width, 4) for _ in range(3))
        self.ClassHead = nn.ModuleList(Head(width, 2) for _ in range(3))
        self.LandmarkHead = nn.ModuleList(Head(width, 10) for _ in range(3))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        fine, middle, coarse = self.fpn(self.body(x))
        levels = [self.ssh1(fine), self.ssh2(middle), self.ssh3(coarse)]
        boxes, classes, points = (
            torch.cat([head(level) for head, level in zip(heads, levels, strict=True)], 1)
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        return boxes, classes.softmax(-1), points


@builds("a RetinaFace detector")
def retinaface(weights: Weights) -> RetinaFace:
    """The network that fits the weights (MobileNet of any width, or ResNet-50), frozen, in evaluation mode, float32."""
    width = weights["fpn.output1.0.weight"].shape[0]
    widths = [weights[f"fpn.output{n}.0.weight"].shape[1] for n in (1, 2, 3)]
    if "body.layer1.0.conv1.weight" in weights:
        body: nn.Module = ResNet50()
    else:
        body = MobileNet(
            [
                [
                    _last_width(weights, f"body.stage{stage}.{i}.")
                    for i in range(block_count(weights, f"body.stage{stage}."))
                ]
                for stage in (1, 2, 3)
            ]
        )
    return RetinaFace(body, widths, width)


def _last_width(weights: Weights, prefix: str) -> int:
    """Output width of a MobileNet layer: of its 1x1 convolution, or of the only one in the very first layer."""
    return weights.get(f"{prefix}3.weight", weights[f"{prefix}0.weight"]).shape[0]


def priors(height: int, width: int) -> torch.Tensor:
    """Anchors (A, 4) for an image: centre x, y, width, height, in parts of the image."""
    rows = []
    for stride, sides in zip(STRIDES, MIN_SIZES, strict=True):
        cells = product(range(-(-height // stride)), range(-(-width // stride)), sides)
        rows += [((j + 0.5) * stride / width, (i + 0.5) * stride / height, s / width, s / height) for i, j, s in cells]
    return torch.tensor(rows)


def decode(
    boxes: torch.Tensor, points: torch.Tensor, anchors: torch.Tensor, size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Head outputs (A, 4) and (A, 10) as corners (A, 4) and keypoints (A, 5, 2) in pixels of (width, height)."""
    centre_scale, size_scale = VARIANCES
    extent = anchors.new_tensor(size)
    centre = anchors[:, :2] + centre_scale * boxes[:, :2] * anchors[:, 2:]
    half = anchors[:, 2:] * torch.exp(size_scale * boxes[:, 2:]) / 2
    corners = torch.cat([(centre - half) * extent, (centre + half) * extent], 1)
    offsets = centre_scale * points.reshape(-1, 5, 2) * anchors[:, None, 2:]
    return corners, (anchors[:, None, :2] + offsets) * extent


@torch.no_grad()
def find(
    network: RetinaFace, image_bgr: np.ndarray, threshold: float, overlap: float = NMS_OVERLAP
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4), scores (n,) and keypoints (n, 5, 2) of a BGR image (H, W, 3) 0..255, best first."""
    height, width = image_bgr.shape[:2]
    device = next(network.buffers()).device
    pixels = torch.from_numpy(np.ascontiguousarray(image_bgr)).to(device).float() - torch.tensor(
        BGR_MEAN, device=device
    )
    boxes, classes, points = network(pixels.permute(2, 0, 1)[None])
    corners, keypoints = decode(boxes[0], points[0], priors(height, width).to(device), (width, height))
    scores = classes[0, :, 1]
    enough = scores > threshold
    corners, scores, keypoints = (tensor[enough].cpu().numpy() for tensor in (corners, scores, keypoints))
    kept = non_maximum_suppression(corners, scores, overlap)
    return corners[kept], scores[kept], keypoints[kept]


@dataclass(frozen=True)
class RetinaFaceDetector:
    """The detector as `FaceAnalysis` wants it: torch only."""

    network: RetinaFace
    name: str = "RetinaFace"
    threshold: float = 0.8
    sizes: tuple[int, ...] = (1280, 640, 320)

    @classmethod
    def open(cls, path: Path, device: torch.device | str = "cpu") -> RetinaFaceDetector:
        """From facexlib's detection_Resnet50_Final.pth or detection_mobilenet0.25_Final.pth."""
        return cls(retinaface(read_network_weights(path)).to(device))

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """See `Detector.detect`."""
        small, scale = shrink_to(image_bgr, size or self.sizes[0])
        boxes, scores, keypoints = find(self.network, small, min(SCORE_FLOOR, self.threshold))
        return [
            Detection(box / np.float32(scale), float(score), five / np.float32(scale))
            for box, score, five in zip(boxes, scores, keypoints, strict=True)
        ]
