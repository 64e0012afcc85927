"""Every value of every verb, through one list of bad ones: a sentence and an exit code, never a traceback or a hang.

A new verb is in it by being registered; one that needs more than its required values gets a line in `USUAL`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import bad_values
import pytest
import typer
from typer.testing import CliRunner, Result

from likeness import cli
from likeness.errors import LikenessError

# What each verb is called with while one of its values is bad.
USUAL: dict[tuple[str, ...], dict[str, list[str]]] = {
    ("identity",): {"photos": ["people/ann/refs/1.png", "people/ann/refs/2.png"], "out": ["new"]},
    ("evaluate",): {"folder": ["."], "out": ["new"]},
    ("calibrate",): {"people": ["people"], "out": ["new.json"]},
    ("train",): {"config": ["config.toml"]},
    ("models", "get"): {"names": ["thing"], "models_dir": ["new"]},
}
PATHS = ["", "a\0b", "\ud800", "x\udcff", "a\nb", "a" * 300, "a/" * 3000, "~nobody-of-this-name/x", "con", "x."]


class Parameter(NamedTuple):
    verb: tuple[str, ...]
    name: str
    flag: str  # '' for an argument
    kind: type


def kind_of(annotation: Any) -> type:
    """`Annotated[list[Path] | None, ...]` -> Path."""
    if typing.get_origin(annotation) is typing.Annotated:
        return kind_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return kind_of(next(part for part in typing.get_args(annotation) if part is not type(None)))
    if typing.get_origin(annotation) in (list, tuple):
        return kind_of(typing.get_args(annotation)[0])
    return annotation


def parameters(app: typer.Typer, command: Any, above: tuple[str, ...] = ()) -> Iterator[Parameter]:
    """All values that can be given to the verbs of an app."""
    for entry in app.registered_commands:
        assert entry.callback is not None
        verb = (*above, entry.name or entry.callback.__name__)
        annotations = typing.get_type_hints(entry.callback, include_extras=True)
        made = {parameter.name: parameter for parameter in command.commands[verb[-1]].params}
        for name in inspect.signature(entry.callback).parameters:
            flag = made[name].opts[0] if made[name].opts[0].startswith("-") else ""
            yield Parameter(verb, name, flag, kind_of(annotations[name]))
    for group in app.registered_groups:
        assert group.typer_instance is not None and group.name is not None
        yield from parameters(group.typer_instance, command.commands[group.name], (*above, group.name))


ALL = list(parameters(cli.command_tree(), typer.main.get_command(cli.command_tree())))


def run(verb: tuple[str, ...], changed: dict[str, list[str]]) -> Result:
    """Call a verb with its usual values, some of them changed."""
    values = USUAL.get(verb, {}) | changed
    flags = {parameter.name: parameter.flag for parameter in ALL if parameter.verb == verb}
    options = [f"{flags[name]}={value}" for name, given in values.items() if flags[name] for value in given]
    arguments = [value for name, given in values.items() if not flags[name] for value in given]
    return CliRunner().invoke(cli.command_tree(), [*verb, *options, *(["--", *arguments] if arguments else [])])


def everything_outside(desk: Path) -> set[str]:
    root = desk.parent
    return {str(path.relative_to(root)) for path in root.rglob("*") if desk not in path.parents}


def must_end_well(result: Result, desk: Path, before: set[str]) -> None:
    """In a code, and in one line for the user; nothing appeared outside of the working directory."""
    if result.exception is not None and not isinstance(result.exception, (SystemExit, LikenessError)):
        raise AssertionError("a traceback") from result.exception
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    if isinstance(result.exception, LikenessError):
        message = str(result.exception)
        assert (
            message.isprintable() and message.encode() and len(message) < 1500 and message.rstrip().endswith((".", ")"))
        )
    assert everything_outside(desk) == before


def identifier(parameter: Parameter) -> str:
    return " ".join((*parameter.verb, parameter.flag or parameter.name))


def test_the_walk_meets_every_verb():
    assert {parameter.verb for parameter in ALL} >= USUAL.keys() and len(ALL) > 25
    assert {parameter.kind for parameter in ALL} == {str, int, float, bool, Path}


@pytest.mark.parametrize("verb", sorted(USUAL))
def test_the_usual_values_are_right(verb: tuple[str, ...], desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("likeness.training.command.run", lambda *_: [])
    result = run(verb, {})
    assert result.exit_code == (1 if verb == ("models", "get") else 0), result.output or result.exception


@pytest.mark.timeout(120)
@pytest.mark.parametrize("parameter", [p for p in ALL if p.kind in (str, int, float)], ids=identifier)
def test_bad_names_and_numbers(parameter: Parameter, desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("likeness.training.command.run", lambda *_: [])
    before = everything_outside(desk)
    for value in bad_values.NAMES if parameter.kind is str else bad_values.NUMBERS:
        must_end_well(run(parameter.verb, {parameter.name: [value]}), desk, before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("parameter", [p for p in ALL if p.kind is Path], ids=identifier)
def test_bad_paths(parameter: Parameter, desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("likeness.training.command.run", lambda *_: [])
    before = everything_outside(desk)
    for value in PATHS:
        must_end_well(run(parameter.verb, {parameter.name: [value]}), desk, before)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", bad_values.FILES)
@pytest.mark.parametrize("parameter", [p for p in ALL if p.kind is Path], ids=identifier)
def test_bad_files(parameter: Parameter, kind: str, desk: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("likeness.training.command.run", lambda *_: [])
    bad_values.FILES[kind](desk / "bad")
    before = everything_outside(desk)
    for value in ("bad", "bad/below"):
        must_end_well(run(parameter.verb, {parameter.name: [value]}), desk, before)
