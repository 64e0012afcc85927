"""Processes that share a network: they end with one network, and it is the one that a single process trains."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from likeness.training.team import Team

SCRIPT = Path(__file__).with_name("team.py")


def test_two_processes_train_what_one_does(tmp_path):
    meeting, together = tmp_path / "meeting", tmp_path / "together"
    together.mkdir()
    processes = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), "2", str(meeting), str(together)]) for rank in range(2)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert (together / "state.pt").exists()
    first, second = (torch.load(together / f"weights-{rank}.pt", weights_only=True) for rank in range(2))
    alone = _script().train(Team(), tmp_path / "alone").modules["net"].state_dict()
    for key, value in alone.items():
        assert torch.equal(first[key], second[key])
        assert torch.allclose(first[key], value, atol=1e-5)


def test_parts_of_a_batch_are_disjoint_and_complete():
    rows = np.arange(10)
    parts = [Team(rank, 2).part(rows) for rank in range(2)]
    assert sorted(np.concatenate(parts)) == list(rows)


def test_alone_nothing_is_exchanged():
    values = torch.tensor([1.0, 2.0])
    Team().mean([values])
    Team().total([values])
    assert values.tolist() == [1.0, 2.0]
    assert Team().agreed(True)
    assert not Team().agreed(False)


def _script():
    spec = importlib.util.spec_from_file_location("likeness_team_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
