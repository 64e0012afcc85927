"""From a fresh start to a portrait, counting clicks; and what a user does next with it."""

from __future__ import annotations

import re

import pytest
from helpers.browser_pages import card, page_of, set_to

from likeness.miniature.comfyui_server import PACK_FOLDER

STARTER = "1 Portrait from one photo"
SAVED = """() => app.graph._nodes.filter(node => node.type === 'SaveImage')
  .flatMap(node => app.nodeOutputs[node.id]?.images ?? [])
  .map(image => new URL(app.api.apiURL('/view?' + new URLSearchParams(image)), location).href)"""
# Of the image of a SaveImage node, how much is on the screen.
SEEN = """() => app.graph._nodes.filter(node => node.type === 'SaveImage').map(node => {
  const {scale, offset} = app.canvas.ds, [x, y] = node.pos, [width, height] = node.size;
  const left = (x + offset[0]) * scale, top = (y + offset[1]) * scale;
  const inside = (from, size, room) => Math.max(0, Math.min(from + size, room) - Math.max(from, 0)) / size;
  return inside(left, width * scale, innerWidth) * inside(top, height * scale, innerHeight);
})[0]"""
DROP = """async address => {
  const name = new URL(address).searchParams.get('filename');
  const blob = await (await fetch(address)).blob();
  await app.handleFile(new File([blob], name, {type: 'image/png'}));
}"""


def test_three_clicks_lead_from_a_fresh_start_to_a_portrait(server, chromium, editor):
    set_to(server, "Comfy.TutorialCompleted", False)  # a first start shows the templates by itself
    try:
        with page_of(chromium, server) as fresh:
            section = fresh.page.get_by_text(PACK_FOLDER, exact=True).first
            starter = fresh.page.get_by_test_id(f"template-workflow-{STARTER}")
            section.click()
            starter.wait_for()
            starter.evaluate("card => card.click()")  # it moves while the images come in
            fresh.page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'LikenessExamplePhotos')")
            fresh.page.get_by_test_id("queue-button").click()
            fresh.page.wait_for_function(f"() => ({SAVED})().length === 1")
            assert fresh.run(SEEN) > 0.5, "the portrait is where the user looks"
            assert fresh.trouble() == []
    finally:
        set_to(server, "Comfy.TutorialCompleted", True)


def test_the_portrait_again_is_instant_and_brings_its_graph_back(editor):
    workflow = card(STARTER)
    editor.load(workflow, STARTER)
    first = editor.queue()
    assert first[-1][0] != "execution_error", first[-1]
    editor.page.wait_for_function(f"() => ({SAVED})().length === 1")
    [address] = editor.run(SAVED)
    prompt = editor.prompt()
    again = editor.queue()
    [cached] = [told["nodes"] for kind, told in again if kind == "execution_cached"]
    assert len(cached) >= len(prompt) - 1
    editor.run("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    editor.page.wait_for_function("() => app.graph._nodes.length === 0")
    editor.run(DROP, address)
    editor.page.wait_for_function("count => app.graph._nodes.length === count", arg=len(workflow["nodes"]))
    dropped = editor.prompt()
    assert {n: node["inputs"] for n, node in dropped.items()} == {n: node["inputs"] for n, node in prompt.items()}
    assert editor.trouble() == []


@pytest.mark.parametrize("editor", ["classic"], indirect=True)
def test_a_link_opens_a_template(server, chromium, editor):
    # Names in links have no spaces, so the starters have none.
    with page_of(chromium, server, f"?template=identity_report&source={PACK_FOLDER}") as page:
        page.page.wait_for_function("() => app.graph._nodes.some(node => node.type === 'LikenessExamplePhotos')")


@pytest.mark.parametrize("editor", ["classic"], indirect=True)
def test_in_chinese_the_chinese_starter_is_chinese(server, chromium, editor):
    with page_of(chromium, server, locale="zh-CN") as page:
        page.load(card("1 用一张照片生成人像"), "人像")
        titles = page.run("() => app.graph._nodes.map(node => node.getTitle?.() ?? node.title)")
        groups = page.run("() => app.graph._groups.map(group => group.title)")
        english = [title for title in [*titles, *groups] if not re.search("[\u4e00-\u9fff]", title)]
        assert english == []
        labels = page.run(
            "() => app.graph._nodes.filter(n => n.type.startsWith('Likeness')).flatMap(n => n.widgets ?? [])"
            ".map(widget => widget.label ?? widget.name)"
        )
        assert [label for label in labels if label and not re.search("[\u4e00-\u9fff]", label)] == []
        assert page.trouble() == []


@pytest.mark.parametrize("editor", ["classic"], indirect=True)
def test_the_search_finds_the_node_that_makes_a_portrait(editor):
    editor.load(card(STARTER), STARTER)
    for word in ("portrait", "person", "人像", "InstantID", "PuLID", "face reference", "consistent character"):
        editor.page.mouse.dblclick(1300, 900)
        editor.page.wait_for_timeout(500)
        editor.page.keyboard.type(word)
        editor.page.get_by_text("Apply Identity", exact=True).first.wait_for()
        editor.page.keyboard.press("Escape")
        editor.settle()
