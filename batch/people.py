"""People from photos: an identity is computed once per person, kept, and sent to servers as a file."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import LikenessError
from ..storage import name_fault, write_whole
from .files import sha256_of
from .plan import PlannedPeople
from .problems import Fault, Problems

if TYPE_CHECKING:
    from ..faces import FaceAnalysis, Identity

OpenFaces = Callable[[str], "FaceAnalysis"]
FOLDER = "identities"  # of a run
_VERSION = 1  # of how identities are made here
_SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".heif"])


@dataclass(frozen=True)
class PersonPhotos:
    """Somebody, and the photos that show them."""

    name: str
    photos: Sequence[Path]
    identity: Path | None = None  # the file, once it was made


def find_people(people: PlannedPeople, problems: Problems) -> list[PersonPhotos]:
    """Photos grouped by person, in the order of names."""
    found: dict[str, list[Path]] = {}
    for text in sorted(glob.glob(people.photos, recursive=True)):
        path = Path(text)
        if path.is_file() and path.suffix.lower() in _SUFFIXES:
            found.setdefault(path.parent.name if people.by == "folder" else path.stem, []).append(path)
    if not found:
        problems.add("people", 0, "photos", people.photos, Fault("no photo is there", "check the pattern"))
    for name in found:
        if fault := name_fault(name):
            problems.add("people", 0, "photos", name, Fault(f"the person's name {fault}", "rename the folder"))
    return [PersonPhotos(name, photos) for name, photos in sorted(found.items())]


class Identities:
    """Identity files in a folder; one that is there is not made again."""

    def __init__(self, folder: Path, faces: str, open_faces: OpenFaces):
        self.folder, self.faces = folder, faces
        self._open = open_faces

    def place(self, person: PersonPhotos, best: int = 0, seen_by: str = "") -> Path:
        """Where the file for this person is kept; `seen_by` is a server's face analysis, empty for the one here."""
        said = [str(_VERSION), self.faces, str(best), person.name, *map(sha256_of, person.photos)]
        said += [seen_by] if seen_by else []
        return self.folder / f"{hashlib.sha256(chr(10).join(said).encode()).hexdigest()[:32]}.safetensors"

    def has_all(self, people: Sequence[PersonPhotos], best: int = 0) -> bool:
        """Whether everybody's file, made here, is there."""
        try:
            return all(self.place(person, best).is_file() for person in people)
        except Fault:  # a photo cannot be read, which is told with its person
            return False

    def of(self, person: PersonPhotos, best: int = 0) -> Path:
        """The file for this person, made here. LikenessError where the photos show no face."""
        path = self.place(person, best)
        if not path.is_file():
            self.keep(path, identity_from(person, self.analysis), best)
        return path

    def keep(self, path: Path, identity: Identity, best: int = 0) -> None:
        """Write the file, of the best photos alone."""
        if 0 < best < len(identity):
            identity = identity.take(_most_typical(identity, best))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, identity.write)

    @cached_property
    def analysis(self) -> FaceAnalysis:
        """The face analysis of this machine; LikenessError where its files are not here."""
        return self._open(self.faces)


def identity_from(person: PersonPhotos, faces: FaceAnalysis) -> Identity:
    """One person from photos; those without a face, that cannot be read, or that show somebody else are left out."""
    from ..faces import read_photo
    from ..faces.found import IfNone, Rule, find_faces, identity_of

    photos, unread = [], ""
    for path in person.photos:
        try:
            photos.append(read_photo(path))
        except LikenessError as error:
            unread = str(error)
    if not photos:
        raise LikenessError(f"No photo of {person.name!r} can be read ({unread.rstrip('.')}): give others.")
    identity, _ = identity_of(find_faces(faces, photos, Rule(if_none=IfNone.SKIP)), person.name)
    return identity


def _most_typical(identity: Identity, count: int) -> list[int]:
    """The photos nearest to the mean of all, in their order; the first ones where nobody has measured them."""
    if not identity.has_embeddings:
        return list(range(count))
    rows = identity.unit_embeddings.numpy()
    nearness = rows @ rows.mean(0)
    return sorted(np.argsort(-nearness, kind="stable")[:count].tolist())


def with_identities(
    people: Sequence[PersonPhotos], find: Callable[[PersonPhotos], Path | None], problems: Problems, skip: bool = False
) -> list[PersonPhotos]:
    """The people with the files that `find` gives, of whom nobody is left out but those it has no face of: a problem
    for each, or with `skip` a warning."""
    made = []
    for person in people:
        try:
            made.append(PersonPhotos(person.name, person.photos, find(person)))
        except (LikenessError, Fault) as error:
            where = os.path.dirname(str(person.photos[0]))
            if skip:
                problems.warn(f"{person.name} is left out: {error}")
            else:
                problems.add(where, 0, "people", person.name, Fault(str(error).rstrip("."), "or use --skip-people"))
    return made
