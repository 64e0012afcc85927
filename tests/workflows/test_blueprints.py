"""The subgraph blueprints: the form that the browser reads, what the host has, and what the generator writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import comfyui
import pytest

SUBGRAPHS = comfyui.REPOSITORY / "subgraphs"
FILES = sorted(SUBGRAPHS.glob("*.json"))
UUID = re.compile(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
ENTRANCE, EXIT = -10, -20

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def form_problems(blueprint: dict[str, Any]) -> list[str]:
    """What the browser would not read, or not as it is meant. The host's own blueprints have none."""
    found = []

    def needs(what: str, value: dict[str, Any], **kinds: type | tuple[type, ...]) -> None:
        for key, kind in kinds.items():
            if not isinstance(value.get(key), kind):
                found.append(f"{what}: {key} is {value.get(key)!r}")

    number = (int, float)
    needs("the file", blueprint, nodes=list, links=list, version=number, definitions=dict, revision=int)
    needs("the file", blueprint, last_node_id=int, last_link_id=int)
    if len(blueprint["nodes"]) != 1 or blueprint["links"]:
        return [*found, "a blueprint is one node without links"]
    [outer], subgraphs = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    definitions = {subgraph["id"]: subgraph for subgraph in subgraphs}
    if outer["type"] not in definitions:
        return [*found, "the node is no subgraph"]
    for subgraph in subgraphs:
        name = subgraph["name"]
        needs(name, subgraph, id=str, revision=int, version=int, state=dict, nodes=list, links=list)
        needs(name, subgraph, inputNode=dict, outputNode=dict, inputs=list, outputs=list)
        needs(name, subgraph["state"], lastGroupId=int, lastNodeId=int, lastLinkId=int, lastRerouteId=int)
        if not UUID.fullmatch(subgraph["id"]):
            found.append(f"{name}: {subgraph['id']} is no UUID")
        for boundary, place in (("inputNode", ENTRANCE), ("outputNode", EXIT)):
            if subgraph[boundary]["id"] != place or len(subgraph[boundary]["bounding"]) != 4:
                found.append(f"{name}: {boundary} is {subgraph[boundary]}")
        for slot in [*subgraph["inputs"], *subgraph["outputs"]]:
            needs(f"{name}: {slot.get('name')}", slot, name=str, type=str, linkIds=list)
            if not UUID.fullmatch(slot["id"]):
                found.append(f"{name}: {slot['name']} has the id {slot['id']}")
        for node in subgraph["nodes"]:
            needs(f"{name}: node {node.get('id')}", node, id=int, type=str, flags=dict, order=number, mode=number)
            needs(f"{name}: node {node.get('id')}", node, properties=dict)
        if outer["id"] in {node["id"] for node in subgraph["nodes"]}:
            found.append(f"{name}: the browser renumbers what is inside, because the node outside has one of its ids")
        found += _link_problems(subgraph)
    found += _outer_problems(outer, definitions[outer["type"]])
    return found


def _link_problems(subgraph: dict[str, Any]) -> list[str]:
    """Each link stands in `links`, at its source and at its target; inputs and outputs of the subgraph are such."""
    found = []
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    for link in subgraph["links"]:
        if set(link) < {"id", "origin_id", "origin_slot", "target_id", "target_slot", "type"}:
            found.append(f"link {link}")
            continue
        number, source, target = link["id"], link["origin_id"], link["target_id"]
        given = (
            subgraph["inputs"][link["origin_slot"]]["linkIds"]
            if source == ENTRANCE
            else nodes[source]["outputs"][link["origin_slot"]]["links"]
        )
        taken = (
            subgraph["outputs"][link["target_slot"]]["linkIds"]
            if target == EXIT
            else [nodes[target]["inputs"][link["target_slot"]]["link"]]
        )
        if number not in (given or []) or number not in taken:
            found.append(f"link {number}: source has {given}, target has {taken}")
    numbers = {link["id"] for link in subgraph["links"]}
    for node in subgraph["nodes"]:
        for socket in node.get("inputs", []):
            if socket.get("link") is not None and socket["link"] not in numbers:
                found.append(f"node {node['id']}: link {socket['link']} is nowhere")
    return found


def _outer_problems(outer: dict[str, Any], subgraph: dict[str, Any]) -> list[str]:
    found = []
    nodes = {str(node["id"]): node for node in subgraph["nodes"]}
    for side in ("inputs", "outputs"):
        shown = [(slot["name"], slot["type"]) for slot in outer[side]]
        if shown != [(slot["name"], slot["type"]) for slot in subgraph[side]]:
            found.append(f"the node's {side} are {shown}")
    for node, widget in outer["properties"].get("proxyWidgets", []):
        if node != "-1" and node not in nodes:
            found.append(f"the widget {widget} is on node {node}, which is not there")
    return found


