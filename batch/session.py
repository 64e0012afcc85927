"""A run's folder: created once, resumed by the same command, read by the other verbs."""

from __future__ import annotations

import glob
import importlib.metadata
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from ..locks import locked
from ..storage import check_folder, write_whole
from .check import Checked, versions_of
from .engine import Engine
from .files import sha256_of
from .graph import Address, Graph, read_workflow
from .journal import FILE, Journal, JournalRow
from .plan import BatchPlan
from .results import Keeper, WantedFiles
from .rows import is_model_file
from .schema import Nodes
from .work import End, Judge, Tell, Work, WorkSettings
from .workers import Worker

RECORD, WORKFLOW = "run.json", "workflow.json"


@dataclass(frozen=True, eq=False)
class BatchRun:
    """A run that was begun."""

    folder: Path
    journal: Journal
    work: Work
    shown: Sequence[str]  # columns of the manifest
    facts: dict[str, Any]

    @property
    def id(self) -> str:
        """Its number, new for every folder."""
        return self.work.run


@contextmanager
def writing(out: Path, what: str = "--out") -> Iterator[Path]:
    """Within: nobody else runs a batch in this folder, which is made where it is missing."""
    check_folder(out, what)
    with locked(out, "The run"):
        yield out


def is_begun(out: Path) -> bool:
    """Whether the folder holds a run whose rows are written down."""
    path = out / FILE
    if not path.is_file():
        return False
    journal = Journal.open(path)
    try:
        return journal.get("filled") is True
    finally:
        journal.close()


def begin(out: Path, checked: Checked, durable: bool = False) -> BatchRun:
    """Write down everything that is to be done. A kill leaves a whole journal, or none."""
    if (out / FILE).exists() and is_begun(out):
        raise LikenessError(f"The folder {str(out)!r} holds a run already: choose another --out.")
    if others := [name for name in os.listdir(out) if name in ("images", "manifest.csv")]:
        raise LikenessError(f"The folder {str(out)!r} holds {others[0]!r} of another run: choose an empty folder.")
    run = secrets.token_hex(8)
    plan, compiler = checked.plan, checked.compiler
    journal = Journal.create(out / FILE, {"run": run}, durable)
    write_whole(out / WORKFLOW, lambda part: part.write_text(json.dumps(checked.workflow.graph), encoding="utf-8"))
    facts = {
        "filled": True,
        "begun": time.time(),
        "plan": plan.fingerprint(),
        "holes": [[address.node, address.input] for address in compiler.holes],
        "prefixes": [[address.node, address.input] for address in compiler.prefixes],
        "seeds": [[hole, most] for hole, most in compiler.seed_holes.items()],
        "shown": compiler.shown,
        "people": {person.name: [str(photo.resolve()) for photo in person.photos] for person in checked.people},
        "identities": {p.name: str(p.identity.resolve()) for p in checked.people if p.identity is not None},
        "judging": {"judge": plan.judging.judge, "keep": plan.judging.keep, "below": plan.judging.below}
        | {"most": plan.judging.most, "allow_same": plan.judging.allow_same},
        "nodes": sorted(_nodes_wanted(plan, checked.workflow.graph)),
        "temporary": plan.temporary,
        "pinned": list(versions_of(checked.servers[0].facts)) if plan.pin_version else None,
        "allow_empty": plan.allow_empty,
        "name": plan.name,
        "ui": checked.workflow.ui,
    }
    uploads = compiler.files.uploads
    journal.fill(compiler.rows(checked.people), uploads.values(), facts)
    if missing := uploads.keys() - journal.uploads().keys():  # found while rows were made
        journal.fill((), [uploads[name] for name in missing], {})
    _write_record(out, run, checked)
    return _read(out, journal)


def go_on(out: Path, plan: BatchPlan | None = None, durable: bool = False) -> BatchRun:
    """The run in a folder. With a plan: LikenessError, naming the difference, where it is not the same one."""
    run = _read(out, Journal.open(out / FILE, durable))
    if plan is not None and (changed := changes(run, plan)):
        raise LikenessError(
            f"The run in {str(out)!r} was begun with another {' and '.join(changed)}: choose another --out, or use "
            "--extend where the table has only grown."
        )
    return run


def changes(run: BatchRun, plan: BatchPlan) -> list[str]:
    """The parts of the plan that are not what the run was begun with."""
    before, now = run.facts["plan"], plan.fingerprint()
    return [name for name in now if before.get(name) != now[name]]


