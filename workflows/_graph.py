"""Writes and reads workflow files: a graph described in Python becomes ComfyUI's UI format 0.4 and its API twin.

Everything positional in the UI format (widget values, sockets, links) is derived from the host's `/object_info`, so
that a description names inputs and outputs only. `to_api` reads a UI file as the browser does; `problems` checks what
the browser does not: values, types, the three records of each link, and the layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ObjectInfo = dict[str, dict[str, Any]]
Workflow = dict[str, Any]

WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SEED_CONTROLS = {"fixed", "increment", "decrement", "randomize"}
API_FOLDER = "api"
MODEL_SUFFIXES = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".onnx")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
NOTE_TYPES = {"MarkdownNote", "Note"}  # the browser's own: no inputs, never in the API format
OWN_FILE_LOADERS = {
    "LikenessLoadIdentity",
    "LikenessLoadEmbeds",
    "LikenessLoadConcept",
    "LikenessLoadSubject",
}  # of files that the user has saved: no downloads

TITLE_HEIGHT = 30
ROW_HEIGHT = 20
WIDGET_HEIGHT = 24
TEXT_HEIGHT = 100
COLUMN_GAP = 80
NODE_GAP = 40
GROUP_MARGIN = 20
GROUP_HEAD = 50  # room for the group's own title above the first node's title bar
TALLER_WIDGET = 12  # by which "Nodes 2.0" may draw a widget taller
NOTE_WIDTH = 500
NOTE_COLUMN = -1  # of what stands below the note
NOTE_LEFT, NOTE_TOP = -COLUMN_GAP - NOTE_WIDTH, TITLE_HEIGHT - GROUP_HEAD
OPENING = {"scale": 0.7, "offset": [NOTE_WIDTH + COLUMN_GAP + 110, 230]}  # the note at the left, and the first groups


@dataclass(frozen=True)
class Input:
    """One input of a node, as `/object_info` describes it."""

    name: str
    type: str  # "COMBO" for every kind of combo; alternatives are joined by commas
    required: bool
    options: dict[str, Any]
    choices: list[Any] | None = None

    @property
    def is_widget(self) -> bool:
        return self.type in WIDGET_TYPES and not self.options.get("forceInput", False)

    @property
    def has_seed_control(self) -> bool:
        """The browser puts a widget after a seed, whose value follows the seed's in the list."""
        if self.type != "INT":
            return False
        return bool(self.options.get("control_after_generate", self.name in {"seed", "noise_seed"}))

    @property
    def has_upload_button(self) -> bool:
        """The button has a value of its own, `"image"`."""
        return bool(self.options.get("image_upload", False))

    @property
    def default(self) -> Any:
        if "default" in self.options:
            return self.options["default"]
        if self.choices:
            return self.choices[0]
        return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(self.type, "")


def _type_name(kind: Any) -> str:
    return "COMBO" if isinstance(kind, list) else kind


def inputs_of(info: dict[str, Any]) -> list[Input]:
    """A node's inputs in schema order: required, then optional."""
    found = []
    for group in ("required", "optional"):
        for name, spec in (info["input"].get(group) or {}).items():
            kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
            choices = kind if isinstance(kind, list) else options.get("options")
            found.append(Input(name, _type_name(kind), group == "required", options, choices))
    return found


def types_fit(output: str, wanted: str) -> bool:
    """The browser's and the server's rule: equal, `*`, or alternatives in common."""
    given, accepted = set(output.split(",")), set(wanted.split(","))
    return "*" in given | accepted or bool(given & accepted)


# --- describing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelFile:
    """A file a loader names: what the browser offers to download, and what the notes list."""

    name: str
    url: str
    directory: str
    command: str = ""  # what `likeness models get` calls it


@dataclass(frozen=True)
class Output:
    """One output of a described node."""

    node: Node | Entrance
    slot: int


@dataclass(frozen=True)
class Asked(Output):
    """What the user of a subgraph enters into a widget: `value` before that."""

    value: Any


@dataclass(frozen=True)
class Entrance:
    """Where a subgraph's inputs come in, as a node whose outputs they are (see `_blueprint.py`)."""

    info: dict[str, Any]
    id: int = -10  # what the browser calls it


