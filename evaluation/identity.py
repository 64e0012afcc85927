"""Is it the person? Cosines of a judge, a recogniser that neither conditioned nor trained what it judges.

An image in which the judge finds no face has the zero vector for an embedding. Everything follows from that: its
cosine to everybody is 0, its margin 0, its rank the last. Missing faces are results, not gaps.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import (
    Choice,
    Face,
    FaceAnalysis,
    Identity,
    cosine_similarity,
    mean_direction,
    order_faces,
    to_photos,
)
from ..faces.analysis import Recogniser
from ..faces.select import is_inside
from ..storage import write_once
from .statistics import auc, eer, threshold_at

LEAST_SCORE = 0.5  # of a detection that counts as a face
FALSE_MATCH_RATES = (1e-1, 1e-2, 1e-3)
TYPICAL_GENUINE = 0.46  # median cosine of two photos of one person in MultiID-2M, by ArcFace (arXiv 2510.14975)
MOST_PERCENT = 120.0
LEAST_LEVEL = 0.05  # photos less alike than this give no scale
_RELATED = ({"auraface", "antelopev2"},)  # the same kind of network, trained with the same loss


# --- judges


def recogniser_of(judge: FaceAnalysis) -> Recogniser:
    """The judge's recogniser; LikenessError for a face analysis that only finds faces."""
    if judge.recogniser is None:
        raise LikenessError(
            f"The judge {judge.name} has no recogniser, so it cannot tell whether two faces are one person: choose a "
            "face analysis that has one, for example OpenCV (YuNet + SFace)."
        )
    return judge.recogniser


def check_judge(
    judge: FaceAnalysis, conditioners: Iterable[str | None], allow_same_recogniser: bool = False
) -> tuple[str, ...]:
    """Warnings to print beside this judge's numbers; LikenessError when it would judge its own work.

    `conditioners` are the names of the recognisers whose embeddings entered the images, by conditioning or training.
    """
    name = recogniser_of(judge).name
    known = {conditioner for conditioner in conditioners if conditioner}
    if name in known and not allow_same_recogniser:
        raise LikenessError(
            f"The judge {name} is the recogniser that made the identity, and would judge its own work: choose another "
            "face analysis, for example OpenCV (YuNet + SFace), or allow the same recogniser."
        )
    warnings = []
    if name in known:
        warnings.append(
            f"judge equals conditioner: {name} judges images that were optimised for {name}; likeness is overstated"
        )
    for pair in _RELATED:
        if name in pair and (pair - {name}) & known:
            warnings.append(
                f"the judge {name} is closely related to {', '.join(pair - {name})}, which made the identity"
            )
    return tuple(warnings)


