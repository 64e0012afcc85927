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

import pytest

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.append(str(HERE.parent))  # pytest has it

from helpers.saved_contract import Contract, breaking_changes, contract  # noqa: E402

FROZEN = HERE / "frozen_schema"
COMMAND = "python tests/host/test_frozen_schema.py --freeze"
MIGRATION = (
    "These changes break workflows that people have saved. Undo them; or leave the old id, place or value working (a "
    "new input last and optional, a new node beside the old one), write a migration for what cannot stay, tell in "
    f"CHANGELOG.md what changes for whom, and then run `{COMMAND}`."
)


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
