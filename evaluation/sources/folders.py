"""A study laid out in folders by hand.

    people/<name>/refs/*         photos that were given to the methods
    people/<name>/held_out/*     other photos of the person, optional: they tell likeness from copying
    results/<method>/<name>/**   images; a name such as `hat-3.png` or `hat/3.png` is prompt `hat`, seed 3
    results/<method>/method.json optional: {"conditioner": "buffalo_l", "inputs": "1 photo", "extra_mb": 22}
    results/prompts.json         optional: {"hat": "a photo of a person in a red hat"}, else the name is the text

Images of two methods with the same person, prompt and seed are compared as a pair.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import LikenessError
from ...faces.photo_list import names_of, shown
from ..table import MethodFacts
from .study import Study, StudyPicture, folders_in, names_in, not_used, of_people

_NAME = re.compile(r"(?P<prompt>.*?)[-_ ]?(?P<seed>\d{1,18})")


def survey(folder: Path, people: Path | None = None) -> Study:
    """What is there, the people by default in `folder`; LikenessError when people or results are missing."""
    methods, results, warnings = folders_in(folder / "results"), [], []
    for method in methods:
        for person in folders_in(method):
            found = names_in(person)
            warnings += not_used(found, f"results/{shown(method.name)}/{shown(person.name)}")
            results += [
                StudyPicture(method.name, person.name, *_prompt_and_seed(path.relative_to(person)), path)
                for path in found.photos
            ]
    for place in (folder / "results", *methods):
        if stray := names_in(place, deep=False).photos:
            names = names_of([path.relative_to(folder).as_posix() for path in stray])
            warnings.append(f"not used: {names}, because results lie in results/<method>/<person>")
    if not results:
        raise LikenessError(
            f"There are no images below {folder / 'results'}: put them into results/<method>/<person>/."
        )
    described = {method.name: _description(method / "method.json") for method in methods}
    study = of_people(folder, results, people)
    return replace(
        study,
        warnings=(*study.warnings, *warnings),
        facts={name: _facts(record, folder / "results" / name / "method.json") for name, record in described.items()},
        conditioners=frozenset(str(record["conditioner"]) for record in described.values() if "conditioner" in record),
        texts={name: str(text) for name, text in _description(folder / "results" / "prompts.json").items()},
    )


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
        record = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except (OSError, ValueError, RecursionError) as error:
        raise LikenessError(
            f"{path} is not what describes a method or its prompts ({error}): write an object in JSON."
        ) from None
    return record


def _facts(record: Mapping[str, Any], path: Path) -> MethodFacts:
    numbers = {}
    for name in ("extra_mb", "training_seconds"):
        try:
            numbers[name] = float(record.get(name, math.nan))
        except (TypeError, ValueError):
            numbers[name] = -1.0
        if numbers[name] < 0 or math.isinf(numbers[name]):
            raise LikenessError(f"{path} gives {name} as {record[name]!r}, which is not a number: write a number.")
    return MethodFacts(str(record.get("inputs", "")), **numbers)
