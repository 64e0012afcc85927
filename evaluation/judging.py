"""A whole study judged and reported: what `likeness evaluate` does with folders or with the run of a batch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import Face
from ..storage import check_folder
from .cache import NamedClip, SightCache
from .copying import copy_paste, expression, mean_copy, pose
from .identity import Calibration, IdentityScores, References, Sight, check_judge, recogniser_of, score_sight
from .pool import Pool
from .prompts import plain_text
from .report import Setting, report
from .sources.folders import survey
from .sources.manifest import is_run, survey_run
from .sources.study import Study, joined_studies
from .table import EXPRESSION, GIVEN_POSE, POSE, Record

ACCEPT_RATE = 1e-3
MOST_NAMED = 8  # files in one warning


def open_study(folder: Path, people: Path | None = None, compare: Sequence[Path] = (), by: Sequence[str] = ()) -> Study:
    """What lies in a folder, or in the run of a batch, together with others to `compare`.

    `people` holds the photos where the folder does not; `by` names the columns of a batch that tell methods apart.
    """
    studies = []
    for place in (folder, *compare):
        if not place.is_dir():
            raise LikenessError(f"There is no folder {place}: name one with results/<method>/<person>/, or a batch's.")
        photos = people or next((one / "people" for one in (place, folder) if (one / "people").is_dir()), None)
        if by and not is_run(place):
            raise LikenessError(f"{place} is not the run of a batch, so it has no columns: leave --by out.")
        studies.append(survey_run(place, photos, by) if is_run(place) else survey(place, photos))
    return joined_studies(studies) if compare else studies[0]


@dataclass(frozen=True)
class Asked:
    """How prompts are read. The person's own word in them, which CLIP does not know, is read as the noun."""

    clip: NamedClip
    word: str = ""
    noun: str = "person"


def measure(
    study: Study,
    cache: SightCache,
    calibration: Calibration | None = None,
    after_each: Callable[[], object] = lambda: None,
    asked: Asked | None = None,
    likeness_only: bool = False,
) -> list[Record]:
    """A record for each result; `after_each` is called for every one of the study's files.

    `likeness_only`, for a second judge, leaves out what the first one has seen as well.
    """
    cache.look(study.files, after_each)
    given = {person: cache.see(photos) for person, photos in study.given.items()}
    blind = sorted(person for person, sight in given.items() if not bool(sight.found.any()))
    if blind:
        raise LikenessError(
            f"The judge {cache.pool.judge.name} finds no face in the photos of {', '.join(blind)}: give clearer "
            "photos, or choose another judge."
        )
    people = {person: _references(sight) for person, sight in given.items()}
    records = []
    for person, references in people.items():
        results = [result for result in study.results if result.person == person]
        paths = [result.path for result in results]
        sight = cache.see(paths)
        strangers = [other.mean for name, other in people.items() if name != person]
        scores = score_sight(sight, references, strangers, calibration)
        held_out = cache.see(study.held_out.get(person, ()))
        columns = _likeness(scores, references, held_out.embeddings[held_out.found], calibration)
        if not likeness_only:
            columns |= _looks(sight, given[person]) | _picture(cache, paths)
            columns["face_ssim"] = cache.pasted(paths, study.given[person])
        if asked is not None:
            said = [study.texts.get(result.prompt, result.prompt) for result in results]
            columns["clip_t"] = cache.obeyed(
                paths, [plain_text(text, asked.word, asked.noun) for text in said], asked.clip
            )
        records += [
            Record(
                method=result.method,
                person=person,
                prompt=result.prompt,
                seed=result.seed,
                image=study.name(result.path),
                measures={**result.measures, **{name: float(values[row]) for name, values in columns.items()}},
                note=sight.reasons[row],
            )
            for row, result in enumerate(results)
        ]
    return records


def _unused_photos(study: Study, cache: SightCache) -> list[str]:
    """A warning that names the photos of people with which nothing is compared, and why."""
    photos = [path for paths in (*study.given.values(), *study.held_out.values()) for path in paths]
    lost = [(path, seen.reason) for path, seen in zip(photos, cache.of(photos), strict=True) if seen.face is None]
    if not lost:
        return []
    named = "; ".join(f"{study.name(path)} ({why.rstrip('.')})" for path, why in lost[:MOST_NAMED])
    more = f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    return [f"{len(lost)} of {len(photos)} photos of people are not compared with: {named}{more}"]


def _references(sight: Sight) -> References:
    found = sight.embeddings[sight.found]
    return References(found, torch.ones(len(found)))


Columns = dict[str, Sequence[float]]  # of n images each


def _likeness(
    scores: IdentityScores, references: References, others: torch.Tensor, calibration: Calibration | None
) -> Columns:
    """Is it the person, and is it nearer to the photos that were given than to others?"""
    columns: Columns = {
        "found": scores.sight.found.float().tolist(),
        "id": scores.cosines.tolist(),
        "id_ref": scores.cosine_to(references.embeddings).tolist(),
        "percent": scores.percents.tolist(),
    }
    if len(others):
        columns["id_other"] = scores.cosine_to(others).tolist()
        columns["copy"] = mean_copy(scores.sight.embeddings, others, references.embeddings).tolist()
        columns["copy_paste"] = copy_paste(scores.sight.embeddings, others, references.embeddings).tolist()
    if scores.gallery > 1:
        columns["margin"] = scores.margins.tolist()
        columns["rank"] = scores.ranks.tolist()
        columns["rank1"] = (scores.ranks == 1).float().tolist()
        columns["gallery"] = [scores.gallery] * len(scores)
    if calibration is not None:
        columns["accept"] = scores.accepted(calibration.threshold(ACCEPT_RATE)).float().tolist()
    return columns


