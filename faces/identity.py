"""`Identity`: one person, from one or more photos, in one value that every method of the pack consumes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..checks import all_finite, check_number
from ..errors import LikenessError
from ..storage import write_once
from .align import (
    ARCFACE,
    Template,
    arcface_crop,
    arcface_template,
    ffhq_crop,
    ffhq_template,
    head_crop,
    robust_similarity_transform,
    transform_points,
)
from .face import Face
from .similarity import ARCFACE_SAME, cosine_similarity, mean_direction, on_scale_of, unit

if TYPE_CHECKING:
    from .analysis import Recogniser

ALIGNED_SIZE, PORTRAIT_SIZE, HEAD_SIZE = 224, 512, 512
HEAD_FACTOR = 2.0  # side of a head crop, in sides of the face box
OUTLIER_COSINE = ARCFACE_SAME
FILE_KIND, FILE_VERSION = "likeness.identity", 2
ALSO = "embeddings."  # of a recogniser beside the first: tensors of this prefix and its name. Optional, since version 2
NOTICE = (
    "This file holds biometric data of a person: face embeddings and face images. Share it only with that "
    "person's consent; the law of many countries protects it."
)
# Tensor -> dtype and shape of one photo's row; -1 is any length. Crops and keypoints may have no rows at all.
_PER_PHOTO: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "embeddings": (torch.float32, (-1,)),
    "weights": (torch.float32, ()),
    "aligned": (torch.uint8, (ALIGNED_SIZE, ALIGNED_SIZE, 3)),
    "portraits": (torch.uint8, (PORTRAIT_SIZE, PORTRAIT_SIZE, 3)),
    "heads": (torch.uint8, (HEAD_SIZE, HEAD_SIZE, 3)),
    "keypoints": (torch.float32, (5, 2)),
    "boxes": (torch.float32, (4,)),
    "photo_sizes": (torch.int64, (2,)),
}
LEAST_WEIGHT, LEAST_MEAN = 1e-6, 1e-3  # below: the weighted mean is not a direction any more
LARGEST_SIDE = 1_000_000  # pixels of a photo
_LARGEST = {"embeddings": 1e4, "weights": 1e6, "keypoints": 1e6, "boxes": 1e6}  # far above what is ever measured
LONGEST_TEXT, MOST_OUTLIERS = 300, 1000  # of texts in a file: letters, sentences
_NEED_KEYPOINTS = ("aligned", "portraits", "keypoints")


@dataclass(frozen=True, eq=False)
class Identity:
    """One person, n photos. Images are RGB; coordinates are pixels of the photo a row came from.

    When the detector gives boxes only, `aligned`, `portraits` and `keypoints` have no rows; without a recogniser
    `embeddings` is (n, 0) and `recogniser` None. Adapters that need more say so. Methods read embeddings of different
    recognisers: `also` holds those of others than the first, and `as_seen_by` brings one of them forward.
    """

    name: str
    recogniser: str | None  # the model that made the embeddings; others cannot read them
    embeddings: torch.Tensor  # (n, D) float32, raw
    weights: torch.Tensor  # (n,) float32, how much each photo counts
    aligned: torch.Tensor  # (n, 224, 224, 3) uint8, on the ArcFace template
    portraits: torch.Tensor  # (n, 512, 512, 3) uint8, on the FFHQ template
    heads: torch.Tensor  # (n, 512, 512, 3) uint8, upright square of twice the face box
    keypoints: torch.Tensor  # (n, 5, 2) float32
    boxes: torch.Tensor  # (n, 4) float32
    photo_sizes: torch.Tensor  # (n, 2) int64: height, width
    outliers: tuple[str, ...] = ()  # sentences about photos that do not fit the others
    also: Mapping[str, torch.Tensor] = field(default_factory=dict)  # other recogniser -> (n, D) float32, raw
    kept: tuple[bool, ...] = ()  # of every photo that was given, whether it has a row; empty where nobody knows

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _plain(self.name) or "person")
        self.check()

    def check(self) -> None:
        """LikenessError unless all values are possible: no image can be made from NaN."""
        if fault := _fault({key: getattr(self, key) for key in _PER_PHOTO}, self.also):
            raise LikenessError(f"The identity {self.name!r} cannot be used, because {fault}: make it again.")

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def left_out(self) -> list[int]:
        """The photos, from 1, that were given but have no row: row i is not photo i then."""
        return [number for number, is_kept in enumerate(self.kept, 1) if not is_kept]

    @property
    def has_embeddings(self) -> bool:
        """Whether a recogniser has seen this person."""
        return self.embeddings.shape[1] > 0

    @property
    def recognisers(self) -> tuple[str, ...]:
        """The recognisers whose embeddings it holds, the one that made it first."""
        return (*([self.recogniser] if self.recogniser else []), *self.also)

    def as_seen_by(self, recogniser: str) -> Identity:
        """The same person with that recogniser's embeddings in `embeddings`. KeyError when it holds none of them."""
        if recogniser == self.recogniser:
            return self
        others = {name: rows for name, rows in self.also.items() if name != recogniser}
        if self.recogniser:
            others[self.recogniser] = self.embeddings
        return replace(self, recogniser=recogniser, embeddings=self.also[recogniser], also=others)

    def seen_again(self, recogniser: Recogniser) -> Identity:
        """The same person with the embeddings of one more recogniser, made from the aligned crops.

        The crops are the ArcFace crop at twice its size, or the portraits for a recogniser that sees more than that, so
        no detector is needed; embeddings differ from those of the photo by what scaling a crop costs. LikenessError
        when there are no aligned crops.
        """
        if recogniser.name in self.recognisers:
            return self
        if not len(self.aligned):
            raise LikenessError(
                f"The identity '{self.name}' has no aligned face that could be embedded by {recogniser.name}, because "
                "its detector gave no keypoints: make it with a face analysis that does, for example buffalo_l, "
                "OpenCV or MTCNN."
            )
        template: Template = getattr(recogniser, "template", ARCFACE)
        if template.lies_inside(ARCFACE):
            crops, points = self.aligned, [arcface_template(ALIGNED_SIZE)] * len(self)
        else:
            crops, points = self.portraits, [_in_portrait(own) for own in self.keypoints.numpy()]
        rows = [
            recogniser.embed(np.ascontiguousarray(crop), five.astype(np.float32))
            for crop, five in zip(crops.numpy(), points, strict=True)
        ]
        made = torch.from_numpy(np.stack(rows)).float()
        if not self.recogniser:
            return replace(self, recogniser=recogniser.name, embeddings=made)
        return replace(self, also={**self.also, recogniser.name: made})

    @property
    def unit_embeddings(self) -> torch.Tensor:
        """Each photo's embedding scaled to length 1: (n, D)."""
        return unit(self.embeddings)

    def mean_embedding(self, unit: bool = True) -> torch.Tensor:
        """The person as one vector (D,): the weighted mean of the unit vectors, re-normalised.

        With `unit=False` the weighted mean of the raw vectors, for adapters trained on raw embeddings.
        """
        if not self.has_embeddings:
            raise LikenessError(
                f"The identity '{self.name}' has no embedding, because no recogniser was loaded when it was made: "
                "make it with a face analysis that has one, for example buffalo_l."
            )
        if unit:
            return mean_direction(self.embeddings, self.weights)
        return (self.embeddings * self.weights.unsqueeze(-1)).sum(0) / self.weights.sum()

    def save(self, path: Path | str) -> Path:
        """Write one `.safetensors` file, whole or not at all; returns the path.

        LikenessError when the path is taken or cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_once(path, self.write)
        except FileExistsError:
            raise LikenessError(f"The file {path.name!r} exists already: choose another name.") from None
        except OSError as error:
            raise LikenessError(
                f"The identity could not be written to {str(path.parent)!r} ({error.strerror or error}): free some "
                "space, or choose another folder."
            ) from error
        return path

    def write(self, path: Path) -> None:
        """The content of the file, for a caller that keeps it whole (`storage`)."""
        from safetensors.torch import save

        metadata = {
            "format": FILE_KIND,
            "version": str(FILE_VERSION),
            "name": self.name,
            "recogniser": _plain(self.recogniser or ""),
            "outliers": json.dumps(self.outliers),
            "kept": json.dumps(self.kept),
            "notice": NOTICE,
        }
        tensors = {key: getattr(self, key) for key in _PER_PHOTO}
        tensors |= {f"{ALSO}{_plain(name)}": rows for name, rows in self.also.items()}
        path.write_bytes(save({key: tensor.contiguous() for key, tensor in tensors.items()}, metadata))

    @classmethod
    def load(cls, path: Path | str) -> Identity:
        """Read a file that `save` wrote. `LikenessError` for any other, damaged or newer file."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise LikenessError(f"The identity file {path.name!r} does not exist: choose one that Save Identity wrote.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError) as error:
            raise LikenessError(
                f"The identity file {path.name!r} cannot be read ({error}): it is damaged or not a .safetensors file; "
                "save the identity again."
            ) from None
        if metadata.get("format") != FILE_KIND:
            raise LikenessError(f"The file {path.name!r} is not an identity: choose one that Save Identity wrote.")
        damaged = LikenessError(f"The identity file {path.name!r} is damaged: save the identity again.")
        try:
            version = int(metadata.get("version", ""))
            outliers, kept = (json.loads(metadata.get(key, "[]")) for key in ("outliers", "kept"))
        except (ValueError, RecursionError):
            raise damaged from None
        if version > FILE_VERSION:
            raise LikenessError(f"The identity file {path.name!r} was written by a newer version: update this pack.")
        missing = [key for key in _PER_PHOTO if key not in tensors]
        if missing:
            raise LikenessError(f"The identity file {path.name!r} lacks {', '.join(missing)}: save the identity again.")
        if version < 1 or not isinstance(outliers, list) or not isinstance(kept, list) or not _rows_fit(tensors):
            raise damaged
        if kept and (kept.count(True) != len(tensors["boxes"]) or not set(kept) <= {True, False}):
            raise damaged
        first = _plain(metadata.get("recogniser", ""))
        also = {_plain(key.removeprefix(ALSO)): rows for key, rows in tensors.items() if key.startswith(ALSO)}
        also.pop(first, None)  # said twice: the first place counts
        count = len(tensors["boxes"])
        if not all(rows.dtype == torch.float32 and rows.ndim == 2 and len(rows) == count for rows in also.values()):
            raise damaged
        if fault := _fault(tensors, also):
            raise LikenessError(f"The identity file {path.name!r} cannot be used, because {fault}: save it again.")
        return cls(
            name=metadata.get("name", path.stem),
            recogniser=first or None,
            outliers=tuple(_plain(str(text)) for text in outliers[:MOST_OUTLIERS]),
            also=also,
            kept=tuple(bool(is_kept) for is_kept in kept),
            **{key: tensors[key] for key in _PER_PHOTO},
        )

    def take(self, photos: Sequence[int]) -> Identity:
        """The same person from some of the photos (indices), their weights kept."""
        rows = {key: getattr(self, key) for key in _PER_PHOTO}
        chosen = torch.as_tensor(list(photos), dtype=torch.long)
        also = {name: value[chosen] for name, value in self.also.items()}
        numbers = [number for number, is_kept in enumerate(self.kept) if is_kept]
        left = {numbers[row] for row in photos} if numbers else set()
        kept = tuple(number in left for number in range(len(self.kept)))
        taken = {key: value[chosen] if len(value) else value for key, value in rows.items()}
        return replace(self, also=also, kept=kept, **taken)


