"""What every verb does with its values: nothing is begun that cannot be finished, and nothing usable is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from colour_judge import colour_judge, picture
from typer.testing import CliRunner, Result

from likeness import cli
from likeness.cli import models, opening
from likeness.errors import LikenessError
from likeness.faces import Identity

Run = Callable[..., Result]


@pytest.fixture
def likeness(desk: Path) -> Run:
    return lambda *arguments: CliRunner().invoke(cli.command_tree(), [str(argument) for argument in arguments])


# identity


def test_photos_without_a_face_are_named_and_left_out(likeness: Run, desk: Path):
    picture(desk / "nobody.png", (0, 0, 0))
    (desk / "notes.png").write_text("no image")
    photos = ["people/ann/refs/1.png", "nobody.png", "notes.png", "gone.png", "people/ann/refs/2.png"]
    result = likeness("identity", *photos, "--out", "new")
    assert result.exit_code == 0, result.exception
    assert len(Identity.load(desk / "new" / "person.safetensors")) == 2
    for words in ("photo 2 shows no face", "The photos: 1 1.png, 2 nobody.png, 3 2.png", "notes.png", "gone.png"):
        assert words in result.output
    assert result.output.count("not used:") == 2


@pytest.mark.parametrize(("photo", "words"), [("nobody.png", "no face|No face"), ("notes.png", "cannot be read")])
@pytest.mark.parametrize("times", [1, 2])
def test_without_a_usable_photo_nothing_is_written(photo: str, words: str, times: int, likeness: Run, desk: Path):
    picture(desk / "nobody.png", (0, 0, 0))
    (desk / "notes.png").write_text("no image")
    result = likeness("identity", *[photo] * times, "--out", "new")
    assert result.exit_code == 1 and isinstance(result.exception, LikenessError)
    assert any(word in str(result.exception) for word in words.split("|"))
    assert list(desk.rglob("*.safetensors")) == []


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "C:\\x", "CON", "a\0b", "x" * 300])
def test_a_name_that_leads_out_is_refused_and_nothing_is_begun(name: str, likeness: Run, desk: Path, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", lambda name: pytest.fail("the work has begun"))
    result = likeness("identity", "people/ann/refs/1.png", f"--name={name}", "--out", "new")
    assert result.exit_code in (1, 2) and "--name" in f"{result.exception}{result.output}"
    assert not (desk / "new").exists() and not (desk / "x.png").exists()


def test_names_that_are_taken_get_a_number(likeness: Run, desk: Path):
    for _ in range(2):
        assert likeness("identity", "people/ann/refs/1.png", "--name", "Zoë (v2)", "--out", "new").exit_code == 0
    names = {path.name for path in (desk / "new").iterdir()}
    assert names == {f"Zoë (v2){number}{suffix}" for number in ("", "_2") for suffix in (".png", ".safetensors")}


# every verb


@pytest.mark.parametrize(
    "arguments",
    [
        ["identity", "people/ann/refs/1.png", "--out", "file"],
        ["identity", "people/ann/refs/1.png", "--out", "file/below"],
        ["evaluate", ".", "--out", "file"],
        ["calibrate", "people", "--out", "file"],
        ["calibrate", "people", "--out", "file/below.json"],
        ["calibrate", "people", "--out", "CON.json"],
        ["models", "get", "thing", "--models-dir", "file"],
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_work(arguments: list[str], likeness: Run, desk, monkeypatch):
    (desk / "file").write_text("mine")
    judge = colour_judge()
    monkeypatch.setattr(type(judge), "search", lambda *_, **__: pytest.fail("the work has begun"))
    monkeypatch.setattr(models, "download", lambda *_, **__: pytest.fail("the work has begun"))
    result = likeness(*arguments)
    assert isinstance(result.exception, LikenessError) and result.exit_code == 1
    assert (desk / "file").read_text() == "mine"


@pytest.mark.parametrize("entry", ['name = "../anna"', 'name = "CON"', 'output = "file"', 'output = "file/run"'])
def test_a_training_is_not_begun_where_its_results_cannot_be_kept(entry: str, likeness: Run, desk: Path, monkeypatch):
    monkeypatch.setattr("likeness.training.command.run", lambda *_: pytest.fail("the work has begun"))
    (desk / "file").write_text("mine")
    key = entry.split()[0]
    lines = (desk / "config.toml").read_text().splitlines()
    (desk / "config.toml").write_text("\n".join(entry if line.startswith(f"{key} =") else line for line in lines))
    result = likeness("train", "config.toml")
    assert isinstance(result.exception, LikenessError) and f"'{key}'" in str(result.exception)


@pytest.mark.parametrize("verb", ["train", "identity", "evaluate", "calibrate", "models"])
def test_ctrl_c_ends_in_its_own_exit_code(verb: str, likeness: Run, desk: Path, monkeypatch):
    def press(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(opening, "open_faces", press)
    monkeypatch.setattr(models, "download", press)
    monkeypatch.setattr("likeness.training.command.run", press)
    arguments = {
        "train": ["config.toml"],
        "identity": ["people/ann/refs/1.png", "--out", "new"],
        "evaluate": ["."],
        "calibrate": ["people", "--out", "new.json"],
        "models": ["get", "thing", "--models-dir", "new"],
    }
    result = likeness(verb, *arguments[verb])
    assert result.exit_code == 130
    assert verb != "models" or "the same command resumes" in result.output


@pytest.mark.parametrize("workers", ["0", "-1", "nan", "1.5", "10000000000000000000", "", "two"])
def test_a_number_that_makes_no_sense_is_wrong_usage(workers: str, likeness: Run):
    assert likeness("evaluate", ".", f"--workers={workers}").exit_code == 2


def test_a_full_disk_or_no_memory_is_one_sentence(likeness: Run, desk: Path, monkeypatch):
    full = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")
    no_space = OSError(28, "No space left on device", "x")
    for error, words in ((no_space, "No space left"), (MemoryError(), "memory"), (full, "not enough memory")):

        def fail(name: str, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(opening, "open_faces", fail)
        result = likeness("identity", "people/ann/refs/1.png", "--out", "new")
        assert isinstance(result.exception, LikenessError) and words in str(result.exception)


# the process


def process(*arguments: str | bytes, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "likeness.cli", *arguments],
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems keep names as text")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_error_is_one_line_on_any_terminal(encoding: str, tmp_path: Path):
    name = "gone \x1b[2J\n李".encode() + b"\xff.toml"
    run = process("train", name, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert run.returncode == 1 and run.stdout == b""
    assert run.stderr.startswith(b"likeness: There is no configuration file 'gone")
    assert run.stderr.strip().isascii() is (encoding == "ascii") and len(run.stderr.splitlines()) == 1
    assert b"\x1b" not in run.stderr


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems keep names as text")
def test_names_that_no_terminal_can_show_do_not_end_a_list(tmp_path: Path):
    folder = tmp_path / "models" / "ipadapter"
    folder.mkdir(parents=True)
    (folder / "\x1b[2J李.bin").write_bytes(b"x")
    run = process(
        "models", "verify", "--all", cwd=tmp_path, LIKENESS_MODELS=str(tmp_path / "models"), HOME=str(tmp_path)
    )
    assert run.returncode == 0, run.stderr
    assert b"\\x1b[2J" in run.stdout and b"\x1b" not in run.stdout


def test_nothing_heavy_is_loaded_for_help(tmp_path: Path):
    run = process("identity", "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert run.returncode == 0 and b"Usage" in run.stdout
    assert b" torch\n" not in run.stderr and b" numpy\n" not in run.stderr
