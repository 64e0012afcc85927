"""A machine without models and network, and folders in which every verb has something to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from colour_judge import colour_judge, picture

from likeness.cli import opening
from likeness.models import registry, transfer

COLOURS = {"ann": (255, 60, 60), "bob": (60, 255, 60)}
CONFIGURATION = """
name = "anna"
base = "miniature"
output = "run"
[data]
person = "people/ann/refs"
faces = "miniature"
resolution = 64
[recipe]
kind = "textual_inversion"
token = "<anna>"
steps = 1
"""


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a study of two people, a configuration, and a models folder that is empty."""
    desk = tmp_path / "desk"
    for name, colour in COLOURS.items():
        for number in (1, 2):
            shade = tuple(value - number for value in colour)
            picture(desk / f"people/{name}/refs/{number}.png", shade)  # type: ignore[arg-type]
        for method in ("faceid", "base"):
            picture(desk / f"results/{method}/{name}/hat-1.png", colour)
    (desk / "config.toml").write_text(CONFIGURATION)
    home = tmp_path / "home"
    (home / "comfy" / "ComfyUI" / "models").mkdir(parents=True)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    for name in ("LIKENESS_MODELS", "COMFYUI_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "folder_paths", raising=False)
    monkeypatch.setattr(opening, "open_faces", lambda name: colour_judge())
    monkeypatch.setattr(transfer, "_RETRY_SECONDS", 0.0)
    record: dict[str, Any] = dict.fromkeys(("variant", "licence", "needed_by", "notes"), "")
    entry = registry.ModelFile(
        **{**record, "name": "thing", "system": "faces", "url": "http://127.0.0.1:9/thing.bin", "commercial": True},
        filename="thing.bin",
        folder="ipadapter",
        size_bytes=4,
        sha256=(),
    )
    monkeypatch.setattr(registry, "_known", lambda: (entry,))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(desk)
    return desk
