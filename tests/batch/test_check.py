"""What a check finds, and that nothing is sent meanwhile."""

from __future__ import annotations

import asyncio
import os
from copy import deepcopy

import pytest
from aiohttp import web
from batch_fake import OBJECT_INFO, Fake, graph, png, serving

from likeness.batch.graph import canonical, prompt_id
from likeness.batch.plan import read_plan
from likeness.batch.results import suffix_of
from likeness.batch.workers import BadFile
from likeness.errors import LikenessError


def problems(desk, plan=None, fakes=None):
    async def go():
        async with serving(*(fakes or [Fake()])) as servers:
            checked = await desk.check(servers, plan)
            assert not any(server.posted or server.uploaded for server in servers)
            return checked.problems

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("column", "cell", "words"),
    [
        ("Paint.width", "abc", "whole number"),
        ("Paint.width", "8.0", "write 8"),
        ("Paint.width", "9999", "out of range"),
        ("Paint.seed", "-1", "out of range"),
        ("Paint.strength", '"1,5"', "write 1.5"),
        ("Paint.strength", "nan", "not a finite number"),
        ("Paint.fast", "maybe", "true or false"),
        ("Paint.model", "A.safetensors", "did you mean 'a.safetensors'"),
        ("Paint.widht", "8", "did you mean"),
        ("Pain.width", "8", "did you mean 'Paint.width'"),
        ("note", "8", "meta.note"),
        ("Save.images", "8", "fed by another node"),
        ("Paint.text", "sk-abcdefghijklmnopqrstuvwxyz012345", "key or a password"),
        ("meta.api_key", "x", "named like a key or a password"),
        ("Paint.text", '"=json:[""1"", 0]"', "link"),
    ],
)
def test_a_wrong_cell_is_named_with_line_column_and_suggestion(desk, column, cell, words):
    desk.table(column, cell)
    found = problems(desk)
    said = str(found.found[0])
    assert words in said and column in said and "rows.csv, line" in said and found.found[0].suggestion
    assert "sk-abc" not in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g["1"].update(class_type="Gone"), "no server has the node 'Gone'"),
        (lambda g: g["1"].update(class_type="PaidNode"), "costs money"),
        (lambda g: g["2"]["inputs"].update(images=["7", 0]), "not there"),
        (lambda g: g["2"]["inputs"].update(images=["1", 3]), "has 1"),
        (lambda g: g["2"]["inputs"].pop("images"), "lacks the input 'images'"),
        (lambda g: g["1"]["inputs"].update(model="gone.safetensors"), "server's choices"),
        (lambda g: g.pop("2"), "saves nothing"),
        (lambda g: g["1"]["inputs"].update(text="Bearer abcdefghijklmnop123456"), "key or a password"),
    ],
)
def test_a_wrong_workflow_is_told_before_anything_runs(desk, change, words):
    made = graph()
    change(made)
    desk.write_graph(made)
    desk.table("meta.note", "a")
    fake = Fake()
    [said] = [one for one in problems(desk, fakes=[fake]).found if words in str(one)]
    assert said.suggestion and "api.json" in str(said)
    assert not fake.posted and not fake.uploaded


