"""Nothing that lies in a folder may stop a list, and nothing may be waited for."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import bad_values
import pytest

from likeness.errors import LikenessError
from likeness.models import scan
from likeness.models_download import (
    OUR_KINDS,
    find_file,
    find_insightface_pack,
    list_files,
    list_insightface_packs,
    locate,
    registry,
    resolve,
)

Put = Callable[..., Path]


@pytest.fixture(autouse=True)
def nothing_told() -> Iterator[None]:
    scan._told.clear()
    yield
    scan._told.clear()


def asked_everything() -> None:
    """All that nodes and the command line ask on their way to a list."""
    list_insightface_packs()
    for kind in OUR_KINDS:
        list_files(kind)
    for model in registry():
        locate(model)


# Places that cannot be read


@pytest.mark.parametrize(
    "place", ["../../..", "../../../.insightface", "insightface/models", "insightface", "loras", "."]
)
@pytest.mark.parametrize("number", [13, 5, 116])  # no permission, a broken disk, a network folder that went away
def test_an_unreadable_place_is_left_out_with_one_warning(
    place: str, number: int, put: Put, bare_machine: Path, monkeypatch, caplog
):
    put(bare_machine / "ipadapter" / "here.bin")
    closed = Path(os.path.normpath(bare_machine / place))
    closed.mkdir(parents=True, exist_ok=True)
    bad_values.close(monkeypatch, closed, number=number)
    with caplog.at_level(logging.WARNING):
        asked_everything()
        asked_everything()
    (warning,) = caplog.messages
    assert warning.startswith(f"{str(closed)!r} cannot be read ({os.strerror(number)})")
    inside = closed in (bare_machine / "ipadapter").parents or closed == bare_machine
    assert list_files("ipadapter") == ([] if inside else ["here.bin"])


AS_NOBODY = """
import os, sys
from likeness.models_download import OUR_KINDS, list_files, list_insightface_packs, locate, registry
from likeness import cli
from likeness.models import places
from typer.testing import CliRunner
app = cli.command_tree()
for arguments in (["models", "list"], ["models", "verify", "--all"]):  # all is imported while it can be
    CliRunner().invoke(app, arguments)
if os.getuid() == 0:
    os.setgid(65534); os.setuid(65534)
