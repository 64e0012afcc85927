"""A whole study in folders, judged and reported: what `likeness evaluate` does.

    people/<name>/refs/*         photos that were given to the methods
    people/<name>/held_out/*     other photos of the person, optional: they tell likeness from copying
    results/<method>/<name>/**   pictures; a name such as `hat-3.png` or `hat/3.png` is prompt `hat`, seed 3
    results/<method>/method.json optional: {"conditioner": "buffalo_l", "inputs": "1 photo", "extra_mb": 22}

Pictures of two methods with the same person, prompt and seed are compared as a pair.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import Face, FaceAnalysis
from .copying import mean_copy, pose
from .identity import Calibration, IdentityScores, References, Sight, check_judge, recogniser_of, score_sight, see
from .report import Setting, report
from .table import POSE, Facts, Record

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
ACCEPT_RATE = 1e-3
_NAME = re.compile(r"(?P<prompt>.*?)[-_ ]?(?P<seed>\d{1,18})")


# --- what lies in the folders


@dataclass(frozen=True)
class Result:
    """One picture of a method."""

    method: str
    person: str
    prompt: str
    seed: int
    path: Path


@dataclass(frozen=True)
class Study:
    """People and results found below `folder`."""

    folder: Path
    given: Mapping[str, Sequence[Path]]  # person -> photos that were given
    held_out: Mapping[str, Sequence[Path]]  # person -> other photos, perhaps none
    results: Sequence[Result]
    facts: Mapping[str, Facts] = field(default_factory=dict)
    conditioners: frozenset[str] = frozenset()  # recognisers named by the methods

    def name(self, path: Path) -> str:
        """A picture's name in records: its path below the folder."""
        return path.relative_to(self.folder).as_posix()

    def __getitem__(self, name: str) -> torch.Tensor:
        """A picture (H, W, 3) RGB 0..1 by its name, read when it is asked for."""
        return read_picture(self.folder / name)


def survey(folder: Path) -> Study:
    """What is there; LikenessError when people or results are missing."""
    given = {place.name: _pictures(place / "refs") for place in _folders(folder / "people")}
    results = [
        Result(method.name, person.name, *_prompt_and_seed(path.relative_to(person)), path)
        for method in _folders(folder / "results")
        for person in _folders(method)
        for path in _pictures(person)
    ]
    if not results:
        raise LikenessError(
            f"There are no pictures below {folder / 'results'}: put them into results/<method>/<person>/."
        )
    without = sorted({result.person for result in results if not given.get(result.person)})
    if without:
        raise LikenessError(
            f"There are no photos of {', '.join(without)}: put them into {folder / 'people'}/<person>/refs."
        )
    described = {method.name: _description(method / "method.json") for method in _folders(folder / "results")}
    return Study(
        folder=folder,
        given={person: photos for person, photos in given.items() if photos},
        held_out={person: _pictures(folder / "people" / person / "held_out") for person in given},
        results=results,
        facts={method: _facts(record) for method, record in described.items()},
        conditioners=frozenset(str(record["conditioner"]) for record in described.values() if "conditioner" in record),
    )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _prompt_and_seed(path: Path) -> tuple[str, int]:
    """`hat-3.png` and `hat/3.png` are (hat, 3); a name without a number is a prompt with seed 0."""
    text = path.with_suffix("").as_posix()
    found = _NAME.fullmatch(text)
    if not found:
        return text, 0
    return found["prompt"].rstrip("/-_ "), int(found["seed"])


def _description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise LikenessError(f"{path} is not what describes a method ({error}): write an object in JSON.") from None
    return record


def _facts(record: Mapping[str, Any]) -> Facts:
    return Facts(
        inputs=str(record.get("inputs", "")),
        extra_mb=float(record.get("extra_mb", "nan")),
        training_seconds=float(record.get("training_seconds", "nan")),
    )


