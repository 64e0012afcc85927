"""An API workflow: its nodes, how a column names one of their inputs, and what makes two graphs the same."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from .problems import Fault, nearest

Graph = dict[str, dict[str, Any]]
MOST_BYTES = 64 * 2**20  # of a workflow, and of any JSON a server sends
_NAMESPACE = uuid.UUID("8d1c3b52-9c4e-5a0b-9a41-6c1f0f2b7a10")
_HOW_TO_EXPORT = "in ComfyUI choose File > Export (API) and give that file"


@dataclass(frozen=True, order=True)
class Address:
    """One input of one node."""

    node: str  # its id in the graph
    input: str

    def __str__(self) -> str:
        return f"{self.node}.{self.input}"


@dataclass(frozen=True, eq=False)
class Workflow:
    """A graph in API format, and the UI format it was exported from, if that was given."""

    path: Path
    graph: Graph
    ui: Mapping[str, Any] | None = None

    @cached_property
    def _titles(self) -> dict[str, list[str]]:
        return _by(self.graph, lambda node: node.get("_meta", {}).get("title", ""))

    @cached_property
    def _classes(self) -> dict[str, list[str]]:
        return _by(self.graph, lambda node: node["class_type"])

    def resolve(self, name: str) -> Address:
        """The input that `<node>.<input>` names, where node is an id, a title or a class; the longest that names
        exactly one counts, as titles and inputs may hold dots. Fault for none or several."""
        several: list[str] = []
        for cut in (at for at in range(len(name) - 1, 0, -1) if name[at] == "."):
            node, given = name[:cut], name[cut + 1 :]
            found = [node] if node in self.graph else self._titles.get(node) or self._classes.get(node) or []
            if len(found) == 1 and given:
                return Address(found[0], given)
            several = several or (found if len(found) > 1 else [])
        if several:
            meant = "; ".join(f"{number}.… is {self.describe(number)}" for number in several[:6])
            raise Fault(f"{len(several)} nodes have this name", f"write the node's id: {meant}")
        raise Fault("names no input of the workflow", nearest(name, self.names()))

    def describe(self, number: str) -> str:
        """A node in words."""
        node = self.graph[number]
        title = node.get("_meta", {}).get("title", "")
        return f"{title!r} ({node['class_type']})" if title and title != node["class_type"] else node["class_type"]

    def names(self) -> list[str]:
        """Every input of the graph as a user may write it: by title where that is unique, else by id."""
        found = []
        for number, node in self.graph.items():
            title = node.get("_meta", {}).get("title", "")
            first = title if title and self._titles.get(title) == [number] else number
            found += [f"{first}.{given}" for given in node["inputs"]]
        return found

    def is_link(self, address: Address) -> bool:
        """Whether the input is fed by another node."""
        return link_of(self.graph[address.node]["inputs"].get(address.input)) is not None


def _by(graph: Graph, key: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for number, node in graph.items():
        if name := key(node):
            found.setdefault(name, []).append(number)
    return found


def link_of(value: Any) -> tuple[str, int] | None:
    """The node and the output that a link `[id, output]` names; None for any other value."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int:
        return value[0], value[1]
    return None


def read_workflow(path: Path) -> Workflow:
    """Read a file in API format. LikenessError in one sentence for anything else."""
    value = read_json(path, "The workflow")
    ui = None
    if isinstance(value, dict) and isinstance(value.get("prompt"), dict) and "class_type" not in value["prompt"]:
        ui, value = value.get("workflow"), value["prompt"]  # what is posted to a server
    if isinstance(value, dict) and isinstance(value.get("nodes"), list):
        raise LikenessError(f"The workflow {path.name!r} is in the format of the browser: {_HOW_TO_EXPORT}.")
    if not isinstance(value, dict) or not value:
        raise LikenessError(f"The workflow {path.name!r} holds no nodes: {_HOW_TO_EXPORT}.")
    for number, node in value.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise LikenessError(f"Node {number!r} of the workflow {path.name!r} has no class_type: {_HOW_TO_EXPORT}.")
        if not isinstance(node.setdefault("inputs", {}), dict):
            raise LikenessError(f"The inputs of node {number!r} of {path.name!r} are not an object: {_HOW_TO_EXPORT}.")
        meta = node.get("_meta")
        node["_meta"] = {"title": str(meta.get("title", ""))} if isinstance(meta, dict) else {}
    return Workflow(path, value, ui if isinstance(ui, dict) else None)


def read_json(path: Path, what: str) -> Any:
    """A JSON file; LikenessError, starting with `what`, for one that is missing, too large or no JSON."""
    try:
        if not path.is_file():
            raise LikenessError(f"{what} {str(path)!r} does not exist: check the path.")
        if path.stat().st_size > MOST_BYTES:
            raise LikenessError(f"{what} {path.name!r} is larger than {MOST_BYTES >> 20} MB: give another file.")
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except OSError as error:
        raise LikenessError(f"{what} {str(path)!r} cannot be read ({error.strerror or error}).") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, LikenessError):
            raise
        raise LikenessError(f"{what} {path.name!r} is not valid JSON ({error}): export it again.") from None


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not a number")


# --- rows are graphs with values put in


def canonical(value: Any) -> str:
    """JSON with one spelling for equal values; ValueError for NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class GraphTemplate:
    """A graph with holes at some of its inputs: what is filled in many times is written out once."""

    def __init__(self, graph: Graph, holes: Iterable[Address], prefixes: Iterable[Address] = ()):
        self.holes = sorted(set(holes))
        plain = {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in graph.items()}
        plain = json.loads(json.dumps(plain))
        for address in prefixes:
            plain[address.node]["inputs"][address.input] = ""
        marks = [f"\ue000{number}\ue001" for number in range(len(self.holes))]
        for address, mark in zip(self.holes, marks, strict=True):
            plain[address.node]["inputs"][address.input] = mark
        text, self._parts = canonical(plain), []
        order = sorted(range(len(marks)), key=lambda n: text.index(f'"{marks[n]}"'))
        for number in order:
            before, _, text = text.partition(f'"{marks[number]}"')
            self._parts.append((before, self.holes[number]))
        self._rest = text

    def row_id(self, values: Mapping[Address, Any]) -> str:
        """32 hex digits that are equal for equal graphs, wherever the files they save are put."""
        pieces = [piece for before, hole in self._parts for piece in (before, canonical(values[hole]))]
        return hashlib.sha256("".join([*pieces, self._rest]).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def with_values(graph: Graph, values: Mapping[Address, Any], prefixes: Sequence[Address], prefix: str) -> Graph:
    """A graph of its own with these values, which saves its files under `prefix`."""
    made = {number: {**node, "inputs": dict(node["inputs"])} for number, node in graph.items()}
    for address, value in values.items():
        made[address.node]["inputs"][address.input] = value
    for address in prefixes:
        made[address.node]["inputs"][address.input] = prefix
    return made


def prompt_id(run: str, row: str, attempt: int) -> str:
    """The id under which an attempt is queued: the same for the same attempt, spelt as hosts ask for."""
    return str(uuid.uuid5(_NAMESPACE, f"{run}/{row}/{attempt}"))


def save_prefix(run: str, row: str, attempt: int) -> str:
    """Where a server saves an attempt's files: folders stay small, and no file of an earlier attempt is meant."""
    return f"likeness/{run[:8]}/{row[:2]}/{row[:12]}a{attempt}"
