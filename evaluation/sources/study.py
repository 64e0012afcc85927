"""People, the photos that were given of them, and the images that methods made: what there is to judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from ...errors import LikenessError
from ...faces.photo_list import PhotoList, list_photos, names_of, shown
from ..cache import picture_or_nan
from ..table import MethodFacts


@dataclass(frozen=True)
class StudyPicture:
    """One image of a method."""

    method: str
    person: str
    prompt: str
    seed: int
    path: Path
    measures: Mapping[str, float] = field(default_factory=dict)  # what is known of it without looking


@dataclass(frozen=True, eq=False)
class Study:
    """People and results, most of them below `folder`."""

    folder: Path
    given: Mapping[str, Sequence[Path]]  # person -> photos that were given
    held_out: Mapping[str, Sequence[Path]]  # person -> other photos, perhaps none
    results: Sequence[StudyPicture]
    facts: Mapping[str, MethodFacts] = field(default_factory=dict)
    conditioners: frozenset[str] = frozenset()  # recognisers named by the methods
    warnings: tuple[str, ...] = ()
    elsewhere: Mapping[str, Path] = field(default_factory=dict)  # other folders, by how their pictures' names begin
    texts: Mapping[str, str] = field(default_factory=dict)  # what was asked for, where a result has the prompt's name

    def name(self, path: Path) -> str:
        """An image's name in records: its path below the folder, or below one of those elsewhere."""
        for name, folder in self.elsewhere.items():
            if path.is_relative_to(folder):
                return f"{name}/{path.relative_to(folder).as_posix()}"
        return path.relative_to(self.folder).as_posix()

    @cached_property
    def files(self) -> list[Path]:
        """All pictures: the photos of people, then the results."""
        photos = [path for paths in (*self.given.values(), *self.held_out.values()) for path in paths]
        return [*photos, *(result.path for result in self.results)]

    @cached_property
    def _by_name(self) -> dict[str, Path]:
        return {self.name(path): path for path in self.files}

    def __getitem__(self, name: str) -> torch.Tensor:
        """An image (H, W, 3) RGB 0..1 by its name, read when it is asked for."""
        return picture_or_nan(self._by_name[name])


def of_people(folder: Path, results: Sequence[StudyPicture], people: Path | None) -> Study:
    """A study of results whose people have a folder each in `people`, by default that in `folder`.

    Photos that were given lie in `<person>/refs`, or in `<person>` itself, others in `<person>/held_out`.
    LikenessError for a person without photos.
    """
    place, given, warnings = people or folder / "people", {}, []
    for person in folders_in(place):
        references, own = names_in(person / "refs"), names_in(person, deep=False)
        photos = references.photos or own.photos
        if photos:
            given[person.name] = list(photos)
        where = f"people/{shown(person.name)}"
        warnings += not_used(references, f"{where}/refs") + not_used(own, where)
        warnings += not_used(names_in(person / "held_out"), f"{where}/held_out")
        if references.photos and own.photos:
            names = names_of([photo.name for photo in own.photos])
            warnings.append(f"not used in {where}: {names}, because the photos in refs are what was given")
    without = sorted({result.person for result in results} - set(given))
    if without:
        raise LikenessError(
            f"There are no photos of {', '.join(without)}: put them into {place}/<person>/refs, or name another folder "
            "of people with --people."
        )
    return Study(
        folder=folder,
        given=given,
        held_out={person: pictures(place / person / "held_out") for person in given},
        results=results,
        warnings=tuple(warnings),
        elsewhere={} if place.is_relative_to(folder) else {"people": place},
    )


def joined_studies(studies: Sequence[Study]) -> Study:
    """Several studies as one; a method that is in more than one of them is called by its folder's name as well.

    The photos of a person are those of the first study that has any.
    """
    first = studies[0]
    made = [{result.method for result in study.results} for study in studies]
    shared = {method for methods in made for method in methods if sum(method in other for other in made) > 1}
    taken = {path.name for path in first.folder.iterdir()} | set(first.elsewhere)
    elsewhere = dict(first.elsewhere)
    given: dict[str, Sequence[Path]] = {}
    held_out: dict[str, Sequence[Path]] = {}
    results: list[StudyPicture] = []
    facts: dict[str, MethodFacts] = {}
    for study in studies:
        name = study.folder.resolve().name
        while name in taken:
            name += "'"
        taken.add(name)
        called = {method: f"{name}: {method}" for method in shared}
        if study is not first:
            elsewhere |= {name: study.folder, **study.elsewhere}
        for person in sorted(study.given.keys() - given.keys()):
            given[person], held_out[person] = study.given[person], study.held_out.get(person, ())
        results += [replace(result, method=called.get(result.method, result.method)) for result in study.results]
        facts |= {called.get(method, method): fact for method, fact in study.facts.items()}
    return Study(
        folder=first.folder,
        given=given,
        held_out=held_out,
        results=results,
        facts=facts,
        conditioners=frozenset().union(*(study.conditioners for study in studies)),
        warnings=tuple(warning for study in studies for warning in study.warnings),
        elsewhere=elsewhere,
        texts={name: text for study in reversed(studies) for name, text in study.texts.items()},
    )


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, by name; none where there is no such folder."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def pictures(folder: Path, deep: bool = True) -> list[Path]:
    """The images in a folder, by name, and if `deep` those in the folders below."""
    return list(names_in(folder, deep).photos)


def names_in(folder: Path, deep: bool = True) -> PhotoList:
    """What a folder holds, and if `deep` the folders below; nothing where there is no such folder."""
    return list_photos(folder, deep) if folder.is_dir() else PhotoList(())


def not_used(found: PhotoList, where: str) -> list[str]:
    """Warnings about image-like files that nobody judges."""
    sentences = list(found.not_used)
    if found.masks:
        sentences.append(f"{names_of([mask.name for mask in found.masks])}: these are named like masks")
    return [f"not used in {where}: {sentence}" for sentence in sentences]