def _in_portrait(keypoints: np.ndarray) -> np.ndarray:
    """A face's keypoints (5, 2), of the photo, as they lie in its portrait crop."""
    return transform_points(robust_similarity_transform(keypoints, ffhq_template(PORTRAIT_SIZE)), keypoints)


def build_identity(
    photos: Sequence[np.ndarray],
    faces: Sequence[Face | None],
    name: str = "person",
    outlier_threshold: float | None = OUTLIER_COSINE,
    leave_out: bool = True,
) -> Identity:
    """One person from photos (H, W, 3) uint8 RGB and the face chosen in each; None skips a photo.

    A photo whose embedding has a cosine below `outlier_threshold` to the photo that is most like all others is named
    in `outliers`, and left out if `leave_out`. Two photos that disagree are named and both kept, because nobody can
    tell which one is meant. None for the threshold asks no questions. It is given as for ArcFace (`on_scale_of`).
    """
    if outlier_threshold is not None:
        check_number(outlier_threshold, "The outlier threshold", -1, 1)
    if len(photos) != len(faces):
        raise LikenessError(f"There are {len(photos)} photos but {len(faces)} faces: choose one face for each photo.")
    chosen = [(number, photo, face) for number, (photo, face) in enumerate(zip(photos, faces, strict=True)) if face]
    if not chosen:
        raise LikenessError("No photo has a face: an identity needs at least one.")
    recognisers = {face.recogniser for _, _, face in chosen}
    if len(recognisers) > 1:
        names = ", ".join(sorted(str(r) for r in recognisers))
        raise LikenessError(f"The faces were analysed by different recognisers ({names}): use one for all photos.")
    for index, _, face in chosen:
        if face.embedding is not None and not (np.isfinite(face.embedding).all() and face.embedding.any()):
            raise LikenessError(
                f"The recogniser {face.recogniser} returned NaN for photo {index + 1}: leave this photo out, or "
                "load the face analysis again."
            )
    aligned = [face.keypoints is not None for _, _, face in chosen]
    with_points = [(photo, face.keypoints) for _, photo, face in chosen if all(aligned) and face.keypoints is not None]
    embedded = [face.embedding for _, _, face in chosen if face.embedding is not None]
    recogniser = recognisers.pop()
    identity = Identity(
        name=name,
        recogniser=recogniser if embedded else None,
        embeddings=_rows("embeddings", embedded) if embedded else torch.zeros(len(chosen), 0),
        weights=torch.ones(len(chosen)),
        aligned=_rows("aligned", [arcface_crop(photo, points, ALIGNED_SIZE) for photo, points in with_points]),
        portraits=_rows("portraits", [ffhq_crop(photo, points, PORTRAIT_SIZE) for photo, points in with_points]),
        heads=_rows("heads", [head_crop(photo, face.box, HEAD_SIZE, HEAD_FACTOR) for _, photo, face in chosen]),
        keypoints=_rows("keypoints", [points for _, points in with_points]),
        boxes=_rows("boxes", [face.box for _, _, face in chosen]),
        photo_sizes=_rows("photo_sizes", [np.array(photo.shape[:2]) for _, photo, _ in chosen]),
        kept=tuple(face is not None for face in faces),
    )
    if outlier_threshold is None or not identity.has_embeddings or len(identity) < 2:
        return identity
    threshold = on_scale_of(recogniser, outlier_threshold)
    return _judge_outliers(identity, [number for number, _, _ in chosen], threshold, leave_out)