@dataclass
class Node:
    """A node in a description. `node["MODEL"]` and `node[0]` are its outputs."""

    id: int
    type: str
    info: dict[str, Any]
    given: dict[str, Any]
    title: str | None
    models: tuple[ModelFile, ...]
    width: int
    extra_height: int
    column: int
    y: int = 0

    def __getitem__(self, key: str | int) -> Output:
        names = self.info["output_name"]
        slot = key if isinstance(key, int) else names.index(key)
        if not 0 <= slot < len(names):
            raise IndexError(f"{self.type} has {len(names)} outputs")
        return Output(self, slot)

    @property
    def inputs(self) -> list[Input]:
        return inputs_of(self.info)

    @property
    def widgets(self) -> list[Input]:
        return [i for i in self.inputs if i.is_widget]

    @property
    def reach(self) -> int:
        """The height that it may have in any of the browser's modes."""
        return self.height + TALLER_WIDGET * len(self.widgets)

    @property
    def height(self) -> int:
        """The least height the browser gives such a node, and `extra_height` for an image."""
        sockets = sum(not i.is_widget or isinstance(self.given.get(i.name), Output) for i in self.inputs)
        rows = max(sockets, len(self.info["output"]))
        height = 14 + ROW_HEIGHT * rows + self.extra_height
        for widget in self.widgets:
            height += TEXT_HEIGHT if widget.options.get("multiline") else WIDGET_HEIGHT
            height += WIDGET_HEIGHT * (widget.has_seed_control + widget.has_upload_button)
        return height


