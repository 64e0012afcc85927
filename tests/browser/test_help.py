"""The help of every node, in English, in Chinese, and for all other languages."""

from __future__ import annotations

import re

import pytest
from helpers.browser_pages import page_of

from likeness.miniature.comfyui_server import PACK_FOLDER

pytestmark = pytest.mark.parametrize("editor", ["classic"], indirect=True)


def test_every_node_has_its_pages_and_their_images(server, editor):
    nodes = editor.run("() => Object.keys(LiteGraph.registered_node_types).filter(name => name.startsWith('Likeness'))")
    assert len(nodes) > 40
    for node in nodes:
        for page in (f"{node}.md", f"{node}/en.md", f"{node}/zh.md"):
            text = server.client.get(f"/extensions/{PACK_FOLDER}/docs/{page}").decode()
            assert text.startswith("# ") and len(text) > 200, page
            assert bool(re.search("[\u4e00-\u9fff]{4}", text)) == page.endswith("zh.md"), page
            for image in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
                assert server.client.get(f"/extensions/{PACK_FOLDER}/docs/{image}"), image


def test_the_page_names_our_nodes_in_its_language(server, chromium, editor):
    for locale, name in (("en-US", "Apply Identity"), ("zh-CN", "应用身份")):
        with page_of(chromium, server, locale=locale) as page:
            assert page.run("() => LiteGraph.registered_node_types.LikenessApplyIdentity.title") == name
            assert page.trouble() == []