def join_photos(pieces: Sequence[Identity | None], name: str = "person") -> Identity:
    """One person from identities of single photos, in the photos' order; None for a photo without a face.

    The same as `build_identity` from all of the photos together. Photos that know less than the others (no embedding,
    no keypoints) cannot stand beside them and take no part.
    """
    known = [None if one is None else (one.has_embeddings, len(one.keypoints) > 0) for one in pieces]
    best = max((one for one in known if one is not None), default=None)
    rows = [(number, one) for number, one in enumerate(pieces) if one is not None and known[number] == best]
    if not rows:
        raise LikenessError("No photo has a face: an identity needs at least one.")
    first = rows[0][1]
    if any(one.recogniser != first.recogniser for _, one in rows):
        names = ", ".join(sorted({str(one.recogniser) for _, one in rows}))
        raise LikenessError(f"The faces were analysed by different recognisers ({names}): use one for all photos.")
    joined: dict[str, Any] = {key: torch.cat([getattr(one, key) for _, one in rows]) for key in _PER_PHOTO}
    used = {number for number, _ in rows}
    kept = tuple(number in used for number in range(len(pieces)))
    identity = Identity(name=name, recogniser=first.recogniser, kept=kept, **joined)
    if not identity.has_embeddings or len(identity) < 2:
        return identity
    threshold = on_scale_of(first.recogniser, OUTLIER_COSINE)
    return _judge_outliers(identity, [number for number, _ in rows], threshold, leave_out=True)


