"""Likeness, measured while a batch runs: beside the servers' work, never in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LikenessError
from .journal import JournalRow
from .people import OpenFaces, PersonPhotos, identity_from
from .session import BatchRun
from .work import Judge

if TYPE_CHECKING:
    from ..evaluation.identity import References
    from ..faces import FaceAnalysis, Identity

_PICTURES = frozenset([".png", ".jpg", ".webp", ".gif", ".bmp", ".tiff", ".avif"])
NO_FACE = {"percent": 0.0, "id_sim": 0.0, "detected": 0.0}


class LikenessJudge:
    """Compares a row's images with the photos of its person. Of several images the best counts."""

    def __init__(self, run: BatchRun, judge: str, open_faces: OpenFaces, allow_same: bool = False):
        self._run, self._name, self._open, self._allow_same = run, judge, open_faces, allow_same
        self._people: dict[str, References | None] = {}

    @cached_property
    def _judge(self) -> FaceAnalysis:
        return self._open(self._name)

    def __call__(self, row: JournalRow, files: Sequence[Path]) -> Mapping[str, float]:
        """Percent of real photos' likeness, cosine, and whether there is a face. Nothing for a row without a person."""
        import torch

        from ..evaluation.identity import calibration_of, score_sight, see_photos
        from ..faces import read_photo

        person = self._person_of(row)
        if person is None:
            return {}
        best: dict[str, float] = dict(NO_FACE)
        for file in files:
            if file.suffix not in _PICTURES:
                continue
            try:
                photo = read_photo(file)
            except LikenessError:  # it was checked when it came; nobody's face is in what is unreadable now
                continue
            with torch.inference_mode():
                scores = score_sight(see_photos([photo], self._judge), person, calibration=calibration_of(self._judge))
            if scores.sight.found[0] and (not best["detected"] or float(scores.percents[0]) > best["percent"]):
                best = {"percent": float(scores.percents[0]), "id_sim": float(scores.cosines[0]), "detected": 1.0}
        return best

    def _person_of(self, row: JournalRow) -> References | None:
        """What the row's person looks like to the judge, computed once."""
        from ..evaluation.identity import references_of

        key = row.person or self._identity_file(row)
        if key not in self._people:
            identity = self._find(row)
            self._people[key] = None if identity is None else references_of(identity, self._judge)
        return self._people[key]

    def _find(self, row: JournalRow) -> Identity | None:
        from ..evaluation.identity import check_judge
        from ..faces import Identity

        if file := self._run.facts["identities"].get(row.person) or self._identity_file(row):
            identity = Identity.load(Path(file))
            check_judge(self._judge, [identity.recogniser], self._allow_same)  # its embeddings made the images
            return identity
        if photos := self._run.facts["people"].get(row.person):
            return identity_from(PersonPhotos(row.person, [Path(photo) for photo in photos]), self._judge)
        return None

    def _identity_file(self, row: JournalRow) -> str:
        uploads = self._run.work.uploads_of(row)
        return next((str(upload.path) for upload in uploads if upload.type == "output"), "")


def judge_of(run: BatchRun, open_faces: OpenFaces, name: str = "") -> Judge | None:
    """The judge of this name, else the one that the run asks for, if any."""
    asked = run.facts["judging"]
    chosen = name or asked["judge"]
    return LikenessJudge(run, chosen, open_faces, asked["allow_same"]) if chosen else None