def test_there_is_one_for_each_of_the_usual_graphs():
    assert [path.stem for path in FILES] == [
        "Portrait of a Person (Likeness)",
        "Train and Paint (Likeness)",
        "Two People (Likeness)",
    ]


@each_file
def test_file_has_the_form_that_the_browser_reads(path):
    blueprint = read(path)
    assert form_problems(blueprint) == []
    [subgraph] = blueprint["definitions"]["subgraphs"]
    assert blueprint["nodes"][0]["title"] == subgraph["name"] == path.stem
    assert subgraph["category"] == "Likeness" and len(subgraph["description"]) > 40
    assert blueprint["extra"]["BlueprintDescription"] and blueprint["extra"]["BlueprintSearchAliases"]
    for node in subgraph["nodes"]:
        assert {"Node name for S&R", "cnr_id", "ver"} <= set(node["properties"])


def plant_second_node(blueprint):
    blueprint["nodes"].append(blueprint["nodes"][0])


def plant_lost_link(blueprint):
    blueprint["definitions"]["subgraphs"][0]["inputs"][0]["linkIds"].clear()


def plant_wrong_type(blueprint):
    blueprint["nodes"][0]["inputs"][0]["type"] = "MASK"


def plant_missing_boundary(blueprint):
    del blueprint["definitions"]["subgraphs"][0]["inputNode"]["bounding"][0]


def plant_widget_of_nobody(blueprint):
    blueprint["nodes"][0]["properties"]["proxyWidgets"][0][0] = "99"


def plant_id_of_a_node_inside(blueprint):
    blueprint["nodes"][0]["id"] = blueprint["definitions"]["subgraphs"][0]["nodes"][0]["id"]


def plant_other_id(blueprint):
    blueprint["definitions"]["subgraphs"][0]["id"] = "portrait"


@pytest.mark.parametrize(
    "plant",
    [
        *(plant_second_node, plant_lost_link, plant_wrong_type, plant_missing_boundary),
        *(plant_widget_of_nobody, plant_other_id, plant_id_of_a_node_inside),
    ],
)
def test_a_planted_fault_is_reported(plant):
    blueprint = read(FILES[0])
    plant(blueprint)
    assert form_problems(blueprint)


@pytest.mark.host
def test_the_host_s_own_blueprints_have_the_same_form(host_path):
    """What the check above holds ours to is what the host ships, where it ships any."""
    own = sorted((host_path / "blueprints").glob("*.json"))
    assert own or not (host_path / "app" / "subgraph_manager.py").is_file()
    faulty = {path.name: problems for path in own if (problems := form_problems(read(path)))}
    assert 10 * len(faulty) <= len(own), faulty
    strays = re.compile(r"link |.*renumbers")
    assert all(strays.match(problem) for problems in faulty.values() for problem in problems)


@pytest.mark.host
@each_file
def test_values_and_types_inside_agree_with_the_host(path, graph_tool, object_info):
    blueprint = read(path)
    [subgraph] = blueprint["definitions"]["subgraphs"]
    order = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    inside = [[link[key] for key in order] for link in subgraph["links"] if link["origin_id"] != ENTRANCE]
    inside = [link for link in inside if link[3] != EXIT]
    entering = {link["id"]: link for link in subgraph["links"] if link["origin_id"] == ENTRANCE}
    leaving = {link["id"] for link in subgraph["links"] if link["target_id"] == EXIT}
    asked = set()
    for node in subgraph["nodes"]:
        accepts = {i.name: i for i in graph_tool.inputs_of(object_info[node["type"]])}
        for output in node["outputs"]:
            output["links"] = [link for link in output["links"] or [] if link not in leaving] or None
        for socket in node["inputs"]:
            if (link := entering.get(socket["link"])) is None:
                continue
            wanted = accepts[socket["name"]]
            assert graph_tool.types_fit(link["type"], wanted.type), (node["type"], socket["name"])
            socket["link"] = None
            if wanted.required and not wanted.is_widget:
                asked.add(f"node {node['id']} ({node['type']}): {socket['name']} is not connected")
    workflow = {"nodes": subgraph["nodes"], "links": inside, "groups": subgraph["groups"]}
    workflow |= {"last_node_id": subgraph["state"]["lastNodeId"], "last_link_id": subgraph["state"]["lastLinkId"]}
    assert set(graph_tool.problems(workflow, object_info)) == asked


@pytest.mark.host
def test_generator_writes_the_committed_blueprints(build_tool, object_info, tmp_path):
    written = {path.name: path.read_text() for path in build_tool.write_blueprints(object_info, tmp_path)}
    assert written == {path.name: path.read_text() for path in FILES}, "run `python workflows/_build.py`"