@dataclass(frozen=True)
class Calibration:
    """How a judge's cosines are distributed over photos of known people."""

    recogniser: str
    genuine: float  # median cosine of two photos of one person
    thresholds: Mapping[float, float]  # false-match rate -> cosine from which two faces count as one person
    eer: float
    auc: float
    people: int
    photos: int
    missing: int  # photos in which the judge found no face; they take no part
    weights: str = ""  # SHA-256 of the recogniser's weights, where that is known

    def threshold(self, rate: float) -> float:
        """The cosine accepted at a false-match rate; LikenessError for a rate that was not measured."""
        if rate not in self.thresholds:
            measured = ", ".join(f"{known:g}" for known in self.thresholds)
            raise LikenessError(
                f"No threshold was measured at the false-match rate {rate:g}: choose one of {measured}."
            )
        return self.thresholds[rate]

    @property
    def in_words(self) -> str:
        """How good the judge is, for a report."""
        return (
            f"equal error rate {self.eer:.1%}, two photos of one person {self.genuine:.2f} alike (median), on "
            f"{self.photos} photos of {self.people} people, {self.missing} of them without a face"
        )

    def save(self, path: Path) -> Path:
        """Write it as JSON, whole or not at all; LikenessError when the path is taken or cannot be written."""
        record = asdict(self) | {"thresholds": {f"{rate:g}": value for rate, value in self.thresholds.items()}}
        text = json.dumps(record, indent=2, allow_nan=False)
        try:
            write_once(path, lambda part: part.write_text(text, encoding="utf-8"))
        except FileExistsError:
            raise LikenessError(f"The file {path.name!r} exists already: choose another name.") from None
        except OSError as error:
            raise LikenessError(
                f"The calibration could not be written to {str(path)!r} ({error.strerror or error}): choose another "
                "place."
            ) from error
        return path

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read what `save` wrote; LikenessError for anything else, values that cannot be measured among it."""
        try:
            if not path.is_file():  # a pipe would be waited for
                raise LikenessError(f"There is no calibration {str(path)!r}: make one with calibrate.")
            record = json.loads(path.read_text(encoding="utf-8"))
            thresholds = {float(rate): float(value) for rate, value in record["thresholds"].items()}
            read = cls(**{**record, "thresholds": thresholds})
            if read._is_possible():
                return read
        except LikenessError:
            raise
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass
        raise LikenessError(f"The calibration {path.name!r} cannot be read: make it again with calibrate.")

    def _is_possible(self) -> bool:
        """Whether these are texts, cosines, shares and counts, as `calibrate` measures them."""
        texts = isinstance(self.recogniser, str) and isinstance(self.weights, str)
        cosines = all(-1.001 <= value <= 1.001 for value in (self.genuine, *self.thresholds.values()))
        shares = all(0 <= value <= 1 for value in (self.eer, self.auc, *self.thresholds))
        return texts and cosines and shares and all(0 <= n < 2**53 for n in (self.people, self.photos, self.missing))


_SHIPPED = Path(__file__).parent / "calibrations"  # <recogniser>.json, on how many people is in the file


def calibration_of(judge: FaceAnalysis) -> Calibration | None:
    """What was measured of a free judge on real photos, and comes with the pack; None for any other."""
    name = recogniser_of(judge).name
    file = _SHIPPED / f"{name}.json"
    return Calibration.load(file) if name.isidentifier() and file.is_file() else None


def calibrate(judge: FaceAnalysis, people: Mapping[str, Iterable[torch.Tensor]]) -> Calibration:
    """Measure a judge on photos (H, W, 3) RGB 0..1 of known people, two or more each, over all pairs."""
    seen = [see(photos, judge) for photos in people.values()]
    kept = [sight.embeddings[sight.found] for sight in seen if bool(sight.found.any())]
    if len(kept) < 2 or not any(len(rows) > 1 for rows in kept):
        raise LikenessError(
            "A judge is measured on two people and two photos of one of them at least: give more photos."
        )
    owner = torch.repeat_interleave(torch.arange(len(kept)), torch.tensor([len(rows) for rows in kept]))
    alike = cosine_similarity(torch.cat(kept), torch.cat(kept))
    above = torch.ones_like(alike, dtype=torch.bool).triu(1)
    same = owner[:, None] == owner[None]
    genuine, impostor = alike[above & same].double().numpy(), alike[above & ~same].double().numpy()
    return Calibration(
        recogniser=recogniser_of(judge).name,
        genuine=float(np.median(genuine)),
        thresholds={rate: threshold_at(impostor, rate) for rate in FALSE_MATCH_RATES},
        eer=eer(genuine, impostor)[0],
        auc=auc(genuine, impostor),
        people=len(people),
        photos=sum(len(sight) for sight in seen),
        missing=sum(int((~sight.found).sum()) for sight in seen),
    )


# --- looking at images


@dataclass(frozen=True, eq=False)
class Sight:
    """What a judge sees in n pictures: the face that is meant in each, its embedding, and why there is none."""

    faces: tuple[Face | None, ...]
    embeddings: torch.Tensor  # (n, D) unit length, zero where there is no face
    reasons: tuple[str, ...]  # empty where there is a face
    counts: tuple[int, ...] = ()  # how many faces each image shows, where that was counted

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def found(self) -> torch.Tensor:
        """Which images show a face: (n,) bool."""
        return torch.tensor([face is not None for face in self.faces], dtype=torch.bool)


def see(
    images: torch.Tensor | Iterable[torch.Tensor],
    judge: FaceAnalysis,
    choice: Choice = Choice.LARGEST,
    regions: torch.Tensor | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> Sight:
    """The face that is meant in each image (H, W, C) RGB 0..1; images may differ in size. Never raises for one.

    The largest face is meant, not the most similar: that would hide wrong people. With `regions` (n, H, W) or
    (1, H, W) only faces whose middle lies inside of the image's mask count. `after_each` is called after each one.
    """
    recogniser = recogniser_of(judge)
    looked = []
    for number, image in enumerate(images):
        region = None if regions is None else regions[min(number, len(regions) - 1)]
        if bool(torch.isfinite(image).all()):
            (photo,) = to_photos(image[None])
            looked.append(_look(photo, number, judge, recogniser, choice, region))
        else:
            looked.append((None, "not an image (NaN)", 0))
        after_each()
    return _sight(looked)


def see_photos(photos: Iterable[np.ndarray], judge: FaceAnalysis) -> Sight:
    """Like `see`, for photos (H, W, 3) uint8 RGB."""
    recogniser = recogniser_of(judge)
    return _sight(
        [_look(photo, number, judge, recogniser, Choice.LARGEST, None) for number, photo in enumerate(photos)]
    )


_Look = tuple[Face | None, str, int]  # the face, why there is none, and how many there are


def _sight(looked: Sequence[_Look]) -> Sight:
    faces = tuple(face for face, _, _ in looked)
    return Sight(faces, _stack(faces), tuple(why for _, why, _ in looked), tuple(count for _, _, count in looked))


def _stack(faces: Sequence[Face | None]) -> torch.Tensor:
    vectors = [None if face is None else face.unit_embedding for face in faces]
    width = next((len(vector) for vector in vectors if vector is not None), 0)
    zero = np.zeros(width, np.float32)
    rows = [zero if vector is None else np.asarray(vector, np.float32) for vector in vectors]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, 0)


def _look(
    photo: np.ndarray,
    number: int,
    judge: FaceAnalysis,
    recogniser: Recogniser,
    choice: Choice,
    region: torch.Tensor | None,
) -> _Look:
    faces = [face for face in judge.find(photo, number, embed=False) if face.score >= LEAST_SCORE]
    if region is not None:
        faces = [face for face in faces if is_inside(face, region, photo.shape[:2])]
    if not faces:
        return None, "no face" if region is None else "no face in the region", 0
    face = order_faces(faces, choice, photo.shape[:2])[0]
    if face.keypoints is None:
        return None, "no keypoints", len(faces)
    try:
        embedding = recogniser.embed(photo, face.keypoints)
    except LikenessError as error:
        return None, str(error), len(faces)
    if not np.isfinite(embedding).all() or not np.any(embedding):
        return None, "the recogniser returned NaN", len(faces)
    return replace(face, embedding=embedding, recogniser=recogniser.name), "", len(faces)


@dataclass(frozen=True, eq=False)
class References:
    """A person's photos as a judge sees them."""

    embeddings: torch.Tensor  # (n, D) unit length
    weights: torch.Tensor  # (n,) how much each photo counts

    @property
    def mean(self) -> torch.Tensor:
        """The person as one direction (D,): the re-normalised mean of the photos' unit vectors."""
        return mean_direction(self.embeddings, self.weights)

    def level(self, calibration: Calibration | None = None) -> float:
        """The cosine that stands for 100 percent.

        The mean cosine between this person's photos if there are three or more; else the judge's median for two photos
        of one person, by its calibration or, without one, as published for ArcFace.
        """
        count = len(self.embeddings)
        if count >= 3:
            alike = cosine_similarity(self.embeddings, self.embeddings)
            own = float(alike.sum() - alike.diagonal().sum()) / (count * (count - 1))
            if own > LEAST_LEVEL:
                return own
        return TYPICAL_GENUINE if calibration is None else max(calibration.genuine, LEAST_LEVEL)


