"""Finding faces: one detector and, where there is one, one recogniser, joined in `FaceAnalysis`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..errors import LikenessError
from .align import arcface_crop
from .detection import SIZES, Detection, Detector
from .face import Face
from .recognition import recogniser_name

PADDINGS = (0.25, 0.5)  # of each side, tried when no size finds a face: close-ups exceed the detector's largest box
PADDING_GREY = 127
SMALLEST_PHOTO = 16  # pixels; no detector finds a face in less
INSIGHTFACE_LICENCE = "InsightFace: non-commercial research only"
UNKNOWN_LICENCE = "unknown: ask the authors of the files"


class Recogniser(Protocol):
    """Turns a face into an embedding. `name` says in which space: embeddings of two names cannot be compared."""

    @property
    def name(self) -> str: ...

    def embed(self, image_rgb: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        """Raw embedding (D,) float32 of the face with these keypoints (5, 2) in a photo (H, W, 3) uint8 RGB."""
        ...


@dataclass(frozen=True)
class Search:
    """What a search found, and what was tried, so that a failure can be explained."""

    faces: list[Face]
    tried: tuple[str, ...]  # empty for a photo that is too small to be searched
    best_score: float  # of any candidate, 0 when there was none
    threshold: float
    size: tuple[int, int]  # (height, width) of the photo

    def explain(self, where: str = "the photo") -> str:
        """One sentence for a user whose photo shows no face to this detector."""
        if not self.tried:
            height, width = self.size
            return (
                f"No face was found in {where}, because it has only {width}x{height} pixels: use one of "
                f"{SMALLEST_PHOTO}x{SMALLEST_PHOTO} at least, on which the face takes 30 or more."
            )
        return (
            f"No face was found in {where}: tried {', '.join(self.tried)}; the best score seen was "
            f"{self.best_score:.2f} and {self.threshold:.2f} is needed. Use a clearer or less tightly cropped "
            "photograph; drawn, cartoon and doll faces are not found by these networks."
        )


@dataclass(frozen=True, eq=False)
class FaceAnalysis:
    """A detector and a recogniser with one name and one licence. Several packs call this an INSIGHTFACE.

    `commercial` is None where the licence is unclear. Besides our own `search` and `find`, it answers to the
    attributes other packs expect of insightface's class: `det_model.input_size` and `get(image_bgr)`.
    """

    name: str
    detector: Detector
    recogniser: Recogniser | None = None
    licence: str = UNKNOWN_LICENCE
    commercial: bool | None = None

    def find(self, photo: np.ndarray, number: int = 0, embed: bool = True) -> list[Face]:
        """The faces of a photo (H, W, 3) uint8 RGB, highest score first; empty when there are none."""
        return self.search(photo, number, embed).faces

    def search(self, photo: np.ndarray, number: int = 0, embed: bool = True) -> Search:
        """Like `find`, with the record of what was tried: every size, then wider borders; stops at the first success.

        `number` is the photo's index in its batch, kept in the faces; `embed=False` leaves the recogniser out.
        """
        threshold = getattr(self.detector, "threshold", 0.0)
        tried, best, size = [], 0.0, (photo.shape[0], photo.shape[1])
        for attempt, candidates in _attempts(self.detector, photo):
            tried.append(attempt)
            best = max([best, *(candidate.score for candidate in candidates)])
            found = [candidate for candidate in candidates if candidate.score >= threshold]
            if found:
                faces = [self._face(photo, detection, number, embed) for detection in found]
                return Search(faces, tuple(tried), best, threshold, size)
        return Search([], tuple(tried), best, threshold, size)

    def _face(self, photo: np.ndarray, detection: Detection, number: int, embed: bool) -> Face:
        embedding = None
        if embed and self.recogniser is not None and detection.keypoints is not None:
            embedding = self.recogniser.embed(photo, detection.keypoints)
        return Face(
            box=detection.box,
            score=detection.score,
            keypoints=detection.keypoints,
            embedding=embedding,
            recogniser=self.recogniser.name if self.recogniser is not None and embedding is not None else None,
            photo=number,
        )

    @cached_property
    def det_model(self) -> DetModel:
        """The part of insightface's detector that other packs touch."""
        return DetModel(self.detector)

    def get(self, image_bgr: np.ndarray, max_num: int = 0) -> list[AnalysedFace]:
        """insightface's call: faces of a BGR image, highest score first, at most `max_num` if that is not 0.

        The size that a caller has set on `det_model.input_size` is used; when nobody has, all are searched.
        """
        photo = np.ascontiguousarray(image_bgr[..., ::-1])
        if self.det_model.chosen is None:
            faces = self.find(photo)
        else:
            found = self.det_model.faces_at(image_bgr, self.det_model.chosen)
            faces = [self._face(photo, detection, 0, True) for detection in found]
        return [AnalysedFace.of(face) for face in faces[: max_num or None]]


