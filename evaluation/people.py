"""Several people in one image: who is who, is everybody there, and did one person's features reach another.

Faces and references are embeddings of the judge, one row each; faces (n, D), references (m, D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..faces import cosine_similarity
from .copying import SMALLEST_ANGLE, angle

NOBODY = -1


@dataclass(frozen=True)
class Matching:
    """Which face is whose: at most one face each."""

    face_of: tuple[int, ...]  # for each reference the face's row, or NOBODY
    cosines: tuple[float, ...]  # for each reference, 0 where it has no face

    @property
    def id_min(self) -> float:
        """The least well kept person: a method that gets one of two right must not average to good."""
        return min(self.cosines, default=float("nan"))

    @property
    def id_mean(self) -> float:
        """The mean over people."""
        return float(np.mean(self.cosines)) if self.cosines else float("nan")


def match(faces: torch.Tensor, references: torch.Tensor) -> Matching:
    """The assignment of faces to people with the greatest sum of cosines (Hungarian method); NaN counts as -1."""
    from scipy.optimize import linear_sum_assignment

    alike = _cosines(faces, references)
    rows, columns = linear_sum_assignment(alike, maximize=True)
    face_of = dict(zip(columns.tolist(), rows.tolist(), strict=True))
    everybody = range(alike.shape[1])
    return Matching(
        face_of=tuple(face_of.get(person, NOBODY) for person in everybody),
        cosines=tuple(float(alike[face_of[person], person]) if person in face_of else 0.0 for person in everybody),
    )


def _cosines(faces: torch.Tensor, references: torch.Tensor) -> np.ndarray:
    if not len(faces) or not len(references):
        return np.zeros((len(faces), len(references)))
    return np.nan_to_num(cosine_similarity(faces, references).double().numpy(), nan=-1.0)


def confusion(faces: torch.Tensor, references: torch.Tensor, matching: Matching | None = None) -> float:
    """Mean over matched faces of max(0, cosine to the best wrong reference - cosine to the right one).

    0: every face is most like its own person. NaN with fewer than two people or without a matched face.
    """
    alike = _cosines(faces, references)
    matching = matching or match(faces, references)
    if alike.shape[1] < 2:
        return float("nan")
    gaps = [
        max(0.0, float(np.delete(alike[face], person).max() - alike[face, person]))
        for person, face in enumerate(matching.face_of)
        if face != NOBODY
    ]
    return float(np.mean(gaps)) if gaps else float("nan")


def blend(faces: torch.Tensor, references: torch.Tensor, matching: Matching | None = None) -> float:
    """Mean cosine of faces to people they are not, minus the mean cosine between the people themselves.

    0: faces are as unlike the others as the people are. NaN with fewer than two people or without a matched face.
    """
    alike, people = _cosines(faces, references), _cosines(references, references)
    matching = matching or match(faces, references)
    wrong = _wrong_cosines(alike, matching)
    if not wrong:
        return float("nan")
    between = people[~np.eye(len(people), dtype=bool)]
    return float(np.mean(wrong) - between.mean())


@dataclass(frozen=True)
class Wanted:
    """An image of several people as UMO (arXiv 2509.06818) counts it; larger is better for all but `unmatched`.

    id_sim: for each person the best cosine over all faces, 0 without a face. id_conf: for each person how far the best
    face is ahead of the second best, as a share of it, empty with fewer than two faces: larger is less mixing, but two
    strangers score like two right people, so it is read beside the others. reward: `training.objectives.matching`.
    matched, unmatched: means of the assigned cosines and of the others. found: people who have a face; extra: faces
    beyond the people, below 0 where some are missing. crossed: (people, people), cosine of each person to the face of
    each, NaN where that has none: mixing is off the diagonal.
    """

    id_sim: tuple[float, ...]
    id_conf: tuple[float, ...]
    reward: float
    matched: float
    unmatched: float
    found: int
    extra: int
    crossed: tuple[tuple[float, ...], ...] = ()


def wanted(faces: torch.Tensor, references: torch.Tensor) -> Wanted:
    """UMO's figures of one image: faces (n, D), references (m, D)."""
    return wanted_of(_cosines(faces, references).T)


def wanted_of(alike: np.ndarray) -> Wanted:
    """The same from cosines (people, faces)."""
    from scipy.optimize import linear_sum_assignment

    people, faces = alike.shape
    assigned = np.zeros(alike.shape, bool)
    assigned[linear_sum_assignment(alike, maximize=True)] = True
    best = np.sort(alike, axis=1)[:, ::-1]
    return Wanted(
        id_sim=tuple(float(row[0]) if faces else 0.0 for row in best),
        id_conf=tuple(_ahead(row[0], row[1]) for row in best) if faces > 1 else (),
        reward=float(np.where(assigned, alike, -alike).mean()) if alike.size else 0.0,
        matched=_mean(alike[assigned].tolist()),
        unmatched=_mean(alike[~assigned].tolist()),
        found=int(assigned.sum()),
        extra=faces - people,
        crossed=tuple(tuple(row) for row in _crossed(alike, assigned).tolist()),
    )


