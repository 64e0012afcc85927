"""The lowest room: every other one may import from it, and it imports no room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import likeness.weights

MODULES = sorted(Path(likeness.weights.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_no_room_is_imported(path):
    imported = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.ImportFrom)
    ]
    from_above = {node.module for node in imported if node.level > 1}
    absolute = {node.module for node in imported if node.level == 0 and (node.module or "").startswith("likeness")}
    assert from_above <= {"checks", "errors", "storage"} and not absolute
