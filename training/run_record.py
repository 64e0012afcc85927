"""What a training was made from, as its folder says: by this a run is recognised and resumed, or refused.

Only what decides over the weights tells runs apart: not names, sample prompts or how often the state is saved, and no
setting of the method that its other settings leave without effect. The number of steps may change as long as those that
were made stay what they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import LikenessError
from ..storage import write_whole
from .config import MethodSettings, RunSettings, Seen
from .data.dataset import Dataset
from .loss_log import LOSSES

RECORD, FORMAT = "run.json", 2
STATE = "state.pt"  # in the folder of each phase


@dataclass(frozen=True)
class RunRecord:
    """base: fingerprint of the base model. data: from `digest_of`: what the method sees of the photos, and whatever
    else it starts from."""

    base: str
    data: str
    method: MethodSettings
    run: RunSettings

    def write(self, folder: Path) -> None:
        """Put it into a run folder, which exists."""
        record = {
            "format": FORMAT,
            "recipe": self.method.title,
            "base": self.base,
            "method": self.method.model_dump(mode="json"),
            "run": self.run.model_dump(mode="json"),
            "data": self.data,
        }
        write_whole(folder / RECORD, lambda part: part.write_text(json.dumps(record, indent=2), encoding="utf-8"))

    def difference(self, earlier: RunRecord, done: Sequence[int]) -> str:
        """Why the run that `earlier` began cannot become this one, as the rest of a sentence; '' where it can.

        done: the steps that were made of each of the method's phases. A phase that has begun can be prolonged, unless a
        later one has learned from it already.
        """
        if earlier.base != self.base:
            return "another base model, text encoder or VAE: resume it with those"
        if earlier.data != self.data:
            return "other photos, masks or captions, or other files to start from: resume it with those"
        other = _changed(self.method.deciding, earlier.method.deciding) + _changed(
            self.run.deciding, earlier.run.deciding
        )
        for number, (name, steps) in enumerate(self.method.steps_of_phases.items()):
            before = earlier.method.steps_of_phases[name]
            if steps == before or not any(done):
                continue
            if any(done[number + 1 :]) or 0 in (steps, before):
                other.append(name)
            elif steps < done[number]:
                return f"{before} steps and has made {done[number]} of them: ask for at least that many"
        return f"other settings ({', '.join(other)}): resume it with the same ones" if other else ""


def _changed(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Of what both decide by: a setting without effect in one of them is so because of another that differs."""
    return [name for name in ours if name in theirs and ours[name] != theirs[name]]


class AnotherMethod(LikenessError):
    """A run of another method, or of another version of the pack."""


def read_record(folder: Path, method: type[MethodSettings]) -> RunRecord | None:
    """That of a run folder, None where there is none. LikenessError when it is damaged or `AnotherMethod`'s."""
    file = folder / RECORD
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version, kind = found.get("format"), found["method"].get("kind")
        recipe, base, data = (str(found[key]) for key in ("recipe", "base", "data"))
        if version == FORMAT and kind == method.model_fields["kind"].default:
            settings = method.model_validate(found["method"]), RunSettings.model_validate(found["run"])
            return RunRecord(base, data, *settings)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LikenessError(
            f"'{file}', which records what the run was made from, is damaged: choose a new folder, or move this file "
            "away if model, photos and settings are still the same."
        ) from error
    if version != FORMAT:
        raise AnotherMethod(f"The run in '{folder}' is of another version of this pack: choose a new folder.")
    raise AnotherMethod(f"The run in '{folder}' was started with another method ({recipe}): choose a new folder.")


# What was seen and done ----------------------------------------------------------------------------------------------


def digest_of(datasets: Sequence[Dataset], method: MethodSettings, *also: str) -> str:
    """Tells data apart by what a method sees of it. also: digests of whatever else decides over the result."""
    digest = hashlib.sha256(repr(also).encode())
    for sample in (sample for dataset in datasets for sample in dataset.pictures):
        said = sample.caption if Seen.CAPTIONS in method.sees else ""
        digest.update(repr((said, sample.original_size, sample.crop, sample.pixels.shape)).encode())
        mask = sample.mask if Seen.MASKS in method.sees else None
        keypoints = sample.keypoints if Seen.KEYPOINTS in method.sees else None
        for values in (sample.pixels, mask, keypoints):
            digest.update(b"-" if values is None else np.ascontiguousarray(values).tobytes())
        if sample.repeats > 1:
            digest.update(repr(sample.repeats).encode())
    digest.update(repr([len(dataset) for dataset in datasets]).encode())
    return digest.hexdigest()


def digest_of_file(file: Path) -> str:
    """Tells files apart by their content."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def is_complete(folder: Path, method: MethodSettings) -> bool:
    """Whether a run folder has the state of all the steps that this method has."""
    return steps_done(folder, method) == tuple(method.steps_of_phases.values())


def steps_done(folder: Path, method: MethodSettings) -> tuple[int, ...]:
    """How many steps of each of the method's phases a run folder has the state of."""
    kept = [name for name, steps in method.steps_of_phases.items() if steps]
    files = {name: next(folder.glob(f"{number}-*/{STATE}"), None) for number, name in enumerate(kept, 1)}
    return tuple(_step_of(files.get(name)) for name in method.steps_of_phases)


def _step_of(state: Path | None) -> int:
    if state is None:
        return 0
    try:  # mapped, so that only what is asked for is read
        return int(torch.load(state, map_location="cpu", weights_only=True, mmap=True)["step"])
    except Exception:  # whoever resumes from it reports the damage
        return 0


def branch(folder: Path, new: Path) -> None:
    """Give a new run folder the states and losses of another, to resume from. Neither changes the other later."""
    for state in folder.glob(f"*/{STATE}"):
        (new / state.parent.name).mkdir()
        target = new / state.parent.name / STATE
        try:
            os.link(state, target)  # states are replaced, never written into
        except OSError:  # a file system without links
            shutil.copyfile(state, target)
    if (folder / LOSSES).is_file():
        shutil.copyfile(folder / LOSSES, new / LOSSES)
