"""The workflow tooling, loaded under the names by which it finds itself."""

from __future__ import annotations

import sys

import comfyui
import pytest

WORKFLOWS = comfyui.REPOSITORY / "workflows"


@pytest.fixture(scope="session")
def graph_tool():
    """The module `workflows/_graph.py`."""
    return comfyui.load_module("_graph", WORKFLOWS / "_graph.py")


@pytest.fixture(scope="session")
def build_tool(graph_tool):
    """The module `workflows/_build.py`, which finds its neighbours as a script does: in its own folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(WORKFLOWS)
        return comfyui.load_module("_build", WORKFLOWS / "_build.py")


@pytest.fixture(scope="session")
def blueprint_tool(build_tool):
    """The module `workflows/_blueprint.py`."""
    return sys.modules["_blueprint"]
