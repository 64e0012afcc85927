"""Writes the example workflows and the subgraph blueprints: `python workflows/_build.py` (needs the real ComfyUI, see
`make comfyui`).

Each module of `_graphs/` describes the graph of its name, each function of `_blueprints.py` one blueprint; `_pieces.py`
is what they share, `_pieces_miniature.py` what graphs of the miniature world share.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from _blueprint import Blueprint, write_blueprint
from _blueprints import BLUEPRINTS, CATEGORY
from _graph import Graph, ObjectInfo, write

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SUBGRAPHS = REPOSITORY / "subgraphs"
HOST_VERSION = "0.3.64"  # the version the files are made with; they open on any supported one

_NAMES = sorted(path.stem for path in (HERE / "_graphs").glob("*.py"))
GRAPHS: dict[str, Callable[[Graph], None]] = {name: import_module(f"_graphs.{name}").describe for name in _NAMES}


def describe(name: str, info: ObjectInfo) -> Graph:
    """One of `GRAPHS`."""
    graph = Graph(info, version=_version(), host_version=HOST_VERSION)
    GRAPHS[name](graph)
    return graph


def describe_blueprint(function: Callable[[Blueprint], None], info: ObjectInfo) -> Blueprint:
    """Run one of the functions of `BLUEPRINTS`."""
    name, description, aliases = BLUEPRINTS[function]
    blueprint = Blueprint(info, name, description, CATEGORY, aliases, version=_version(), host_version=HOST_VERSION)
    function(blueprint)
    return blueprint


def _version() -> str:
    [version] = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    return version


def write_all(info: ObjectInfo, folder: Path) -> list[Path]:
    """Write every graph into `folder`; returns the paths."""
    return [path for name in GRAPHS for path in write(describe(name, info), info, folder, name)]


def write_blueprints(info: ObjectInfo, folder: Path) -> list[Path]:
    """Write every blueprint into `folder`; returns the paths."""
    return [write_blueprint(describe_blueprint(function, info), folder) for function in BLUEPRINTS]


def main() -> None:
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if host is None:
        sys.exit(f"workflows/_build.py {comfyui.HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory() as base:
        nodes = comfyui.import_into_this_process(host, Path(base))
        ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
        info = comfyui.object_info(nodes, ours)
        for path in [*write_all(info, HERE), *write_blueprints(info, SUBGRAPHS)]:
            print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
