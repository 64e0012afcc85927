"""What a batch is: a workflow, and the rows that its inputs take. Written as YAML or JSON, or typed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..checks import check_number
from ..errors import LikenessError
from ..models.content import sha256
from .graph import canonical, read_json
from .problems import nearest

MOST_SEED = 2**64 - 1
_LARGEST_PLAN = 2**20  # bytes


@dataclass(frozen=True)
class PlannedPeople:
    """Photos of people, each of whom gets every row."""

    photos: str  # a glob
    into: tuple[str, ...]  # inputs that take the identity, or a photo
    by: str = "folder"  # what names the person: the photo's folder, or the file
    best: int = 0  # photos of each person that are used; 0: all
    faces: str = "auto"  # the face analysis that makes identities


@dataclass(frozen=True)
class Seeds:
    """Seeds that every row is run with: the same for all, so that rows can be compared in pairs."""

    into: tuple[str, ...]
    count: int = 1
    start: int = 0


@dataclass(frozen=True)
class Judging:
    """Likeness, measured while the batch runs."""

    judge: str = ""  # a face analysis; empty: nobody judges
    keep: int = 0  # the best images of those that differ in the seed alone; 0: all
    below: float = 0.0  # percent under which a row is repeated with another seed
    most: int = 0  # repetitions of a row
    allow_same: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """Everything that decides which images are made. Where they are made is `work.WorkSettings`."""

    workflow: Path
    table: Path | None = None
    files: Path | None = None  # the folder that paths in cells are below
    people: PlannedPeople | None = None
    grid: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    seeds: Seeds | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    alias: Mapping[str, Sequence[str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()  # nodes whose files are wanted; none: all
    judging: Judging = Judging()
    name: str = ""  # of a second, readable name for every image
    shard: tuple[int, int] = (1, 1)
    expect: int | None = None
    allow_unlink: bool = False
    allow_paid: bool = False
    allow_empty: bool = False
    temporary: bool = False  # files in a server's temp folder count too
    pin_version: bool = False  # only servers of one and the same version
    models: Path | None = None  # a folder with the servers' models: digests of those used go into run.json

    @property
    def folder_of_files(self) -> Path:
        """What the paths in cells are below."""
        return self.files or (self.table or self.workflow).parent

    def fingerprint(self) -> dict[str, str]:
        """What the plan says, part by part: a run resumes only where all parts are equal."""
        said = {
            name: _plain(getattr(self, name)) for name in (f.name for f in fields(self)) if name not in _NOT_CONTENT
        }
        content = {"workflow": _sha256(self.workflow), "table": _sha256(self.table) if self.table else ""}
        return {
            name: value if isinstance(value, str) else canonical(value) for name, value in {**said, **content}.items()
        }


_NOT_CONTENT = ("workflow", "table", "files", "expect", "allow_paid", "name", "pin_version", "models")


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise LikenessError(f"{str(path)!r} cannot be read ({error.strerror or error}): check the path.") from None


# --- plans in files


def is_plan(path: Path) -> bool:
    """Whether a file is a plan rather than a workflow."""
    if path.suffix.lower() in (".yaml", ".yml"):
        return True
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > _LARGEST_PLAN:
        return False
    value = read_json(path, "The plan")
    return isinstance(value, dict) and isinstance(value.get("workflow"), str)


def read_plan(path: Path) -> tuple[BatchPlan, dict[str, Any]]:
    """A plan, and what it says of how to run (`out`, `servers`), which the command line may override.

    Paths are below the plan's folder. LikenessError names the entry that is wrong.
    """
    value = _yaml(path) if path.suffix.lower() in (".yaml", ".yml") else read_json(path, "The plan")
    if not isinstance(value, dict):
        raise LikenessError(f"The plan {path.name!r} holds no entries: write `workflow: portrait_api.json` first.")
    entries = _Entries(path, {str(key): one for key, one in value.items()})
    here = path.parent
    running = {name: entries.take(name) for name in ("out", "servers", "headers") if name in entries.value}
    if "workflow" not in entries.value:
        raise LikenessError(f"The plan {path.name!r} names no workflow: add `workflow: portrait_api.json`.")
    plan = BatchPlan(
        workflow=here / entries.text("workflow"),
        table=here / entries.text("table") if "table" in entries.value else None,
        files=here / entries.text("files") if "files" in entries.value else None,
        people=entries.people(here),
        grid={name: entries.axis(name, values, here) for name, values in entries.mapping("grid").items()},
        seeds=entries.seeds(),
        constants=entries.mapping("set"),
        alias={name: entries.texts(f"alias.{name}", values) for name, values in entries.mapping("alias").items()},
        outputs=tuple(entries.texts("outputs", entries.take("outputs", []))),
        judging=entries.judging(),
        name=entries.text("name", ""),
        shard=read_shard(entries.text("shard", "1/1")),
        expect=entries.expected(),
        allow_unlink=entries.flag("allow_unlink"),
        allow_paid=entries.flag("allow_paid"),
        allow_empty=entries.flag("allow_empty"),
        temporary=entries.flag("temporary"),
        pin_version=entries.flag("pin_version"),
        models=here / entries.text("hash_models") if "hash_models" in entries.value else None,
    )
    entries.done()
    return plan, running


def read_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8)."""
    one, _, of = text.partition("/")
    if not (one.isdecimal() and of.isdecimal() and 1 <= int(one) <= int(of) <= 100_000):
        raise LikenessError(f"The shard is {text!r}: write one such as 2/8, from 1/8 to 8/8.")
    return int(one), int(of)


