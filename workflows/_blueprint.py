"""Writes subgraph blueprints: a described graph as one node, whose sockets and widgets are a few of what is inside.

The form is that of the host's own blueprints and of the browser's schema: a workflow of exactly one node, whose type is
the id of the subgraph in `definitions`; inside, links are objects, inputs come from node -10 and outputs go to -20.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _graph import (
    NODE_GAP,
    ROW_HEIGHT,
    WIDGET_HEIGHT,
    Asked,
    Entrance,
    Graph,
    ObjectInfo,
    Output,
    Workflow,
    named_values,
)

EXIT = -20  # what the browser calls the place where a subgraph's outputs go
BOUNDARY_WIDTH = 160
NODE_WIDTH = 400


@dataclass
class _Socket:
    """One input or output of the subgraph. source: of an output; value: of an input that is a widget."""

    name: str
    type: str
    label: str | None = None
    source: Output | None = None
    is_widget: bool = False


class Blueprint(Graph):
    """A subgraph under description. `takes` and `asks` are its inputs, `gives` its outputs."""

    def __init__(
        self, info: ObjectInfo, name: str, description: str, category: str, aliases: list[str], **origin: str
    ) -> None:
        super().__init__(info, **origin)
        self.name, self.description, self.category, self.aliases = name, description, category, aliases
        self.essentials: str | None = None  # the group among the browser's essential nodes where it is shown as well
        self._entrance = Entrance({"output": [], "output_name": []})
        self._inputs: list[_Socket] = []
        self._outputs: list[_Socket] = []

    def takes(self, name: str, kind: str) -> Output:
        """A socket."""
        return Output(self._entrance, self._enter(_Socket(name, kind)))

    def asks(self, name: str, kind: str, value: Any, label: str | None = None) -> Asked:
        """A widget: `name` is that of the widget inside which it first stands for, `label` what the user reads."""
        return Asked(self._entrance, self._enter(_Socket(name, kind, label, is_widget=True)), value)

    def gives(self, name: str, output: Output) -> None:
        """A result."""
        kind = output.node.info["output"][output.slot]
        self._outputs.append(_Socket(name, kind if isinstance(kind, str) else "COMBO", source=output))

    def _enter(self, socket: _Socket) -> int:
        self._inputs.append(socket)
        self._entrance.info["output"].append(socket.type)
        self._entrance.info["output_name"].append(socket.name)
        return len(self._inputs) - 1

    # --- writing

    def to_file(self) -> Workflow:
        """The blueprint as the browser saves it."""
        inside = self.to_ui()
        nodes = {node["id"]: node for node in inside["nodes"]}
        for place, socket in enumerate(self._outputs):
            assert socket.source is not None
            output = nodes[socket.source.node.id]["outputs"][socket.source.slot]
            link = len(inside["links"]) + 1
            inside["links"].append([link, socket.source.node.id, socket.source.slot, EXIT, place, socket.type])
            output["links"] = [*(output["links"] or []), link]
        subgraph_id = self._uuid("subgraph")
        return {
            "revision": 0,
            "last_node_id": _outer_id(inside),
            "last_link_id": 0,
            "nodes": [self._outer_node(subgraph_id, inside)],
            "links": [],
            "version": 0.4,
            "definitions": {"subgraphs": [self._definition(subgraph_id, inside)]},
            "extra": {"BlueprintDescription": self.description, "BlueprintSearchAliases": self.aliases},
        }

    def _outer_node(self, subgraph_id: str, inside: Workflow) -> dict[str, Any]:
        rows = len(self._inputs) * WIDGET_HEIGHT + len(self._outputs) * ROW_HEIGHT
        return {
            "id": _outer_id(inside),
            "type": subgraph_id,
            "pos": [0, 0],
            "size": [NODE_WIDTH, rows + NODE_GAP],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [
                {
                    **_labelled(socket),
                    **({"widget": {"name": socket.name}} if socket.is_widget else {}),
                    "link": None,
                }
                for socket in self._inputs
            ],
            "outputs": [{**_labelled(socket), "links": None} for socket in self._outputs],
            "title": self.name,
            "properties": {"proxyWidgets": self._proxies(inside), "cnr_id": self._registry_id, "ver": self._version},
            "widgets_values": [],
        }

    def _proxies(self, inside: Workflow) -> list[list[str]]:
        """[node inside, its widget] of every widget outside."""
        nodes = {node["id"]: node for node in inside["nodes"]}
        found = []
        for place, socket in enumerate(self._inputs):
            if not socket.is_widget:
                continue
            targets = [link for link in inside["links"] if link[1] == Entrance.id and link[2] == place]
            _, _, _, target, slot, _ = targets[0]
            widget = nodes[target]["inputs"][slot]["widget"]["name"]
            found.append([str(target), widget])
            if widget in ("seed", "noise_seed"):
                found.append([str(target), "control_after_generate"])
        return found

    def _definition(self, subgraph_id: str, inside: Workflow) -> dict[str, Any]:
        boxes = [(*node["pos"], *node["size"]) for node in inside["nodes"]]
        left = min(x for x, *_ in boxes) - BOUNDARY_WIDTH - 2 * NODE_GAP
        right = max(x + width for x, _, width, _ in boxes) + 2 * NODE_GAP
        middle = sum(y + height / 2 for _, y, _, height in boxes) / len(boxes)
        entrance = _boundary(Entrance.id, left, middle, len(self._inputs))
        leaving = _boundary(EXIT, right, middle, len(self._outputs))
        return {
            "id": subgraph_id,
            "version": 1,
            "state": {
                "lastGroupId": len(inside["groups"]),
                "lastNodeId": _outer_id(inside),
                "lastLinkId": len(inside["links"]),
                "lastRerouteId": 0,
            },
            "revision": 0,
            "config": {},
            "name": self.name,
            "inputNode": entrance,
            "outputNode": leaving,
            "inputs": self._slots("input", self._inputs, inside, lambda link: (link[1], link[2]), entrance),
            "outputs": self._slots("output", self._outputs, inside, lambda link: (link[3], link[4]), leaving),
            "widgets": [],
            "nodes": inside["nodes"],
            "groups": inside["groups"],
            "links": [
                {
                    "id": number,
                    "origin_id": source,
                    "origin_slot": slot,
                    "target_id": target,
                    "target_slot": place,
                    "type": kind,
                }
                for number, source, slot, target, place, kind in inside["links"]
            ],
            "extra": {},
            "category": self.category,
            "description": self.description,
            **({"essentials_category": self.essentials} if self.essentials else {}),
        }

    def _slots(
        self, side: str, sockets: list[_Socket], inside: Workflow, end: Any, boundary: dict[str, Any]
    ) -> list[dict[str, Any]]:
        x, y, *_ = boundary["bounding"]
        x += BOUNDARY_WIDTH - ROW_HEIGHT if side == "input" else ROW_HEIGHT
        return [
            {
                "id": self._uuid(side, socket.name),
                **_labelled(socket),
                "linkIds": [link[0] for link in inside["links"] if end(link) == (boundary["id"], place)],
                "pos": [
                    x + (BOUNDARY_WIDTH - ROW_HEIGHT if side == "input" else ROW_HEIGHT),
                    y + ROW_HEIGHT * (place + 1),
                ],
            }
            for place, socket in enumerate(sockets)
        ]

    def _uuid(self, *parts: str) -> str:
        """An id that is the same every time the file is written."""
        return str(uuid.uuid5(uuid.NAMESPACE_OID, " ".join([self._registry_id, self.name, *parts])))


def _outer_id(inside: Workflow) -> int:
    """The id of the one node: the browser gives those inside new ones where they are the same."""
    return inside["last_node_id"] + 1


def _labelled(socket: _Socket) -> dict[str, str]:
    return {"name": socket.name, "type": socket.type, **({"label": socket.label} if socket.label else {})}


def _boundary(number: int, x: float, middle: float, rows: int) -> dict[str, Any]:
    height = 2 * ROW_HEIGHT + ROW_HEIGHT * rows
    return {"id": number, "bounding": [x, round(middle - height / 2), BOUNDARY_WIDTH, height]}


def write_blueprint(blueprint: Blueprint, folder: Path) -> Path:
    """Write `<name>.json`; the file's name is what users read."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{blueprint.name}.json"
    path.write_text(json.dumps(blueprint.to_file(), indent=2, ensure_ascii=True) + "\n")
    return path


