"""What saved workflows rely on, against `frozen_schema/`: ids, the order of widgets and outputs, types, defaults.

A workflow file names nodes and inputs by id, gives widget values by position, and links outputs by position; an API
file gives the values it gives by id and leaves the rest to the defaults. Additions break nothing if they come last and
are optional. After an addition, or after a change with a migration:

    python tests/host/test_frozen_schema.py --freeze
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
FROZEN = HERE / "frozen_schema"
COMMAND = "python tests/host/test_frozen_schema.py --freeze"
MIGRATION = (
    "These changes break workflows that people have saved. Undo them; or leave the old id, place or value working (a "
    "new input last and optional, a new node beside the old one), write a migration for what cannot stay, tell in "
    f"CHANGELOG.md what changes for whom, and then run `{COMMAND}`."
)

HOSTS_OWN = {"sampler_name", "scheduler"}  # their choices are those of the ComfyUI that is running

Contract = dict[str, dict[str, Any]]


def contract(info: dict[str, dict[str, Any]], graph_tool: Any) -> Contract:
    """What saved workflows rely on, of all our nodes in `/object_info`."""
    return {name: _node(info[name], graph_tool) for name in sorted(info) if name.startswith("Likeness")}


def frozen_contract() -> Contract:
    """What was frozen: a file for each node, so that two people who add two nodes write different files."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FROZEN.glob("*.json"))}


def freeze(nodes: Contract) -> None:
    """Write a file for each node, and take away those of nodes that are gone."""
    FROZEN.mkdir(exist_ok=True)
    for path in FROZEN.glob("*.json"):
        path.unlink()
    for name, node in nodes.items():
        (FROZEN / f"{name}.json").write_text(json.dumps(node, indent=1) + "\n", encoding="utf-8", newline="\n")


def _node(info: dict[str, Any], graph_tool: Any) -> dict[str, Any]:
    inputs = graph_tool.inputs_of(info)
    widgets = []  # as their values stand in a file
    for widget in (i for i in inputs if i.is_widget):
        widgets += [widget.name] + [f"{widget.name} (control after generate)"] * widget.has_seed_control
    outputs = zip(info["output_name"], info["output"], strict=True)
    return {
        "inputs": {i.name: _input(i) for i in inputs},
        "widgets": widgets,
        "outputs": [f"{name}: {kind if isinstance(kind, str) else 'COMBO'}" for name, kind in outputs],
    }


def _input(given: Any) -> dict[str, Any]:
    kept = {"type": given.type, "required": given.required}
    kept |= {key: given.options[key] for key in ("default", "min", "max") if key in given.options}
    if given.type == "COMBO" and given.name not in HOSTS_OWN:
        # What stands in brackets tells that there is no file to choose.
        kept["options"] = [choice for choice in given.choices or [] if not str(choice).startswith("(")]
    return kept


def breaking_changes(frozen: Contract, current: Contract) -> list[str]:
    """What of `frozen` no longer holds, one sentence each."""
    found = []
    for name, before in frozen.items():
        if name not in current:
            found.append(f"{name}: the node is gone")
            continue
        now = current[name]
        for key, old in before["inputs"].items():
            found += [f"{name}.{key}: {change}" for change in _input_changes(old, now["inputs"].get(key))]
        for key, new in now["inputs"].items():
            if key not in before["inputs"] and new["required"]:
                found.append(f"{name}.{key}: the new input is required, and saved graphs do not have it")
        for part, why in (("widgets", "their values are saved in this order"), ("outputs", "links name their place")):
            if now[part][: len(before[part])] != before[part]:
                found.append(f"{name}: {part} were {before[part]} and are {now[part]}; {why}")
    return found


def _input_changes(old: dict[str, Any], new: dict[str, Any] | None) -> list[str]:
    if new is None:
        return ["the input is gone"]
    found = []
    if not set(old["type"].split(",")) <= set(new["type"].split(",")):
        found.append(f"it took {old['type']} and takes {new['type']}")
    if new["required"] and not old["required"]:
        found.append("it was optional and is required")
    if old.get("default") != new.get("default"):
        found.append(f"its default was {old.get('default')!r} and is {new.get('default')!r}")
    if new.get("min", old.get("min")) != old.get("min") and new["min"] > old.get("min", float("-inf")):
        found.append(f"values from {old.get('min')} were allowed, now from {new['min']}")
    if new.get("max", old.get("max")) != old.get("max") and new["max"] < old.get("max", float("inf")):
        found.append(f"values up to {old.get('max')} were allowed, now up to {new['max']}")
    if gone := [option for option in old.get("options", []) if option not in new.get("options", [])]:
        found.append(f"the choices {gone} are gone")
    return found


