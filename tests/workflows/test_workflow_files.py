"""The committed workflow files: whole, consistent, equal to their twins and to what the generator writes."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import comfyui
import pytest

WORKFLOWS = comfyui.REPOSITORY / "workflows"
API_SUFFIX = ".api.json"
BUILD = WORKFLOWS / "_build.py"
API_ONLY = {f"miniature_portrait{API_SUFFIX}"}  # for batches and scripts
SAVERS = {  # nodes whose first widget is the name of a file
    "LikenessSaveIdentity": "models/likeness_identities",
    "LikenessSaveEmbeds": "models/likeness_embeds",
    "LikenessTrainCustomDiffusion": "models/custom_diffusion",
    "LikenessTrainSeFiIDE": "models/sefi_ide",
}
UI_FILES = sorted(WORKFLOWS.glob("*.json"))
API_FILES = sorted((WORKFLOWS / "api").glob("*.json"))


def read(path):
    return json.loads(path.read_text())


def stem(path):
    """What the graph of a card is called in `workflows/_graphs`."""
    cards = re.findall(r'^    "(\w+)": "(\d .+)",$', BUILD.read_text(encoding="utf-8"), re.MULTILINE)
    return {card: name for name, card in cards}.get(path.stem, path.stem)


def twin(path):
    return path.parent / "api" / (stem(path) + API_SUFFIX)


def without_meta(prompt):
    return {number: {key: value for key, value in node.items() if key != "_meta"} for number, node in prompt.items()}


each_file = pytest.mark.parametrize("path", UI_FILES, ids=lambda path: path.stem)


def test_there_are_workflows_and_each_has_its_twin():
    assert UI_FILES
    assert {twin(path) for path in UI_FILES} == {path for path in API_FILES if path.name not in API_ONLY}


def test_the_starters_stand_first_in_both_languages():
    first = [path.stem for path in UI_FILES[:6]]
    assert [name[0] for name in first] == list("112233") and not UI_FILES[6].stem[0].isdigit()
    for english, chinese in zip(first[::2], first[1::2], strict=True):
        assert english.isascii() and not chinese.isascii()
        told = read(WORKFLOWS / f"{chinese}.json")
        for group in told["groups"]:
            assert re.search("[\u4e00-\u9fff]", group["title"])
        [note] = [node for node in told["nodes"] if node["type"] == "MarkdownNote"]
        assert "不需要下载" in note["widgets_values"][0]


def test_what_needs_no_download_needs_no_file_of_the_user_either():
    for path in UI_FILES:
        nodes = read(path)["nodes"]
        if not any(node["properties"].get("models") for node in nodes):
            assert not [node for node in nodes if node["type"] in ("LoadImage", "ImageBatch")], path.name


def test_the_note_stands_left_of_everything_and_begins_with_steps():
    for path in UI_FILES:
        nodes = read(path)["nodes"]
        [note] = [node for node in nodes if node["type"] == "MarkdownNote"]
        right = note["pos"][0] + note["size"][0]
        below = [node for node in nodes if node["pos"][0] == note["pos"][0] and node["type"] != "MarkdownNote"]
        assert all(node["pos"][0] > right for node in nodes if node is not note and node not in below)
        starts = path.stem[0].isdigit()
        assert [node["type"] for node in below] == ["SaveImage"] * starts, "where the user looks"
        assert note["widgets_values"][0].startswith("# 1. ")


def test_every_card_of_the_template_browser_is_a_graph_with_a_picture():
    # The browser lists every file of this kind in the folder, and none of the folders below.
    for path in WORKFLOWS.glob("*.json"):
        assert "nodes" in read(path), f"{path.name} is not what the browser opens: it belongs into {WORKFLOWS}/api"
        assert path.with_suffix(".jpg").is_file()


@each_file
def test_file_has_what_the_browser_asks_for(path):
    workflow = read(path)
    assert workflow["version"] == 0.4
    view = workflow["extra"]["ds"]  # the note and the first groups, at a zoom at which steps can be read
    assert view["scale"] >= 0.7 and len(view["offset"]) == 2
    for node in workflow["nodes"]:
        assert {"id", "type", "pos", "size", "flags", "order", "mode", "properties"} <= set(node)
        if node["type"] != "MarkdownNote":
            assert {"Node name for S&R", "cnr_id", "ver"} <= set(node["properties"])
    for group in workflow["groups"]:
        assert len(group["bounding"]) == 4
    path.read_text().encode("ascii")  # a PNG's text chunk must hold it


@each_file
def test_links_agree_and_nothing_overlaps(path, graph_tool):
    workflow = read(path)
    assert graph_tool.link_problems(workflow) == []
    assert graph_tool.layout_problems(workflow) == []


@each_file
def test_a_note_names_every_file_that_is_needed(path, graph_tool):
    workflow = read(path)
    notes = "\n".join(n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote")
    needed = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
    assert bool(needed) != ("Nothing has to be downloaded" in notes or "不需要下载任何东西" in notes)
    for model in needed:
        assert model["name"] in notes and model["url"] in notes and model["directory"] in notes


@each_file
def test_files_that_are_loaded_from_an_earlier_run_are_written_by_a_workflow_and_noted(path, graph_tool):
    saved = defaultdict(set)  # name without counter -> folders, of every file that the workflows write
    for other in UI_FILES:
        for node in read(other)["nodes"]:
            if node["type"] in SAVERS:
                saved[node["widgets_values"][0]].add(SAVERS[node["type"]])
    notes = "\n".join(n["widgets_values"][0] for n in read(path)["nodes"] if n["type"] == "MarkdownNote")
    for node in read(path)["nodes"]:
        if node["type"] in graph_tool.OWN_FILE_LOADERS:
            file = node["widgets_values"][0]
            stem = re.sub(r"_\d+$", "", file.removesuffix(".safetensors"))
            assert stem in saved, f"no workflow writes {file}"
            assert file in notes and any(folder in notes for folder in saved[stem])


@pytest.mark.host
def test_every_node_of_ours_appears_in_a_workflow(object_info):
    from likeness.nodes import ipadapter_plus

    shown = {node["type"] for path in UI_FILES for node in read(path)["nodes"]}
    for_other_graphs = {node.GET_SCHEMA().node_id for node in ipadapter_plus.NODES}
    assert {name for name in object_info if name.startswith("Likeness")} - for_other_graphs <= shown


@pytest.mark.host
@each_file
def test_values_and_types_agree_with_the_host(path, graph_tool, object_info):
    assert graph_tool.problems(read(path), object_info) == []


@pytest.mark.host
@each_file
def test_api_twin_says_the_same(path, graph_tool, object_info):
    assert without_meta(graph_tool.to_api(read(path), object_info)) == without_meta(read(twin(path)))


@pytest.mark.host
def test_generator_writes_the_committed_files(build_tool, object_info, tmp_path):
    written = {path.name: path.read_text() for path in build_tool.write_all(object_info, tmp_path)}
    committed = {path.name: path.read_text() for path in [*UI_FILES, *API_FILES]}
    assert written == committed, "run `python workflows/_build.py`"


@pytest.mark.parametrize(
    ("name", "size"),
    [("portrait_faceid", (512, 512)), ("saved_identity", (1024, 1024)), ("two_people", (1216, 832))],
)
def test_pictures_have_the_size_the_graph_was_described_with(name, size):
    prompt = read(WORKFLOWS / "api" / f"{name}{API_SUFFIX}")
    [latent] = [node["inputs"] for node in prompt.values() if node["class_type"] == "EmptyLatentImage"]
    assert (latent["width"], latent["height"]) == size