def _looks(sight: Sight, photos: Sight) -> Columns:
    """Where the head is turned and what the mouth does, and where the heads of the person's photos are turned."""
    turned = np.array([pose(face) for face in photos.faces if face is not None]).mean(0)
    angles = [_of_points(face, pose, len(POSE)) for face in sight.faces]
    mouths = [_of_points(face, expression, len(EXPRESSION)) for face in sight.faces]
    return {
        **dict(zip(POSE, zip(*angles, strict=True), strict=False)),
        **dict(zip(EXPRESSION, zip(*mouths, strict=True), strict=False)),
        **{name: [float(angle)] * len(sight) for name, angle in zip(GIVEN_POSE, turned, strict=True)},
    }


def _of_points(face: Face | None, measured: Callable[[np.ndarray], np.ndarray], width: int) -> np.ndarray:
    return np.full(width, np.nan) if face is None or face.keypoints is None else measured(face.keypoints)


def _picture(cache: SightCache, paths: Sequence[Path]) -> Columns:
    """What can be said of an image without knowing whom it should show."""
    seen = cache.of(paths)
    return {name: [getattr(one, name) for one in seen] for name in ("faces", "sane", "sharpness")}


@dataclass(frozen=True)
class SecondJudge:
    """Another judge's pool, and what was measured of it."""

    pool: Pool
    calibration: Calibration | None = None


_OF_SECOND = {"id": "id_second", "percent": "percent_second", "copy": "copy_second"}


def _with_second(records: Sequence[Record], others: Sequence[Record]) -> list[Record]:
    """The first judge's records with what a second one says of the same images."""
    seen = {(record.method, record.person, record.image): record for record in others}
    together = []
    for record in records:
        other = seen[record.method, record.person, record.image].measures
        named = {name: other[key] for key, name in _OF_SECOND.items() if key in other}
        together.append(replace(record, measures={**record.measures, **named}))
    return together


def evaluate(
    study: Study,
    pool: Pool,
    out: Path,
    *,
    reference: str | None = None,
    conditioners: Iterable[str] = (),
    allow_same_recogniser: bool = False,
    calibration: Calibration | None = None,
    title: str = "Likeness report",
    repeat: str = "",
    after_each: Callable[[], object] = lambda: None,
    asked: Asked | None = None,
    second: SecondJudge | None = None,
) -> Path:
    """Judge a study and write its report into `out`; an interrupted run resumes where it stopped.

    `reference` is the method without identity, `conditioners` the recognisers that entered the results besides those
    that a `method.json` names; with `asked`, prompts are read too; with `second`, another judge looks at the same
    images. LikenessError when a judge is one of them, unless that is allowed.
    """
    judges = [pool.judge, *([second.pool.judge] if second else [])]
    made_by = {*conditioners, *study.conditioners}
    warnings = [text for one in judges for text in check_judge(one, made_by, allow_same_recogniser)]
    methods = sorted({result.method for result in study.results})
    if reference is not None and reference not in methods:
        raise LikenessError(f"No images were made by '{reference}': choose one of {', '.join(methods)}.")
    names = [recogniser_of(one).name for one in judges]
    measured_on = [calibration, second.calibration if second else None]
    if names[1:] == names[:1]:
        raise LikenessError(f"The second judge is {names[0]}, as the first: choose another one, or none.")
    for judged_by, measured in zip(names, measured_on, strict=False):
        if measured is not None and measured.recogniser != judged_by:
            raise LikenessError(
                f"The calibration was measured on {measured.recogniser}, and the judge is {judged_by}: choose the "
                "other one."
            )
    check_folder(out, "The report's folder")
    cache = _cache(out, pool)
    records = measure(study, cache, calibration, after_each, asked)
    if second is not None:
        others = measure(study, _cache(out, second.pool), second.calibration, after_each, likeness_only=True)
        records = _with_second(records, others)
    records.sort(key=lambda record: record.method != reference)  # the reference comes first
    setting = Setting(
        title=title,
        judge=" and ".join(names),
        licence="; ".join(dict.fromkeys(one.licence for one in judges)),
        quality="; ".join(_quality(*pair, len(names)) for pair in zip(names, measured_on, strict=False) if pair[1]),
        reference=reference,
        photos={person: [study.name(path) for path in paths] for person, paths in study.given.items()},
        facts=study.facts,
        warnings=(*warnings, *study.warnings, *_unused_photos(study, cache)),
        repeat=repeat,
    )
    return report(records, study, out, setting)


def _cache(out: Path, pool: Pool) -> SightCache:
    name = f"{pool.judge.name}-{recogniser_of(pool.judge).name}"
    return SightCache(out / f"seen-{re.sub(r'[^A-Za-z0-9]+', '-', name)}.jsonl", pool)


def _quality(name: str, measured: Calibration | None, judges: int) -> str:
    words = "" if measured is None else measured.in_words
    return words if judges == 1 else f"{name}: {words}"
