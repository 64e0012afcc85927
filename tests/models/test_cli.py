from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import bad_values
import pytest
from typer.testing import CliRunner, Result

from likeness import cli, models_download
from likeness.cli import models
from likeness.models import registry as registry_module
from likeness.models_download import ModelFile

BODY = b"weights" * 1000
Likeness = Callable[..., Result]


@pytest.fixture
def likeness(monkeypatch: pytest.MonkeyPatch) -> Likeness:
    """Runs the command line in this process."""
    monkeypatch.setenv("NO_COLOR", "1")
    return lambda *arguments: CliRunner().invoke(cli.command_tree(), arguments)


@pytest.fixture
def small_registry(monkeypatch: pytest.MonkeyPatch, server, model: Callable[..., ModelFile], page) -> list[ModelFile]:
    """Two files on the test server, one of them for research only."""
    server.pages["/thing.bin"] = page(BODY)
    entries = [
        model(BODY, name="free"),
        model(BODY, name="pack/closed", filename="closed.bin", commercial=False, licence="research only"),
    ]
    monkeypatch.setattr(registry_module, "_known", lambda: tuple(entries))
    return entries


def test_the_list_tells_what_is_here(likeness: Likeness, small_registry, put, bare_machine: Path):
    put(bare_machine / "ipadapter" / "thing.bin", BODY)
    result = likeness("models", "list")
    assert result.exit_code == 0
    lines = {line.split()[1]: line.split()[0] for line in result.output.splitlines()[1:3]}
    assert lines == {"free": "here", "pack/closed": "missing"}
    assert "1 of 2 files are here" in result.output


def test_the_list_can_be_narrowed(likeness: Likeness, small_registry, put, bare_machine: Path):
    put(bare_machine / "ipadapter" / "thing.bin", BODY)
    assert [entry["name"] for entry in json.loads(likeness("models", "list", "--json", "--missing").output)] == [
        "pack/closed"
    ]
    (entry,) = json.loads(likeness("models", "list", "--json", "--system", "ip_adapter").output)[:1]
    assert entry["path"] == str(bare_machine / "ipadapter" / "thing.bin") and entry["target"] == "ipadapter/thing.bin"


def test_the_whole_list_needs_no_network(likeness: Likeness):
    result = likeness("models", "list", "--json")
    assert result.exit_code == 0
    assert len(json.loads(result.output)) == len(models_download.registry())


def test_get_puts_the_file_in_place(likeness: Likeness, small_registry, tmp_path: Path):
    result = likeness("models", "get", "free", "--models-dir", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "ipadapter" / "thing.bin").read_bytes() == BODY
    assert "licence MIT" in result.output


def test_a_research_only_file_needs_the_flag_when_nobody_can_be_asked(
    likeness: Likeness, small_registry, tmp_path: Path
):
    refused = likeness("models", "get", "pack", "--models-dir", str(tmp_path))
    assert refused.exit_code == 1
    assert "research only" in refused.output and "--accept-licence" in refused.output
    assert not (tmp_path / "ipadapter").exists()
    assert likeness("models", "get", "pack", "--models-dir", str(tmp_path), "--accept-licence").exit_code == 0
    assert (tmp_path / "ipadapter" / "closed.bin").read_bytes() == BODY


@pytest.mark.parametrize(("answer", "fetched"), [("yes", True), ("no", False), ("", False)])
def test_a_person_is_asked_about_the_licence(
    answer: str, fetched: bool, monkeypatch: pytest.MonkeyPatch, small_registry, tmp_path: Path
):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert models._get(small_registry[1], tmp_path, dry_run=False, accepted=False) is not fetched
    assert (tmp_path / "ipadapter" / "closed.bin").exists() is fetched


def test_a_dry_run_fetches_nothing(likeness: Likeness, small_registry, server, tmp_path: Path):
    result = likeness("models", "get", "free", "pack", "--dry-run", "--models-dir", str(tmp_path / "x"))
    assert result.exit_code == 0 and result.output.count("would be downloaded") == 2
    assert server.requests == [] and not (tmp_path / "x").exists()


def test_one_failure_does_not_stop_the_others(likeness: Likeness, small_registry, server, tmp_path: Path, put):
    mine = put(tmp_path / "ipadapter" / "closed.bin", b"mine")
    result = likeness("models", "get", "pack", "free", "--models-dir", str(tmp_path), "--accept-licence")
    assert result.exit_code == 1
    assert mine.read_bytes() == b"mine" and (tmp_path / "ipadapter" / "thing.bin").exists()


def test_verify_finds_a_damaged_file(likeness: Likeness, small_registry, put, bare_machine: Path):
    path = put(bare_machine / "ipadapter" / "thing.bin", BODY)
    assert likeness("models", "verify").exit_code == 0
    path.write_bytes(b"damaged")
    result = likeness("models", "verify")
    assert result.exit_code == 1 and "other content" in result.output
    assert path.read_bytes() == b"damaged", "a file of the user is never changed"


def test_verify_all_recognises_a_renamed_file(likeness: Likeness, small_registry, put, bare_machine: Path):
    put(bare_machine / "ipadapter" / "my name.bin", BODY)
    put(bare_machine / "ipadapter" / "own.safetensors", b"own")
    assert "0 files checked" in likeness("models", "verify").output
    result = likeness("models", "verify", "--all")
    assert result.exit_code == 0
    assert "under another name (free, pack/closed)" in result.output and "is not in the registry" in result.output


def test_verify_all_reports_what_cannot_be_read_and_goes_on(
    likeness: Likeness, small_registry, put, bare_machine: Path
):
    put(bare_machine / "ipadapter" / "own.safetensors", b"own")
    for number, kind in enumerate(("broken link", "looping link", "fifo", "socket")):
        bad_values.FILES[kind](bare_machine / "ipadapter" / f"{number}.bin")
    result = likeness("models", "verify", "--all")
    assert result.exit_code == 1 and "5 files checked, 4 with a problem" in result.output
    assert result.output.count("cannot be read (") == 4 and "own.safetensors: is not in the registry" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, "likeness 0."),
        (["models", "get", "no-such-model"], 1, "No model is called 'no-such-model'"),
        (["models", "list", "--system", "nonsense"], 2, "nonsense"),
        (["models", "fetch"], 2, "fetch"),
    ],
)
def test_the_script_ends_with_the_right_code(arguments: list[str], code: int, words: str, tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-m", "likeness.cli", *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert run.returncode == code
    assert words in run.stdout + run.stderr and "Traceback" not in run.stderr