def flattened(blueprint: Workflow, info: ObjectInfo, given: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    """A blueprint's inside as an API prompt, as the browser's `graphToPrompt` makes it: ids are `<prefix>:<id>`.

    given: for inputs of the subgraph, by name, values of widgets or links ([node id, output]).
    """
    [subgraph] = blueprint["definitions"]["subgraphs"]
    links = {link["id"]: link for link in subgraph["links"]}
    prompt = {}
    for node in subgraph["nodes"]:
        values = {name: value for name, value in named_values(node, info[node["type"]]).items() if "." not in name}
        for socket in node["inputs"]:
            if socket["link"] is None:
                continue
            link = links[socket["link"]]
            if link["origin_id"] != Entrance.id:
                values[socket["name"]] = [f"{prefix}:{link['origin_id']}", link["origin_slot"]]
                continue
            outside = subgraph["inputs"][link["origin_slot"]]["name"]
            if outside in given:
                values[socket["name"]] = given[outside]
        prompt[f"{prefix}:{node['id']}"] = {"class_type": node["type"], "inputs": values}
    return prompt


def output_of(blueprint: Workflow, name: str, prefix: str) -> list[Any]:
    """The link ([node id, output]) behind an output of the subgraph, after `flattened`."""
    [subgraph] = blueprint["definitions"]["subgraphs"]
    [output] = [output for output in subgraph["outputs"] if output["name"] == name]
    [link] = [link for link in subgraph["links"] if link["id"] in output["linkIds"]]
    return [f"{prefix}:{link['origin_id']}", link["origin_slot"]]
