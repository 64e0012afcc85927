"""Where ComfyUI is looked for, and which version lies there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from likeness.errors import LikenessError
from likeness.miniature import comfyui_server, demo_comfyui


@pytest.fixture(autouse=True)
def nobody_named(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")


def host(folder: Path, version: str | None = "0.3.64") -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    if version is not None:
        (folder / "comfyui_version.py").write_text(f'# This file is generated.\n__version__ = "{version}"\n')
    return folder.resolve()


def test_the_variable_may_name_several_folders_as_a_search_path_does(monkeypatch, tmp_path):
    one, two = host(tmp_path / "one"), host(tmp_path / "home" / "two")
    named = os.pathsep.join([str(one), "", "~/two", str(tmp_path / "nothing"), f"{one}/"])
    monkeypatch.setenv("COMFYUI_PATH", named)
    monkeypatch.setattr(os.path, "expanduser", lambda path: str(path).replace("~", str(tmp_path / "home")))
    assert comfyui_server.all_comfyui(comfyui_server.named_places()) == [one, two]
    assert demo_comfyui.find_comfyui() == one


def test_the_newest_in_the_checkout_comes_before_the_usual_workspace(tmp_path):
    new = host(tmp_path / "home" / "comfy" / "ComfyUI-new", "0.33.0")
    usual = host(tmp_path / "home" / "comfy" / "ComfyUI", "0.3.64")
    checkout = tmp_path / "checkout"
    versions = ["0.30.0", "0.4.1", None, "0.30.1"]
    brought = [host(checkout / ".comfyui" / f"host-{number}", version) for number, version in enumerate(versions)]
    (checkout / ".comfyui" / "venv-0.30.0").mkdir()
    found = comfyui_server.all_comfyui(comfyui_server.usual_places(checkout))
    assert found == [brought[3], brought[0], brought[1], brought[2], usual, new]


def test_a_link_to_a_host_that_is_known_already_is_not_another_one(tmp_path):
    usual = host(tmp_path / "home" / "comfy" / "ComfyUI")
    (usual.parent / "ComfyUI-new").symlink_to(usual, target_is_directory=True)
    assert comfyui_server.all_comfyui(comfyui_server.usual_places(tmp_path)) == [usual]


def test_the_demonstration_says_how_to_get_a_host_where_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(demo_comfyui, "usual_places", lambda: comfyui_server.usual_places(tmp_path))
    with pytest.raises(LikenessError, match="make comfyui"):
        demo_comfyui.find_comfyui()


@pytest.mark.parametrize(
    "text, version",
    [
        ('__version__ = "0.33.0"\n', "0.33.0"),
        ("# generated\n__version__='1.2.3-rc1'", "1.2.3-rc1"),
        ("version = 3", None),
        ("", None),
    ],
)
def test_the_version_is_read_without_importing_the_host(tmp_path, text, version):
    assert comfyui_server.version_of(tmp_path) is None
    (tmp_path / "comfyui_version.py").write_text(text)
    assert comfyui_server.version_of(tmp_path) == version


def test_versions_are_ordered_by_their_numbers():
    ordered = ["nightly", "0.3.9", "0.3.64", "0.4.0", "0.21", "0.21.0", "v0.33.0-rc1", "1.0"]
    shuffled = ordered[1::2] + ordered[::2]
    assert sorted(shuffled, key=comfyui_server.version_key) == ordered
    assert comfyui_server.version_key(None) == comfyui_server.version_key("nightly") < comfyui_server.version_key("0")