def _crossed(alike: np.ndarray, assigned: np.ndarray) -> np.ndarray:
    table = np.full((len(alike), len(alike)), np.nan)
    for person, face in zip(*np.nonzero(assigned), strict=True):
        table[:, person] = alike[:, face]
    return table


def _ahead(best: float, second: float) -> float:
    return float(min(1.0, (best - second) / best)) if best > 0 else 0.0


@dataclass(frozen=True)
class MultiId:
    """An image of several people as MultiID-Bench (arXiv 2510.14975) counts it, the mean over people.

    sim_gt: cosine to a photo of the person that was not given. sim_ref: to the one that was. copy_paste: how much
    nearer the face is to the given one (`copying.copy_angle`). blending: cosine to people whom a face is not meant to
    show, which also holds how alike these are (`blend` takes that off). NaN where nobody is left to count.
    """

    sim_gt: float
    sim_ref: float
    copy_paste: float
    blending: float


def multi_id(faces: torch.Tensor, targets: torch.Tensor, references: torch.Tensor) -> MultiId:
    """The benchmark's figures for faces (n, D) of one image; row i of targets and references (m, D) is person i.

    Faces are assigned to targets and to references apart from each other, as there. A person without a face counts as 0
    in the similarities and takes no part in the rest.
    """
    to_targets, to_references = match(faces, targets), match(faces, references)
    copies = [
        _copy(faces[own], faces[given], targets[person], references[person])
        for person, (own, given) in enumerate(zip(to_targets.face_of, to_references.face_of, strict=True))
        if own != NOBODY and given != NOBODY
    ]
    wrong = _wrong_cosines(_cosines(faces, targets), to_targets)
    return MultiId(to_targets.id_mean, to_references.id_mean, _mean(copies), _mean(wrong))


def _copy(seen: torch.Tensor, given: torch.Tensor, target: torch.Tensor, reference: torch.Tensor) -> float:
    nearer = angle(seen, target) - angle(given, reference)
    return float(nearer / angle(target, reference).clamp(min=SMALLEST_ANGLE))


def _wrong_cosines(alike: np.ndarray, matching: Matching) -> list[float]:
    """Cosines of matched faces to everybody else."""
    return [
        float(alike[face, other])
        for person, face in enumerate(matching.face_of)
        for other in range(alike.shape[1])
        if face != NOBODY and other != person
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def leak_pixels(with_person: torch.Tensor, without: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    """How much a person changes the image outside of their region: RMS change outside over RMS change inside (n,).

    Images (n, H, W, 3) of the same seeds, region (H, W) or (n, H, W) 0..1. NaN where nothing changed inside or the
    region leaves no outside.
    """
    inside, outside = rms_change(with_person, without, region)
    return torch.where(inside > 0, outside / inside, torch.nan)


def rms_change(
    with_person: torch.Tensor, without: torch.Tensor, region: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """RMS change inside and outside of a region, (n,) each; arguments of `leak_pixels`. NaN where empty."""
    change = (with_person.double() - without.double()).pow(2).mean(-1)
    region = region.double().expand_as(change)
    inside, outside = ((change * part).sum((1, 2)) / part.sum((1, 2)) for part in (region, 1 - region))
    return inside.sqrt(), outside.sqrt()


def leak_attention(
    maps: Sequence[torch.Tensor], regions: torch.Tensor, weights: Sequence[float] | None = None
) -> torch.Tensor:
    """Share (people,) of the attention mass of each person's tokens that lies outside of the person's region.

    `maps` (people, h, w) are the masses of one site and step each, of any size; `regions` (people, H, W) 0..1. The
    shares are averaged with `weights`, one for each map. A map without mass takes no part.
    """
    weights = [1.0] * len(maps) if weights is None else list(weights)
    total, mass = torch.zeros(len(regions), dtype=torch.float64), torch.zeros(len(regions), dtype=torch.float64)
    for heat, weight in zip(maps, weights, strict=True):
        heat = heat.double()
        _, height, width = heat.shape
        inside = F.adaptive_avg_pool2d(regions.double()[:, None], (height, width))[:, 0]
        sums = heat.sum((1, 2))
        share = (heat * (1 - inside)).sum((1, 2)) / sums.clamp(min=1e-12)
        counts = weight * (sums > 0)
        total, mass = total + counts * share, mass + counts
    return torch.where(mass > 0, total / mass.clamp(min=1e-12), torch.nan)
