"""The observer: one small net that finds the face and answers what an image shows; it also learns what is not an image
of this world."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...training.loop import Average, Run, rows_of_step
from ..drawing.shots import Colour, Shots
from ..models.backend import PRESENT
from ..models.latents import PatchCodec
from ..models.networks import QUESTIONS, Observer
from .corpus import SIDE, Corpus
from .recogniser import Augmentation, augment

BATCH = 128
LEARNING_RATE = 2e-3
_STRANGE = BATCH // 4  # images from outside the world in every batch
_POINTS_WEIGHT = 60.0
_ADMITTED = 1024  # images that presence is settled on, and the logit that all of them are to reach
_ADMISSION = math.log(PRESENT / (1 - PRESENT)) + 0.5
_LOOK = Augmentation(light=0.12, tint=0.05, noise=0.04, blurred=0.3, coded=0.5)


def answers_of(shots: Shots) -> dict[str, np.ndarray]:
    """The right answer to every question, (N,) int64; "hat" without one is the last answer."""
    truth = {name: getattr(shots, name).astype(np.int64) for name in QUESTIONS}
    truth["hat"] = np.where(shots.hat < 0, len(Colour), shots.hat).astype(np.int64)
    return truth


def strange_pictures(pictures: Tensor, random: torch.Generator) -> Tensor:
    """Images (B, 3, 64, 64) that are not of this world, made from ones that are: the net must not see a face there.

    A quarter each: tiles in disorder; smooth noise of photograph-like spectrum; the sum of several images, each
    turned or mirrored upside down; and pieces far too close, with colours exchanged.
    """
    count = len(pictures)
    kind = torch.arange(count) % 4
    out = pictures.clone()

    tiles = out[kind == 0].unflatten(3, (4, -1)).unflatten(2, (4, -1)).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    tiles = tiles[:, torch.randperm(16, generator=random, device=random.device)].unflatten(1, (4, 4))
    out[kind == 0] = tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    shape = out[kind == 1].shape
    smooth = torch.zeros(shape, device=random.device)
    for side in (2, 4, 8, 16, 32, 64):
        rough = torch.randn(shape[0], 3, side, side, generator=random, device=random.device)
        rough = torch.lerp(rough, rough.mean(1, keepdim=True), 0.7)
        smooth += F.interpolate(rough, size=shape[-2:], mode="bilinear", align_corners=False) * (2 / side) ** 0.6
    out[kind == 1] = (0.5 + 0.22 * smooth).clamp(0, 1)

    mixed = out[kind == 2]
    turned = (mixed.flip(2), mixed.roll(1, 0).transpose(2, 3), mixed.roll(2, 0).flip(2, 3))
    share = torch.rand(3, generator=random, device=random.device)
    share = share / share.sum()
    out[kind == 2] = sum(part * weight for part, weight in zip(turned, share, strict=True))  # type: ignore[assignment]

    near = out[kind == 3]
    left, top = torch.randint(0, SIDE - 20, (2,), generator=random, device=random.device).tolist()
    piece = near[:, torch.randperm(3, generator=random, device=random.device), top : top + 20, left : left + 20]
    out[kind == 3] = F.interpolate(piece, size=shape[-2:], mode="bilinear", align_corners=False)
    return out


class ObserverTraining:
    """Answers by cross-entropy, points and box by squared error, presence against strange images."""

    def __init__(
        self, corpus: Corpus, codec: PatchCodec, folder: Path, steps: int, seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.net, self.corpus, self.codec, self.seed, self.device = Observer(), corpus, codec.to(device), seed, device
        self.net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(self.net.parameters(), LEARNING_RATE, weight_decay=0.05)
        averages = {"net": Average(self.net, 0.998)}
        self.run = Run(folder, {"net": self.net}, optimizer, steps, seed, averages=averages, clip=5.0, device=device)
        self.truth = {name: torch.from_numpy(told).to(device) for name, told in answers_of(corpus.shots).items()}
        corners = corpus.boxes.reshape(-1, 2, 2)
        points = np.concatenate([corpus.keypoints, corners], axis=1)
        self.points = torch.from_numpy((points + 0.5) / SIDE).float().to(device)

    def loss(self, step: int, random: torch.Generator) -> Tensor:
        """The sum of the three."""
        rows = rows_of_step(step, BATCH, len(self.corpus), self.seed)
        pictures = self.corpus.pictures(rows).to(self.device)
        strange = augment(strange_pictures(pictures[:_STRANGE], random), self.codec, _LOOK, random)
        shown = augment(pictures, self.codec, _LOOK, random)
        seen = torch.cat([shown, strange]).contiguous(memory_format=torch.channels_last)
        answers, points, presence = self.net(seen)
        told = sum(F.cross_entropy(answers[name][:BATCH], self.truth[name][rows]) for name in QUESTIONS)
        place = F.smooth_l1_loss(points[:BATCH], self.points[rows], beta=0.02)
        is_face = (torch.arange(len(seen), device=self.device) < BATCH).float()
        return told + _POINTS_WEIGHT * place + F.binary_cross_entropy_with_logits(presence, is_face)


@torch.no_grad()
def admit(net: Observer, corpus: Corpus) -> None:
    """Raise the net's opinion of presence until the least of a corpus' first faces passes, with room for unseen ones.

    After few steps it tells faces from the rest before it is as sure of them as `PRESENT` asks. One that is stays as it
    is.
    """
    net.eval()
    starts = range(0, min(_ADMITTED, len(corpus)), 256)
    logits = torch.cat([net(corpus.pictures(slice(start, start + 256)))[2] for start in starts])
    net.presence.bias.add_((_ADMISSION - logits.min()).clamp(min=0))


@torch.no_grad()
def accuracy(net: Observer, corpus: Corpus) -> dict[str, float]:
    """The share of right answers per question, and "points": the mean distance of the keypoints in pixels of 64."""
    net.eval()
    right: dict[str, list[Tensor]] = {name: [] for name in QUESTIONS}
    distances = []
    truth = {name: torch.from_numpy(answers) for name, answers in answers_of(corpus.shots).items()}
    for start in range(0, len(corpus), 256):
        part = slice(start, start + 256)
        answers, points, _ = net(corpus.pictures(part))
        for name in QUESTIONS:
            right[name].append(answers[name].argmax(1) == truth[name][part])
        found = points[:, :5] * SIDE - 0.5
        distances.append((found - torch.from_numpy(corpus.keypoints[part])).norm(dim=-1).mean(1))
    result = {name: torch.cat(hits).float().mean().item() for name, hits in right.items()}
    return result | {"points": torch.cat(distances).mean().item()}