def _rows(key: str, arrays: Sequence[np.ndarray]) -> torch.Tensor:
    dtype, shape = _PER_PHOTO[key]
    if not arrays:
        return torch.zeros(0, *shape, dtype=dtype)
    return torch.from_numpy(np.stack(arrays)).to(dtype)


def _fault(tensors: Mapping[str, torch.Tensor], also: Mapping[str, torch.Tensor]) -> str:
    """Which values are impossible, as the rest of a sentence; '' where none is."""
    for key, most in _LARGEST.items():
        if not all_finite(tensors[key], most):
            return f"its {key.replace('_', ' ')} hold values that are NaN, infinite or too large"
    weights, sizes = tensors["weights"], tensors["photo_sizes"]
    total = float(weights.sum())
    if bool((weights < 0).any()) or not total > LEAST_WEIGHT:
        return "the weights of its photos are negative or all zero"
    if bool((sizes < 1).any()) or bool((sizes > LARGEST_SIDE).any()):
        return "a photo of it has an impossible size"
    for embeddings in (tensors["embeddings"], *also.values()):
        if not all_finite(embeddings, _LARGEST["embeddings"]):
            return "its embeddings hold values that are NaN, infinite or too large"
        if embeddings.shape[1] and not bool(embeddings.any(1).all()):
            return "an embedding of it is all zeros"
        if embeddings.shape[1] and float((unit(embeddings) * weights[:, None]).sum(0).norm()) < LEAST_MEAN * total:
            return "its photos' embeddings cancel each other out"
    if not all(also) or any(not rows.shape[1] for rows in also.values()):
        return "its embeddings name no recogniser"
    return ""


