"""Everything that can be known to be wrong before a row runs: servers, workflow, table, files. Nothing is sent."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from .client import OLDEST
from .face_servers import NODES, FaceServer, face_server, identities_by_servers
from .graph import Workflow, link_of, read_workflow
from .people import Identities, OpenFaces, PersonPhotos, find_people, with_identities
from .plan import BatchPlan
from .problems import Fault, Problems, nearest
from .rows import Compiler
from .schema import CellKind, NodeClass, Nodes, Spec, is_secret
from .table import MOST_ROWS, Table
from .workers import Away, Served, ServerFacts, Worker


@dataclass(frozen=True, eq=False)
class ServerSurvey:
    """What a server said before the batch."""

    worker: Worker
    facts: ServerFacts
    nodes: Nodes  # of the classes that are wanted


@dataclass(frozen=True, eq=False)
class Checked:
    """A plan that was looked at; it may run where `problems` are none."""

    plan: BatchPlan
    workflow: Workflow
    compiler: Compiler
    people: Sequence[PersonPhotos]
    problems: Problems
    lines: int
    servers: Sequence[ServerSurvey]
    identities: Identities | None = None
    face_servers: Sequence[FaceServer] = ()  # that make the identities which cannot be made here

    @property
    def unmade(self) -> list[PersonPhotos]:
        """People whose identity a server makes before the first row."""
        return [person for person in self.people if person.identity is None] if self.face_servers else []


def versions_of(facts: ServerFacts) -> tuple[str, str]:
    """What pixels depend on: the versions of ComfyUI and of torch."""
    return facts.version_text, facts.torch


async def look_at_servers(
    workers: Sequence[Worker], wanted: set[str], problems: Problems, pin_version: bool = False
) -> list[ServerSurvey]:
    """Ask every server what it is and has. An unreachable one is a problem, with `pin_version` also another version."""

    async def ask(worker: Worker) -> ServerSurvey | None:
        try:
            await worker.open()
            facts = await worker.facts()
            return ServerSurvey(worker, facts, Nodes(await worker.object_info()).only(wanted))
        except Away as error:
            problems.add(worker.name, 0, "", "", Fault(str(error), "start it, or leave it out"))
            return None

    seen = [one for one in await asyncio.gather(*map(ask, workers)) if one is not None]
    for one in seen:
        if one.facts.version and one.facts.version < OLDEST:
            fault = Fault(f"runs ComfyUI {one.facts.version_text}", "update it to 0.3.48 or newer")
            problems.add(one.worker.name, 0, "", "", fault)
    versions = {one.facts.version_text for one in seen}
    if pin_version:
        for one in seen[1:]:
            if versions_of(one.facts) != (first := versions_of(seen[0].facts)):
                runs, others = (f"ComfyUI {text} with torch {torch}" for text, torch in (versions_of(one.facts), first))
                fault = Fault(f"runs {runs}, but {seen[0].worker.name} runs {others}", "update one of them, or unpin")
                problems.add(one.worker.name, 0, "", "", fault)
    elif len(versions) > 1:
        problems.warn(f"the servers run different versions ({', '.join(sorted(versions))}): pixels may differ")
    return seen


async def check_plan(
    plan: BatchPlan, workers: Sequence[Worker], open_faces: OpenFaces, keep: Path, skip_people: bool = False
) -> Checked:
    """Look at everything. `keep` is the folder for identities. LikenessError for unreadable files."""
    problems = Problems()
    workflow = read_workflow(plan.workflow)
    table = Table(plan.table) if plan.table else None
    wanted = {node["class_type"] for node in workflow.graph.values()} | (NODES if plan.people else set())
    servers = await look_at_servers(workers, wanted, problems, plan.pin_version)
    nodes = _together([seen.nodes for seen in servers])
    name = plan.workflow.name
    if servers:
        _check_graph(workflow, nodes, servers, plan, name, problems)
    compiler = Compiler(plan, workflow, table, nodes, problems)
    identities = Identities(keep, plan.people.faces, open_faces) if plan.people else None
    people, face_servers = _people(plan, compiler, identities, servers, skip_people, problems)
    lines = sum(1 for _ in itertools.islice(compiler.rows(people), MOST_ROWS + 1))
    if not lines and not problems:
        problems.add(compiler.source, 0, "", "", Fault("holds no rows", "write a line below the columns"))
    if lines > MOST_ROWS:
        problems.add(compiler.source, 0, "", "", Fault(f"makes more than {MOST_ROWS} rows", "split it"))
    if plan.expect is not None and not problems and lines != plan.expect and plan.shard[1] == 1:
        fault = Fault(f"makes {lines} rows, but {plan.expect} are expected", "correct the table or `expect`")
        problems.add(compiler.source, 0, "", "", fault)
    _warn_of_differences(compiler, servers, problems)
    await _check_constants(workflow, compiler, servers, name, problems)
    if plan.judging.keep and (plan.seeds is None or plan.judging.keep > plan.seeds.count):
        fault = Fault(f"keeps the best {plan.judging.keep}", "make at least as many: raise the count of seeds")
        problems.add("likeness", 0, "keep", "", fault)
    if plan.judging.most and not compiler.seed_holes:
        fault = Fault("rows are repeated with another seed, but none is set", "add seeds, or a seed column")
        problems.add("likeness", 0, "retry_below", "", fault)
    if plan.judging.judge:
        _check_judge(plan, compiler, people, open_faces, problems)
    return Checked(plan, workflow, compiler, people, problems, lines, servers, identities, face_servers)


def _people(
    plan: BatchPlan,
    compiler: Compiler,
    identities: Identities | None,
    servers: Sequence[ServerSurvey],
    skip: bool,
    problems: Problems,
) -> tuple[Sequence[PersonPhotos], Sequence[FaceServer]]:
    """Who is shown, and the servers that make identities where this machine has no face analysis."""
    if plan.people is None or identities is None or compiler.people_column is None:
        return [], []
    people, best = find_people(plan.people, problems), plan.people.best
    if not any(spec.kind is CellKind.IDENTITY for _, spec in compiler.people_column.inputs):
        return people, []
    if identities.has_all(people, best):
        return with_identities(people, lambda one: identities.of(one, best), problems, skip), []
    try:
        _ = identities.analysis
    except LikenessError as error:  # there is none here
        found = [face_server(seen.worker, seen.nodes, plan.people.faces) for seen in servers]
        makers = [one for one in found if one is not None]
        if not makers:
            hint = "or name a server that has it"
            problems.add("people", 0, "faces", plan.people.faces, Fault(str(error).rstrip("."), hint))
            return [], []
        makers = [one for one in makers if one.model == makers[0].model]  # everybody by the same one

        def kept(person: PersonPhotos) -> Path | None:
            path = identities.place(person, best, makers[0].model)
            return path if path.is_file() else None

        people = with_identities(people, kept, problems, skip)
        if unmade := sum(person.identity is None for person in people):
            problems.warn(f"{makers[0].worker.name} analyses the photos of {unmade} people ({makers[0].model})")
        return people, makers
    return with_identities(people, lambda one: identities.of(one, best), problems, skip), []


async def make_identities(checked: Checked, open_faces: OpenFaces, skip_people: bool = False) -> Checked:
    """With the identities that servers make. Nothing else is sent yet; people without a face are problems."""
    identities, people = checked.identities, checked.plan.people
    if identities is None or people is None or not checked.unmade:
        return checked
    made = await identities_by_servers(checked.unmade, checked.face_servers)

    def find(person: PersonPhotos) -> Path | None:
        if person.identity is not None:
            return person.identity
        if isinstance(identity := made[person.name], LikenessError):
            raise identity
        path = identities.place(person, people.best, checked.face_servers[0].model)
        identities.keep(path, identity, people.best)
        return path

    found = with_identities(checked.people, find, checked.problems, skip_people)
    if checked.plan.judging.judge:
        _check_judge(checked.plan, checked.compiler, found, open_faces, checked.problems)
    return replace(checked, people=found)


def _check_judge(
    plan: BatchPlan, compiler: Compiler, people: Sequence[PersonPhotos], open_faces: OpenFaces, problems: Problems
) -> None:
    """Whether the judge is here, may judge, and has somebody to compare with."""
    from ..evaluation.identity import check_judge
    from ..faces import Identity

    name, about = plan.judging.judge, "likeness"
    columns = [*compiler.columns, *compiler.axes, *compiler.constants]
    if plan.people is None and not any(spec.kind is CellKind.IDENTITY for one in columns for _, spec in one.inputs):
        fault = Fault("nothing says who is shown", "add `people` to the plan, or a column for an identity file")
        problems.add(about, 0, "judge", name, fault)
        return
    made_by = {Identity.load(person.identity).recogniser for person in people if person.identity is not None}
    try:
        check_judge(open_faces(name), made_by, plan.judging.allow_same)
    except LikenessError as error:
        problems.add(about, 0, "judge", name, Fault(str(error).rstrip("."), ""))


# --- the workflow


def _together(servers: Sequence[Nodes]) -> Nodes:
    """What some server offers: choices are those of all."""
    if len(servers) < 2:
        return servers[0] if servers else Nodes({})
    return _Together(servers)


class _Together(Nodes):
    def __init__(self, servers: Sequence[Nodes]):
        super().__init__({name: nodes._info[name] for nodes in reversed(servers) for name in nodes})
        self._servers = servers

    def __getitem__(self, name: str) -> NodeClass:
        if name not in self._read:
            classes = [nodes[name] for nodes in self._servers if name in nodes]
            inputs = {
                key: _any_choice([c.inputs[key] for c in classes if key in c.inputs]) for key in classes[0].inputs
            }
            first = classes[0]
            paid = any(one.paid for one in classes)
            self._read[name] = NodeClass(name, inputs, first.outputs, first.is_output, paid)
        return self._read[name]


def _any_choice(specs: Sequence[Spec]) -> Spec:
    first = specs[0]
    options = {key: value for spec in specs for key, value in spec.options.items()}
    return Spec(
        first.kind, first.types, first.required, first.least, first.most, options, first.open_ended, first.pictures
    )


def _check_graph(
    workflow: Workflow, nodes: Nodes, servers: Sequence[ServerSurvey], plan: BatchPlan, name: str, problems: Problems
) -> None:
    graph = workflow.graph
    for number, node in graph.items():
        kind = node["class_type"]
        lacking = [seen.worker.name for seen in servers if kind not in seen.nodes]
        if lacking:
            everywhere = len(lacking) == len(servers)
            where = "no server has" if everywhere else f"{lacking[0]} lacks"
            fault = Fault(f"{where} the node {kind!r}", "install its pack there, or leave the server out")
            problems.add(name, 0, number, "", fault)
            if everywhere:
                continue
        known = nodes[kind]
        if known.paid and not plan.allow_paid:
            problems.add(
                name, 0, number, "", Fault(f"the node {kind!r} costs money", "use --allow-paid if that is meant")
            )
        for given, spec in known.inputs.items():
            if spec.required and given not in node["inputs"]:
                fault = Fault(f"{workflow.describe(number)} lacks the input {given!r}", "export the workflow again")
                problems.add(name, 0, f"{number}.{given}", "", fault)
        for given, value in node["inputs"].items():
            if is_secret(value):
                fault = Fault("looks like a key or a password, and would be written into images", "remove it")
                problems.add(name, 0, f"{number}.{given}", "(hidden)", fault)
            if (link := link_of(value)) is not None:
                _check_link(workflow, nodes, number, given, link, name, problems)
    outputs = [
        number for number, node in graph.items() if node["class_type"] in nodes and nodes[node["class_type"]].is_output
    ]
    if not outputs and all(node["class_type"] in nodes for node in graph.values()):
        problems.add(name, 0, "", "", Fault("saves nothing", "add a Save Image node and export it again"))
    for wanted in plan.outputs:
        if wanted not in graph and not any(
            wanted in (n["_meta"].get("title"), n["class_type"]) for n in graph.values()
        ):
            problems.add("outputs", 0, wanted, "", Fault("names no node of the workflow", nearest(wanted, graph)))


def _check_link(
    workflow: Workflow, nodes: Nodes, number: str, given: str, link: tuple[str, int], name: str, problems: Problems
) -> None:
    source, output = link
    column = f"{number}.{given}"
    if source not in workflow.graph:
        problems.add(name, 0, column, "", Fault(f"is linked to node {source!r}, which is not there", "export it again"))
        return
    kinds = workflow.graph[source]["class_type"], workflow.graph[number]["class_type"]
    if any(kind not in nodes for kind in kinds):
        return
    made, spec = nodes[kinds[0]].outputs, nodes[kinds[1]].spec(given)
    if not 0 <= output < len(made):
        fault = Fault(
            f"is linked to output {output} of {workflow.describe(source)}, which has {len(made)}", "export it again"
        )
        problems.add(name, 0, column, "", fault)
    elif spec is not None and not _fits(made[output], spec):
        fault = Fault(f"takes {' or '.join(sorted(spec.types))}, but is linked to {made[output]}", "link it anew")
        problems.add(name, 0, column, "", fault)


def _fits(made: str, spec: Spec) -> bool:
    offered = {part.strip() for part in made.split(",")}
    special = {"*", "COMBO"} | {t for t in spec.types if t.startswith("COMFY_")}  # types that the host settles itself
    return bool(
        offered & spec.types or (offered | spec.types) & special or any(t.startswith("COMFY_") for t in offered)
    )


async def _check_constants(
    workflow: Workflow, compiler: Compiler, servers: Sequence[ServerSurvey], name: str, problems: Problems
) -> None:
    """Values that stand in the workflow: choices, ranges, and files on the servers."""
    holes = set(compiler.holes)
    for number, node in workflow.graph.items():
        for given, value in node["inputs"].items():
            if link_of(value) or any(a.node == number and a.input == given for a in holes):
                continue
            for seen in servers:
                if node["class_type"] not in seen.nodes:
                    continue
                spec = seen.nodes[node["class_type"]].spec(given)
                if spec is None:
                    problems.warn(f"{seen.worker.name} ignores the input {given!r} of {workflow.describe(number)}")
                    continue
                if fault := await _constant_fault(spec, value, seen.worker):
                    said = Fault(f"{fault.reason} on {seen.worker.name}", fault.suggestion)
                    problems.add(name, 0, f"{number}.{given}", value, said)
                    if len(servers) > 1 and spec.kind is not CellKind.COMBO and spec.kind is not CellKind.UPLOAD:
                        break


async def _constant_fault(spec: Spec, value: Any, worker: Worker) -> Fault | None:
    if spec.kind is CellKind.COMBO and not spec.open_ended and not isinstance(value, (list, dict)):
        try:
            spec.parse(value)
        except Fault as fault:
            return fault
    if (
        spec.kind in (CellKind.INT, CellKind.FLOAT)
        and isinstance(value, (int, float))
        and not spec.least <= value <= spec.most
    ):
        return Fault("is out of range", f"use {spec.least} to {spec.most}")
    if spec.kind is CellKind.UPLOAD and isinstance(value, str) and value and value not in spec.options:
        folder, _, file = value.rpartition("/")
        try:
            if not await worker.has(Served("", file, folder, "input")):
                return Fault("is not in the input folder", nearest(value, spec.options) or "put it there")
        except (Away, OSError):
            return None
    return None


def _warn_of_differences(compiler: Compiler, servers: Sequence[ServerSurvey], problems: Problems) -> None:
    """Rows that only some servers can run stay on those."""
    if len(servers) < 2:
        return
    for column in [*compiler.columns, *compiler.axes]:
        for address, spec in column.inputs:
            if spec.kind is not CellKind.COMBO:
                continue
            kind = compiler.workflow.graph[address.node]["class_type"]
            offers = [set(s.nodes[kind].inputs[address.input].options) for s in servers if kind in s.nodes]
            used = {key for key in column.cells if isinstance(key, str)}
            if missing := sorted(used & set.union(*offers) - set.intersection(*offers)):
                problems.warn(
                    f"{missing[0]!r} of {column.name!r} is not on every server: its rows stay on those that have it"
                )
