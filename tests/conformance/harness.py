"""Golden cases: how they are read, how a runner is found for one, how its outputs are judged.

A runner turns a `Case` into a dictionary of outputs by calling the project's public functions. It is registered for a
system and a pattern over the case's `variant`; nothing here or in a runner may look at a case's name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

REPOSITORY = Path(__file__).resolve().parents[2]


def golden_folder() -> Path:
    """The folder `LIKENESS_GOLDEN` names, else `../shared/golden` beside the repository."""
    return Path(os.environ.get("LIKENESS_GOLDEN", REPOSITORY.parent / "shared" / "golden"))


@dataclass
class Case:
    """One golden case, with the prefixes of its tensor names (`weights/`, `input/`, `output/`) taken off."""

    path: Path
    system: str
    variant: str
    config: dict[str, Any]
    rtol: float
    atol: float
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    inputs: dict[str, torch.Tensor] = field(default_factory=dict)
    expected: dict[str, torch.Tensor] = field(default_factory=dict)

    def weights_below(self, prefix: str) -> dict[str, torch.Tensor]:
        """The weights whose key starts with `prefix`, without it."""
        return {k[len(prefix) :]: v for k, v in self.weights.items() if k.startswith(prefix)}


Outputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Runner:
    """A function from case to outputs. `tolerances` holds, per output name, an absolute tolerance that the case's
    procedure states in words beside the one in its metadata (for example one grey level for 8-bit crops)."""

    run: Callable[[Case], Outputs]
    tolerances: dict[str, float]


_RUNNERS: list[tuple[str, re.Pattern[str], Runner]] = []


def runs(system: str, variant: str, tolerances: dict[str, float] | None = None):
    """Register the decorated function for all cases of `system` whose whole variant matches the regular expression."""

    def register(function: Callable[[Case], Outputs]) -> Callable[[Case], Outputs]:
        _RUNNERS.append((system, re.compile(variant), Runner(function, tolerances or {})))
        return function

    return register


def runner_for(system: str, variant: str) -> Runner | None:
    """The runner registered for this system and variant, or None when that part is not built yet."""
    matches = [runner for name, pattern, runner in _RUNNERS if name == system and pattern.fullmatch(variant)]
    if len(matches) > 1:
        raise RuntimeError(f"several runners match {system} / {variant}")
    return matches[0] if matches else None


def find_cases(folder: Path) -> list[Path]:
    """All case files below the folder, in a stable order."""
    return sorted(folder.glob("*/*.safetensors"))


def read_metadata(path: Path) -> dict[str, str]:
    """Only the header of a case."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def read_case(path: Path) -> Case:
    """The whole case."""
    groups: dict[str, dict[str, torch.Tensor]] = {"weights": {}, "input": {}, "output": {}}
    with safe_open(path, framework="pt") as file:
        meta = dict(file.metadata())
        for key in file.keys():  # noqa: SIM118 - safe_open is not a mapping
            group, _, name = key.partition("/")
            groups[group][name] = file.get_tensor(key)
    return Case(
        path=path,
        system=meta["system"],
        variant=meta["variant"],
        config=json.loads(meta["config"]),
        rtol=float(meta["rtol"]),
        atol=float(meta["atol"]),
        weights=groups["weights"],
        inputs=groups["input"],
        expected=groups["output"],
    )


def judge(case: Case, outputs: Outputs, runner: Runner) -> None:
    """Compare every output of the case; a missing, extra or misshapen one fails like a wrong number."""
    assert set(outputs) == set(case.expected), (
        f"outputs differ in name: missing {sorted(set(case.expected) - set(outputs))}, "
        f"unexpected {sorted(set(outputs) - set(case.expected))}"
    )
    for name, expected in case.expected.items():
        actual = outputs[name]
        assert tuple(actual.shape) == tuple(expected.shape), (
            f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
        torch.testing.assert_close(
            actual.detach().to(torch.float64).cpu(),
            expected.to(torch.float64),
            rtol=case.rtol,
            atol=runner.tolerances.get(name, case.atol),
            msg=lambda text, name=name: f"{name}: {text}",
        )


def tally(rows: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Count outcomes (`passed`, `failed`, `skipped`) per system from (system, outcome) rows."""
    table: dict[str, dict[str, int]] = {}
    for system, outcome in rows:
        counts = table.setdefault(system, {"passed": 0, "failed": 0, "skipped": 0})
        counts[outcome] += 1
    return table
