"""Matching reward: every wanted person in the image once, and no face like two of them (UMO, arXiv 2509.06818).

    S_mn = t_m · p_n             cosines of the wanted people t (M) and the faces p of the image (N)
    a    = argmax Σ_m S_m,a(m)   over one-to-one assignments, without gradient
    r    = 1/(M N) Σ_mn w_mn S_mn,   w = +1 where assigned, −1 elsewhere;   0 where M = 0 or N = 0

A loss is −r. For one person and one face r is their cosine. By itself r falls with the number of people, and a person
who is missing costs nothing: `Reward` has what changes that, all of it off, as in the official code
(bytedance/UMO@aada3dc).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...faces.align import ARCFACE, Template


@dataclass(frozen=True)
class Reward:
    """The official reward, and options.

    normalise: the mean of the assigned cosines minus the mean of the others, which does not fall with the number of
    people. margin: a wrong cosine counts only as far as it is above that of the two people themselves, so that
    relatives are not driven apart. missing: what every wanted person without a face takes off.
    """

    normalise: bool = False
    margin: bool = False
    missing: float = 0.0

    def __call__(self, people: Tensor, faces: Tensor) -> Tensor:
        """people (M, d) and faces (N, d), embeddings of any length -> a scalar with gradient to the faces alone."""
        m, n = len(people), len(faces)
        gone = self.missing * max(0, m - n)
        if not m or not n:
            return faces.new_zeros((), dtype=torch.float32) - gone
        cosines = F.normalize(people.detach().float(), dim=1) @ F.normalize(faces.float(), dim=1).T
        cosines = torch.where(cosines.isfinite(), cosines, cosines.new_tensor(-1.0))
        assigned = assign(cosines)
        wrong = cosines
        if self.margin:
            wrong = F.relu(cosines - _between(people, assigned))
        if self.normalise:
            reward = cosines[assigned].mean()
            return (reward - wrong[~assigned].mean() if bool((~assigned).any()) else reward) - gone
        return torch.where(assigned, cosines, -wrong).mean() - gone


def assign(cosines: Tensor) -> Tensor:
    """(M, N) bool: the one-to-one assignment of the greatest sum (Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cosines.detach().cpu().double().numpy(), maximize=True)
    assigned = torch.zeros(cosines.shape, dtype=torch.bool, device=cosines.device)
    assigned[torch.from_numpy(rows), torch.from_numpy(columns)] = True
    return assigned


def _between(people: Tensor, assigned: Tensor) -> Tensor:
    """(M, N): how alike person m and the person whose face n is are; 0 for a face that is nobody's."""
    unit = F.normalize(people.detach().float(), dim=1)
    return (unit @ unit.T) @ assigned.to(unit)


def embeddings(picture: Tensor, landmarks: Tensor, recogniser: Callable[[Tensor], Tensor]) -> Tensor:
    """Faces of an image (3, H, W), RGB −1..1, as a recogniser of crops sees them: (N, d).

    landmarks: (N, 5, 2) in pixels. Outside of the image crops are 0, mid-grey, as the official ones.
    """
    template: Template = getattr(recogniser, "template", ARCFACE)
    if not len(landmarks):
        return picture.new_zeros(0, 1)
    return recogniser(template.crops(picture.float().expand(len(landmarks), -1, -1, -1), landmarks))


def matching_reward(people: Sequence[Tensor], faces: Sequence[Tensor], reward: Reward | None = None) -> Tensor | None:
    """The mean over the images of a batch that have a face and somebody wanted; None where none has.

    people, faces: one (M, d) and one (N, d) for each image. With a penalty for missing people, images without a
    face count as well.
    """
    score = reward or Reward()
    counted = [
        score(wanted, found)
        for wanted, found in zip(people, faces, strict=True)
        if len(wanted) and (len(found) or score.missing)
    ]
    return torch.stack(counted).mean() if counted else None
