"""Whatever a folder holds, and whoever may read it, every node loads."""

from __future__ import annotations

import asyncio
from importlib import import_module
from pathlib import Path

import bad_values
import comfyui
import pytest

from likeness.models import scan


def loaded(host_nodes) -> set[str]:
    """The ids of our nodes that have a schema, as `/object_info` asks for them."""
    ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
    return {node.GET_SCHEMA().node_id for node in ours} & set(comfyui.object_info(host_nodes, ours))


@pytest.fixture
def places(host_nodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    import folder_paths

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(scan, "_told", set())
    (tmp_path / ".insightface" / "models" / "buffalo_l").mkdir(parents=True)
    models = Path(folder_paths.models_dir)
    found = {"home": tmp_path, "insightface": tmp_path / ".insightface", "packs": models / "insightface" / "models"}
    found |= {kind: models / kind for kind in ("ipadapter", "clip_vision", "likeness_identities", "facexlib", "loras")}
    found["output"] = Path(folder_paths.get_output_directory())
    return found


@pytest.mark.parametrize("number", [13, 5])
def test_a_folder_that_cannot_be_read_removes_no_node(number: int, host_nodes, places, monkeypatch):
    whole = loaded(host_nodes)
    assert len(whole) >= 25
    for place in places.values():
        place.mkdir(parents=True, exist_ok=True)
        with monkeypatch.context() as patch:
            bad_values.close(patch, place, number=number)
            assert loaded(host_nodes) == whole, place
