"""The two recognisers: the one that conditions and the one that judges. CosFace (arXiv 1801.09414) on drawn people."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...faces.iresnet import IResNet
from ...training.loop import Average, Run, rows_of_step
from ..drawing.people import KINDS, TRAITS
from ..models.crops import aligned_crops
from ..models.latents import PatchCodec
from .corpus import Corpus

BATCH = 128
LEARNING_RATE = 2e-3
SCALE, MARGIN = 32.0, 0.3
TRAITS_WEIGHT = 0.5
_BATCHES_TO_FULL_MARGIN = 0.3  # of the run: from the start, the margin keeps a fresh net from learning anything


@dataclass(frozen=True)
class Augmentation:
    """What a recogniser must not mind: how an image was taken, shrunk, drawn by a denoiser or aligned."""

    jitter: float = 0.8  # pixels of the keypoints, standard deviation
    light: float = 0.15
    tint: float = 0.06
    noise: float = 0.04
    blurred: float = 0.4  # share of images shrunk and enlarged again
    coded: float = 0.5  # share of images that went through the latents


class CosFace(nn.Module):
    """Logits s (cos θ − m for the right person), with the person's number as the class."""

    def __init__(self, dim: int, people: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(people, dim) * 0.01)

    def forward(self, embeddings: Tensor, person: Tensor, margin: float) -> Tensor:
        cosine = F.normalize(embeddings.float()) @ F.normalize(self.weight).T
        return SCALE * (cosine - margin * F.one_hot(person, len(self.weight)))


class TraitsHead(nn.Module):
    """Reads the person's traits off the embedding; free labels that make a small net learn faster. Thrown away."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, len(TRAITS) + sum(len(kind) for kind, _ in KINDS.values()))

    def forward(self, embeddings: Tensor, traits: Tensor, kinds: Tensor) -> Tensor:
        sizes = [len(TRAITS), *(len(kind) for kind, _ in KINDS.values())]
        numbers, *logits = self.linear(embeddings).split(sizes, dim=1)
        categories = sum(F.cross_entropy(guess, kinds[:, i]) for i, guess in enumerate(logits))
        return 4 * F.mse_loss(numbers, traits) + categories / len(logits)


def augment(pictures: Tensor, codec: PatchCodec, how: Augmentation, random: torch.Generator) -> Tensor:
    """Images (B, 3, 64, 64), RGB 0..1, as a recogniser may meet them."""
    count = len(pictures)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, device=random.device)

    def normal(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=random, device=random.device)

    coded = draw(count) < how.coded
    if coded.any():
        latents = codec.encode_halved(pictures[coded])
        latents = latents + 0.15 * draw(len(latents), 1, 1, 1) * normal(latents.shape)
        pictures = pictures.clone()
        pictures[coded] = F.avg_pool2d(codec.decode(latents), 2)
    blurred = draw(count) < how.blurred
    if blurred.any():
        side = int(torch.randint(24, 56, (), generator=random, device=random.device))
        small = F.interpolate(pictures[blurred], size=(side, side), mode="area")
        pictures = pictures.clone()
        pictures[blurred] = F.interpolate(small, size=pictures.shape[-2:], mode="bilinear", align_corners=False)
    gain = 1 + how.light * (2 * draw(count, 1, 1, 1) - 1) + how.tint * (2 * draw(count, 3, 1, 1) - 1)
    noise = how.noise * draw(count, 1, 1, 1) * normal(pictures.shape)
    return (pictures * gain + noise).clamp(0, 1)


class RecogniserTraining:
    """Trains one recogniser on one corpus."""

    def __init__(
        self, build: Callable[[], IResNet], crop: int, corpus: Corpus, codec: PatchCodec, folder: Path, steps: int,
        how: Augmentation = Augmentation(), seed: int = 0, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        torch.manual_seed(seed)
        self.net, self.crop, self.corpus, self.how, self.seed = build(), crop, corpus, how, seed
        self.codec, self.device = codec.to(device), device
        dim = self.net.features.num_features
        self.cosface, self.traits_head = CosFace(dim, corpus.order.count), TraitsHead(dim)
        self.net.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        modules = {"net": self.net, "cosface": self.cosface, "traits": self.traits_head}
        parameters = [p for module in modules.values() for p in module.to(device).parameters()]
        optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.05)
        averages = {"net": Average(self.net, 0.998)}
        self.run = Run(folder, modules, optimizer, steps, seed, averages=averages, clip=5.0, device=device)
        self.person = torch.from_numpy(corpus.person).to(device)
        self.traits = torch.from_numpy(corpus.people.traits).to(device)
        self.kinds = torch.from_numpy(corpus.people.kinds).to(device)

    def loss(self, step: int, random: torch.Generator) -> Tensor:
        """CosFace, its margin rising over the first third, plus half of the traits' error."""
        rows = rows_of_step(step, BATCH, len(self.corpus), self.seed)
        pictures = augment(self.corpus.pictures(rows).to(self.device), self.codec, self.how, random)
        missed = self.how.jitter * torch.randn(len(rows), 5, 2, generator=random, device=self.device)
        crops = aligned_crops(pictures, self.corpus.keypoints[rows] + missed.cpu().numpy(), self.crop)
        embeddings = self.net(crops.contiguous(memory_format=torch.channels_last))
        margin = MARGIN * min(1.0, self.run.step / (_BATCHES_TO_FULL_MARGIN * self.run.steps))
        identity = F.cross_entropy(self.cosface(embeddings, self.person[rows], margin), self.person[rows])
        return identity + TRAITS_WEIGHT * self.traits_head(embeddings, self.traits[rows], self.kinds[rows])


@torch.no_grad()
def embed_corpus(net: IResNet, crop: int, corpus: Corpus, jitter: float = 0.0, seed: int = 0) -> np.ndarray:
    """Raw embeddings (N, D) float32 of all images, with the true keypoints moved by `jitter` pixels."""
    random = np.random.default_rng(seed)
    net.eval()
    rows = []
    for start in range(0, len(corpus), 256):
        part = slice(start, start + 256)
        pictures = corpus.pictures(part)
        points = corpus.keypoints[part] + jitter * random.standard_normal((len(pictures), 5, 2)).astype(np.float32)
        rows.append(net(aligned_crops(pictures, points, crop)).numpy())
    return np.concatenate(rows)


def verification(embeddings: np.ndarray, person: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Accuracy at the best threshold, and true accepts at one false in a hundred, over as many pairs of either kind.

    embeddings: (N, D); person: (N,) who is shown.
    """
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.triu_indices(len(person), 1)
    same = person[first] == person[second]
    genuine = np.flatnonzero(same)
    impostor = np.random.default_rng(seed).choice(np.flatnonzero(~same), min(200_000, (~same).sum()), replace=False)
    right = np.sort(np.einsum("nd,nd->n", unit[first[genuine]], unit[second[genuine]]))
    wrong = np.sort(np.einsum("nd,nd->n", unit[first[impostor]], unit[second[impostor]]))
    thresholds = np.linspace(-0.2, 0.9, 500)
    accepted = 1 - np.searchsorted(right, thresholds) / len(right)
    rejected = np.searchsorted(wrong, thresholds) / len(wrong)
    at_one_percent = wrong[math.floor(0.99 * len(wrong))]
    return float(((accepted + rejected) / 2).max()), float((right > at_one_percent).mean())