in_packages = set(places._IN_PACKAGES)  # theirs are found wherever the packages can be read
assert [list_files(kind) for kind in set(OUR_KINDS) - in_packages if list_files(kind)] == []
assert list_insightface_packs() == []
assert [locate(model) for model in registry() if model.kind not in in_packages and locate(model)] == []
for arguments in (["models", "list"], ["models", "verify", "--all"]):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
"""


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="needs users as Unix has them")
@pytest.mark.parametrize("home", ["closed", "none"])
def test_the_home_of_another_user_or_none_at_all(home: str, tmp_path: Path):
    closed = tmp_path / "closed"
    (closed / ".insightface" / "models" / "buffalo_l").mkdir(parents=True)
    (closed / "comfy" / "ComfyUI" / "models" / "ipadapter").mkdir(parents=True)
    (closed / "comfy" / "ComfyUI" / "models" / "ipadapter" / "x.bin").write_bytes(b"x")
    closed.chmod(0)
    environment = {"PATH": os.environ["PATH"], "HOME": str(closed)}
    code = AS_NOBODY
    if home == "none":  # a user whom the system does not know
        del environment["HOME"]
        code = code.replace("65534", "61234")
    try:
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd="/", capture_output=True, text=True, check=False
        )
    finally:
        closed.chmod(0o700)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("cannot be read") == (1 if home == "closed" else 0), run.stderr


# What lies in a readable one


@pytest.mark.parametrize("kind", sorted(set(bad_values.FILES) - {"missing", "garbage", "empty", "ones", "unreadable"}))
def test_only_regular_files_are_listed_found_and_opened(kind: str, put: Put, bare_machine: Path):
    put(bare_machine / "ipadapter" / "good.bin")
    put(bare_machine / "insightface" / "models" / "good" / "good.onnx")
    for place in ("ipadapter/bad.bin", "insightface/models/good/bad.onnx", "insightface/models/bad", "facexlib"):
        bad_values.FILES[kind](bare_machine / place)
    asked_everything()
    assert list_files("ipadapter") == ["good.bin"]
    assert list_insightface_packs() == ["good"]
    assert find_insightface_pack("good").name == "good"
    assert resolve("ipadapter", "bad.bin") is None
    with pytest.raises(LikenessError, match="was not found"):
        find_file("ipadapter", "bad.bin")


def test_links_back_to_a_folder_above_end_and_other_links_are_followed(put: Put, bare_machine: Path):
    folder = bare_machine / "loras"
    put(folder / "a" / "x.safetensors")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "again").symlink_to(folder / "a")
    names = list_files("loras")
    assert {"a/x.safetensors", "again/x.safetensors"} <= set(names)
    assert len(names) < 10


def test_links_that_cross_each_other_end_in_good_time(bare_machine: Path):
    folder = bare_machine / "loras"
    rooms = [folder / str(number) for number in range(12)]
    for room in rooms:
        room.mkdir(parents=True)
        (room / "x.bin").touch()
    for room in rooms:
        for other in rooms:
            (room / f"to{other.name}").symlink_to(other)
    begun = time.monotonic()
    names = list_files("loras")
    assert time.monotonic() - begun < 5
    assert {f"{room.name}/x.bin" for room in rooms} <= set(names)


def test_a_tree_deeper_than_any_is_left_where_it_gets_absurd(put: Put, bare_machine: Path, caplog):
    put(bare_machine / "ipadapter" / "x.bin")
    here, depth = os.getcwd(), 0
    os.chdir(bare_machine / "ipadapter")
    try:
        while depth < 1500:  # deeper than Python's recursion, and than a path can be long
            os.mkdir("deep")
            os.chdir("deep")
            depth += 1
        assert list_files("ipadapter") == ["x.bin"]
        assert caplog.text.count("what lies deeper is left out") == 1
    finally:
        for _ in range(depth):  # pytest's own clearing up would not come to an end
            os.chdir("..")
            os.rmdir("deep")
        os.chdir(here)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="these systems keep names as text")
def test_names_that_are_not_text_are_left_out_of_lists(put: Put, bare_machine: Path, caplog):
    put(bare_machine / "ipadapter" / "good.bin")
    (bare_machine / "ipadapter" / os.fsdecode(b"caf\xe9.bin")).touch()
    put(bare_machine / "insightface" / "models" / os.fsdecode(b"\xff") / "x.onnx")
    assert list_files("ipadapter") == ["good.bin"]
    assert list_insightface_packs() == []
    assert "rename them" in caplog.text


@pytest.mark.parametrize("name", [*bad_values.NAMES, "a" * 5000, "x/" * 3000])
def test_any_name_is_found_missing_or_refused_in_one_sentence_that_can_be_sent(name: str, bare_machine: Path):
    for search in (lambda: find_file("ipadapter", name), lambda: find_insightface_pack(name)):
        with pytest.raises(LikenessError) as caught:
            search()
        assert str(caught.value).isprintable() and str(caught.value).encode()


def test_a_file_that_cannot_be_opened_is_told_in_words(put: Put, bare_machine: Path, monkeypatch):
    put(bare_machine / "ipadapter" / "x.bin")
    put(bare_machine / "insightface" / "models" / "p" / "x.onnx")

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, os.strerror(13), str(self))

    monkeypatch.setattr(Path, "open", refuse)
    for search in (lambda: find_file("ipadapter", "x.bin"), lambda: find_insightface_pack("p")):
        with pytest.raises(LikenessError, match="cannot be read"):
            search()
