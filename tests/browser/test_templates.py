"""Every template in the page: it opens without a complaint, says what its file says, and nothing lies over another."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

import comfyui
import pytest

from likeness.miniature.comfyui_server import PACK_FOLDER

WORKFLOWS = comfyui.REPOSITORY / "workflows"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
BUILD = (WORKFLOWS / "_build.py").read_text(encoding="utf-8")
# Card -> graph, Chinese cards too.
TWINS = {title: name for name, title in re.findall(r'^    "(\w+)": "(\d .+)",$', BUILD, re.MULTILINE)}
TOLERANCE = 2  # pixels

# Left, top, right and bottom of every node and group, as the page draws them.
BOXES = """() => {
  const at = new Float32Array(4), nodes = {}, view = app.canvas.ds, canvas = app.canvas.canvas.getBoundingClientRect();
  for (const node of app.graph._nodes) {
    const [x, y, w, h] = node.getBounding(at);
    nodes[node.id] = [x, y, x + w, y + h];
    const shown = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
    if (shown?.height) {
      const left = (shown.left - canvas.left) / view.scale - view.offset[0];
      const top = (shown.top - canvas.top) / view.scale - view.offset[1];
      nodes[node.id] = [left, top, left + shown.width / view.scale, top + shown.height / view.scale];
    }
  }
  return {nodes, groups: app.graph._groups.map(group => [group.title, ...group._bounding])};
}"""

# Size on the screen, and contrast to what is behind, of every line of the note.
LINES = """() => [...document.querySelectorAll(':is(.comfy-markdown, [data-node-id]) :is(h1, p, td)')].map(line => {
  const parse = colour => colour.match(/[\\d.]+/g).map(Number);
  let behind = line;
  while (behind && (parse(getComputedStyle(behind).backgroundColor)[3] ?? 1) < 0.5) behind = behind.parentElement;
  const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const style = getComputedStyle(line), text = light(parse(style.color));
  const ground = light(parse(getComputedStyle(behind ?? document.body).backgroundColor));
  return {kind: line.tagName, size: parseFloat(style.fontSize) * app.canvas.ds.scale, text: line.innerText,
    contrast: (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05)};
})"""


def open_template(editor: Any, name: str) -> dict[str, Any]:
    """Open it as it is served."""
    path = f"/api/workflow_templates/{PACK_FOLDER}/{quote(name)}.json"
    workflow = json.loads(editor.run("async path => await (await fetch(path)).text()", path))
    editor.load(workflow, name)
    return workflow


def without_meta(prompt: dict[str, Any]) -> dict[str, Any]:
    return {number: {key: node[key] for key in ("class_type", "inputs")} for number, node in prompt.items()}


def needs_files(workflow: dict[str, Any]) -> bool:
    """Whether it names models, photos, or what another graph saves: things that a fresh installation lacks."""
    own = {"LoadImage", "LikenessLoadIdentity", "LikenessLoadEmbeds", "LikenessLoadConcept", "LikenessLoadSubject"}
    return any(node["properties"].get("models") or node["type"] in own for node in workflow["nodes"])


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_says_what_its_file_says_and_nothing_overlaps(editor, name):
    workflow = open_template(editor, name)
    marked = editor.run("() => app.graph._nodes.filter(node => node.has_errors).map(node => node.type)")
    twin = json.loads((WORKFLOWS / "api" / f"{TWINS.get(name, name)}.api.json").read_text(encoding="utf-8"))
    photos_missing = ["Image failed to load"] * any(node["type"] == "LoadImage" for node in workflow["nodes"])
    assert [said for said in editor.trouble() if said.split("\n")[0] not in photos_missing] == []
    assert not marked or needs_files(workflow), f"opens red: {marked}"
    assert without_meta(editor.prompt()) == without_meta(twin)
    assert overlaps(editor.run(BOXES)) == []


def overlaps(boxes: dict[str, Any]) -> list[str]:
    """What lies over another node, or sticks out of its group."""
    found = []
    nodes = sorted(boxes["nodes"].items())
    for place, (first, a) in enumerate(nodes):
        found += [f"{first} and {second}" for second, b in nodes[place + 1 :] if meet(a, b, TOLERANCE)]
    for title, x, y, width, height in boxes["groups"]:
        group = [x, y, x + width, y + height]
        for number, box in nodes:
            inside = all(box[i] >= group[i] - TOLERANCE and box[i + 2] <= group[i + 2] + TOLERANCE for i in (0, 1))
            if meet(group, box, TOLERANCE) and not inside:
                found.append(f"{number} sticks out of {title!r}: {[round(v) for v in box]} {[round(v) for v in group]}")
    return found


def meet(a: list[float], b: list[float], tolerance: float) -> bool:
    return all(a[i] < b[i + 2] - tolerance and b[i] < a[i + 2] - tolerance for i in (0, 1))


def test_the_steps_of_the_note_can_be_read_when_it_opens(editor):
    open_template(editor, "1 Portrait from one photo")
    editor.page.wait_for_function("() => document.querySelector('.comfy-markdown, [data-node-id]')")
    editor.page.wait_for_timeout(500)
    lines = [line for line in editor.run(LINES) if line["text"].strip()]
    steps = [line for line in lines if line["kind"] == "H1"]
    assert [step["text"][:2] for step in steps] == ["1.", "2.", "3."]
    assert min(step["size"] for step in steps) >= 10
    assert min(line["contrast"] for line in lines) >= 4.5


def test_the_browser_lists_every_card_with_its_picture(editor):
    client_side = "async path => { const got = await fetch(path); return [got.status, (await got.blob()).size]; }"
    listed = editor.run("async () => (await fetch('/api/workflow_templates')).json()")
    assert sorted(listed[PACK_FOLDER]) == NAMES
    for name in NAMES:
        status, size = editor.run(client_side, f"/api/workflow_templates/{PACK_FOLDER}/{quote(name)}.jpg")
        assert status == 200 and size > 2000, name
