"""The log of losses decides over nothing: whatever has happened to it, a training goes on and nothing of it is lost."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from likeness.training.loss_log import LossLog, loss_picture, read_losses

NAMES = ["instance", "prior"]
ROWS = [("tuning", step, {"instance": 0.25 * step, "prior": 0.5, "total": 1.0}) for step in range(1, 5)]


def written(folder: Path) -> LossLog:
    log = LossLog(folder, NAMES)
    log.keep_until("tuning", 0)
    for phase, step, losses in ROWS:
        log.add(phase, step, losses)
    return log


def steps(file: Path) -> list[int]:
    return [int(row["step"]) for row in read_losses(file)]


def excel(text: str) -> bytes:
    """As a spreadsheet of a country with decimal commas saves it."""
    return ("\ufeff" + text.replace(",", ";").replace("\n", "\r\n")).encode()


CHANGES: dict[str, tuple[Any, list[int], bool]] = {  # what it becomes, steps that are read, whether it is set aside
    "nothing": (str.encode, [1, 2, 3, 4], False),
    "a spreadsheet": (excel, [1, 2, 3, 4], False),
    "a cut row": (lambda text: text[:-9].encode(), [1, 2, 3], False),
    "a note": (lambda text: (text + "good from here\n").encode(), [1, 2, 3, 4], True),
    "decimal commas": (lambda text: text.replace(",0.5,", ',"0,5",').encode(), [], True),
    "a column": (lambda text: text.replace(",total", ",total,note").replace("\n", ",x\n").encode(), [], True),
    "another column": (lambda text: text.replace("prior", "mine").encode(), [1, 2, 3, 4], True),
    "latin-1": (lambda text: (text + "tuning,5,é,1,1\n").encode("latin-1"), [1, 2, 3, 4], True),
    "zeros": (lambda text: text.encode() + bytes(4096), [1, 2, 3, 4], True),
    "UTF-16": (lambda text: text.encode("utf-16"), [], True),
    "a huge field": (lambda text: (text + "x" * 200_000 + "\n").encode(), [], True),
    "emptiness": (lambda text: b"", [], False),
    "noise": (lambda text: bytes(range(256)) * 9, [], True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_table_that_was_changed_is_read_as_far_as_it_goes_and_kept(tmp_path, caplog, change):
    make, kept, is_set_aside = CHANGES[change]
    file = written(tmp_path).file
    content = make(file.read_bytes().decode().replace("\r\n", "\n"))
    file.write_bytes(content)
    log = LossLog(tmp_path, NAMES)
    with caplog.at_level(logging.WARNING):
        log.keep_until("tuning", 4)
    log.add("tuning", 5, {"instance": 1, "prior": 1, "total": 2})
    log.draw()
    assert steps(file) == [*kept, 5]
    assert len(caplog.records) == is_set_aside
    if is_set_aside:
        assert (tmp_path / "losses.damaged.csv").read_bytes() == content
    assert (tmp_path / "losses.png").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, 150), st.integers(0, 20), st.binary(max_size=20))
def test_no_change_of_a_table_stops_a_training(tmp_path_factory, at, removed, inserted):
    folder = tmp_path_factory.mktemp("run")
    file = written(folder).file
    content = file.read_bytes()
    file.write_bytes(content[:at] + inserted + content[at + removed :])
    log = LossLog(folder, NAMES)
    log.keep_until("tuning", 2)
    log.add("tuning", 3, {"instance": 1, "prior": 1, "total": 2})
    log.draw()
    assert steps(file)[-1] == 3 and list(read_losses(file)[-1]) == ["phase", "step", *NAMES, "total"]


@pytest.mark.parametrize("name", ["losses.csv", "losses.png"])
def test_a_folder_of_its_name_is_set_aside(tmp_path, name):
    log = written(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).mkdir()
    log.keep_until("tuning", 4)
    log.draw()
    assert (tmp_path / name).is_file() and (tmp_path / name.replace(".", ".damaged.")).is_dir()


def test_rows_wait_while_another_program_holds_the_table(tmp_path, monkeypatch, caplog):
    """As Excel does on Windows."""
    held, open_path = {"losses.csv"}, Path.open

    def held_open(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if path.name in held and mode[0] != "r":
            raise PermissionError(13, "Permission denied")
        return open_path(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", held_open)
    held.clear()
    log = written(tmp_path)
    held.add("losses.csv")
    for step in (5, 6):
        log.add("tuning", step, {"instance": 1, "total": 2})
    assert steps(log.file) == [1, 2, 3, 4] and len(caplog.records) == 1
    log.draw()
    assert steps(tmp_path / "losses_2.csv") == [1, 2, 3, 4, 5, 6], "nothing of it is lost"
    held.clear()
    log.add("tuning", 7, {"instance": 1, "total": 2})
    assert steps(log.file) == [1, 2, 3, 4, 5, 6, 7]


def test_a_table_that_cannot_be_replaced_goes_on_in_another(tmp_path, monkeypatch, caplog):
    written(tmp_path)
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if target.name == "losses.csv":
            raise PermissionError(13, "Permission denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    log = LossLog(tmp_path, NAMES)
    log.keep_until("tuning", 2)
    log.add("tuning", 3, {"instance": 1, "prior": 1, "total": 2})
    assert steps(tmp_path / "losses_2.csv") == [1, 2, 3] and steps(tmp_path / "losses.csv") == [1, 2, 3, 4]
    assert "continue in losses_2.csv" in caplog.text


def test_losses_of_any_size_are_drawn():
    rows = [
        {"phase": "a", "step": str(n), "x": value, "total": ""} for n, value in enumerate(["1e308", "5e-324", "-1"])
    ]
    assert loss_picture(rows).size == (800, 420)
