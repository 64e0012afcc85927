"""Writes the example workflows and the subgraph blueprints: `python workflows/_build.py` (needs the real ComfyUI, see
`make comfyui`).

Each function of the modules `_graphs_*.py` that `GRAPHS` lists describes one graph, each of `_blueprints.py` one
blueprint; `_pieces.py` is what they share.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import _graphs_miniature as miniature
import _graphs_people as people
import _graphs_references as references
import _graphs_training as training
from _blueprint import Blueprint, write_blueprint
from _blueprints import BLUEPRINTS, CATEGORY
from _graph import Graph, ObjectInfo, write

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
SUBGRAPHS = REPOSITORY / "subgraphs"
HOST_VERSION = "0.3.64"  # the version the files are made with; they open on any supported one

GRAPHS: list[Callable[[Graph], None]] = [
    people.portrait_faceid,
    people.two_people,
    people.save_identity,
    people.saved_identity,
    references.style_reference,
    references.save_embeds,
    references.saved_embeds,
    references.batch_schedule,
    people.face_keypoints,
    miniature.identity_report,
    training.portrait_dataset,
    miniature.miniature_portrait,
    training.train_textual_inversion,
    training.train_dreambooth,
    training.train_magicapture,
]


def describe(graph_function: Callable[[Graph], None], info: ObjectInfo) -> Graph:
    """Run one of the functions of `GRAPHS`."""
    graph = Graph(info, version=_version(), host_version=HOST_VERSION)
    graph_function(graph)
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
    return [path for function in GRAPHS for path in write(describe(function, info), info, folder, function.__name__)]


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
