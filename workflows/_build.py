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
from _chinese import NOTES, TITLES
from _graph import Graph, ObjectInfo, write, write_card

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SUBGRAPHS = REPOSITORY / "subgraphs"
HOST_VERSION = "0.3.64"  # the version the files are made with; they open on any supported one

# What a card of the template browser is called; other cards are called as their graphs. These three stand first in the
# order of the alphabet.
CARDS = {
    "portrait_from_one_photo": "1 Portrait from one photo",
    "miniature_two_people": "2 Two people",
    "train_dreambooth": "3 Train and paint",
}
NO_CARD = {"miniature_portrait"}  # API format only
CHINESE_CARDS = {
    "portrait_from_one_photo": "1 用一张照片生成人像",
    "miniature_two_people": "2 两个人",
    "train_dreambooth": "3 训练并生成",
}

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
    """Write every graph into `folder`, and some in Chinese too; returns the paths."""
    written = []
    for name in GRAPHS:
        graph = describe(name, info)
        written += write(graph, info, folder, name, None if name in NO_CARD else CARDS.get(name, name))
        if name in CHINESE_CARDS:
            written.append(write_card(graph.to_ui(TITLES, NOTES[name]), folder, CHINESE_CARDS[name]))
    return written


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