@dataclass
class Note:
    """A text for the reader, left of everything: steps as headings, which can be read when the graph opens."""

    id: int
    text: str

    @property
    def height(self) -> int:
        """Enough for the text in any of the browser's modes, by the length of its lines."""
        height = 60
        for line in self.text.splitlines():
            if line.startswith("# "):
                height += 20 + 30 * (1 + len(line) // 42)
            elif line.startswith("|"):
                height += 34
            elif line:
                height += 14 + 16 * (1 + len(line) // 85)
        return height


@dataclass
class Group:
    """A titled box around whole columns."""

    title: str
    colour: str
    members: list[Node] = field(default_factory=list)


class Graph:
    """A workflow under description. Nodes are stacked in columns, from left to right in the order of their making."""

    def __init__(self, info: ObjectInfo, *, version: str, host_version: str, registry_id: str = "likeness") -> None:
        self._info = info
        self._version = version
        self._host_version = host_version
        self._registry_id = registry_id
        self._nodes: list[Node] = []
        self._notes: list[Note] = []
        self._groups: list[Group] = []
        self._open_group: Group | None = None
        self._columns: list[list[Node]] = [[]]

    @property
    def models(self) -> tuple[ModelFile, ...]:
        """The files that the loaders name, each once, in the order of the nodes."""
        return tuple(dict.fromkeys(model for node in self._nodes for model in node.models))

    def has(self, kind: str) -> bool:
        """Whether there is a node of this kind."""
        return any(node.type == kind for node in self._nodes)

    def next_column(self) -> None:
        """What follows stands right of what came before."""
        if self._columns[-1]:
            self._columns.append([])

    @contextmanager
    def group(self, title: str, colour: str = "#3f789e") -> Iterator[None]:
        """Put a box around the columns made inside; starts a column and ends one."""
        self.next_column()
        self._open_group = Group(title, colour)
        yield
        self._groups.append(self._open_group)
        self._open_group = None
        self.next_column()

    def node(
        self,
        kind: str,
        /,
        *,
        title: str | None = None,
        models: tuple[ModelFile, ...] = (),
        room: int = 320,
        extra_height: int = 0,
        below_note: bool = False,
        **inputs: Any,
    ) -> Node:
        """Add a node; `inputs` are values or another node's outputs. Raises for an input the host does not know.

        `room` is the node's own width on the canvas: many nodes have an input called width. With `below_note` it stands
        where the user looks when the graph opens, outside of all groups.
        """
        if kind not in self._info:
            raise KeyError(f"the host has no node {kind}")
        unknown = set(inputs) - {i.name for i in inputs_of(self._info[kind])}
        if unknown:
            raise KeyError(f"{kind} has no input {', '.join(sorted(unknown))}")
        column = NOTE_COLUMN if below_note else self._here()
        node = Node(self._next_id(), kind, self._info[kind], inputs, title, models, room, extra_height, column)
        self._nodes.append(node)
        if not below_note:
            self._place(node)
        return node

    def note(self, text: str) -> None:
        """Add the graph's Markdown note."""
        self._notes.append(Note(self._next_id(), text.strip() + "\n"))

    def _next_id(self) -> int:
        return len(self._nodes) + len(self._notes) + 1

    def _here(self) -> int:
        return len(self._columns) - 1

    def _place(self, item: Node) -> None:
        column = self._columns[-1]
        item.y = column[-1].y + column[-1].reach + NODE_GAP + TITLE_HEIGHT if column else 0
        column.append(item)
        if self._open_group:
            self._open_group.members.append(item)

    # --- writing ------------------------------------------------------------------------------------------------------

    def to_ui(self, titles: Mapping[str, str] | None = None, note: str | None = None) -> Workflow:
        """The workflow as the browser saves it (schema 0.4). titles, note: those in another language."""

        def translate(title: str) -> str:
            return title if titles is None else titles[title]

        notes = [each if note is None else replace(each, text=note) for each in self._notes]
        left = self._column_positions()
        for node in (node for node in self._nodes if node.column == NOTE_COLUMN):
            node.y = NOTE_TOP + max((each.height for each in notes), default=0) + NODE_GAP + TITLE_HEIGHT
        links: list[list[Any]] = []
        nodes = [self._ui_node(node, left[node.column], links) for node in self._nodes]
        outgoing: dict[tuple[int, int], list[int]] = {}
        for link_id, source, slot, *_ in links:
            outgoing.setdefault((source, slot), []).append(link_id)
        for node in nodes:
            for slot, output in enumerate(node["outputs"]):
                output["links"] = outgoing.get((node["id"], slot))
            if _is_hosts_end(node, self._info[node["type"]]) and not any(o["links"] for o in node["outputs"]):
                node["outputs"] = []  # so that the file is the same whichever host it is written with
        nodes += [self._ui_note(each) for each in notes]
        nodes.sort(key=lambda node: node["id"])
        for node in (node for node in nodes if "title" in node):
            node["title"] = translate(node["title"])
        for order, node in enumerate(self._execution_order(nodes, links)):
            node["order"] = order
        return {
            "id": _stable_uuid(nodes),
            "revision": 0,
            "last_node_id": len(nodes),
            "last_link_id": len(links),
            "nodes": nodes,
            "links": links,
            "groups": [
                self._ui_group(number, replace(group, title=translate(group.title)), left)
                for number, group in enumerate(self._groups, 1)
            ],
            "config": {},
            "extra": {"ds": OPENING} if self._notes else {},
            "version": 0.4,
        }

    def _column_positions(self) -> dict[int, int]:
        x, positions = 0, {NOTE_COLUMN: NOTE_LEFT}
        for number, column in enumerate(self._columns):
            positions[number] = x
            x += max((item.width for item in column), default=0) + COLUMN_GAP
        return positions

    def _ui_node(self, node: Node, x: int, links: list[list[Any]]) -> dict[str, Any]:
        inputs: list[dict[str, Any]] = []
        linked_widgets = [w for w in node.widgets if isinstance(node.given.get(w.name), Output)]
        for wanted in [i for i in node.inputs if not i.is_widget] + linked_widgets:
            socket: dict[str, Any] = {"name": wanted.name, "type": wanted.type, "link": None}
            if wanted.is_widget:
                socket["widget"] = {"name": wanted.name}
            source = node.given.get(wanted.name)
            if isinstance(source, Output):
                kind = source.node.info["output"][source.slot]
                socket["link"] = len(links) + 1
                links.append([len(links) + 1, source.node.id, source.slot, node.id, len(inputs), _type_name(kind)])
            inputs.append(socket)
        properties: dict[str, Any] = {"Node name for S&R": node.type, **self._origin(node)}
        if node.models:
            properties["models"] = [{"name": m.name, "url": m.url, "directory": m.directory} for m in node.models]
        written: dict[str, Any] = {
            "id": node.id,
            "type": node.type,
            "pos": [x, node.y],
            "size": [node.width, node.height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": _type_name(kind), "links": None}
                for name, kind in zip(node.info["output_name"], node.info["output"], strict=True)
            ],
            "properties": properties,
            "widgets_values": _widget_values(node),
        }
        if node.title:
            written["title"] = node.title
        return written

    def _origin(self, node: Node) -> dict[str, str]:
        ours = node.type.startswith("Likeness")
        return {
            "cnr_id": self._registry_id if ours else "comfy-core",
            "ver": self._version if ours else self._host_version,
        }

    @staticmethod
    def _ui_note(note: Note) -> dict[str, Any]:
        return {
            "id": note.id,
            "type": "MarkdownNote",
            "pos": [NOTE_LEFT, NOTE_TOP],
            "size": [NOTE_WIDTH, note.height],
            "flags": {},
            "order": 0,
            "mode": 0,
            "inputs": [],
            "outputs": [],
            "properties": {},
            "title": "Start here",
            "widgets_values": [note.text],
            "color": "#1d3b4a",
            "bgcolor": "#152b36",
        }

    @staticmethod
    def _ui_group(number: int, group: Group, left: dict[int, int]) -> dict[str, Any]:
        x0 = min(left[m.column] for m in group.members) - GROUP_MARGIN
        x1 = max(left[m.column] + m.width for m in group.members) + GROUP_MARGIN
        y0 = min(m.y for m in group.members) - TITLE_HEIGHT - GROUP_HEAD
        y1 = max(m.y + m.reach for m in group.members) + GROUP_MARGIN
        return {
            "id": number,
            "title": group.title,
            "bounding": [x0, y0, x1 - x0, y1 - y0],
            "color": group.colour,
            "font_size": 24,
            "flags": {},
        }

    @staticmethod
    def _execution_order(nodes: list[dict[str, Any]], links: list[list[Any]]) -> list[dict[str, Any]]:
        needs = {node["id"]: {link[1] for link in links if link[3] == node["id"]} for node in nodes}
        done: list[dict[str, Any]] = []
        placed: set[int] = {Entrance.id}
        while len(done) < len(nodes):
            ready = next((n for n in nodes if n["id"] not in placed and needs[n["id"]] <= placed), None)
            if ready is None:
                raise ValueError("the graph has a cycle")
            done.append(ready)
            placed.add(ready["id"])
        return done


def _widget_values(node: Node) -> list[Any]:
    values: list[Any] = []
    for widget in node.widgets:
        given = node.given.get(widget.name, widget.default)
        if isinstance(given, Asked):
            given = given.value
        values.append(widget.default if isinstance(given, Output) else given)
        if widget.has_seed_control:
            values.append("fixed")
        if widget.has_upload_button:
            values.append("image")
    return values


def _stable_uuid(nodes: list[dict[str, Any]]) -> str:
    """An id that depends on the nodes' kinds alone: the same file is written every time."""
    import uuid

    return str(uuid.uuid5(uuid.NAMESPACE_OID, " ".join(node["type"] for node in nodes)))


# --- reading ----------------------------------------------------------------------------------------------------------


def named_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """A UI node's widget values by name, the way the browser assigns them; the extra values appear as `name.control`.

    Raises ValueError when there are more or fewer than the schema has places.
    """
    values = iter(node.get("widgets_values", []))
    named: dict[str, Any] = {}
    for widget in inputs_of(info):
        if not widget.is_widget:
            continue
        names = [widget.name]
        names += [f"{widget.name}.control"] * widget.has_seed_control
        names += [f"{widget.name}.upload"] * widget.has_upload_button
        for name in names:
            try:
                named[name] = next(values)
            except StopIteration:
                raise ValueError(f"node {node['id']} ({node['type']}) has no value for {name}") from None
    if leftover := list(values):
        raise ValueError(f"node {node['id']} ({node['type']}) has values too many: {leftover}")
    return named


def to_api(workflow: Workflow, info: ObjectInfo) -> dict[str, dict[str, Any]]:
    """The API format of a UI file, as the browser's `graphToPrompt` makes it: widgets first, links after."""
    links = {link[0]: link for link in workflow["links"]}
    prompt: dict[str, dict[str, Any]] = {}
    for node in sorted(workflow["nodes"], key=lambda n: n["order"]):
        if node["type"] in NOTE_TYPES:
            continue
        if node["mode"] != 0:
            raise ValueError(f"node {node['id']} is muted or bypassed, which this reader does not follow")
        inputs = {name: value for name, value in named_values(node, info[node["type"]]).items() if "." not in name}
        for socket in node["inputs"]:
            if socket["link"] is not None:
                _, source, slot, *_ = links[socket["link"]]
                inputs.pop(socket["name"], None)
                inputs[socket["name"]] = [str(source), slot]
        title = node.get("title") or info[node["type"]].get("display_name") or node["type"]
        title = title.removesuffix(" (DEPRECATED)")  # what newer hosts add must not change our files
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return prompt


def is_file(value: Any, suffixes: tuple[str, ...] = MODEL_SUFFIXES) -> bool:
    """Whether a widget's value names a file that may be absent where the workflow is checked."""
    return isinstance(value, str) and value.lower().endswith(suffixes)


def problems(workflow: Workflow, info: ObjectInfo) -> list[str]:
    """Everything wrong with a UI file, in words; an empty list when nothing is."""
    found = link_problems(workflow) + layout_problems(workflow)
    for node in workflow["nodes"]:
        if node["type"] in NOTE_TYPES:
            continue
        if node["type"] not in info:
            found.append(f"node {node['id']}: the host has no node {node['type']}")
            continue
        found += _value_problems(node, info[node["type"]])
        found += _socket_problems(node, info[node["type"]])
        found += _model_problems(node)
    types = {link[0]: link[5] for link in workflow["links"]}
    for node in workflow["nodes"]:
        accepts = {i.name: i.type for i in inputs_of(info[node["type"]])} if node["type"] in info else {}
        for socket in node["inputs"]:
            kind, wanted = types.get(socket["link"]), accepts.get(socket["name"], "nothing")
            if kind is not None and not types_fit(kind, wanted):
                found.append(f"node {node['id']}: {kind} is linked into {socket['name']}, which takes {wanted}")
    return found


def link_problems(workflow: Workflow) -> list[str]:
    """Each link stands in `links`, at its source's output and at its target's input; all three must agree."""
    found = []
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    if len(links) != len(workflow["links"]) or len(nodes) != len(workflow["nodes"]):
        found.append("ids are not unique")
    if max(links, default=0) > workflow["last_link_id"] or max(nodes, default=0) > workflow["last_node_id"]:
        found.append("last_link_id or last_node_id is too small")
    seen_out, seen_in = {}, {}
    for node in workflow["nodes"]:
        for slot, output in enumerate(node["outputs"]):
            for link in output["links"] or []:
                seen_out[link] = (node["id"], slot, output["type"])
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                seen_in[socket["link"]] = (node["id"], slot)
    for link_id, source, slot, target, target_slot, kind in links.values():
        if seen_out.get(link_id) != (source, slot, kind):
            found.append(f"link {link_id}: the output says {seen_out.get(link_id)}, the link {(source, slot, kind)}")
        if seen_in.get(link_id) != (target, target_slot):
            found.append(f"link {link_id}: the input says {seen_in.get(link_id)}, the link {(target, target_slot)}")
    for link_id in (set(seen_out) | set(seen_in)) - set(links):
        found.append(f"link {link_id} is not in the list of links")
    return found


def layout_problems(workflow: Workflow) -> list[str]:
    """Nodes that lie over each other, and groups that cut a node in two."""
    found = []
    boxes = {}
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        boxes[node["id"]] = (x, y - TITLE_HEIGHT, x + width, y + height)
    ids = sorted(boxes)
    for index, first in enumerate(ids):
        for second in ids[index + 1 :]:
            if _overlap(boxes[first], boxes[second]):
                found.append(f"nodes {first} and {second} lie over each other")
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        outer = (x, y, x + width, y + height)
        for number, box in boxes.items():
            inside = outer[0] <= box[0] and outer[1] <= box[1] and box[2] <= outer[2] and box[3] <= outer[3]
            if _overlap(outer, box) and not inside:
                found.append(f"group {group['title']!r} cuts node {number}")
    return found


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _value_problems(node: dict[str, Any], info: dict[str, Any]) -> list[str]:
    try:
        named = named_values(node, info)
    except ValueError as error:
        return [str(error)]
    found = []
    absent = {name for model in node["properties"].get("models", []) for name in _names(model)}
    absent |= {value for value in named.values() if node["type"] in OWN_FILE_LOADERS and is_file(value)}
    for widget in (i for i in inputs_of(info) if i.is_widget):
        value, where = named[widget.name], f"node {node['id']} ({node['type']}): {widget.name}"
        if not (_fits(widget, value) or (widget.type == "COMBO" and value in absent)):
            found.append(f"{where} = {value!r} is not a value of {widget.type}")
        if widget.has_seed_control and named[f"{widget.name}.control"] != "fixed":
            found.append(f"{where} is not fixed")
    return found


def _names(model: dict[str, str]) -> tuple[str, str, str]:
    """What a combo may call a model file that is not on this machine: its name, its folder's (a face pack), or both."""
    name, folder = model["name"], model["directory"].rsplit("/", 1)[-1]
    return name, folder, f"{folder}/{name}"


def _fits(widget: Input, value: Any) -> bool:
    options = widget.options
    if widget.type == "COMBO":
        return value in (widget.choices or []) or is_file(value, IMAGE_SUFFIXES)
    if widget.type == "STRING":
        return isinstance(value, str)
    if widget.type == "BOOLEAN":
        return isinstance(value, bool)
    kinds = (int,) if widget.type == "INT" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        return False
    return options.get("min", value) <= value <= options.get("max", value)


def _is_hosts_end(node: dict[str, Any], info: dict[str, Any]) -> bool:
    """Whether it is one of the host's own nodes that show or save. Newer hosts give these outputs, older ones none."""
    return info["output_node"] and not node["type"].startswith("Likeness")


def _socket_problems(node: dict[str, Any], info: dict[str, Any]) -> list[str]:
    found = []
    linked = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
    known = {i.name for i in inputs_of(info)}
    for wanted in inputs_of(info):
        if wanted.required and not wanted.is_widget and wanted.name not in linked:
            found.append(f"node {node['id']} ({node['type']}): {wanted.name} is not connected")
    for socket in node["inputs"]:
        if socket["name"] not in known:
            found.append(f"node {node['id']} ({node['type']}) has no input {socket['name']}")
    outputs = [(output["name"], output["type"]) for output in node["outputs"]]
    expected = [(n, _type_name(k)) for n, k in zip(info["output_name"], info["output"], strict=True)]
    if outputs != expected and (outputs or not _is_hosts_end(node, info)):
        found.append(f"node {node['id']} ({node['type']}): outputs {outputs}, the host has {expected}")
    return found


def _model_problems(node: dict[str, Any]) -> list[str]:
    """A loader's file must be offered for download."""
    offered = {model["name"]: model for model in node["properties"].get("models", [])}
    found = []
    for value in node.get("widgets_values", []):
        if node["type"] not in OWN_FILE_LOADERS and is_file(value) and value.rsplit("/", 1)[-1] not in offered:
            found.append(f"node {node['id']} ({node['type']}): {value} is not among properties.models")
    for model in offered.values():
        if not (model["url"].startswith("https://") and model["directory"]):
            found.append(f"node {node['id']} ({node['type']}): {model['name']} has no address or folder")
    return found


def write(graph: Graph, info: ObjectInfo, folder: Path, name: str, card: str | None) -> list[Path]:
    """Write `<card>.json`, which template browsers list, and its twin `api/<name>.api.json`; returns both paths.

    card: None writes the twin alone.
    """
    workflow = graph.to_ui()
    (folder / API_FOLDER).mkdir(exist_ok=True)
    twin = folder / API_FOLDER / f"{name}.api.json"
    twin.write_text(json.dumps(to_api(workflow, info), indent=2, ensure_ascii=True) + "\n")
    return [twin] if card is None else [write_card(workflow, folder, card), twin]


def write_card(workflow: Workflow, folder: Path, card: str) -> Path:
    """Write a graph that template browsers list."""
    path = folder / f"{card}.json"
    path.write_text(json.dumps(workflow, indent=2, ensure_ascii=True) + "\n")
    return path
