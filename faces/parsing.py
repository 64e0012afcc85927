"""Which pixel of a face belongs to which part: BiSeNet and ParseNet, in facexlib's weight layouts.

Yu et al., "BiSeNet", 2018, as trained by zllrunning/face-parsing.PyTorch; Chen et al., "Progressive Semantic-Aware
Style Transformation for Blind Face Restoration" (PSFR-GAN), 2021. The two number the parts differently; here a part is
always meant by its name, and label maps hold the values of `Part`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ..errors import LikenessError
from .align import FFHQ_GREY_RGB, ffhq_template, invert, robust_similarity_transform, touched, warp, warp_nearest
from .weights import Weights, block_count, builds, read_network_weights

CROP_SIZE = 512


class Part(IntEnum):
    """The 19 classes of CelebAMask-HQ; left and right are the subject's."""

    BACKGROUND = 0
    SKIN = 1
    LEFT_BROW = 2
    RIGHT_BROW = 3
    LEFT_EYE = 4
    RIGHT_EYE = 5
    GLASSES = 6
    LEFT_EAR = 7
    RIGHT_EAR = 8
    EARRING = 9
    NOSE = 10
    MOUTH = 11  # between the lips
    UPPER_LIP = 12
    LOWER_LIP = 13
    NECK = 14
    NECKLACE = 15
    CLOTH = 16
    HAIR = 17
    HAT = 18


BISENET_ORDER = tuple(Part)
PARSENET_ORDER = (
    Part.BACKGROUND,
    Part.SKIN,
    Part.NOSE,
    Part.GLASSES,
    Part.LEFT_EYE,
    Part.RIGHT_EYE,
    Part.LEFT_BROW,
    Part.RIGHT_BROW,
    Part.LEFT_EAR,
    Part.RIGHT_EAR,
    Part.MOUTH,
    Part.UPPER_LIP,
    Part.LOWER_LIP,
    Part.HAIR,
    Part.HAT,
    Part.EARRING,
    Part.NECKLACE,
    Part.NECK,
    Part.CLOTH,
)
EYES = frozenset({Part.LEFT_EYE, Part.RIGHT_EYE})
BROWS = frozenset({Part.LEFT_BROW, Part.RIGHT_BROW})
LIPS = frozenset({Part.UPPER_LIP, Part.LOWER_LIP})
EARS = frozenset({Part.LEFT_EAR, Part.RIGHT_EAR, Part.EARRING})
FACE = frozenset({Part.SKIN, Part.GLASSES, Part.NOSE, Part.MOUTH}) | EYES | BROWS | LIPS
HEAD = FACE | EARS | {Part.HAIR, Part.HAT}


# --- BiSeNet


