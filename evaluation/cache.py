"""What a judge has seen in files, kept by each file's SHA-256: nothing is looked at twice."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import Face, FaceAnalysis, read_photo
from .copying import face_ssim
from .identity import Sight, recogniser_of, see_photos
from .pool import Pool
from .prompts import ImageTextEncoder, clip_t
from .quality import crop_sharpness, sane
from .similarity import aligned_faces

READER = 2  # of images (`faces.photos`): what another one has seen may be another image
BLOCK = 4096  # files that are hashed before the first of them is looked at


class NamedClip(ImageTextEncoder, Protocol):
    """A CLIP whose measurements can be told from those of another by its name."""

    name: str


@dataclass(frozen=True, eq=False)
class FileFindings:
    """What there is to say of one file without knowing whom it should show."""

    face: Face | None
    reason: str  # why there is no face, else empty
    faces: int
    sane: float  # 1 when the file is an image
    sharpness: float  # of the face; NaN without one


class SightCache:
    """Looks at files through a pool and keeps what was seen on disk for later runs. Deleting it loses nothing but time.

    A file is looked at again where its line was cut off by a crash, was changed by somebody, or comes from an older
    reader of images.
    """

    def __init__(self, path: Path, pool: Pool):
        self.path, self.pool = path, pool
        self.looked = 0  # in this run
        self._keys: dict[Path, str] = {}
        self._seen: dict[str, FileFindings] = {}
        self._pasted: dict[tuple[str, str], float] = {}
        self._obeyed: dict[tuple[str, str], float] = {}
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        for line in text.splitlines():
            try:
                self._remember(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if text and not text.endswith("\n"):
            self._append("\n")

    def look(self, paths: Sequence[Path], after_each: Callable[[], object] = lambda: None) -> None:
        """Look at the files that nobody has looked at yet; `after_each` is called for every file."""
        for start in range(0, len(paths), BLOCK):
            twins: dict[str, list[Path]] = {}
            for path in paths[start : start + BLOCK]:
                twins.setdefault(self._key(path), []).append(path)
            fresh = {key: same[0] for key, same in twins.items() if key not in self._seen}
            for _ in range(sum(len(same) for key, same in twins.items() if key in self._seen)):
                after_each()
            for key, record in zip(fresh, self.pool.map(findings_of, list(fresh.values())), strict=True):
                self._write({"sha256": key, **record})
                self.looked += 1
                for _ in twins[key]:
                    after_each()

    def see(self, paths: Sequence[Path]) -> Sight:
        """Like `identity.see`, for files."""
        self.look(paths)
        faces = tuple(seen.face for seen in self.of(paths))
        width = next((len(face.embedding) for face in faces if face is not None and face.embedding is not None), 0)
        rows = [np.zeros(width, np.float32) if face is None else face.unit_embedding for face in faces]
        stacked = torch.from_numpy(np.stack(rows)).float() if rows else torch.zeros(0, 0)  # type: ignore[arg-type]
        return Sight(faces, stacked, tuple(seen.reason for seen in self.of(paths)))

    def of(self, paths: Iterable[Path]) -> list[FileFindings]:
        """What was seen in files that were looked at."""
        return [self._seen[self._key(path)] for path in paths]

    def pasted(self, paths: Sequence[Path], photos: Sequence[Path]) -> list[float]:
        """For each file the greatest `face_ssim` of its face with that of a photo; NaN where one has no face."""
        self.look([*paths, *photos])
        given = tuple(place for photo in photos if (place := self._place(photo)) is not None)
        among = hashlib.sha256("".join(sorted(self._key(photo) for photo in photos)).encode()).hexdigest()
        fresh = {}
        for path in paths:
            pair, place = (self._key(path), among), self._place(path)
            if place is not None and given and pair not in self._pasted:
                fresh[pair] = place, given
        for (key, _), value in zip(fresh, self.pool.map(paste, list(fresh.values())), strict=True):
            self._write({"sha256": key, "among": among, "face_ssim": value})
        return [self._pasted.get((self._key(path), among), float("nan")) for path in paths]

    def obeyed(self, paths: Sequence[Path], texts: Sequence[str], clip: NamedClip) -> list[float]:
        """`clip_t` of each file with its text; NaN for a file that cannot be read."""
        values = []
        for path, text in zip(paths, texts, strict=True):
            said = hashlib.sha256(f"{clip.name} {text}".encode()).hexdigest()
            if (self._key(path), said) not in self._obeyed:
                picture = picture_or_nan(path)
                cosine = float("nan") if bool(picture.isnan().any()) else float(clip_t(picture[None], [text], clip))
                self._write({"sha256": self._key(path), "said": said, "clip_t": cosine})
            values.append(self._obeyed[self._key(path), said])
        return values

    def _key(self, path: Path) -> str:
        if path not in self._keys:
            try:
                content = path.read_bytes()
            except OSError as error:  # it may not be read, or it has gone: a result of its own
                content = f"{path} {error.strerror}".encode(errors="backslashreplace")
            self._keys[path] = hashlib.sha256(content).hexdigest()
        return self._keys[path]

    def _place(self, path: Path) -> FacePlace | None:
        (seen,) = self.of([path])
        if seen.face is None or seen.face.keypoints is None:
            return None
        return FacePlace(path, self._key(path), tuple(map(tuple, seen.face.keypoints.tolist())))

    def _write(self, record: Mapping[str, Any]) -> None:
        """What is used is what can be read: a resumed run has the same numbers as one that was not stopped."""
        record = {"reader": READER, **record}
        self._append(json.dumps(record) + "\n")
        self._remember(record)

    def _append(self, text: str) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise LikenessError(
                f"The measurements cannot be written to {str(self.path)!r} ({error.strerror or error}): free some "
                "space, and run the same command again; those made so far are kept."
            ) from error

    def _remember(self, record: Mapping[str, Any]) -> None:
        if record["reader"] != READER:
            return
        key = str(record["sha256"])
        if "said" in record:
            self._obeyed[key, str(record["said"])] = float(record["clip_t"])
            return
        if "among" in record:
            self._pasted[key, str(record["among"])] = float(record["face_ssim"])
            return
        self._seen[key] = FileFindings(
            face=_face(record, recogniser_of(self.pool.judge).name),
            reason=str(record["reason"]),
            faces=int(record["faces"]),
            sane=float(record["sane"]),
            sharpness=float(record.get("sharpness", "nan")),
        )


# --- the work, in this process or another


def findings_of(judge: FaceAnalysis, path: Path) -> dict[str, Any]:
    """What `FileFindings` holds of a file, for JSON."""
    try:
        photo = read_photo(path)
    except LikenessError as error:
        return {"reason": f"not an image: {error}", "faces": 0, "sane": 0.0}
    sight = see_photos([photo], judge)
    record = {"reason": sight.reasons[0], "faces": sight.counts[0], "sane": float(sane(as_picture(photo)[None])[0])}
    face = sight.faces[0]
    if face is None or face.keypoints is None or face.embedding is None:
        return record
    return record | {
        "sharpness": float(crop_sharpness(aligned_faces([photo], [face]))[0]),
        "box": face.box.tolist(),
        "score": face.score,
        "keypoints": face.keypoints.tolist(),
        "embedding": base64.b64encode(face.embedding.astype("<f4").tobytes()).decode(),
    }


def _face(record: Mapping[str, Any], recogniser: str) -> Face | None:
    if "embedding" not in record:
        return None
    box, keypoints = np.array(record["box"], np.float32), np.array(record["keypoints"], np.float32)
    embedding = np.frombuffer(base64.b64decode(record["embedding"]), "<f4").astype(np.float32)
    if box.shape != (4,) or keypoints.shape != (5, 2) or not embedding.any():
        raise ValueError("no face")
    if not all(np.isfinite(values).all() for values in (box, keypoints, embedding)):
        raise ValueError("not numbers")
    return Face(box, float(record["score"]), keypoints, embedding, recogniser)


@dataclass(frozen=True)
class FacePlace:
    """A face in a file, by its five keypoints."""

    path: Path
    sha256: str  # of the file
    keypoints: tuple[tuple[float, ...], ...]


def paste(judge: FaceAnalysis, task: tuple[FacePlace, tuple[FacePlace, ...]]) -> float:
    """The greatest structural similarity of a result's face with the faces of photos; see `copying.face_ssim`."""
    result, photos = task
    crop = _crop(result)
    return max(float(face_ssim(crop, _crop_of_photo(photo))[0]) for photo in photos)


def _crop(place: FacePlace) -> torch.Tensor:
    try:
        photo = read_photo(place.path)
    except LikenessError as error:
        raise LikenessError(f"An image changed while it was judged: {error}") from error
    return aligned_faces([photo], [Face(np.zeros(4, np.float32), 1.0, np.array(place.keypoints, np.float32))])


_crop_of_photo = lru_cache(maxsize=64)(_crop)  # the same few photos for all results of a person


def as_picture(photo: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 RGB as RGB 0..1."""
    return torch.from_numpy(photo).float() / 255


def picture_or_nan(path: Path) -> torch.Tensor:
    """A file as (H, W, 3) RGB 0..1; one NaN for what cannot be read."""
    try:
        return as_picture(read_photo(path))
    except LikenessError:
        return torch.full((1, 1, 3), torch.nan)
