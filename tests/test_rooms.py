"""Rooms import downwards only: what a room may import is one row of a table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Modules of the root that any room may use: they know no room.
HELPERS = {path.stem for path in ROOT.glob("*.py")} - {"__init__", "models_download"}
MAY_IMPORT = {
    "weights": set(),
    "models": set(),
    "faces": {"models", "weights"},
    "adapters": {"faces", "weights"},
    "injection": {"adapters", "weights"},
    "restoration": {"faces", "weights"},
    "evaluation": {"faces", "models", "weights"},
    "batch": {"evaluation", "faces", "models"},
    "training": {"adapters", "injection", "faces", "models", "weights"},
    "miniature": {"adapters", "evaluation", "faces", "injection", "models", "training", "weights"},
    "cli": {"adapters", "batch", "evaluation", "faces", "injection", "miniature", "models", "training", "weights"},
    "nodes": {
        *("adapters", "evaluation", "faces", "injection", "miniature", "models", "restoration", "training", "weights")
    },
}
SYSTEM_MODULES = [p for p in (ROOT / "adapters").rglob("*.py") if re.search(r"^SYSTEM = ", p.read_text("utf-8"), re.M)]
MODULES = sorted(path for room in MAY_IMPORT for path in (ROOT / room).rglob("*.py"))


def rooms_of(path: Path) -> set[str]:
    """The rooms, and modules of the root, that a module imports anywhere in its text."""
    found = set()
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = package[: len(package) - node.level + 1]
        named = (node.module or "").split(".") if node.module else []
        if base:
            found.add(base[0])
        elif named:
            found.add(named[0])
        else:
            found.update(alias.name for alias in node.names)
    return found


def test_every_room_has_a_row():
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_room_imports_only_what_lies_below_it(path):
    room = path.relative_to(ROOT).parts[0]
    allowed = {room, *HELPERS, *MAY_IMPORT[room], *({"models_download"} if "models" in MAY_IMPORT[room] else ())}
    assert rooms_of(path) <= allowed


@pytest.mark.parametrize("path", sorted((ROOT / "injection").rglob("*.py")), ids=lambda path: path.name)
def test_what_applies_effects_knows_no_system(path):
    """Of `adapters` it imports what all systems share."""
    systems = {found.relative_to(ROOT / "adapters").parts[0].removesuffix(".py") for found in SYSTEM_MODULES}
    assert len(systems) >= 5
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not {name.split(".")[1] for name in imported if name.startswith("adapters.")} & systems
    assert "adapters" not in imported, "its `__init__` builds adapters"


def test_the_helpers_of_the_root_know_no_room():
    for name in HELPERS:
        assert not rooms_of(ROOT / f"{name}.py") & MAY_IMPORT.keys(), name


def test_every_package_is_part_of_the_distribution():
    """An installation would lack what this list lacks; a checkout does not show it."""
    listed = set(re.findall(r'"(likeness\.[\w.]+)",', (ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    there = {
        "likeness." + ".".join(path.relative_to(ROOT).parent.parts)
        for room in MAY_IMPORT
        for path in (ROOT / room).rglob("__init__.py")
    }
    assert listed == there
