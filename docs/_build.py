"""Assembles pages from many small files: `python docs/_build.py` (needs the real ComfyUI, see `make comfyui`).

**Help pages** that ComfyUI shows. The text of one lies in `docs/help/<locale>/<NodeId>.md`. Its lines `{inputs}` and
`{outputs}` become lists: English ones from the node's schema, Chinese ones from the node's translation. Lists, not
tables, because the panel that shows them may be as narrow as 250 pixels.

**Translations**: `docs/help/zh/<NodeId>.json` of all nodes become `locales/zh/nodeDefs.json`, the file ComfyUI reads.

**Tables and lists**: what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in README (both languages) and
CHANGELOG is every file `docs/parts/NAME/*.<locale>.md`, in the order of their names.

So two people who add two nodes or two methods edit different files; where the generated ones conflict in a merge, run
this again. `--no-host` leaves the help pages out and needs no ComfyUI.
"""

from __future__ import annotations

import asyncio
import json
import re
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
PARTS = HERE / "parts"
TRANSLATIONS = REPOSITORY / "locales" / "zh" / "nodeDefs.json"
DOCUMENTS = {"README.md": "en", "README.zh-CN.md": "zh", "CHANGELOG.md": "en"}  # which parts they take
_PART = re.compile(r"(<!-- (\w+): begin -->\n).*?(?=<!-- \2: end -->)", re.DOTALL)


@dataclass(frozen=True)
class Words:
    """The generator's own words in one language."""

    inputs: str
    outputs: str
    optional: str
    advanced: str
    on: str
    off: str
    notes: str
    line: str


WORDS = {
    "en": Words("Inputs", "Outputs", "optional", "advanced", "on", "off", " ({})", "- **{}**{}: {}"),
    "zh": Words("输入", "输出", "可选", "高级", "开", "关", "（{}）", "- **{}**{}：{}"),
}


def pages(schemas: list[Any]) -> dict[Path, str]:
    """Every page's path and text, for nodes with these `io.Schema`s.

    ComfyUI asks for `<NodeId>/<locale>.md` and then for `<NodeId>.md`, never for English by name: hence three files.
    """
    translated = translations()
    found = {}
    for schema in schemas:
        english = page(schema, "en", {})
        found[PAGES / f"{schema.node_id}.md"] = english
        found[PAGES / schema.node_id / "en.md"] = english
        found[PAGES / schema.node_id / "zh.md"] = page(schema, "zh", translated[schema.node_id])
    return found


def translations() -> dict[str, Any]:
    """NodeId -> its name, description, inputs and outputs in Chinese."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted((TEXTS / "zh").glob("*.json"))}


def node_definitions() -> str:
    """The content of `locales/zh/nodeDefs.json`."""
    return json.dumps(translations(), ensure_ascii=False, indent=2) + "\n"


def with_parts(text: str, locale: str) -> str:
    """A document's text, what is between its marks made anew of the files in `docs/parts`."""

    def put_together(mark: re.Match[str]) -> str:
        pieces = [path.read_text(encoding="utf-8") for path in sorted((PARTS / mark[2]).glob(f"*.{locale}.md"))]
        between = "".join(pieces)
        return mark[1] + (between if between.startswith("|") else f"\n{between}\n")

    return _PART.sub(put_together, text)


def texts() -> dict[Path, str]:
    """Path and text of all that is made without the host."""
    documents = {REPOSITORY / name: locale for name, locale in DOCUMENTS.items()}
    found = {path: with_parts(path.read_text(encoding="utf-8"), locale) for path, locale in documents.items()}
    return {**found, TRANSLATIONS: node_definitions()}


def page(schema: Any, locale: str, translation: dict[str, Any]) -> str:
    """One page. `translation` is the node's entry in nodeDefs.json; what it lacks is taken from the schema."""
    words = WORDS[locale]
    text = (TEXTS / locale / f"{schema.node_id}.md").read_text(encoding="utf-8")
    lists = {"{inputs}": _inputs(schema, words, translation), "{outputs}": _outputs(schema, words, translation)}
    lines = [lists.pop(line, line) for line in text.splitlines()]
    if lists:
        raise ValueError(f"docs/help/{locale}/{schema.node_id}.md lacks the line {' and '.join(lists)}.")
    title = translation.get("display_name", schema.display_name)
    return "\n".join([f"# {title}", "", *lines]) + "\n"


def _inputs(schema: Any, words: Words, translation: dict[str, Any]) -> str:
    lines = [f"## {words.inputs}", ""]
    for field in schema.inputs:
        translated = translation.get("inputs", {}).get(field.id, {})
        name = translated.get("name", field.display_name or field.id)
        default = getattr(field, "default", None)
        is_advanced = (field.extra_dict or {}).get("advanced", False) or getattr(field, "advanced", False)
        notes = [
            *([f"`{field.id}`"] if name != field.id else []),
            *([words.optional] if field.optional and default is None else []),
            *([words.advanced] if is_advanced else []),
            *([_value(default, words)] if default not in (None, "") else []),
        ]
        noted = words.notes.format(", ".join(notes)) if notes else ""
        lines.append(words.line.format(name, noted, translated.get("tooltip", field.tooltip)))
    return "\n".join(lines)


def _value(default: Any, words: Words) -> str:
    if isinstance(default, bool):
        return words.on if default else words.off
    return str(default)


def _outputs(schema: Any, words: Words, translation: dict[str, Any]) -> str:
    lines = [f"## {words.outputs}", ""]
    for number, field in enumerate(schema.outputs):
        translated = translation.get("outputs", {}).get(str(number), {})
        name, tooltip = translated.get("name", field.display_name), translated.get("tooltip", field.tooltip)
        lines.append(words.line.format(name, "", tooltip))
    return "\n".join(lines)


def write(written: dict[Path, str]) -> None:
    """Write every text to its path."""
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def our_schemas() -> list[Any]:
    """The `io.Schema`s of our nodes, as the host has them."""
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if host is None:
        sys.exit(f"docs/_build.py {comfyui.HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory() as base:
        comfyui.import_into_this_process(host, Path(base))
        ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
        return [node.GET_SCHEMA() for node in ours]


def main() -> None:
    write(texts())
    if sys.argv[1:] == ["--no-host"]:
        return
    schemas = our_schemas()
    written = pages(schemas)
    write(written)
    for path in sorted({*PAGES.rglob("*.md")} - set(written)):
        path.unlink()
        print(f"removed {path.relative_to(REPOSITORY)}: there is no such node")
    print(f"{len(written)} pages for {len(schemas)} nodes")


if __name__ == "__main__":
    main()
