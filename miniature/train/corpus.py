"""Images for training, drawn once and kept on disk: what the training of the miniature's networks reads.

Who and what is drawn follows from the split and the seeds alone, so only pixels and measured places are stored.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...faces.parsing import Part
from ..drawing.people import People, split_people
from ..drawing.renderer import render_batches
from ..drawing.shots import Shots, Style, draw_shots

SIDE = 64
_SHARD = 2048
_FIRST_PHOTO = 500  # a person's images of every style have smaller numbers
_FACE_WEIGHT, _HEAD_WEIGHT = 4, 2  # of the loss, where the background and the clothes count 1
_NOT_HEAD = (Part.BACKGROUND, Part.CLOTH)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Order:
    """Which pictures: `each` of every one of `count` people of a split, from its `start`-th person on.

    photos: in the style of a photo only, in other poses and lights than the images of every style.
    """

    split: str
    count: int
    each: int
    start: int = 0
    photos: bool = False

    def people(self) -> People:
        """One row per image: a person's images follow each other."""
        return split_people(self.split, self.count, self.start)[np.repeat(np.arange(self.count), self.each)]

    def shots(self) -> Shots:
        """One row per image; a shot's seed is the person's and the image's number, never drawn for anybody else."""
        number = np.tile(np.arange(self.each), self.count) + (_FIRST_PHOTO if self.photos else 0)
        shots = draw_shots(self.people().seeds * 1000 + number)
        return shots.with_style(Style.PHOTO) if self.photos else shots

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.split}-{self.start}-{self.count}x{self.each}{'-photos' if self.photos else ''}"

    def __len__(self) -> int:
        return self.count * self.each


@dataclass(frozen=True)
class Corpus:
    """The images of an order."""

    order: Order
    people: People
    shots: Shots
    rgb: np.ndarray  # (N, 64, 64, 3) uint8
    weight: np.ndarray  # (N, 16, 16) uint8: root of what each latent counts, more where the head and the face are
    keypoints: np.ndarray  # (N, 5, 2) float32 pixels
    boxes: np.ndarray  # (N, 4) float32 pixels

    def __len__(self) -> int:
        return len(self.rgb)

    def pictures(self, rows: np.ndarray | slice) -> Tensor:
        """The images of these rows, (B, 3, 64, 64), RGB 0..1."""
        return torch.from_numpy(self.rgb[rows]).permute(0, 3, 1, 2).float() / 255

    @property
    def person(self) -> np.ndarray:
        """(N,) int: the person's number within the order."""
        return np.repeat(np.arange(self.order.count), self.order.each)


def importance(parts: np.ndarray, face: np.ndarray) -> np.ndarray:
    """Roots of loss weights (B, 16, 16) uint8 from the parsing map (B, 64, 64) and the face's coverage (B, 64, 64)."""
    head = ~np.isin(parts, [int(part) for part in _NOT_HEAD])
    cells = [area.reshape(len(parts), 16, 4, 16, 4).mean((2, 4)) > 0.25 for area in (head, face)]
    return np.where(cells[1], _FACE_WEIGHT, np.where(cells[0], _HEAD_WEIGHT, 1)).astype(np.uint8)


def draw_corpus(order: Order, folder: Path, workers: int = 1, progress: Progress | None = None) -> Corpus:
    """The images of an order, read from `folder`; those that are missing are drawn first, in worker processes."""
    folder = folder / order.name
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(order), _SHARD)
    missing = [start for start in starts if not _shard(folder, start).exists()]
    draw = partial(_draw_shard, order, folder)
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        finished = pool.map(draw, missing) if pool else map(draw, missing)
        for done, _ in enumerate(finished, 1 + len(starts) - len(missing)):
            if progress:
                progress(done, len(starts))
    shards = [np.load(_shard(folder, start)) for start in starts]
    arrays = {name: np.concatenate([shard[name] for shard in shards]) for name in shards[0].files}
    return Corpus(order, order.people(), order.shots(), **arrays)


def _shard(folder: Path, start: int) -> Path:
    return folder / f"{start:07d}.npz"


def _draw_shard(order: Order, folder: Path, start: int) -> None:
    torch.set_num_threads(1)
    rows = slice(start, start + _SHARD)
    batches = list(render_batches(order.people()[rows], order.shots()[rows], SIDE))
    partial_file = folder / f"{start:07d}.partial.npz"
    np.savez(
        partial_file,
        rgb=np.concatenate([(batch.rgb * 255 + 0.5).to(torch.uint8).numpy() for batch in batches]),
        weight=np.concatenate([importance(batch.parts.numpy(), batch.face.numpy()) for batch in batches]),
        keypoints=np.concatenate([batch.keypoints.numpy() for batch in batches]),
        boxes=np.concatenate([batch.boxes.numpy() for batch in batches]),
    )
    partial_file.replace(_shard(folder, start))