def _plain(text: str) -> str:
    """A text out of a file on one line of a reasonable length: it stands in reports, logs and messages."""
    return "".join(letter for letter in text if letter.isprintable())[:LONGEST_TEXT].strip()


def _rows_fit(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether every tensor has the dtype and the number and shape of rows that an identity has."""
    count = len(tensors["boxes"]) if tensors["boxes"].ndim else 0
    for key, (dtype, shape) in _PER_PHOTO.items():
        tensor = tensors[key]
        own = tuple(tensor.shape[1:])
        same_shape = len(own) == len(shape) and all(want in (-1, have) for want, have in zip(shape, own, strict=True))
        allowed = (0, count) if key in _NEED_KEYPOINTS else (count,)
        if tensor.dtype != dtype or not tensor.ndim or len(tensor) not in allowed or not same_shape:
            return False
    return count > 0


def _judge_outliers(identity: Identity, numbers: list[int], threshold: float, leave_out: bool) -> Identity:
    """Compare every photo with the medoid, the photo most like all others; `numbers` are the photos' indices."""
    alike = cosine_similarity(identity.embeddings, identity.embeddings)
    medoid = int(alike.sum(1).argmax())
    strangers = [row for row in range(len(identity)) if alike[medoid, row] < threshold]
    if not strangers:
        return identity
    if len(identity) == 2:
        text = (
            f"photos {numbers[0] + 1} and {numbers[1] + 1} may show different people (cosine {alike[0, 1]:.2f}); "
            "both are kept"
        )
        return replace(identity, outliers=(text,))
    fate = "left out" if leave_out else "kept"
    report = tuple(
        f"photo {numbers[row] + 1} does not look like the others (cosine {alike[medoid, row]:.2f}); {fate}"
        for row in strangers
    )
    kept = [row for row in range(len(identity)) if not (leave_out and row in strangers)]
    return replace(identity.take(kept), outliers=report)


class Combine(Enum):
    """How several identities become one."""

    SAME_PERSON = "same person"  # every photo counts alike, times its identity's weight
    BLEND = "blend"  # every identity counts alike, times its weight, however many photos it has


def combine_identities(
    identities: Sequence[Identity],
    weights: Sequence[float] | None = None,
    mode: Combine = Combine.SAME_PERSON,
    name: str | None = None,
) -> Identity:
    """More photos of one person, or a person between several. `weights`, one for each identity, default to 1.

    A blend's `mean_embedding` is exactly the re-normalised weighted mean of the identities' mean embeddings: the
    weights of the photos are chosen so.
    """
    if not identities:
        raise LikenessError("There is no identity to combine: connect at least one.")
    strengths = [1.0] * len(identities) if weights is None else [float(weight) for weight in weights]
    if len(strengths) != len(identities):
        raise LikenessError(f"There are {len(identities)} identities but {len(strengths)} weights: give one for each.")
    if not all(0 <= weight < math.inf for weight in strengths) or sum(strengths) == 0:
        raise LikenessError("The weights of the identities must not be negative, and one must be above zero.")
    identities = _seen_by_one(identities)
    recognisers = {identity.recogniser for identity in identities}
    if len(recognisers) > 1:
        names = ", ".join(sorted(str(r) for r in recognisers))
        raise LikenessError(
            f"The identities come from different recognisers ({names}), whose embeddings cannot be mixed: "
            "make them again with one face analysis."
        )
    widths = {identity.embeddings.shape[1] for identity in identities}
    if len(widths) > 1:
        raise LikenessError(
            f"The identities hold embeddings of {' and '.join(map(str, sorted(widths)))} numbers, which cannot be "
            "mixed: make them again with one face analysis."
        )
    photo_weights = []
    for identity, strength in zip(identities, strengths, strict=True):
        own = identity.weights
        if mode is Combine.BLEND:
            total = (identity.unit_embeddings * own[:, None]).sum(0).norm() if identity.has_embeddings else own.sum()
            own = own / total.clamp(min=1e-12)
        photo_weights.append(own * strength)
    together = {key: [getattr(identity, key) for identity in identities] for key in _PER_PHOTO}
    if len({len(keypoints) > 0 for keypoints in together["keypoints"]}) > 1:  # some have boxes only: all or none
        for key in _NEED_KEYPOINTS:
            together[key] = [tensor[:0] for tensor in together[key]]
    shared = [
        other
        for other in identities[0].also
        if len({identity.also[other].shape[1] if other in identity.also else None for identity in identities}) == 1
    ]
    return Identity(
        name=name or " + ".join(dict.fromkeys(identity.name for identity in identities)),
        also={other: torch.cat([identity.also[other] for identity in identities]) for other in shared},
        recogniser=identities[0].recogniser,
        outliers=tuple(f"{i.name}: {text}" for i in identities for text in i.outliers),
        kept=identities[0].kept if len(identities) == 1 else (),
        **{key: torch.cat(tensors) for key, tensors in (together | {"weights": photo_weights}).items()},
    )


def _seen_by_one(identities: Sequence[Identity]) -> Sequence[Identity]:
    """The identities as the first recogniser sees them that all of them know; as they are when there is none."""
    for recogniser in identities[0].recognisers:
        if all(recogniser in identity.recognisers for identity in identities):
            return [identity.as_seen_by(recogniser) for identity in identities]
    return identities