def references_of(identity: Identity, judge: FaceAnalysis) -> References:
    """The person as the judge sees the photos.

    An identity carries its conditioner's embeddings. For any other judge they are made from its aligned crops, which
    need no detector; where the identity has none, its heads are searched.
    """
    recogniser = recogniser_of(judge)
    if recogniser.name in identity.recognisers or len(identity.aligned):
        seen = identity.seen_again(recogniser).as_seen_by(recogniser.name)
        return References(seen.unit_embeddings, seen.weights)
    sight = see(identity.heads.float() / 255, judge)
    if not bool(sight.found.any()):
        raise LikenessError(
            f"The judge {judge.name} finds no face in the photos of the identity '{identity.name}': make the identity "
            "from clearer photos, or choose another judge."
        )
    return References(sight.embeddings[sight.found], identity.weights[sight.found])


# --- scores


@dataclass(frozen=True, eq=False)
class IdentityScores:
    """How much n images show one person. Rows of images without a face are zero; NaN is "not defined"."""

    sight: Sight
    cosines: torch.Tensor  # (n,) to the person's mean direction
    ranks: torch.Tensor  # (n,) 1 when nobody of the gallery is nearer than the person, gallery when everybody is
    margins: torch.Tensor  # (n,) cosine to the person minus the mean cosine to the others; NaN without others
    percents: torch.Tensor  # (n,) of real photos' likeness, 0..120
    gallery: int  # how many people, the person included
    level: float  # cosine that counts as 100 percent
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.cosines)

    @property
    def detected(self) -> float:
        """Share of images with a face."""
        return _mean(self.sight.found.float())

    @property
    def id(self) -> float:
        """Mean cosine over all images, 0 where no face was found; negative values are kept."""
        return _mean(self.cosines)

    @property
    def rank1(self) -> float:
        """Share of images whose nearest person of the gallery is the right one."""
        return _mean((self.ranks == 1).float())

    def accepted(self, threshold: float) -> torch.Tensor:
        """Which images count as the person from this cosine on: (n,) bool, False without a face."""
        return (self.cosines >= threshold) & self.sight.found

    def cosine_to(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Mean cosine (n,) to some photos (m, D) of the judge: `id_ref` for the conditioning ones, `id_other` else."""
        return _cosines(self.sight.embeddings, embeddings).mean(1)


def score(
    images: torch.Tensor | Sequence[torch.Tensor],
    identity: Identity,
    judge: FaceAnalysis,
    others: Sequence[Identity] | None = None,
    *,
    allow_same_recogniser: bool = False,
    calibration: Calibration | None = None,
    choice: Choice = Choice.LARGEST,
    regions: torch.Tensor | None = None,
) -> IdentityScores:
    """How much each image (H, W, 3) RGB 0..1 shows the person, by a judge other than the identity's recogniser.

    `others` are the other people of the test set; ranks and margins count among them. LikenessError when the judge
    made the identity, unless that is allowed; the scores then carry a warning.
    """
    warnings = check_judge(judge, [identity.recogniser], allow_same_recogniser)
    strangers = [references_of(other, judge).mean for other in others or ()]
    return score_sight(
        see(images, judge, choice, regions), references_of(identity, judge), strangers, calibration, warnings
    )


def score_sight(
    sight: Sight,
    person: References,
    others: Sequence[torch.Tensor] = (),
    calibration: Calibration | None = None,
    warnings: tuple[str, ...] = (),
) -> IdentityScores:
    """Like `score`, for images that were looked at already; `others` are mean directions (D,)."""
    cosines = _cosines(sight.embeddings, person.mean[None])[:, 0]
    ranks, margins = torch.ones(len(sight), dtype=torch.int64), torch.full((len(sight),), torch.nan)
    if len(others):
        strange = _cosines(sight.embeddings, torch.stack(list(others)))
        ranks += (strange >= cosines[:, None]).sum(1)  # a tie counts against the person
        margins = cosines - strange.mean(1)
    level = person.level(calibration)
    return IdentityScores(
        sight=sight,
        cosines=cosines,
        ranks=ranks,
        margins=margins,
        percents=percent(cosines, level),
        gallery=1 + len(others),
        level=level,
        warnings=warnings,
    )


def percent(cosines: torch.Tensor, level: float) -> torch.Tensor:
    """Likeness for people who do not read cosines: percent of real photos' likeness, 0..120."""
    return (100 * cosines / level).clamp(0, MOST_PERCENT)


def _cosines(embeddings: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Cosines (n, m); where no image shows a face the width of `embeddings` is unknown and all are 0."""
    if not embeddings.shape[1]:
        return torch.zeros(len(embeddings), len(others))
    return cosine_similarity(embeddings, others)


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean()) if len(values) else float("nan")
