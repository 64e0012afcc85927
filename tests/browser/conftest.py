"""ComfyUI's page on a real server: with the host's own frontend and the newest one, in the classic mode and Nodes 2.0.

`make browser` brings the newest frontend and runs these tests; `make test` leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import comfyui
import pytest
from helpers import browser
from helpers import server as server_module
from helpers.browser_pages import page_of, set_to

HERE = Path(__file__).parent
OLDEST = "0.30"  # of the hosts whose pages are tested
NEWEST_FRONTEND = comfyui.REPOSITORY / "build" / "frontend" / "comfyui_frontend_package" / "static"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One reason for all tests here: the host is missing or too old, or there is no browser."""
    host = comfyui.find()
    why = None
    if host is None:
        why = comfyui.HOW_TO_GET_IT
    elif not comfyui.is_at_least(host, OLDEST):
        why = f"needs ComfyUI {OLDEST} or newer"
    elif not browser.is_here():
        why = browser.HOW_TO_GET_IT
    if why:
        for item in items:
            if HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=browser.chromium(), args=browser.FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="session", params=["own frontend", "newest frontend"])
def server(request, host_path, tmp_path_factory) -> Iterator[server_module.Server]:
    """A server with nothing but the pack: no model, no photo, no user."""
    arguments = []
    if request.param == "newest frontend":
        if not NEWEST_FRONTEND.is_dir():
            pytest.skip("the newest frontend is not here: run `make browser`")
        arguments = ["--front-end-root", str(NEWEST_FRONTEND)]
    base = tmp_path_factory.mktemp("browser")
    browser.write_settings(base)
    with server_module.running(host_path, base, comfyui.REPOSITORY, *arguments) as running:
        yield running


@pytest.fixture(scope="session", params=["classic", "Nodes 2.0"])
def editor(request, server, chromium) -> Iterator[browser.Editor]:
    """A page in one of the two modes."""
    set_to(server, "Comfy.VueNodes.Enabled", request.param == "Nodes 2.0")
    with page_of(chromium, server) as opened:
        yield opened
