"""`likeness models`: which model files are here, getting and checking them."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import LikenessError, one_line
from ..models_download import (
    DownloadOutcome,
    Health,
    ModelFile,
    check_file,
    download,
    download_root,
    installed,
    locate,
    progress_bar,
    registry,
    select,
)
from ..storage import check_folder
from .edge import Verb


def commands() -> typer.Typer:
    """The verbs below `likeness models`."""
    app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
    for name, verb in {"list": list_models, "get": get_models, "verify": verify_models}.items():
        app.command(name, cls=Verb)(verb)
    return app


def list_models(
    system: Annotated[str | None, typer.Option(help="Only files of this system, e.g. instantid.")] = None,
    missing: Annotated[bool, typer.Option("--missing", help="Only files that are not here.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, with the path of each file.")] = False,
) -> None:
    """Show the known model files: here or missing, size, licence, place."""
    systems = sorted({model.system for model in registry()})
    if system is not None and system not in systems:
        raise typer.BadParameter(f"{system!r} is not one of {', '.join(systems)}.", param_hint="--system")
    of_system = [(model, locate(model)) for model in registry() if system in (None, model.system)]
    found = [(model, path) for model, path in of_system if path is None or not missing]
    if as_json:
        print(json.dumps([_as_record(model, path) for model, path in found], indent=2, ensure_ascii=False))
    else:
        _print_table(found)


def get_models(
    names: Annotated[
        list[str],
        typer.Argument(help="Names, file names, groups (buffalo_l, instantid) or wildcards from the list."),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, without writing or downloading anything.")
    ] = False,
    models_dir: Annotated[Path | None, typer.Option(help="A ComfyUI models folder; default: the one found.")] = None,
    accept_licence: Annotated[bool, typer.Option("--accept-licence", help="Accept non-commercial licences.")] = False,
) -> None:
    """Download model files into the folders ComfyUI reads them from. Interrupted downloads are resumed."""
    models = list(dict.fromkeys(model for name in names for model in select(name)))
    root = Path(os.path.expanduser(models_dir or download_root()))
    if not dry_run:
        check_folder(root, "--models-dir")
    problems = [problem for model in models if (problem := _get(model, root, dry_run, accept_licence))]
    raise typer.Exit(1 if problems else 0)


def verify_models(
    everything: Annotated[bool, typer.Option("--all", help="Hash unknown files too: finds renamed ones.")] = False,
) -> None:
    """Hash the model files that are here and compare them with the published checksums."""
    checks = []
    for path, model in installed(everything).items():
        with progress_bar(one_line(path.name)) as progress:
            result = check_file(path, model, progress)
        alias = ", ".join(known.name for known in result.recognised) if result.health is not Health.OK else ""
        print(f"{one_line(path)}: {result.in_words}{f' ({alias})' if alias else ''}")
        checks.append(result)
    problems = sum(result.health.is_problem for result in checks)
    print(f"{len(checks)} files checked, {problems} with a problem.")
    raise typer.Exit(1 if problems else 0)


def _as_record(model: ModelFile, path: Path | None) -> dict[str, object]:
    return {**dataclasses.asdict(model), "target": model.target, "path": None if path is None else str(path)}


def _print_table(found: list[tuple[ModelFile, Path | None]]) -> None:
    rows = [
        ("here" if path else "missing", model.name, model.variant, model.size, model.commercial_use, model.target)
        for model, path in found
    ]
    header = ("", "name", "variant", "size", "commercial", "in models/")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{sum(path is not None for _, path in found)} of {len(found)} files are here.")


def _get(model: ModelFile, root: Path, dry_run: bool, accepted: bool) -> bool:
    """Fetch one file and tell the user about it. Returns whether there was a problem."""
    print(f"{model.name}: {model.size}, licence {model.licence}, commercial use: {model.commercial_use}")
    if model.notes:
        print(f"  {model.notes}")

    def confirm(_: ModelFile) -> bool:
        if accepted or not sys.stdin.isatty():
            return accepted
        try:
            return input("  This licence excludes commercial use. Type yes to accept it: ").strip().lower() == "yes"
        except EOFError:
            return False

    try:
        with progress_bar(model.filename) as progress:
            outcome, path = download(model, root, progress=progress, dry_run=dry_run, confirm_licence=confirm)
    except LikenessError as error:
        print(f"  {error}", file=sys.stderr)
        return True
    except KeyboardInterrupt:
        print("  stopped: the same command resumes from here.", file=sys.stderr)
        raise
    print(
        f"  {outcome.value}: {one_line(path)}"
        + (f" (from {model.url})" if outcome is DownloadOutcome.WOULD_DOWNLOAD else "")
    )
    return False
