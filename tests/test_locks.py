"""Folders of one process: who else comes is told who has it, and what the dead left is cleared away."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from likeness import locks
from likeness.errors import LikenessError

HOLD = """
import sys, time
from pathlib import Path
from likeness import locks

with locks.locked(Path(sys.argv[1]), "The run"), locks.temporary_folder(Path(sys.argv[1]), "work-") as work:
    (work / "photo.png").touch()
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked the folder and works in it."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != locks.LOCK)


def test_a_lock_names_its_owner(tmp_path, holder):
    owner = json.loads((tmp_path / locks.OWNER).read_text())
    sentence = f"The run '{tmp_path}' is in use by process {holder.pid} on {owner['host']} since {owner['since']}: wait"
    with pytest.raises(LikenessError, match=f"^{re.escape(sentence)}"), locks.locked(tmp_path, "The run"):
        pass
    (tmp_path / locks.OWNER).write_text("[" * 100_000)
    with pytest.raises(LikenessError, match="in use by another process"), locks.locked(tmp_path, "The run"):
        pass
    [work] = tmp_path.glob("work-*")
    locks.sweep(tmp_path, "work-")
    assert (work / "photo.png").exists(), "its owner lives"


def test_the_lock_of_a_killed_process_is_nobodys_and_its_litter_goes(tmp_path, holder):
    holder.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    holder.wait()
    assert (tmp_path / locks.OWNER).exists() and list(tmp_path.glob("work-*"))
    with locks.locked(tmp_path, "The run"):
        assert json.loads((tmp_path / locks.OWNER).read_text())["pid"] == os.getpid()
        with locks.temporary_folder(tmp_path, "work-") as mine:
            assert names(tmp_path) == sorted([locks.OWNER, mine.name])
            with locks.temporary_folder(tmp_path, "work-"):
                assert mine.exists()
    assert names(tmp_path) == []


def test_a_lock_may_be_taken_again_by_whoever_has_it(tmp_path):
    with locks.locked(tmp_path, "The run"):
        with locks.locked(tmp_path / "x" / "..", "The run"):
            pass
        assert (tmp_path / locks.OWNER).exists()
    with locks.locked(tmp_path, "The run"):
        pass


def test_folders_of_unknown_owners_go_when_they_are_old(tmp_path):
    """Of other machines, of older versions, of a process whose number somebody else has by now."""
    mine = f"{locks._THIS_HOST}-{os.getpid()}"
    parents = f"{locks._THIS_HOST}-{os.getppid()}"
    stay = [".x_abc123", f".x_00000000-1-{'0' * 8}-{'0' * 8}", f".x_{parents}-{'0' * 8}-{'0' * 8}", "other"]
    go = [".x_old", f".x_{mine}-{'0' * 8}-{'0' * 8}", f".x_{locks._THIS_HOST}-{10**12}-{'0' * 8}-{'0' * 8}"]
    for name in [*stay, *go]:
        (tmp_path / name).mkdir()
    (tmp_path / ".x_file").touch()
    os.utime(tmp_path / ".x_old", (0, time.time() - 7200))
    locks.sweep(tmp_path, ".x_")
    assert names(tmp_path) == sorted([*stay, ".x_file"])
    locks.sweep(tmp_path, ".x_", alone=True)
    assert names(tmp_path) == [".x_file", "other"]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such rights")
def test_nobody_else_reads_what_lies_there(tmp_path):
    with locks.temporary_folder(tmp_path, "work-") as work:
        assert work.stat().st_mode & 0o077 == 0
