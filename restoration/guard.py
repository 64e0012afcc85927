"""The identity guard: a face is restored only as far as the person stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import LikenessError
from ..faces.analysis import FaceAnalysis, Recogniser
from ..faces.identity import Identity
from ..faces.similarity import cosine_similarity, on_scale_of

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the restoration, tried in this order


@dataclass(frozen=True)
class Likeness:
    """Cosines to the person: of the crop, of the whole restoration, and of what was kept of it."""

    before: float
    restored: float
    kept: float


@dataclass(frozen=True, eq=False)
class Guard:
    """Who the person is, and how much likeness a restoration must leave.

    least: the share of the crop's own likeness, on ArcFace's scale; 0 measures without ever reducing. person: the
    embedding (D,) that is compared with; None: the crop itself, whose likeness is 1.
    """

    recogniser: Recogniser
    least: float = 0.5
    person: Tensor | None = None

    def keep_person(self, crop: Tensor, restored: Tensor, points: np.ndarray) -> tuple[float, Likeness]:
        """The largest share of the restoration that keeps the person, 0 where none does.

        Crops (3, S, S), RGB 0..1, whose keypoints are (5, 2). The share blends the restored crop over the other one.
        """
        original = self._embedding(crop, points)
        person = original if self.person is None else self.person

        def likeness(embedding: Tensor) -> float:
            return float(cosine_similarity(embedding[None], person[None])[0, 0])

        before = likeness(original)
        needed = before * on_scale_of(self.recogniser.name, self.least) if before > 0 else before
        plain = likeness(self._embedding(restored, points))
        if self.least <= 0 or plain >= needed:
            return 1.0, Likeness(before, plain, plain)
        for share in SHARES[1:]:
            kept = likeness(self._embedding(crop + share * (restored - crop), points))
            if kept >= needed:
                return share, Likeness(before, plain, kept)
        return 0.0, Likeness(before, plain, before)

    def _embedding(self, crop: Tensor, points: np.ndarray) -> Tensor:
        pixels = (crop.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        return torch.from_numpy(np.asarray(self.recogniser.embed(pixels, points.astype(np.float32)), np.float32))


def guard_of(analysis: FaceAnalysis, least: float, identity: Identity | None = None) -> Guard | None:
    """The guard of an analysis; None where it has no recogniser.

    Raises LikenessError for an identity that the analysis cannot recognise.
    """
    recogniser = analysis.recogniser
    if recogniser is None:
        if identity is not None:
            raise LikenessError(
                f"{analysis.name} has no recogniser, so it cannot tell whether a face is still {identity.name!r}: "
                "choose a face analysis that has one, for example buffalo_l, or disconnect the identity."
            )
        return None
    if identity is None:
        return Guard(recogniser, least)
    seen = identity.seen_again(recogniser).as_seen_by(recogniser.name)
    return Guard(recogniser, least, seen.mean_embedding())
