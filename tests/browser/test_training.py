"""A fresh Train node: queued again it is done at once; cancelled, it resumes."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.browser_pages import card

SEED = """() => { const seed = app.graph._nodes.find(node => node.type.startsWith('LikenessTrain')).widgets
  .find(widget => widget.name === 'seed'); return [seed.value, seed.linkedWidgets?.[0]?.value]; }"""
SET = """given => { for (const [name, value] of Object.entries(given)) app.graph._nodes
  .find(node => node.type.startsWith('LikenessTrain')).widgets.find(widget => widget.name === name).value = value; }"""
pytestmark = pytest.mark.parametrize("editor", ["classic"], indirect=True)  # what the server does is the same

QUICK = {"class_pictures": 1, "preview_every": 0, "save_every": 2}


@pytest.fixture
def training(editor) -> str:
    """The id of a Train node as it is when a user has just added it, in a graph that has all it needs."""
    workflow = card("3 Train and paint")
    [node] = [node for node in workflow["nodes"] if node["type"] == "LikenessTrainDreamBooth"]
    del node["widgets_values"]
    editor.load(workflow, "training")
    return str(node["id"])


def steps_of(events: list[tuple[str, Any]], node: str) -> list[int]:
    """How far the training was, each time that it was told; the bar of the class images is another."""
    told = [data for kind, data in events if kind == "progress" and str(data["node"]) == node]
    return [data["value"] for data in told if data["max"] > QUICK["class_pictures"]]


def test_the_same_run_again_is_instant(editor, training):
    editor.run(SET, {**QUICK, "name": "again", "steps": 4})
    assert editor.run(SEED) == [0, "fixed"]
    first = editor.queue(300)
    assert not [told for kind, told in first if kind == "execution_error"] and steps_of(first, training)
    assert editor.run(SEED) == [0, "fixed"]
    assert steps_of(editor.queue(), training) == []


def test_a_cancelled_training_resumes(editor, training):
    editor.run(SET, {**QUICK, "name": "cancelled", "steps": 40})
    editor.start()
    editor.page.wait_for_function(
        "id => seen.some(([kind, told]) => kind === 'progress' && String(told.node) === id && told.value >= 9)",
        arg=training,
        timeout=300_000,
    )
    editor.run("() => app.api.interrupt(null)")
    stopped = editor.finish(120)
    assert [kind for kind, _ in stopped if kind == "execution_interrupted"]
    resumed = editor.queue(300)
    assert not [told for kind, told in resumed if kind == "execution_error"]
    assert len(steps_of(resumed, training)) < 40 and steps_of(resumed, training)[0] > 1
