"""Pages of a test server: in a context of their own, in a mode, with a committed template."""

from __future__ import annotations

import copy
import json
from types import TracebackType
from typing import Any

import comfyui

from . import browser
from . import server as server_module

WORKFLOWS = comfyui.REPOSITORY / "workflows"
WIDTH, HEIGHT = 1600, 1000


class page_of:
    """A page in a context of its own."""

    def __init__(self, chromium: Any, server: server_module.Server, query: str = "", locale: str = "en-US") -> None:
        self._address, self._query = server.client.address, query
        self._context = chromium.new_context(viewport={"width": WIDTH, "height": HEIGHT}, locale=locale)

    def __enter__(self) -> browser.Editor:
        return browser.ready(self._context.new_page(), self._address, self._query)

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        self._context.close()


def set_to(server: server_module.Server, name: str, value: Any) -> None:
    """Change a setting for pages that are opened later."""
    server.client.post(f"/settings/{name}", value)


def card(name: str) -> dict[str, Any]:
    """A committed template."""
    return json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))


def with_values(workflow: dict[str, Any], kind: str, **values: Any) -> dict[str, Any]:
    """The template with other values of the widgets of its first node of a kind."""
    workflow = copy.deepcopy(workflow)
    node = next(node for node in workflow["nodes"] if node["type"] == kind)
    names = WIDGETS[kind]
    for name, value in values.items():
        node["widgets_values"][names.index(name)] = value
    return workflow


# The widgets of nodes whose values tests change, in the order of files.
WIDGETS = {
    "LikenessFindFaces": ["choice", "index", "if_none", "min_size", "folder"],
    "CLIPTextEncode": ["text"],
    "LikenessLoadFaceAnalysis": ["model", "provider"],
    "LikenessLoadIdentityAdapter": ["adapter_file", "plus_version", "system"],
}
