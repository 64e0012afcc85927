"""A plan becomes rows: table x people x grid x seeds, each value looked at once."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .files import Files
from .graph import Address, GraphTemplate, Workflow
from .journal import NewRow
from .people import PersonPhotos
from .plan import MOST_SEED, BatchPlan
from .problems import Fault, Problems, nearest
from .schema import CellKind, Nodes, Spec, is_secret, names_a_secret
from .table import MOST_ROWS, Line, Table

PERSON, META = "person", "meta."
_SEED_STRIDE = 1_000_003  # between the takes of a row
_MOST_REMEMBERED = 50_000  # parsed cells of a column
_MODEL_FILE = re.compile(r"\.(safetensors|sft|ckpt|pt|pth|bin|gguf|onnx)$", re.IGNORECASE)


@dataclass(eq=False)
class Column:
    """Something that varies: the inputs it sets, or nothing where it is carried along."""

    name: str
    inputs: Sequence[tuple[Address, Spec]] = ()
    _known: dict[Any, Any] = field(default_factory=dict)

    @property
    def addresses(self) -> list[Address]:
        """The inputs it sets."""
        return [address for address, _ in self.inputs]

    @property
    def cells(self) -> list[Any]:
        """The different cells that were read (some, where there were very many)."""
        return list(self._known)

    def parse(self, cell: Any, files: Files) -> Any:
        """The value that a cell means; Fault. Equal cells are looked at once."""
        key = cell if isinstance(cell, str) else repr(cell)
        if (found := self._known.get(key)) is None:
            try:
                found = self._read(cell, files)
            except Fault as fault:
                found = fault
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = found
        if isinstance(found, Fault):
            raise found
        return found[0]

    def _read(self, cell: Any, files: Files) -> tuple[Any]:
        if is_secret(cell):
            raise Fault("looks like a key or a password, and would be written into images", "remove it from the table")
        value = None
        for _, spec in self.inputs:
            if spec.kind in (CellKind.UPLOAD, CellKind.IDENTITY):
                text = spec.parse(cell if isinstance(cell, str) and not cell.startswith("=") else "")
                value = files.identity(text) if spec.kind is CellKind.IDENTITY else files.input(text, spec.pictures)
            else:
                value = spec.parse(cell)
        return (value,)


class Compiler:
    """Names become inputs, and cells become values. What is wrong is collected, not raised."""

    def __init__(self, plan: BatchPlan, workflow: Workflow, table: Table | None, nodes: Nodes, problems: Problems):
        self.plan, self.workflow, self.table, self.nodes, self.problems = plan, workflow, table, nodes, problems
        self.source = table.path.name if table else "plan"
        self.files = Files(plan.folder_of_files)
        self.constants = [self._column(name, "set", addressed=True) for name in plan.constants]
        self.columns = [self._column(name, self.source) for name in table.columns] if table else []
        self.people_column = self._people_column()
        self.axes = [self._column(name, "grid", addressed=True) for name in plan.grid]
        self.seed_column = self._seed_column()
        self._look_for_doubles()
        self._set_constants()

    # --- names

    def _column(self, name: str, source: str, addressed: bool = False) -> Column:
        try:
            if names_a_secret(name):
                raise Fault("is named like a key or a password", "remove the column; keys are given with --header-env")
            if not addressed and (name == PERSON or name.startswith(META)):
                return Column(name)
            wanted = self.plan.alias.get(name, [name])
            return Column(name, [self._input(one) for one in wanted])
        except Fault as fault:
            hint = fault.suggestion
            if not addressed and "." not in name:
                hint = f"{hint}; a column that is only carried along is called meta.{name}"
            self.problems.add(
                source, 1 if source == self.source and self.table else 0, name, "", Fault(fault.reason, hint)
            )
            return Column(name)

    def _input(self, name: str) -> tuple[Address, Spec]:
        address = self.workflow.resolve(name)
        node = self.workflow.graph[address.node]["class_type"]
        given = self.workflow.graph[address.node]["inputs"]
        if node not in self.nodes:
            return address, Spec(CellKind.STRING, open_ended=True)  # the missing class is told apart
        spec = self.nodes[node].spec(address.input)
        if spec is None:
            known = [*self.nodes[node].inputs]
            raise Fault(
                f"{self.workflow.describe(address.node)} has no input {address.input!r}", nearest(address.input, known)
            )
        if self.workflow.is_link(address) and not self.plan.allow_unlink:
            raise Fault("is fed by another node", "name an input of that node, or use --allow-unlink")
        return address, _by_use(spec, given.get(address.input))

    def _people_column(self) -> Column | None:
        if self.plan.people is None:
            return None
        if not self.plan.people.into:
            self.problems.add("people", 0, "into", "", Fault("names no input", "add `into: Load Identity.file`"))
        inputs = []
        for name in self.plan.people.into:
            found = self._column(name, "people", addressed=True).inputs
            for address, spec in found:
                if spec.kind not in (CellKind.IDENTITY, CellKind.UPLOAD):
                    fault = Fault(
                        f"takes {spec.kind.value}, not a person", "name the file of Load Identity, or an image"
                    )
                    self.problems.add("people", 0, "into", name, fault)
                inputs.append((address, spec))
        return Column(PERSON, inputs)

    def _seed_column(self) -> Column | None:
        if self.plan.seeds is None:
            return None
        if not self.plan.seeds.into:
            self.problems.add("seeds", 0, "into", "", Fault("names no input", "add `into: KSampler.seed`"))
        inputs = []
        for name in self.plan.seeds.into:
            for address, spec in self._column(name, "seeds", addressed=True).inputs:
                last = self.plan.seeds.start + self.plan.seeds.count - 1
                if spec.kind is not CellKind.INT:
                    fault = Fault(f"takes {spec.kind.value}, not a seed", "name an input such as KSampler.seed")
                    self.problems.add("seeds", 0, name, "", fault)
                elif last > spec.most or self.plan.seeds.start < spec.least:
                    fault = Fault("the seeds leave the range of the input", f"use {spec.least} to {spec.most}")
                    self.problems.add("seeds", 0, name, str(last), fault)
                inputs.append((address, spec))
        return Column("seed", inputs)

    def _look_for_doubles(self) -> None:
        taken: dict[Address, str] = {}
        for column in self.varying:
            for address in column.addresses:
                if address in taken:
                    fault = Fault(f"sets {address}, which {taken[address]!r} sets too", "remove one of them")
                    self.problems.add(self.source, 1 if self.table else 0, column.name, "", fault)
                taken[address] = column.name

    def _set_constants(self) -> None:
        for column, value in zip(self.constants, self.plan.constants.values(), strict=True):
            if value is None:
                continue
            try:
                parsed = column.parse(value, self.files)
            except Fault as fault:
                self.problems.add("set", 0, column.name, value, fault)
                continue
            for address in column.addresses:
                self.workflow.graph[address.node]["inputs"][address.input] = parsed

    # --- what varies

    @property
    def varying(self) -> list[Column]:
        """Everything that differs between rows."""
        extra = [column for column in (self.people_column, self.seed_column) if column is not None]
        return [*self.columns, *self.axes, *extra]

    @cached_property
    def holes(self) -> list[Address]:
        """The inputs that rows set."""
        return sorted({address for column in self.varying for address in column.addresses})

    @cached_property
    def prefixes(self) -> list[Address]:
        """Inputs that say where files are saved: ours, since an equal graph would save no second file."""
        found = []
        for number, node in self.workflow.graph.items():
            known = node["class_type"] in self.nodes and self.nodes[node["class_type"]].is_output
            address = Address(number, "filename_prefix")
            if known and isinstance(node["inputs"].get("filename_prefix"), str) and address not in self.holes:
                found.append(address)
        return found

    @cached_property
    def shown(self) -> list[str]:
        """What the manifest shows of each row, besides the person."""
        names = [column.name for column in (*self.columns, *self.axes) if column.name != PERSON]
        return [*names, "seed"] if self.seed_column and "seed" not in names else names

    @cached_property
    def seed_holes(self) -> dict[int, int]:
        """Which holes are seeds, and the largest of each, for further takes of a row."""
        columns = [self.seed_column] if self.seed_column else self.varying
        found = [pair for column in columns for pair in column.inputs]
        return {
            self.holes.index(address): int(min(spec.most, MOST_SEED))
            for address, spec in found
            if self.seed_column or (spec.kind is CellKind.INT and address.input in ("seed", "noise_seed"))
        }

    @cached_property
    def _grouping(self) -> list[int]:
        """Holes that are expensive to change: files that nodes load."""
        found = []
        for column in self.varying:
            for address, spec in column.inputs:
                loads = spec.kind is CellKind.COMBO and any(map(is_model_file, spec.options))
                if loads or spec.kind in (CellKind.UPLOAD, CellKind.IDENTITY):
                    found.append(self.holes.index(address))
        return sorted(found)

    @cached_property
    def template(self) -> GraphTemplate:
        """The graph as it enters the rows' names."""
        return GraphTemplate(self.workflow.graph, self.holes, self.prefixes)

    # --- rows

    def rows(self, people: Sequence[PersonPhotos]) -> Iterator[NewRow]:
        """Every row, in order; cells that are wrong are noted, and their rows left out."""
        base = {a: self.workflow.graph[a.node]["inputs"].get(a.input) for a in self.holes}
        names = {person.name: self._value_of(person) for person in people} if self.people_column else {}
        grid = self._grid()
        seeds = self.plan.seeds
        numbers = range(seeds.start, seeds.start + seeds.count) if seeds else [None]
        groups: dict[tuple[Any, ...], int] = {}
        template, holes, shown, grouping = self.template, self.holes, self.shown, self._grouping
        for line in self.table or [Line(0, {})]:
            values, cells, is_right = self._line(line, base)
            chosen = self._people_of(line, names)
            if not is_right:
                continue
            for person, identity in chosen:
                for address in self.people_column.addresses if self.people_column else ():
                    values[address] = identity
                for settings, written in grid:
                    values.update(settings)
                    cells.update(written)
                    for seed in numbers:
                        if seed is not None:
                            cells["seed"] = seed
                            for address in self.seed_column.addresses if self.seed_column else ():
                                values[address] = seed
                        row_id = template.row_id(values)
                        if not self._is_ours(row_id):
                            continue
                        in_order = [values[address] for address in holes]
                        group = groups.setdefault(tuple(map(str, (in_order[n] for n in grouping))), len(groups))
                        yield NewRow(row_id, group, person, (in_order, [cells.get(name, "") for name in shown]))

    def _value_of(self, person: PersonPhotos) -> str:
        assert self.people_column is not None
        wants_identity = any(spec.kind is CellKind.IDENTITY for _, spec in self.people_column.inputs)
        if wants_identity:  # one that is not made yet has no name, and its rows are only counted
            return self.files.add_identity(person.identity) if person.identity is not None else ""
        return self.files.add_picture(person.photos[0])

    def _people_of(self, line: Line, names: Mapping[str, str]) -> list[tuple[str, str]]:
        said = str(line.cells.get(PERSON, ""))
        if not self.people_column:
            return [(said, "")]
        if not said:
            return list(names.items())
        if said not in names:
            self.problems.add(
                self.source, line.number, PERSON, said, Fault("there are no photos", nearest(said, names))
            )
            return []
        return [(said, names[said])]

    def _line(self, line: Line, base: Mapping[Address, Any]) -> tuple[dict[Address, Any], dict[str, Any], bool]:
        values, cells, is_right = dict(base), {}, True
        for column in self.columns:
            if (cell := line.cells.get(column.name)) is None:
                continue
            try:
                value = column.parse(cell, self.files)
            except Fault as fault:
                hidden = "(hidden)" if is_secret(cell) else cell
                self.problems.add(self.source, line.number, column.name, hidden, fault)
                is_right = False
                continue
            cells[column.name] = cell
            for address, _ in column.inputs:
                values[address] = value
        return values, cells, is_right

    def _grid(self) -> list[tuple[dict[Address, Any], dict[str, Any]]]:
        """What each point of the grid sets, and how it is shown."""
        axes = []
        for column, wanted in zip(self.axes, self.plan.grid.values(), strict=True):
            points = []
            for cell in wanted:
                try:
                    points.append((column, cell, column.parse(cell, self.files)))
                except Fault as fault:
                    self.problems.add("grid", 0, column.name, "(hidden)" if is_secret(cell) else cell, fault)
            axes.append(points)
        if (count := math.prod(map(len, axes))) > MOST_ROWS:
            self.problems.add("grid", 0, "", "", Fault(f"makes {count} points", "split it"))
            return []
        return [
            (
                {address: value for column, _, value in point for address in column.addresses},
                {column.name: cell for column, cell, _ in point},
            )
            for point in itertools.product(*axes)
        ]

    def _is_ours(self, row_id: str) -> bool:
        one, of = self.plan.shard
        return of == 1 or int(row_id[:8], 16) % of == one - 1


def next_take(values: Sequence[Any], seeds: Mapping[int, int], take: int) -> list[Any]:
    """A row's values with other seeds, always the same for the same take; `seeds` has the largest seed of each hole."""
    changed = list(values)
    for hole, most in seeds.items():
        changed[hole] = (int(values[hole]) + take * _SEED_STRIDE) % (most + 1)
    return changed


def is_model_file(value: Any) -> bool:
    """Whether a value is called as files with weights are."""
    return isinstance(value, str) and bool(_MODEL_FILE.search(value))


def _by_use(spec: Spec, given: Any) -> Spec:
    """For an input that takes several types, the one that the workflow uses."""
    if spec.kind is not CellKind.OTHER or given is None or isinstance(given, (list, dict)):
        return spec
    kinds = {bool: CellKind.BOOLEAN, int: CellKind.INT, float: CellKind.FLOAT, str: CellKind.STRING}
    return Spec(kinds[type(given)], spec.types, spec.required) if type(given) in kinds else spec