# --- tests


@pytest.fixture(scope="module")
def current(object_info) -> Contract:
    import comfyui

    return contract(object_info, comfyui.load_module("_graph", comfyui.REPOSITORY / "workflows" / "_graph.py"))


@pytest.fixture(scope="module")
def frozen() -> Contract:
    return frozen_contract()


def test_saved_workflows_still_mean_what_they_meant(frozen, current):
    broken = breaking_changes(frozen, current)
    assert not broken, "\n".join([MIGRATION, *broken])


def test_everything_there_is_has_been_frozen(frozen, current):
    assert not breaking_changes(current, frozen), f"there is something new: run `{COMMAND}` and commit the files"


def _swap(values: list) -> None:
    values[0], values[1] = values[1], values[0]


FAULTS = {
    "a node is gone": (lambda c: c.pop("LikenessApplyIdentity"), "the node is gone"),
    "an input is renamed": (
        lambda c: c["LikenessApplyIdentity"]["inputs"].update(
            strength=c["LikenessApplyIdentity"]["inputs"].pop("weight")
        ),
        "weight: the input is gone",
    ),
    "widgets change places": (lambda c: _swap(c["LikenessApplyIdentity"]["widgets"]), "saved in this order"),
    "a widget comes in front": (
        lambda c: c["LikenessApplyIdentity"]["widgets"].insert(0, "new"),
        "saved in this order",
    ),
    "outputs change places": (lambda c: _swap(c["LikenessFindFaces"]["outputs"]), "links name their place"),
    "a default changes": (
        lambda c: c["LikenessApplyIdentity"]["inputs"]["weight"].update(default=0.8),
        "default was 1.0 and is 0.8",
    ),
    "a type changes": (
        lambda c: c["LikenessApplyIdentity"]["inputs"]["identity"].update(type="FACE"),
        "it took IDENTITY and takes FACE",
    ),
    "a choice is gone": (
        lambda c: c["LikenessFindFaces"]["inputs"]["choice"]["options"].remove("largest"),
        "['largest'] are gone",
    ),
    "a range becomes narrower": (lambda c: c["LikenessApplyIdentity"]["inputs"]["weight"].update(max=2.0), "up to 2.0"),
    "an optional input becomes required": (
        lambda c: c["LikenessApplyIdentity"]["inputs"]["attn_mask"].update(required=True),
        "was optional and is required",
    ),
    "a new input is required": (
        lambda c: c["LikenessApplyIdentity"]["inputs"].update(new={"type": "MASK", "required": True}),
        "the new input is required",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_change_that_breaks_workflows_is_named(frozen, fault):
    change, expected = FAULTS[fault]
    changed = copy.deepcopy(frozen)
    change(changed)
    assert any(expected in sentence for sentence in breaking_changes(frozen, changed))


def test_additions_at_the_end_break_nothing(frozen):
    changed = copy.deepcopy(frozen)
    changed["LikenessNew"] = {"inputs": {}, "widgets": [], "outputs": []}
    changed["LikenessFindFaces"]["outputs"].append("new: INT")
    apply = changed["LikenessApplyIdentity"]
    apply["widgets"].append("new")
    apply["inputs"]["new"] = {"type": "INT", "required": False, "default": 0}
    apply["inputs"]["weight"]["max"] = 10.0
    changed["LikenessFindFaces"]["inputs"]["choice"]["options"].append("newest")
    assert breaking_changes(frozen, changed) == []


# --- freezing


def _current_in_this_process(comfyui: ModuleType, host: Path) -> Contract:
    with tempfile.TemporaryDirectory() as base:
        os.environ["HOME"] = base  # the files of whoever runs this are no part of the schema
        nodes = comfyui.import_into_this_process(host, Path(base))
        ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
        graph_tool = comfyui.load_module("_graph", comfyui.REPOSITORY / "workflows" / "_graph.py")
        return contract(comfyui.object_info(nodes, ours), graph_tool)


def main() -> None:
    """Write `frozen_schema/`, and say what that breaks."""
    sys.path.append(str(HERE.parent))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if sys.argv[1:] != ["--freeze"] or host is None:
        sys.exit(f"{COMMAND} {comfyui.HOW_TO_GET_IT}")
    now = _current_in_this_process(comfyui, host)
    broken = breaking_changes(frozen_contract(), now)
    freeze(now)
    print(f"{FROZEN.name}: {len(now)} nodes.", *([MIGRATION, *broken] if broken else []), sep="\n")


if __name__ == "__main__":
    main()
