"""Shared by every room: the real ComfyUI is found here; where it is missing, the tests that need it say so and skip."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _load_comfyui():
    name = "likeness_comfyui"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "comfyui.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


comfyui = _load_comfyui()
NEEDS_HOST = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)  # before `-m host` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything below tests/host needs the host; so does whatever carries the marker."""
    missing = comfyui.find() is None
    count = 0
    for item in items:
        if HERE / "host" in item.path.parents:
            item.add_marker(pytest.mark.host)
        if item.get_closest_marker("host"):
            count += 1
            if missing:
                item.add_marker(pytest.mark.skip(reason=comfyui.HOW_TO_GET_IT))
    config.stash[NEEDS_HOST] = count


def pytest_terminal_summary(terminalreporter) -> None:
    count = terminalreporter.config.stash.get(NEEDS_HOST, 0)
    if not count:
        return
    host = comfyui.find()
    terminalreporter.section("ComfyUI")
    if host is None:
        terminalreporter.write_line(f"{count} tests skipped: {comfyui.HOW_TO_GET_IT}", yellow=True)
    else:
        terminalreporter.write_line(f"{count} tests chosen for the real ComfyUI in {host}")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks of the tests are tiny: threads that wait for each other cost more than they bring."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def host_path() -> Path:
    """The folder of the real ComfyUI; skips where there is none."""
    host = comfyui.find()
    if host is None:
        pytest.skip(comfyui.HOW_TO_GET_IT)
    return host


@pytest.fixture(scope="session")
def host_nodes(host_path: Path, tmp_path_factory: pytest.TempPathFactory):
    """The host's `nodes` module, imported into this process once (CPU, folders below a temporary base)."""
    return comfyui.import_into_this_process(host_path, tmp_path_factory.mktemp("comfy_base"))


@pytest.fixture(scope="session")
def object_info(host_nodes):
    """`/object_info` of this process: the host's built-in nodes and ours."""
    import asyncio

    from likeness.nodes import LikenessExtension

    return comfyui.object_info(host_nodes, asyncio.run(LikenessExtension().get_node_list()))
