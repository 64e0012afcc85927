"""Writes the help pages that ComfyUI shows: `python docs/_build.py` (needs the real ComfyUI, see `make comfyui`).

The text of a page lies in `docs/help/<locale>/<NodeId>.md`. Its lines `{inputs}` and `{outputs}` become tables: English
ones from the node's schema, Chinese ones from `locales/zh/nodeDefs.json`, which also translates the node itself.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
TEXTS = HERE / "help"
PAGES = REPOSITORY / "web" / "docs"
TRANSLATIONS = REPOSITORY / "locales" / "zh" / "nodeDefs.json"


@dataclass(frozen=True)
class Words:
    """The generator's own words in one language."""

    inputs: str
    outputs: str
    name: str
    default: str
    meaning: str
    optional: str
    advanced: str
    on: str
    off: str


WORDS = {
    "en": Words("Inputs", "Outputs", "name", "default", "what it does", "optional", "advanced", "on", "off"),
    "zh": Words("输入", "输出", "名称", "默认值", "作用", "可选", "高级", "开", "关"),
}


def pages(schemas: list[Any]) -> dict[Path, str]:
    """Every page's path and text, for nodes with these `io.Schema`s.

    ComfyUI asks for `<NodeId>/<locale>.md` and then for `<NodeId>.md`, never for English by name: hence three files.
    """
    translations = json.loads(TRANSLATIONS.read_text(encoding="utf-8"))
    found = {}
    for schema in schemas:
        english = page(schema, "en", {})
        found[PAGES / f"{schema.node_id}.md"] = english
        found[PAGES / schema.node_id / "en.md"] = english
        found[PAGES / schema.node_id / "zh.md"] = page(schema, "zh", translations[schema.node_id])
    return found


def page(schema: Any, locale: str, translation: dict[str, Any]) -> str:
    """One page. `translation` is the node's entry in nodeDefs.json; what it lacks is taken from the schema."""
    words = WORDS[locale]
    text = (TEXTS / locale / f"{schema.node_id}.md").read_text(encoding="utf-8")
    tables = {"{inputs}": _inputs(schema, words, translation), "{outputs}": _outputs(schema, words, translation)}
    lines = [tables.pop(line, line) for line in text.splitlines()]
    if tables:
        raise ValueError(f"docs/help/{locale}/{schema.node_id}.md lacks the line {' and '.join(tables)}.")
    title = translation.get("display_name", schema.display_name)
    return "\n".join([f"# {title}", "", *(line for line in lines if line is not None)]) + "\n"


def _inputs(schema: Any, words: Words, translation: dict[str, Any]) -> str | None:
    rows = []
    for field in schema.inputs:
        translated = translation.get("inputs", {}).get(field.id, {})
        shown = translated.get("name", field.display_name or field.id)
        name = shown if shown == field.id else f"{shown} (`{field.id}`)"
        advanced = (field.extra_dict or {}).get("advanced", False) or getattr(field, "advanced", False)
        default = getattr(field, "default", None)
        notes = [words.optional] * bool(field.optional and default is None) + [words.advanced] * bool(advanced)
        rows.append([name, ", ".join([*_value(default, words), *notes]), translated.get("tooltip", field.tooltip)])
    return _table(words.inputs, [words.name, words.default, words.meaning], rows)


def _value(default: Any, words: Words) -> list[str]:
    if default is None or default == "":
        return []
    return [{True: words.on, False: words.off}[default] if isinstance(default, bool) else f"{default}"]


def _outputs(schema: Any, words: Words, translation: dict[str, Any]) -> str | None:
    rows = []
    for number, field in enumerate(schema.outputs):
        translated = translation.get("outputs", {}).get(str(number), {})
        rows.append([translated.get("name", field.display_name), translated.get("tooltip", field.tooltip)])
    return _table(words.outputs, [words.name, words.meaning], rows)


def _table(title: str, header: list[str], rows: list[list[str]]) -> str | None:
    """A section with a table; None, and so no section, without rows."""
    if not rows:
        return None
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])


def main() -> None:
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if host is None:
        sys.exit(f"docs/_build.py {comfyui.HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory() as base:
        comfyui.import_into_this_process(host, Path(base))
        ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
        written = pages([node.GET_SCHEMA() for node in ours])
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    for path in sorted({*PAGES.rglob("*.md")} - set(written)):
        path.unlink()
        print(f"removed {path.relative_to(REPOSITORY)}: there is no such node")
    print(f"{len(written)} pages for {len(ours)} nodes")


if __name__ == "__main__":
    main()
