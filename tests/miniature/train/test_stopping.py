"""A stage that is told to stop: its state is saved, the caller knows, and started again it resumes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = str(Path(__file__).with_name("small_stage.py"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_stage_that_is_told_to_stop_goes_on_where_it_was(tmp_path):
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, SCRIPT, str(folder), "1000000"], stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (folder / "at-work").exists():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # to the parent alone
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "stopped; start again to resume" in said
    done = torch.load(folder / "state.pt", weights_only=True)["step"]
    assert done >= 1
    again = subprocess.run([sys.executable, SCRIPT, str(folder), str(done + 2)], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == done + 2
    assert f"{done + 2}/{done + 2}" in again.stderr, "the progress goes on too"
