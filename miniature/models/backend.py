"""The miniature's face analysis: its observer as the detector, and one of its two recognisers.

The networks read images of 64 pixels; photos of any size and shape are brought there first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...faces import Detection, FaceAnalysis, FrozenRecogniser, Search
from .crops import aligned_crops
from .networks import JUDGE_CROP, RECOGNISER_CROP, Observer, halve
from .weights import FOLDER, load_judge, load_observer, load_recogniser

SIDE = 64
MINIATURE, JUDGE = "miniature", "miniature-judge"  # of the analyses, and of the spaces of their embeddings
LICENCE = "part of this pack; trained on drawn people only"


# Drawn faces score 0.87 and more (1200 images of every style), photographs of the real world 0.81 and less; a real
# head that fills the frame as a drawn one does is still taken for one.
PRESENT = 0.85


class Observation(NamedTuple):
    """What the observer sees in images of any one square size, in their pixels (centres whole)."""

    keypoints: Tensor  # (B, 5, 2)
    boxes: Tensor  # (B, 4): x1, y1, x2, y2
    logits: Tensor  # (B,), of a face of this world

    @property
    def scores(self) -> Tensor:
        """(B,), 0..1; an image from `PRESENT` on shows a face."""
        return self.logits.sigmoid()


@torch.no_grad()
def observe(observer: Observer, pictures: Tensor) -> Observation:
    """The one face of every image (B, 3, S, S), RGB 0..1."""
    _, points, logits = observer(halve(pictures, SIDE))
    points = points * pictures.shape[-1] - 0.5
    keypoints, corners = points[:, :5], points[:, 5:]
    return Observation(keypoints, torch.cat([corners.amin(1), corners.amax(1)], 1), logits)


def _planes(photo: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 as (1, 3, H, W), 0..1."""
    return torch.from_numpy(photo.astype(np.float32)).permute(2, 0, 1)[None] / 255


@dataclass(frozen=True, eq=False)
class MiniatureDetector:
    """At most one face per photo. Of an oblong photo its squares are searched, and the whole of it made square."""

    observer: Observer
    name: str = MINIATURE
    threshold: float = PRESENT
    sizes: tuple[int, ...] = (SIDE,)

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        """See `Detector.detect`."""
        photo = _planes(image_bgr[..., ::-1])
        sights = [(observe(self.observer, square), corner) for square, corner in _squares(photo)]
        sight, corner = max(sights, key=lambda seen: float(seen[0].logits))
        box = (sight.boxes[0] + corner.repeat(2)).numpy()
        return [Detection(box, float(sight.scores), (sight.keypoints[0] + corner).numpy())]


def _squares(photo: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Square images out of (1, 3, H, W) with the place of their corner (x, y): three along an oblong photo, and the
    whole photo with its borders drawn out."""
    height, width = photo.shape[-2:]
    if height == width:
        return [(photo, torch.zeros(2))]
    short, spare = min(height, width), abs(height - width)
    along = torch.tensor([1.0, 0.0] if width > height else [0.0, 1.0])
    found = []
    for start in (0, spare // 2, spare):
        rows, columns = (slice(None), slice(start, start + short))[:: 1 if width > height else -1]
        found.append((photo[..., rows, columns], start * along))
    before, after = spare // 2, spare - spare // 2
    borders = (0, 0, before, after) if width > height else (before, after, 0, 0)
    return [*found, (F.pad(photo, borders, mode="replicate"), -before * along.flip(0))]


@dataclass(frozen=True, eq=False)
class MiniatureRecogniser:
    """One of the miniature's recognisers. For losses, `measure` has gradient to the images."""

    module: FrozenRecogniser
    side: int  # of its crops

    @property
    def name(self) -> str:
        """Of the space of the embeddings."""
        return self.module.name

    def measure(self, pictures: Tensor, keypoints: np.ndarray | Tensor) -> Tensor:
        """Raw embeddings (B, D) of the faces with keypoints (B, 5, 2) in images (B, 3, H, W), RGB 0..1."""
        points = keypoints.detach().cpu().numpy() if isinstance(keypoints, Tensor) else keypoints
        scale = SIDE / min(pictures.shape[-2:])
        if scale != 1:
            height, width = (round(side * scale) for side in pictures.shape[-2:])
            pictures = F.interpolate(pictures, size=(height, width), mode="area")
            points = (points + 0.5) * scale - 0.5
        return self.module(aligned_crops(pictures, points, self.side))

    @torch.no_grad()
    def embed(self, image_rgb: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """See `Recogniser.embed`."""
        photo = _planes(image_rgb)
        return self.measure(photo, keypoints[None])[0].numpy()


class NoneOfThisWorld(Search):
    """A search for a drawn face."""

    def explain(self, where: str = "the photo") -> str:
        """One sentence for a user whose photo shows nobody of the miniature world."""
        return (
            f"No face of the miniature world was found in {where} (score {self.best_score:.2f}, {self.threshold:.2f} "
            "is needed): it knows its own drawn people only; give an image of one of them, or choose another "
            "face analysis for real photographs."
        )


class MiniatureAnalysis(FaceAnalysis):
    """Searches once: neither other sizes nor borders help a detector that was trained on whole small images."""

    def search(self, photo: np.ndarray, number: int = 0, embed: bool = True) -> Search:
        """See `FaceAnalysis.search`."""
        seen = self.detector.detect(photo[..., ::-1])
        faces = [self._face(photo, one, number, embed) for one in seen if one.score >= self.detector.threshold]
        best = max(one.score for one in seen)
        return NoneOfThisWorld(faces, (f"size {SIDE}",), best, self.detector.threshold, photo.shape[:2])


def miniature_analysis(folder: Path = FOLDER) -> FaceAnalysis:
    """The detector and the recogniser that conditions. LikenessError when a weight file is missing or damaged."""
    return _analysis(MINIATURE, load_recogniser, RECOGNISER_CROP, folder)


def miniature_judge(folder: Path = FOLDER) -> FaceAnalysis:
    """The same detector and the recogniser that judges: another net, trained on other people. Errors as above."""
    return _analysis(JUDGE, load_judge, JUDGE_CROP, folder)


def _analysis(name: str, load: Callable[[Path], nn.Module], side: int, folder: Path) -> FaceAnalysis:
    recogniser = MiniatureRecogniser(FrozenRecogniser(load(folder), name), side)
    return MiniatureAnalysis(name, MiniatureDetector(load_observer(folder)), recogniser, LICENCE, commercial=True)