def extend(run: BatchRun, checked: Checked) -> int:
    """Add the rows that a grown table has; those that are there keep their results. Returns how many rows are new."""
    if changed := [name for name in changes(run, checked.plan) if name != "table"]:
        raise LikenessError(
            f"Only the table may have grown, but the {' and '.join(changed)} changed too: choose another --out."
        )
    holes = [Address(*pair) for pair in run.facts["holes"]]
    if holes != checked.compiler.holes or run.facts["shown"] != list(checked.compiler.shown):
        raise LikenessError("The grown table has other columns than the run was begun with: choose another --out.")
    before, fresh_lines = run.journal.lines(), 0
    rows = checked.compiler.rows(checked.people)

    def later() -> Iterator[Any]:
        nonlocal fresh_lines
        for number, row in enumerate(rows):
            if number >= before:
                fresh_lines += 1
                yield row
            elif run.journal.seq_of(row.row_id) is None:
                raise LikenessError(f"Row {number} of the grown table is another than it was: add new rows at the end.")

    _, fresh = run.journal.fill(later(), checked.compiler.files.uploads.values(), {"plan": checked.plan.fingerprint()})
    run.journal.fill((), checked.compiler.files.uploads.values(), {})
    return fresh


def open_run(out: Path, read_only: bool = True) -> BatchRun:
    """A run for reading. LikenessError for a folder that holds none."""
    if not (out / FILE).is_file():
        raise LikenessError(f"The folder {str(out)!r} is not a run: name the --out folder of a batch.")
    journal = Journal.open(out / FILE, read_only=read_only)
    if journal.get("filled") is not True:
        raise LikenessError(f"The run in {str(out)!r} was never begun: run the batch first.")
    return _read(out, journal)


def _read(out: Path, journal: Journal) -> BatchRun:
    facts = {key: json.loads(value) for key, value in journal.query("select key, value from run")}
    graph: Graph = read_workflow(out / WORKFLOW).graph
    judging = facts["judging"]
    work = Work(
        run=facts["run"],
        graph=graph,
        holes=[Address(*pair) for pair in facts["holes"]],
        prefixes=[Address(*pair) for pair in facts["prefixes"]],
        uploads=journal.uploads(),
        seeds=dict(map(tuple, facts["seeds"])),
        ui=facts["ui"],
        allow_empty=facts["allow_empty"],
        below=judging["below"],
        most_takes=judging["most"],
        pinned=(facts["pinned"][0], facts["pinned"][1]) if facts.get("pinned") else None,
    )
    return BatchRun(out, journal, work, facts["shown"], facts)


def _nodes_wanted(plan: BatchPlan, graph: Graph) -> set[str]:
    return {
        number
        for number, node in graph.items()
        for wanted in plan.outputs
        if wanted in (number, node["_meta"].get("title"), node["class_type"])
    }


async def execute(
    run: BatchRun,
    servers: Sequence[tuple[Worker, Nodes]],
    settings: WorkSettings,
    judge: Judge | None = None,
    tell: Tell = lambda kind, data: None,
    shared: Path | None = None,
    started: Callable[[Engine], None] = lambda engine: None,
) -> End:
    """Run what is left, on servers that are open; they are closed at the end."""
    for worker, _ in servers:
        worker.listen_as(run.id)
    wanted = WantedFiles(frozenset(run.facts["nodes"]), run.facts["temporary"])
    keeper = Keeper(run.folder, wanted, shared)
    engine = Engine(run.work, run.journal, keeper, servers, settings, judge, tell)
    started(engine)
    return await engine.go()


def _write_record(out: Path, run: str, checked: Checked) -> None:
    """What made these images, for people who ask in a year. It holds no key."""
    record = {
        "run": run,
        "begun": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "likeness": importlib.metadata.version("likeness"),
        "python": platform.python_version(),
        "workflow": checked.plan.workflow.name,
        "table": checked.plan.table.name if checked.plan.table else None,
        "plan": checked.plan.fingerprint(),
        "lines": checked.lines,
        "servers": {
            seen.worker.name: {
                "comfyui": seen.facts.version_text,
                "torch": seen.facts.torch,
                "devices": list(seen.facts.devices),
            }
            for seen in checked.servers
        },
        "models": model_digests(checked) if checked.plan.models else None,
        "warnings": checked.problems.warnings,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False)
    write_whole(out / RECORD, lambda part: part.write_text(text, encoding="utf-8"))


def model_digests(checked: Checked) -> dict[str, str | None]:
    """The digest of every model file that the workflow or the table names; None for one that is not in the folder."""
    folder = checked.plan.models
    if folder is None:
        return {}
    wanted = [v for node in checked.workflow.graph.values() for v in node["inputs"].values() if is_model_file(v)]
    wanted += [cell for column in checked.compiler.varying for cell in column.cells if is_model_file(cell)]
    found: dict[str, str | None] = {}
    for name in sorted({str(one).replace("\\", "/") for one in wanted}):
        there = sorted(path for path in folder.glob(f"*/{glob.escape(name)}") if path.is_file())
        found[name] = sha256_of(there[0]) if there else None
    return found


def row_files(run: BatchRun, row: JournalRow) -> list[Path]:
    """Where a row's files lie."""
    return [run.folder / file.path for file in run.journal.files(row.seq)]
