"""The tables of docs/models.md."""

from __future__ import annotations

import argparse
from pathlib import Path

from .registry import registry, systems

_BEGIN, _END = "<!-- models: begin -->", "<!-- models: end -->"


def markdown_tables() -> str:
    """The tables of docs/models.md: one per system."""
    lines: list[str] = []
    for name, system in systems().items():
        lines += [f"### {system.title}", ""]
        if models := [model for model in registry() if model.system == name]:
            lines += [
                "| name | variant | put in `models/` | size | licence | commercial use | needed by | notes |",
                "| --- | --- | --- | --- | --- | --- | --- | --- |",
            ]
            lines += [
                f"| {f'[{model.name}]({model.source})' if model.source else model.name} | {model.variant} | "
                f"`{model.target}` | {model.size} | {model.licence} | {model.commercial_use} | {model.needed_by} | "
                f"{model.notes} |"
                for model in models
            ] + [""]
        if system.no_weights:
            lines += [f"No weight files of its own: {system.no_weights}.", ""]
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """`page` with everything between its two marker lines replaced by the current tables."""
    before, rest = page.split(_BEGIN)
    return f"{before}{_BEGIN}\n\n{markdown_tables()}\n{_END}{rest.split(_END)[1]}"


def main() -> None:
    """Print the tables, or renew them in a page."""
    parser = argparse.ArgumentParser(description="Print the tables of model files, or renew them in a page.")
    parser.add_argument("--markdown", nargs="?", const="-", required=True, metavar="PAGE", help="a page with markers")
    page_path = parser.parse_args().markdown
    if page_path == "-":
        print(markdown_tables())
    else:
        Path(page_path).write_text(with_tables(Path(page_path).read_text(encoding="utf-8")), encoding="utf-8")