def test_a_title_that_two_nodes_have_is_ambiguous(desk):
    made = graph()
    made["3"] = made["1"]
    desk.write_graph(made)
    desk.table("Paint.width", "8")
    assert "2 nodes have this name" in str(problems(desk).found[0])


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "gone.png", "text.png", "folder", "bomb.png", "link.png"]
)
def test_a_file_that_cannot_be_used_is_refused(desk, name):
    made = graph()
    made["1"] = {"class_type": "LoadImage", "inputs": {"image": "here.png"}, "_meta": {"title": "Load"}}
    desk.write_graph(made)
    (desk.folder.parent / "secret.png").write_bytes(png(1))
    (desk.folder / "text.png").write_text("no image")
    (desk.folder / "folder").mkdir()
    huge = bytearray(png(1))
    huge[16:24] = (60000).to_bytes(4, "big") * 2
    (desk.folder / "bomb.png").write_bytes(huge)
    os.symlink(desk.folder.parent / "secret.png", desk.folder / "link.png")
    desk.table("Load.image", name)
    assert problems(desk).count == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04zip", "spreadsheet or an archive"),
        (b"\x1f\x8bgz", "archive"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"", "empty"),
        (b"a;b\n1;2\n", "semicolons"),
        (b"Paint.color,Paint.color\n1,2\n", "two columns"),
        (b"Paint.color\n1,2\n", "2 cells"),
        (b"Paint.text\n\xe9\n", "not UTF-8"),
        (b'Paint.text\n"open\n', "quotes"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_sentence(desk, content, words):
    (desk.folder / "rows.csv").write_bytes(content)
    with pytest.raises(LikenessError, match=words):
        problems(desk)


def test_a_workflow_of_the_browser_is_told_how_to_export(desk):
    desk.write_graph({"nodes": [], "links": []})
    with pytest.raises(LikenessError, match="Export \\(API\\)"):
        problems(desk)


def test_a_server_that_redirects_is_not_followed(desk):
    desk.rows(1)
    fake = Fake()
    fake.redirect = "http://127.0.0.1:9/"
    assert "redirects" in str(problems(desk, fakes=[fake]).found[0])


def test_servers_that_differ_are_told(desk):
    """Another version, a choice that one lacks, a node that one lacks."""
    poor = deepcopy(OBJECT_INFO)
    poor["EmptyImage"]["input"]["optional"]["model"][0] = ["a.safetensors"]
    del poor["LoadImage"]
    desk.table("Paint.model", "a.safetensors", "b.safetensors")
    warnings = problems(desk, fakes=[Fake("0.33.0"), Fake("0.3.64", info=poor)]).warnings
    assert any("different versions (0.3.64, 0.33.0)" in one for one in warnings)
    assert any("'b.safetensors' of 'Paint.model' is not on every server" in one for one in warnings)
    made = graph()
    made["3"] = {"class_type": "LoadImage", "inputs": {"image": "here.png"}, "_meta": {"title": "Load"}}
    desk.write_graph(made)
    [said] = problems(desk, fakes=[Fake(), Fake(info=poor)]).found
    assert "lacks the node 'LoadImage'" in str(said) and "leave the server out" in said.suggestion


@pytest.mark.parametrize("version", ["0.3.47", "0.2.9"])
def test_a_server_that_is_too_old_is_told(desk, version):
    desk.rows(1)
    [said] = problems(desk, fakes=[Fake(version)]).found
    assert f"runs ComfyUI {version}" in str(said) and "0.3.48 or newer" in said.suggestion


def test_a_server_that_is_away_or_none_is_told(desk):
    desk.rows(1)
    away, page = Fake(), Fake()
    page.redirect = ""

    async def html(_):
        return web.Response(text="<html>", content_type="text/html")

    page._stats = html

    async def go():
        async with serving(page) as fakes:
            away.port = 9
            return (await desk.check([*fakes, away])).problems.found

    said = [str(one) for one in asyncio.run(go())]
    assert any("does not answer as a ComfyUI does (no JSON" in one for one in said)
    assert any("does not answer (" in one and "start it, or leave it out" in one for one in said)


def test_yaml_bombs_and_unknown_entries_are_refused(tmp_path):
    for text, words in (("a: &a [1]\nb: *a\n", "aliases"), ("workflow: x\nsede: 1\n", "sede"), ("- 1\n", "no entries")):
        (tmp_path / "plan.yaml").write_text(text)
        with pytest.raises(LikenessError, match=words):
            read_plan(tmp_path / "plan.yaml")


def test_names_of_attempts_are_stable_and_nan_has_none():
    assert prompt_id("r", "a", 1) == prompt_id("r", "a", 1) != prompt_id("r", "a", 2)
    with pytest.raises(ValueError):
        canonical(float("nan"))
    with pytest.raises(BadFile):
        suffix_of(b"<!DOCTYPE html>")


def test_without_ray_one_sentence_says_how_to_get_it(monkeypatch):
    import sys

    from likeness.batch.ray_workers import _ray

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LikenessError, match=r"likeness\[ray\]"):
        _ray()


def test_a_ray_that_lets_others_run_code_is_refused(monkeypatch):
    import sys
    from types import SimpleNamespace

    from likeness.batch.ray_workers import _ray

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(__version__="2.51.1"))
    with pytest.raises(LikenessError, match=r"Ray 2\.51\.1 has a vulnerability .* 2\.52 or newer"):
        _ray()
