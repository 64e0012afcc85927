"""Workflows that people saved with version 0.1.0, as files in `data/0.1.0`: they open, and make the same image.

`frozen_schema.json` is what 0.1.0 promised of all its nodes, the graphs are its examples in both formats, and the
image is what it painted on a CPU. Nothing of it is ever made anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import comfyui
import numpy as np
import pytest
from helpers.saved_contract import breaking_changes, contract
from PIL import Image

SAVED = Path(__file__).parent / "data" / "0.1.0"
NAMES = sorted(path.name.removesuffix(".api.json") for path in SAVED.glob("*.api.json"))
SAVE_IMAGE = "14"  # the node of miniature_portrait

pytestmark = pytest.mark.host


def read(name: str) -> dict[str, Any]:
    return json.loads((SAVED / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def graph_tool() -> Any:
    return comfyui.load_module("_graph", comfyui.REPOSITORY / "workflows" / "_graph.py")


def opened(workflow: dict[str, Any], info: dict[str, Any], graph_tool: Any) -> dict[str, Any]:
    """A UI file as a browser opens it: values by their place, defaults for widgets that have come since."""
    nodes = []
    for node in workflow["nodes"]:
        values = list(node.get("widgets_values", []))
        if node["type"] in info and node["type"].startswith("Likeness"):
            defaults: list[Any] = []
            for widget in (i for i in graph_tool.inputs_of(info[node["type"]]) if i.is_widget):
                defaults += [
                    widget.default,
                    *["fixed"] * widget.has_seed_control,
                    *["image"] * widget.has_upload_button,
                ]
            values += defaults[len(values) :]
        nodes.append({**node, "widgets_values": values})
    return {**workflow, "nodes": nodes}


def test_everything_that_0_1_0_promised_still_holds(object_info, graph_tool):
    assert breaking_changes(read("frozen_schema.json"), contract(object_info, graph_tool)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_graph_opens_without_a_problem(name, object_info, graph_tool):
    workflow = opened(read(f"{name}.json"), object_info, graph_tool)
    assert graph_tool.problems(workflow, object_info) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_graph_asks_for_what_it_asked_for(name, object_info, graph_tool):
    """Value for value what 0.1.0 sent to the server; what has come since has its default."""
    now = graph_tool.to_api(opened(read(f"{name}.json"), object_info, graph_tool), object_info)
    before = read(f"{name}.api.json")
    assert now.keys() == before.keys()
    for number, node in before.items():
        assert now[number]["class_type"] == node["class_type"]
        assert {key: now[number]["inputs"].get(key) for key in node["inputs"]} == node["inputs"]
        for key in now[number]["inputs"].keys() - node["inputs"].keys():
            assert key not in object_info[node["class_type"]]["input"]["required"], f"{node['class_type']}.{key}"


def test_a_saved_graph_makes_the_picture_that_it_made(client):
    with Image.open(comfyui.REPOSITORY / "workflows" / "miniature_person.png") as picture:
        client.upload_image("miniature_person.png", np.asarray(picture.convert("RGB")))
    run = client.run(read("miniature_portrait.api.json"))
    [painted] = client.images(run, SAVE_IMAGE)
    with Image.open(SAVED / "miniature_portrait.png") as picture:
        before = np.asarray(picture)
    assert painted.shape == before.shape == (128, 128, 3)
    assert np.abs(painted.astype(int) - before).max() <= 8, "another picture than 0.1.0 painted"