class ConvBnRelu(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, width_in: int, width: int, side: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, side, padding=side // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.bn(self.conv(x)))


class BasicBlock(nn.Module):
    """The residual block of ResNet-18."""

    def __init__(self, width_in: int, width: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            shortcut = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """Features at 1/8, 1/16 and 1/32, of 2, 4 and 8 times `base` channels."""

    def __init__(self, base: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, base, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.layer1 = nn.Sequential(BasicBlock(base, base), BasicBlock(base, base))
        self.layer2 = nn.Sequential(BasicBlock(base, 2 * base, 2), BasicBlock(2 * base, 2 * base))
        self.layer3 = nn.Sequential(BasicBlock(2 * base, 4 * base, 2), BasicBlock(4 * base, 4 * base))
        self.layer4 = nn.Sequential(BasicBlock(4 * base, 8 * base, 2), BasicBlock(8 * base, 8 * base))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x = self.layer1(F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, padding=1))
        eighth = self.layer2(x)
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class AttentionRefinement(nn.Module):
    """Features gated by their own mean over the whole map."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.conv = ConvBnRelu(width_in, width)
        self.conv_atten = nn.Conv2d(width, width, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.conv(x)
        means = features.mean((2, 3), keepdim=True)
        return features * torch.sigmoid(self.bn_atten(self.conv_atten(means)))


def _nearest(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


class ContextPath(nn.Module):
    """Context from coarse to fine: (1/8 features, context at 1/8, context at 1/16)."""

    def __init__(self, base: int):
        super().__init__()
        width = 2 * base
        self.resnet = ResNet18(base)
        self.arm16 = AttentionRefinement(4 * base, width)
        self.arm32 = AttentionRefinement(8 * base, width)
        self.conv_head32 = ConvBnRelu(width, width)
        self.conv_head16 = ConvBnRelu(width, width)
        self.conv_avg = ConvBnRelu(8 * base, width, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        eighth, sixteenth, coarse = self.resnet(x)
        overall = self.conv_avg(coarse.mean((2, 3), keepdim=True))
        context16 = self.conv_head32(_nearest(self.arm32(coarse) + overall, sixteenth))
        context8 = self.conv_head16(_nearest(self.arm16(sixteenth) + context16, eighth))
        return eighth, context8, context16


class FeatureFusion(nn.Module):
    """Detail and context joined, then gated."""

    def __init__(self, width: int):
        super().__init__()
        self.convblk = ConvBnRelu(width, width, 1)
        self.conv1 = nn.Conv2d(width, width // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(width // 4, width, 1, bias=False)

    def forward(self, detail: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        features = self.convblk(torch.cat([detail, context], 1))
        gate = torch.sigmoid(self.conv2(F.relu(self.conv1(features.mean((2, 3), keepdim=True)))))
        return features + features * gate


class SegmentationHead(nn.Module):
    """Class logits at the resolution of the features."""

    def __init__(self, width_in: int, width: int, classes: int):
        super().__init__()
        self.conv = ConvBnRelu(width_in, width)
        self.conv_out = nn.Conv2d(width, classes, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """Images (B, 3, H, W), ImageNet-normalised, to logits (B, classes, H, W): main, and the two auxiliary maps."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ORDER = BISENET_ORDER

    def __init__(self, base: int, classes: int):
        super().__init__()
        self.cp = ContextPath(base)
        self.ffm = FeatureFusion(4 * base)
        self.conv_out = SegmentationHead(4 * base, 4 * base, classes)
        self.conv_out16 = SegmentationHead(2 * base, base, classes)
        self.conv_out32 = SegmentationHead(2 * base, base, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        detail, context8, context16 = self.cp(x)
        maps = self.conv_out(self.ffm(detail, context8)), self.conv_out16(context8), self.conv_out32(context16)
        main, sixteenth, coarse = (
            F.interpolate(logits, size=x.shape[2:], mode="bilinear", align_corners=True) for logits in maps
        )
        return main, sixteenth, coarse


@builds("a BiSeNet face parser")
def bisenet(weights: Weights) -> BiSeNet:
    """The BiSeNet (any width) that fits the weights, frozen, in evaluation mode, float32."""
    return BiSeNet(weights["cp.resnet.conv1.weight"].shape[0], weights["conv_out.conv_out.weight"].shape[0])


# --- ParseNet


class Normalised(nn.Module):
    """BatchNorm under the name the official layout gives it."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


class ReflectedConv(nn.Module):
    """3x3 convolution on an image continued by reflection; with a norm it has no bias."""

    def __init__(self, width_in: int, width: int, stride: int = 1, up: bool = False, norm: bool = False):
        super().__init__()
        self.up = up
        self.conv2d = nn.Conv2d(width_in, width, 3, stride, bias=not norm)
        self.norm = Normalised(width) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.norm(self.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect")))


class ParseNetBlock(nn.Module):
    """Two convolutions; `down` halves the image in the second, `up` doubles it before the first."""

    def __init__(self, width_in: int, width: int, down: bool = False, up: bool = False):
        super().__init__()
        self.shortcut_func = None
        if down or up or width_in != width:
            self.shortcut_func = ReflectedConv(width_in, width, 2 if down else 1, up)
        self.conv1 = ReflectedConv(width_in, width, 1, up, norm=True)
        self.conv2 = ReflectedConv(width, width, 2 if down else 1, norm=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.conv2(F.leaky_relu(self.conv1(x), 0.2))
        return residual + (x if self.shortcut_func is None else self.shortcut_func(x))


class ParseNet(nn.Module):
    """Images (B, 3, H, W), RGB -1..1, to class logits (B, classes, H, W) and an image (B, 3, H, W)."""

    MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    ORDER = PARSENET_ORDER

    def __init__(self, base: int, down: list[tuple[int, int]], depth: int, up: list[tuple[int, int]], classes: int):
        super().__init__()
        width = down[-1][1] if down else base
        last = up[-1][1] if up else width
        self.encoder = nn.Sequential(ReflectedConv(3, base), *(ParseNetBlock(a, b, down=True) for a, b in down))
        self.body = nn.Sequential(*(ParseNetBlock(width, width) for _ in range(depth)))
        self.decoder = nn.Sequential(*(ParseNetBlock(a, b, up=True) for a, b in up))
        self.out_img_conv = ReflectedConv(last, 3)
        self.out_mask_conv = ReflectedConv(last, classes)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.encoder(x)
        features = self.decoder(features + self.body(features))
        return self.out_mask_conv(features), self.out_img_conv(features)


@builds("a ParseNet face parser")
def parsenet(weights: Weights) -> ParseNet:
    """The ParseNet (any width and depth) that fits the weights, frozen, in evaluation mode, float32."""

    def widths(prefix: str, first: int) -> list[tuple[int, int]]:
        count = block_count(weights, prefix)
        shapes = [weights[f"{prefix}{i}.conv1.conv2d.weight"].shape for i in range(first, count)]
        return [(shape[1], shape[0]) for shape in shapes]

    return ParseNet(
        base=weights["encoder.0.conv2d.weight"].shape[0],
        down=widths("encoder.", 1),
        depth=block_count(weights, "body."),
        up=widths("decoder.", 0),
        classes=weights["out_mask_conv.conv2d.weight"].shape[0],
    )


# --- both


@dataclass(frozen=True)
class FaceParser:
    """A parsing network with its input statistics and its order of parts."""

    network: BiSeNet | ParseNet
    name: str
    licence: str

    @torch.no_grad()
    def parse_crops(self, crops: torch.Tensor) -> torch.Tensor:
        """FFHQ crops (B, S, S, 3) uint8 RGB, S best 512, to labels (B, S, S) uint8 of `Part`."""
        device = next(self.network.buffers()).device
        pixels = crops.to(device).permute(0, 3, 1, 2).float() / 255
        mean, std = (pixels.new_tensor(values).reshape(1, 3, 1, 1) for values in (self.network.MEAN, self.network.STD))
        labels = self.network((pixels - mean) / std)[0].argmax(1)
        order = torch.tensor(self.network.ORDER, dtype=torch.uint8, device=device)
        return order[labels].cpu()


def load_parser(path: Path | str, device: torch.device | str = "cpu") -> FaceParser:
    """BiSeNet (parsing_bisenet.pth, 79999_iter.pth) or ParseNet (parsing_parsenet.pth), told apart by their keys."""
    weights = read_network_weights(path)
    if "cp.resnet.conv1.weight" in weights:
        network, licence = bisenet(weights), "MIT code; trained on CelebAMask-HQ, which is non-commercial"
    elif "out_mask_conv.conv2d.weight" in weights:
        network, licence = parsenet(weights), "PSFR-GAN: CC BY-NC-SA 4.0, non-commercial"
    else:
        raise LikenessError(
            f"The file {Path(path).name} is not a face parser: choose parsing_bisenet.pth or parsing_parsenet.pth."
        )
    if len(network.ORDER) != network_classes(network):
        raise LikenessError(f"The face parser {Path(path).name} has {network_classes(network)} classes, not 19.")
    return FaceParser(network.to(device), Path(path).stem, licence)


def network_classes(network: BiSeNet | ParseNet) -> int:
    """How many parts a network tells apart."""
    last = network.conv_out.conv_out if isinstance(network, BiSeNet) else network.out_mask_conv.conv2d
    return last.out_channels


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels of `Part` in the window of a photo that one face's crop covers; all else is background."""

    labels: np.ndarray  # (h, w) uint8
    rows: slice
    columns: slice
    keypoints: np.ndarray  # (5, 2), of the photo


def parse_faces(parser: FaceParser, photo: np.ndarray, keypoints: Sequence[np.ndarray]) -> list[Labelled]:
    """What each face of a photo (H, W, 3) uint8 RGB shows where.

    The network sees the upright FFHQ crops, because it does badly on whole photos; its labels are brought back with
    nearest neighbours.
    """
    side = (CROP_SIZE, CROP_SIZE)
    found = []
    for points in keypoints:
        matrix = robust_similarity_transform(points, ffhq_template(CROP_SIZE))
        crop = torch.from_numpy(warp(photo, matrix, side, fill=FFHQ_GREY_RGB))
        labels = parser.parse_crops(crop[None])[0].numpy()
        rows, columns = touched(matrix, side, photo.shape[:2])
        back = invert(matrix)
        back[:, 2] -= (columns.start, rows.start)
        size = (columns.stop - columns.start, rows.stop - rows.start)
        found.append(Labelled(warp_nearest(labels, back, size, fill=Part.BACKGROUND), rows, columns, points))
    return found


def parse_face(parser: FaceParser, photo: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Labels (H, W) uint8 of `Part` for one face of a photo (H, W, 3) uint8 RGB; background outside its crop."""
    [found] = parse_faces(parser, photo, [keypoints])
    labels = np.full(photo.shape[:2], Part.BACKGROUND, np.uint8)
    labels[found.rows, found.columns] = found.labels
    return labels


def part_mask(labels: np.ndarray, parts: Iterable[Part]) -> np.ndarray:
    """True where a label map (H, W) shows one of the parts."""
    return np.isin(labels, [int(part) for part in parts])