def read_picture(path: Path) -> torch.Tensor:
    """A file as (H, W, 3) RGB 0..1, turned as the camera was held; one NaN for what cannot be read."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            upright = ImageOps.exif_transpose(picture) or picture
            return torch.from_numpy(np.asarray(upright.convert("RGB")).copy()).float() / 255
    except (UnidentifiedImageError, OSError, ValueError):
        return torch.full((1, 1, 3), torch.nan)


# --- looking once


class Journal:
    """What a judge has seen, by the SHA-256 of each file, in a file of its own: a second run looks at new files only.

    A line that a crash has cut off is looked at again.
    """

    def __init__(self, path: Path, judge: FaceAnalysis):
        self.path, self.judge = path, judge
        self.looked = 0  # in this run
        self._known: dict[str, tuple[Face | None, str]] = {}
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for line in text.splitlines():
            try:
                record = json.loads(line)
                self._known[record["sha256"]] = (_face(record, recogniser_of(judge).name), record["reason"])
            except (ValueError, KeyError, TypeError):
                continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def see(self, paths: Sequence[Path], after_each: Callable[[], object] = lambda: None) -> Sight:
        """Like `identity.see`, for files; each is read, judged and written down before the next one."""
        sights = []
        for path in paths:
            sights.append(self._see(path))
            after_each()
        faces = tuple(face for face, _ in sights)
        width = next((len(face.embedding) for face in faces if face is not None and face.embedding is not None), 0)
        rows = [np.zeros(width, np.float32) if face is None else face.unit_embedding for face in faces]
        stacked = torch.from_numpy(np.stack(rows)).float() if rows else torch.zeros(0, 0)  # type: ignore[arg-type]
        return Sight(faces, stacked, tuple(reason for _, reason in sights))

    def _see(self, path: Path) -> tuple[Face | None, str]:
        key = hashlib.sha256(path.read_bytes()).hexdigest()
        if key not in self._known:
            sight = see([read_picture(path)], self.judge)
            self.looked += 1
            self._known[key] = sight.faces[0], sight.reasons[0]
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"sha256": key, "reason": sight.reasons[0], **_as_json(sight.faces[0])}) + "\n")
        return self._known[key]


def _as_json(face: Face | None) -> dict[str, Any]:
    if face is None or face.keypoints is None or face.embedding is None:
        return {}
    return {
        "box": face.box.tolist(),
        "score": face.score,
        "keypoints": face.keypoints.tolist(),
        "embedding": base64.b64encode(face.embedding.astype("<f4").tobytes()).decode(),
    }


def _face(record: Mapping[str, Any], recogniser: str) -> Face | None:
    if "embedding" not in record:
        return None
    return Face(
        box=np.array(record["box"], np.float32),
        score=float(record["score"]),
        keypoints=np.array(record["keypoints"], np.float32),
        embedding=np.frombuffer(base64.b64decode(record["embedding"]), "<f4").astype(np.float32),
        recogniser=recogniser,
    )


# --- judging


def measure(
    study: Study,
    journal: Journal,
    calibration: Calibration | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> list[Record]:
    """A record for each result; `after_each` is called after every picture, photos included (see `pictures_of`)."""
    given = {person: journal.see(photos, after_each) for person, photos in study.given.items()}
    others = {person: journal.see(photos, after_each) for person, photos in study.held_out.items() if photos}
    blind = sorted(person for person, sight in given.items() if not bool(sight.found.any()))
    if blind:
        raise LikenessError(
            f"The judge {journal.judge.name} finds no face in the photos of {', '.join(blind)}: give clearer photos, "
            "or choose another judge."
        )
    people = {person: _references(sight) for person, sight in given.items()}
    records = []
    for person, references in people.items():
        results = [result for result in study.results if result.person == person]
        sight = journal.see([result.path for result in results], after_each)
        strangers = [other.mean for name, other in people.items() if name != person]
        scores = score_sight(sight, references, strangers, calibration)
        measures = _measures(scores, references, _held_out(others.get(person)), calibration)
        records += [
            Record(result.method, person, result.prompt, result.seed, study.name(result.path), row, reason)
            for result, row, reason in zip(results, measures, sight.reasons, strict=True)
        ]
    return records


def pictures_of(study: Study) -> int:
    """How many pictures `measure` looks at."""
    photos = [*study.given.values(), *study.held_out.values()]
    return sum(len(paths) for paths in photos) + sum(result.person in study.given for result in study.results)


def _references(sight: Sight) -> References:
    found = sight.embeddings[sight.found]
    return References(found, torch.ones(len(found)))


def _held_out(sight: Sight | None) -> torch.Tensor:
    return torch.zeros(0, 0) if sight is None else sight.embeddings[sight.found]


def _measures(
    scores: IdentityScores, references: References, others: torch.Tensor, calibration: Calibration | None
) -> list[dict[str, float]]:
    """What can be measured of each picture."""
    columns: dict[str, Iterable[float]] = {
        "found": scores.sight.found.float().tolist(),
        "id": scores.cosines.tolist(),
        "id_ref": scores.cosine_to(references.embeddings).tolist(),
        "percent": scores.percents.tolist(),
    }
    if len(others):
        columns["id_other"] = scores.cosine_to(others).tolist()
        columns["copy"] = mean_copy(scores.sight.embeddings, others, references.embeddings).tolist()
    if scores.gallery > 1:
        columns["margin"] = scores.margins.tolist()
        columns["rank"] = scores.ranks.tolist()
        columns["rank1"] = (scores.ranks == 1).float().tolist()
        columns["gallery"] = [float(scores.gallery)] * len(scores)
    if calibration is not None:
        columns["accept"] = scores.accepted(calibration.threshold(ACCEPT_RATE)).float().tolist()
    poses = [np.full(3, np.nan) if face is None else pose(face) for face in scores.sight.faces]
    columns |= {angle: [float(row[place]) for row in poses] for place, angle in enumerate(POSE)}
    return [dict(zip(columns, (float(v) for v in row), strict=True)) for row in zip(*columns.values(), strict=True)]


def evaluate(
    folder: Path,
    judge: FaceAnalysis,
    out: Path,
    *,
    reference: str | None = None,
    conditioners: Iterable[str] = (),
    allow_same_recogniser: bool = False,
    calibration: Calibration | None = None,
    title: str = "Likeness report",
    repeat: str = "",
    after_each: Callable[[], object] = lambda: None,
) -> Path:
    """Judge a folder and write its report into `out`; an interrupted run goes on where it stopped.

    `reference` is the method without identity, `conditioners` the recognisers that entered the results besides those
    that a `method.json` names. LikenessError when the judge is one of them, unless that is allowed.
    """
    study = survey(folder)
    warnings = check_judge(judge, {*conditioners, *study.conditioners}, allow_same_recogniser)
    methods = sorted({result.method for result in study.results})
    if reference is not None and reference not in methods:
        raise LikenessError(f"No pictures lie in results/{reference}: choose one of {', '.join(methods)}.")
    name = recogniser_of(judge).name
    if calibration is not None and calibration.recogniser != name:
        raise LikenessError(
            f"The calibration was measured on {calibration.recogniser}, and the judge is {name}: choose the other one."
        )
    journal = Journal(out / f"seen-{re.sub(r'[^A-Za-z0-9]+', '-', f'{judge.name}-{name}')}.jsonl", judge)
    records = measure(study, journal, calibration, after_each)
    records.sort(key=lambda record: record.method != reference)  # the reference comes first
    setting = Setting(
        title=title,
        judge=name,
        licence=judge.licence,
        reference=reference,
        photos={person: [study.name(path) for path in paths] for person, paths in study.given.items()},
        facts=study.facts,
        warnings=warnings,
        repeat=repeat,
    )
    return report(records, study, out, setting)