def with_seeds(plan: BatchPlan, into: Sequence[str], count: int, start: int) -> BatchPlan:
    """The plan with these seeds; LikenessError where they leave the range."""
    check_number(count, "The number of seeds", 1, 1_000_000)
    check_number(start, "The first seed", 0, MOST_SEED - count + 1)
    return replace(plan, seeds=Seeds(tuple(into), count, start))


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError:
        raise LikenessError("Plans in YAML need PyYAML: `pip install pyyaml`, or write the plan as JSON.") from None

    class Loader(yaml.SafeLoader):
        """Without aliases, of which a few lines can stand for gigabytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise yaml.YAMLError("aliases such as *this are not read")
            return super().compose_node(parent, index)

    try:
        if path.stat().st_size > _LARGEST_PLAN:
            raise LikenessError(f"The plan {path.name!r} is larger than 1 MB: put its rows into a table.")
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader)  # a SafeLoader
    except OSError as error:
        raise LikenessError(f"The plan {str(path)!r} cannot be read ({error.strerror or error}).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, LikenessError):
            raise
        raise LikenessError(f"The plan {path.name!r} is not valid YAML ({error}): check that line.") from None


class _Entries:
    """The entries of a plan, taken one by one; what is left at the end is unknown."""

    def __init__(self, path: Path, value: dict[str, Any]):
        self.path, self.value, self._left = path, value, set(value)
        self._known: list[str] = []

    def take(self, name: str, default: Any = None) -> Any:
        self._left.discard(name)
        self._known.append(name)
        return self.value.get(name, default)

    def done(self) -> None:
        for name in sorted(self._left):
            raise LikenessError(f"The plan {self.path.name!r} has the entry {name!r}: {nearest(name, self._known)}.")

    def wrong(self, name: str, wanted: str) -> LikenessError:
        return LikenessError(f"The entry {name!r} of the plan {self.path.name!r} must be {wanted}: correct it.")

    def text(self, name: str, default: str | None = None) -> str:
        value = self.take(name, default)
        if not isinstance(value, str) or "\0" in value:
            raise self.wrong(name, "text")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name, False)
        if not isinstance(value, bool):
            raise self.wrong(name, "true or false")
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.take(name, {}) or {}
        if not isinstance(value, dict):
            raise self.wrong(name, "entries such as `Sampler.cfg: 4`")
        return {str(key): one for key, one in value.items()}

    def texts(self, name: str, value: Any) -> list[str]:
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
            raise self.wrong(name, "text, or a list of texts")
        return found

    def number(self, name: str, value: Any, least: float, most: float) -> Any:
        where = f"The entry {name!r} of the plan {self.path.name!r}"
        if isinstance(value, bool):
            raise self.wrong(name, "a number")
        return check_number(value, where, least, most)

    def whole(self, name: str, value: Any, least: int, most: int) -> int:
        if not isinstance(value, int):
            raise self.wrong(name, "a whole number")
        return int(self.number(name, value, least, most))

    def within(self, name: str, known: Sequence[str]) -> dict[str, Any]:
        value = self.mapping(name)
        for key in sorted(value.keys() - set(known)):
            raise LikenessError(
                f"The entry {name!r} of the plan {self.path.name!r} has {key!r}: {nearest(key, known)}."
            )
        return value

    def axis(self, name: str, value: Any, here: Path) -> Sequence[Any]:
        if isinstance(value, dict) and set(value) == {"lines"} and isinstance(value["lines"], str):
            file = here / value["lines"]
            try:
                value = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            except (OSError, ValueError) as error:
                raise LikenessError(f"The lines of {name!r} in {str(file)!r} cannot be read ({error}).") from None
        if not isinstance(value, list) or not value or not all(isinstance(one, _CELL) for one in value):
            raise self.wrong(f"grid.{name}", "a list of values, or `{lines: prompts.txt}`")
        if any(isinstance(one, float) and not math.isfinite(one) for one in value):
            raise self.wrong(f"grid.{name}", "a list of numbers such as 1.5")
        return value

    def people(self, here: Path) -> PlannedPeople | None:
        value = self.within("people", ("photos", "into", "by", "filter", "faces"))
        if not value:
            return None
        photos, by, best = value.get("photos"), value.get("by", "folder"), value.get("filter", "")
        if not isinstance(photos, str):
            raise self.wrong("people.photos", "a pattern such as people/*/*.jpg")
        if by not in ("folder", "file"):
            raise self.wrong("people.by", "folder or file")
        words = str(best).split()
        if words and not (
            len(words) == 2 and words[0] == "best" and words[1].isdecimal() and 1 <= int(words[1]) <= 1000
        ):
            raise self.wrong("people.filter", "one such as `best 5`")
        faces = value.get("faces", "auto")
        into = tuple(self.texts("people.into", value.get("into")))
        return PlannedPeople(str(here / photos), into, by, int(words[1]) if words else 0, str(faces))

    def seeds(self) -> Seeds | None:
        value = self.within("seeds", ("into", "count", "start"))
        if not value:
            return None
        count = self.whole("seeds.count", value.get("count", 1), 1, 1_000_000)
        start = self.whole("seeds.start", value.get("start", 0), 0, MOST_SEED - count + 1)
        return Seeds(tuple(self.texts("seeds.into", value.get("into"))), count, start)

    def judging(self) -> Judging:
        value = self.within("likeness", ("judge", "keep", "retry_below", "most", "allow_same"))
        if not value:
            return Judging()
        return Judging(
            judge=str(value.get("judge", "sface")),
            keep=self.whole("likeness.keep", value.get("keep", 0), 0, 1_000_000),
            below=float(self.number("likeness.retry_below", value.get("retry_below", 0.0), 0, 120)),
            most=self.whole("likeness.most", value.get("most", 2 if "retry_below" in value else 0), 0, 20),
            allow_same=value.get("allow_same", False) is True,
        )

    def expected(self) -> int | None:
        value = self.within("expect", ("rows",))
        return self.whole("expect.rows", value["rows"], 0, 10**9) if "rows" in value else None


_CELL = (str, int, float, bool)
