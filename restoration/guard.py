"""The identity guard: a face is restored only as far as the person stays the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import LikenessError
from ..faces.analysis import FaceAnalysis, Recogniser
from ..faces.identity import Identity
from ..faces.similarity import ARCFACE_SAME, cosine_similarity, on_scale_of

SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the restoration, tried in this order


@dataclass(frozen=True)
class Likeness:
    """Cosines to the person: of the crop, of the whole restoration, and of what was kept of it. stranger: to the crop
    itself, because the face is not the person who was meant."""

    before: float
    restored: float
    kept: float
    stranger: bool = False


@dataclass(frozen=True, eq=False)
class Guard:
    """Who the person is, and how much likeness a restoration must leave.

    least: the share of the crop's own likeness, on ArcFace's scale; 0 measures without ever reducing. person: the
    embedding (D,) that is compared with; None: the crop itself, whose likeness is 1. strangers: a face that is not the
    person, as others in an image of several people, is compared with itself.
    """

    recogniser: Recogniser
    least: float = 0.5
    person: Tensor | None = None
    strangers: bool = True

    def keep_person(self, crop: Tensor, restored: Tensor, points: np.ndarray) -> tuple[float, Likeness | None]:
        """The largest share of the restoration that keeps the person, 0 where none does; without a likeness where the
        recogniser cannot see the face.

        Crops (3, S, S), RGB 0..1, whose keypoints are (5, 2). The share blends the restored crop over the other one.
        """
        original = self._embedding(crop, points)
        if original is None:
            return (0.0 if self.least > 0 else 1.0), None
        whole = self._embedding(restored, points)
        person, stranger = original if self.person is None else self._fitting(original), False
        if self.strangers and max(_cosine(original, person), _cosine(whole, person)) < self._on_scale(ARCFACE_SAME):
            person, stranger = original, True
        before, plain = _cosine(original, person), _cosine(whole, person)
        needed = before * self._on_scale(self.least) if before > 0 else before
        if self.least <= 0 or plain >= needed:
            return 1.0, Likeness(before, plain, plain, stranger)
        for share in SHARES[1:]:
            kept = _cosine(self._embedding(crop + share * (restored - crop), points), person)
            if kept >= needed:
                return share, Likeness(before, plain, kept, stranger)
        return 0.0, Likeness(before, plain, before, stranger)

    def _on_scale(self, cosine: float) -> float:
        return on_scale_of(self.recogniser.name, cosine)

    def _fitting(self, seen: Tensor) -> Tensor:
        """The person, where the recogniser gives embeddings of this length."""
        assert self.person is not None
        if self.person.shape != seen.shape:
            raise LikenessError(
                f"The identity has embeddings of width {len(self.person)} and {self.recogniser.name} those of width "
                f"{len(seen)}: make the identity again with this face analysis."
            )
        return self.person

    def _embedding(self, crop: Tensor, points: np.ndarray) -> Tensor | None:
        """(D,); None where the face cannot be recognised: keypoints on one point, values that say nothing."""
        pixels = (crop.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
        try:
            row = torch.from_numpy(np.asarray(self.recogniser.embed(pixels, points.astype(np.float32)), np.float32))
        except LikenessError:
            return None
        return row if bool(row.isfinite().all()) and bool(row.any()) else None


def _cosine(seen: Tensor | None, person: Tensor) -> float:
    """Of two embeddings (D,); the least there is for a face that cannot be recognised."""
    return -1.0 if seen is None else float(cosine_similarity(seen[None], person[None])[0, 0])


def guard_of(
    analysis: FaceAnalysis, least: float, identity: Identity | None = None, strangers: bool = True
) -> Guard | None:
    """The guard of an analysis; None where it has no recogniser. strangers: see `Guard`.

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
    return Guard(recogniser, least, seen.mean_embedding(), strangers)
