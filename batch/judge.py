"""Likeness, measured while a batch runs: beside the servers' work, never in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LikenessError
from .engine import Judge
from .journal import Row
from .people import OpenFaces, Person, identity_from
from .session import Run

if TYPE_CHECKING:
    from ..faces import FaceAnalysis, Identity

_PICTURES = frozenset([".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".avif"])
NO_FACE = {"percent": 0.0, "id_sim": 0.0, "detected": 0.0}


class LikenessJudge:
    """Compares a row's pictures with the photos of its person. Of several pictures the best counts."""

    def __init__(self, run: Run, judge: str, open_faces: OpenFaces, allow_same: bool = False):
        self._run, self._name, self._open, self._allow_same = run, judge, open_faces, allow_same
        self._judge: FaceAnalysis | None = None
        self._identities: dict[str, Identity | None] = {}

    def __call__(self, row: Row, files: Sequence[Path]) -> Mapping[str, float]:
        """Percent of real photos' likeness, cosine, and whether there is a face. Nothing for a row without a person."""
        import torch

        from ..evaluation.journal import as_picture
        from ..evaluation.portraits import judge_pictures
        from ..faces import read_photo

        self._judge = self._judge or self._open(self._name)
        person = self._person_of(row)
        if person is None:
            return {}
        best: dict[str, float] = dict(NO_FACE)
        for file in files:
            if file.suffix not in _PICTURES:
                continue
            try:
                picture = as_picture(read_photo(file))[None]
            except LikenessError:  # it was checked when it came; nobody's face is in what is unreadable now
                continue
            with torch.inference_mode():
                verdict = judge_pictures(picture, [person], self._judge, allow_same_recogniser=self._allow_same)
            if verdict.percents[0] >= best["percent"]:
                best = {
                    "percent": verdict.percents[0],
                    "id_sim": verdict.cosines[0],
                    "detected": float(not verdict.reasons[0]),
                }
        return best

    def _person_of(self, row: Row) -> Identity | None:
        key = row.person or self._identity_file(row)
        if key not in self._identities:
            self._identities[key] = self._find(row)
        return self._identities[key]

    def _find(self, row: Row) -> Identity | None:
        from ..faces import Identity

        if file := self._run.facts["identities"].get(row.person) or self._identity_file(row):
            return Identity.load(Path(file))
        photos = self._run.facts["people"].get(row.person)
        if photos and self._judge is not None:
            return identity_from(Person(row.person, [Path(photo) for photo in photos]), self._judge)
        return None

    def _identity_file(self, row: Row) -> str:
        uploads = self._run.work.uploads_of(row)
        return next((str(upload.path) for upload in uploads if upload.type == "output"), "")


def judge_of(run: Run, open_faces: OpenFaces) -> Judge | None:
    """The judge that the run asks for, if any."""
    asked = run.facts["judging"]
    return LikenessJudge(run, asked["judge"], open_faces, asked["allow_same"]) if asked["judge"] else None