def _attempts(detector: Detector, photo: np.ndarray) -> Iterator[tuple[str, list[Detection]]]:
    """Each thing worth trying, in words, with the candidates it gives in pixels of the photo."""
    height, width = photo.shape[:2]
    if min(height, width) < SMALLEST_PHOTO:
        return
    sizes = getattr(detector, "sizes", SIZES)
    image = np.ascontiguousarray(photo[..., ::-1])
    for size in sizes:
        yield f"size {size}", detector.detect(image, size)
    for padding in PADDINGS:
        rows, columns = round(height * padding), round(width * padding)
        wide = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), constant_values=PADDING_GREY)
        shift = np.array([columns, rows], np.float32)
        yield (
            f"{padding:.0%} padding at size {sizes[0]}",
            [
                Detection(box - np.tile(shift, 2), score, None if points is None else points - shift)
                for box, score, points in detector.detect(wide, sizes[0])
            ],
        )


class DetModel:
    """insightface's `det_model`, as far as other packs use it."""

    def __init__(self, detector: Detector):
        self._detector = detector
        self.chosen: tuple[int, int] | None = None

    @property
    def input_size(self) -> tuple[int, int]:
        """Width and height of the detector's input; setting it makes `FaceAnalysis.get` try this size alone."""
        return self.chosen or (SIZES[0], SIZES[0])

    @input_size.setter
    def input_size(self, size: tuple[int, int]) -> None:
        self.chosen = (int(size[0]), int(size[1]))

    def faces_at(self, image_bgr: np.ndarray, size: tuple[int, int]) -> list[Detection]:
        """The detections that count as faces, at one size (its longer side)."""
        threshold = getattr(self._detector, "threshold", 0.0)
        return [found for found in self._detector.detect(image_bgr, max(size)) if found.score >= threshold]

    def detect(
        self, img: np.ndarray, input_size: tuple[int, int] | None = None, max_num: int = 0, metric: str = "default"
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Boxes with scores (n, 5) and keypoints (n, 5, 2), or None where the detector has none, of a BGR image."""
        from .scrfd import Metric, best_by

        found = self.faces_at(img, input_size or self.input_size)
        rows = np.array([[*box, score] for box, score, _ in found], np.float32).reshape(-1, 5)
        chosen = best_by(rows, max_num, Metric(metric), img.shape[:2])
        points = [found[i].keypoints for i in chosen]
        if any(point is None for point in points):
            return rows[chosen], None
        return rows[chosen], np.array(points, np.float32).reshape(-1, 5, 2)


class AnalysedFace(dict):
    """insightface's face: a dictionary whose keys are attributes too; what is absent reads as None."""

    @classmethod
    def of(cls, face: Face) -> AnalysedFace:
        """From our own record."""
        return cls(bbox=face.box, kps=face.keypoints, det_score=face.score, embedding=face.embedding)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.get(name)

    def __getitem__(self, name: str) -> Any:
        return self.normed_embedding if name == "normed_embedding" else super().__getitem__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    @property
    def embedding_norm(self) -> float | None:
        """Length of the raw embedding."""
        return None if self.embedding is None else float(np.linalg.norm(self.embedding))

    @property
    def normed_embedding(self) -> np.ndarray | None:
        """The embedding scaled to length 1."""
        return None if self.embedding is None else self.embedding / max(self.embedding_norm or 0.0, 1e-12)


# --- an INSIGHTFACE that another pack has loaded


@dataclass(frozen=True)
class _ForeignDetector:
    """insightface's detector. The size goes with every call: since 1.0 setting `input_size` has no effect."""

    model: Any
    name: str = "insightface"
    threshold: float = 0.0  # the model has applied its own
    sizes: tuple[int, ...] = SIZES

    def detect(self, image_bgr: np.ndarray, size: int | None = None) -> list[Detection]:
        size = size or self.sizes[0]
        boxes, keypoints = self.model.detect(image_bgr, input_size=(size, size))
        return [
            Detection(
                np.asarray(row[:4], np.float32),
                float(row[4]),
                None if keypoints is None else np.asarray(keypoints[i], np.float32),
            )
            for i, row in enumerate(boxes)
        ]


@dataclass(frozen=True)
class _ForeignRecogniser:
    model: Any
    name: str

    def embed(self, image_rgb: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        crop = arcface_crop(image_rgb, keypoints, int(self.model.input_size[0]))
        return np.asarray(self.model.get_feat(np.ascontiguousarray(crop[..., ::-1])), np.float32).reshape(-1)


def adopt_analysis(analysis: Any) -> FaceAnalysis:
    """Our `FaceAnalysis`, or insightface's (0.7.3 to 2.1) as another pack's loader gives it, wrapped as ours."""
    if isinstance(analysis, FaceAnalysis):
        return analysis
    model = getattr(analysis, "det_model", None)
    if not callable(getattr(model, "detect", None)):
        raise LikenessError(
            f"The face analysis input holds a {type(analysis).__name__} without a face detector: "
            "connect Load Face Analysis or another pack's InsightFace loader."
        )
    recogniser = (getattr(analysis, "models", None) or {}).get("recognition")
    file = getattr(recogniser, "model_file", None)
    name = recogniser_name(file) if file else "insightface"
    return FaceAnalysis(
        name=f"insightface ({name})",
        detector=_ForeignDetector(model),
        recogniser=None if recogniser is None else _ForeignRecogniser(recogniser, name),
        licence=INSIGHTFACE_LICENCE,
        commercial=False,
    )
