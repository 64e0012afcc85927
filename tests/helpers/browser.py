"""ComfyUI's page in the system's Chromium: opened in a known state, and asked as a user would see it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE = 120_000  # milliseconds, for machines that have much else to do
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
HOW_TO_GET_IT = "needs Chromium and the package playwright: `apt-get install chromium`, `pip install playwright`"
OUR_NODE = "LikenessApplyIdentity"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SETTINGS: dict[str, Any] = {
    "Comfy.TutorialCompleted": True,
    "Comfy.InstalledVersion": "1.27.10",
    "Comfy.Workflow.WorkflowTabsPosition": "Topbar",
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Notification.ShowVersionUpdates": False,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,
    "Comfy.Canvas.SelectionToolbox": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.NodeBadge.NodeIdBadgeMode": "None",
}
# Messages that pages of ComfyUI bring without us: files of the user's that are not there, what newer pages ask of
# older servers, templates of the host's that are not installed, and addresses outside, which the tests cut off.
NOISE = (
    *("user.css", "userdata", "favicon", "index_logo", "/templates/", "api/jobs", "global_subgraphs", "/settings"),
    *("Invalid layout total size", "net::ERR", "Failed to load resource", "Error loading core workflow templates"),
    *("WebGL", "GPU stall", "reading 'id'", "Failed to fetch", "core workflow templates", "deprecated", "Vue warn"),
    *("Content Security Policy", "graph accessed before initialization"),
)

READY = """node => window.app?.vueAppReady && app.extensionManager.workflow.activeWorkflow?.isLoaded
  && LiteGraph.registered_node_types[node]"""
LISTEN = """() => {
  const first = !window.seen, kinds = ['progress', 'executing', 'executed', 'execution_cached', 'execution_success',
    'execution_error', 'execution_interrupted'];
  window.seen = [];
  for (const kind of first ? kinds : []) app.api.addEventListener(kind, event => seen.push([kind, event.detail]));
}"""
CLOSE_OTHERS = """async () => {
  const workflows = app.extensionManager.workflow;
  for (const each of [...workflows.openWorkflows])
    if (each !== workflows.activeWorkflow) await workflows.closeWorkflow(each, {warnIfUnsaved: false});
}"""
ENDED = "() => seen.some(([kind]) => ['execution_success', 'execution_error', 'execution_interrupted'].includes(kind))"
SHOWN = """() => [...document.querySelectorAll('[role=dialog],.p-dialog,.p-toast-message,[role=alert]')]
  .filter(box => box.offsetParent !== null || getComputedStyle(box).position === 'fixed')
  .map(box => box.innerText.trim()).filter(text => text)"""


def chromium() -> str | None:
    """The system's browser."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def is_here() -> bool:
    """Whether the tests can run."""
    return chromium() is not None and find_spec("playwright") is not None


def write_settings(base: Path, **more: Any) -> None:
    """The settings of a new server; they are the same for all its pages."""
    path = base / "user" / "default" / "comfy.settings.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(SETTINGS | more))


@dataclass
class Editor:
    """One page. `said` is what its console and its dialogs said of trouble."""

    page: Any
    address: str
    said: list[str] = field(default_factory=list)

    def run(self, code: str, argument: Any = None) -> Any:
        """What a function in the page returns."""
        return self.page.evaluate(code, argument)

    def load(self, workflow: dict[str, Any], name: str) -> None:
        """Open a graph as the template browser does, and close all others."""
        self.said.clear()
        self.run("([graph, name]) => app.loadGraphData(graph, true, true, name)", [workflow, name])
        self.run(CLOSE_OTHERS)
        self.page.wait_for_function("count => app.graph._nodes.length === count", arg=len(workflow["nodes"]))
        self.settle()

    def settle(self) -> None:
        """Two frames: what was asked for is drawn."""
        self.run("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def prompt(self) -> dict[str, Any]:
        """The graph as the server would get it."""
        return json.loads(self.run("async () => JSON.stringify((await app.graphToPrompt()).output)"))

    def queue(self, seconds: float = 120) -> list[tuple[str, Any]]:
        """Run the graph to its end; what the server told of it."""
        self.start()
        return self.finish(seconds)

    def start(self) -> None:
        """Queue the graph."""
        self.run(LISTEN)
        self.run("() => app.queuePrompt(0, 1)")

    def finish(self, seconds: float = 120) -> list[tuple[str, Any]]:
        """Wait for the end of what was queued."""
        self.page.wait_for_function(ENDED, timeout=seconds * 1000)
        return [(kind, detail) for kind, detail in self.run("() => JSON.parse(JSON.stringify(seen))")]

    def trouble(self) -> list[str]:
        """What the console said, and what stands in dialogs and toasts."""
        return [*self.said, *self.run(SHOWN)]


@contextmanager
def opened(
    address: str, locale: str = "en-US", width: int = 1600, height: int = 1000, scale: float = 1
) -> Iterator[Editor]:
    """A page of ComfyUI in this language, ready for a graph; whatever is not the server is out of reach."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            context = browser.new_context(
                viewport={"width": width, "height": height}, device_scale_factor=scale, locale=locale
            )
            yield ready(context.new_page(), address)
        finally:
            browser.close()


def ready(page: Any, address: str, query: str = "") -> Editor:
    """The page, when ComfyUI can be used."""
    page.context.route(lambda url: not url.startswith(address), lambda route: route.abort())
    page.set_default_timeout(PATIENCE)
    editor = Editor(page, address)
    page.on("console", lambda message: _hear(editor, message.type == "error", message.text))
    page.on("pageerror", lambda error: _hear(editor, True, str(error)))
    page.goto(f"{address}/{query}")
    page.wait_for_function(READY, arg=OUR_NODE)
    page.evaluate("() => { const toast = app.extensionManager.toast; toast.removeAll?.(); toast.dismissAll?.(); }")
    return editor


def _hear(editor: Editor, is_error: bool, text: str) -> None:
    if is_error and not any(noise in text for noise in NOISE):
        editor.said.append(text)
