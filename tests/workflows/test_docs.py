"""Help pages, translations and READMEs say what the schemas say, and name only what exists."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import quote, unquote

import comfyui
import pytest

from likeness import models_download

REPOSITORY: Path = comfyui.REPOSITORY
READMES = ["README.md", "README.zh-CN.md"]
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def workflow_names() -> list[str]:
    return [path.stem for path in (REPOSITORY / "workflows").glob("*.json")]


@pytest.fixture(scope="module")
def build_docs():
    """The module `docs/_build.py`."""
    return comfyui.load_module("_build_docs", REPOSITORY / "docs" / "_build.py")


@pytest.fixture(scope="module")
def schemas(host_nodes):
    """The `io.Schema` of each of our nodes."""
    from likeness.nodes import LikenessExtension

    return [node.GET_SCHEMA() for node in asyncio.run(LikenessExtension().get_node_list())]


def test_tables_and_translations_are_what_docs_build_writes(build_docs):
    stale = [path.name for path, text in build_docs.texts().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run `python docs/_build.py --no-host`"


def test_every_part_is_in_a_document_and_in_each_of_its_languages(build_docs):
    marks = {
        (name, locale)
        for document, locale in build_docs.DOCUMENTS.items()
        for name in re.findall(r"<!-- (\w+): begin -->", (REPOSITORY / document).read_text(encoding="utf-8"))
    }
    parts = {path.relative_to(build_docs.PARTS) for path in build_docs.PARTS.rglob("*.*")}
    assert {(part.parent.name, part.name.split(".")[1]) for part in parts} == marks
    for folder in {part.parent for part in parts}:
        names = {
            locale: [part.name.split(".")[0] for part in sorted(parts) if part.match(f"{folder}/*.{locale}.md")]
            for table, locale in marks
            if table == folder.name
        }
        assert len({tuple(found) for found in names.values()}) == 1, names


def test_marks_take_what_the_parts_say(build_docs, tmp_path, monkeypatch):
    monkeypatch.setattr(build_docs, "PARTS", tmp_path)
    (tmp_path / "methods").mkdir()
    for name, row in (("010_a.en", "| a |"), ("020_b.en", "| b |"), ("010_a.zh", "| 甲 |")):
        (tmp_path / "methods" / f"{name}.md").write_text(f"{row}\n", encoding="utf-8")
    document = "before\n<!-- methods: begin -->\nold\n<!-- methods: end -->\nafter\n"
    made = build_docs.with_parts(document, "en")
    assert made == "before\n<!-- methods: begin -->\n| a |\n| b |\n<!-- methods: end -->\nafter\n"
    assert build_docs.with_parts(made, "en") == made


@pytest.fixture(scope="module")
def translations() -> dict:
    return json.loads((REPOSITORY / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))


@pytest.mark.host
def test_help_pages_are_what_docs_build_writes(schemas, build_docs):
    expected = build_docs.pages(schemas)
    stale = [
        str(path.relative_to(REPOSITORY))
        for path, text in expected.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, "run `python docs/_build.py`"
    assert {*build_docs.PAGES.rglob("*.md")} == set(expected), "pages of nodes that do not exist"


@pytest.mark.host
def test_every_help_page_names_every_input_and_has_a_text_of_its_own(schemas, build_docs):
    for schema in schemas:
        for locale in ("en", "zh"):
            page = (build_docs.PAGES / schema.node_id / f"{locale}.md").read_text(encoding="utf-8")
            missing = [field.id for field in schema.inputs if not re.search(rf"\b{field.id}\b", page)]
            assert not missing, f"{schema.node_id} ({locale})"
            text = (build_docs.TEXTS / locale / f"{schema.node_id}.md").read_text(encoding="utf-8")
            assert len(text) > 100, "a page is more than its tables"
            assert bool(CHINESE.search(text)) == (locale == "zh")
            assert not re.search(r"^\|", text, re.MULTILINE), "the panel is too narrow for tables"


@pytest.mark.host
def test_chinese_translation_has_every_input_and_output_and_nothing_else(schemas, translations):
    expected = {
        schema.node_id: {
            "inputs": {field.id for field in schema.inputs},
            "outputs": {str(number) for number in range(len(schema.outputs))},
        }
        for schema in schemas
    }
    assert {
        node: {part: set(entry[part]) for part in ("inputs", "outputs")} for node, entry in translations.items()
    } == expected


def test_chinese_translation_is_chinese_throughout(translations):
    for node, entry in translations.items():
        assert set(entry) == {"display_name", "description", "inputs", "outputs"}
        assert CHINESE.search(entry["display_name"]) and CHINESE.search(entry["description"]), node
        for field in [*entry["inputs"].values(), *entry["outputs"].values()]:
            assert set(field) == {"name", "tooltip"}
            assert CHINESE.search(field["name"]) and CHINESE.search(field["tooltip"]), (node, field)
    names = [entry["display_name"] for entry in translations.values()]
    assert len(set(names)) == len(names)


@pytest.mark.host
def test_menu_folders_are_translated(schemas):
    main = json.loads((REPOSITORY / "locales" / "zh" / "main.json").read_text(encoding="utf-8"))
    assert set(main["nodeCategories"]) == {folder for schema in schemas for folder in schema.category.split("/")}


@pytest.mark.host
@pytest.mark.parametrize("readme", READMES)
def test_readme_lists_every_node(readme, schemas, translations):
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    names = [schema.display_name for schema in schemas]
    if "zh" in readme:
        names = [entry["display_name"] for entry in translations.values()]
    assert not [name for name in names if name not in text]


@pytest.mark.parametrize("readme", READMES)
def test_readme_lists_every_workflow(readme):
    text = (REPOSITORY / readme).read_text(encoding="utf-8")
    assert not [name for name in workflow_names() if f"(workflows/{quote(name)}.json)" not in text]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_to_files_of_the_repository(document):
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"""(?:src|href)=["']([^"']+)["']""", text)
    local = [target.partition("#")[0] for target in targets if not target.startswith(("http://", "https://", "#"))]
    assert not [target for target in local if not (document.parent / unquote(target)).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_named_in_documents_exist(document):
    text = document.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b(?=`|$)", text, re.MULTILINE)) <= targets
    for command in re.findall(r"likeness models get ([^`\n#]+)", text):
        for name in command.split():
            if not name.startswith(("-", "[", "NAME", "DIR")):
                assert models_download.select(name)  # raises for unknown names


def test_both_readmes_have_the_same_sections():
    def shape(name: str) -> list[str]:
        return re.findall(r"^#+(?= )|^```\w*", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)

    english, chinese = (shape(name) for name in READMES)
    assert english == chinese


def carried_graph(picture: Path) -> dict:
    from PIL import Image

    with Image.open(picture) as opened:
        return json.loads(opened.info["workflow"])


def kinds(workflow: dict) -> list[str]:
    return [node["type"] for node in workflow["nodes"]]


def test_every_workflow_has_a_thumbnail():
    from PIL import Image

    for name in workflow_names():
        thumbnail = REPOSITORY / "workflows" / f"{name}.jpg"
        assert thumbnail.is_file(), f"run `python docs/take_pictures.py {name}`"
        assert thumbnail.stat().st_size <= 100_000
        with Image.open(thumbnail) as picture:
            assert picture.size == (400, 400)


def test_pictures_are_small_and_carry_the_graph_they_show():
    pictures = sorted((REPOSITORY / "docs" / "pictures").glob("*.png"))
    assert pictures
    for picture in pictures:
        name = picture.name.partition(".")[0]
        workflow = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
        assert picture.stat().st_size <= 500_000
        assert kinds(carried_graph(picture)) == kinds(workflow), f"run `python docs/take_pictures.py {name}`"
