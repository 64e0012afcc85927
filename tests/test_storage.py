"""Whole files: nothing cut under a final name, nothing overwritten, whoever else writes."""

from __future__ import annotations

import copy
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import bad_values
import pytest

from likeness import storage
from likeness.errors import LikenessError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refuse_links(*_: object) -> None:
    raise OSError(1, "Operation not permitted")


def test_a_failing_write_leaves_the_old_file_and_no_litter(tmp_path):
    file = tmp_path / "state.json"
    file.write_text("old")

    def full(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        storage.write_whole(file, full)
    assert file.read_text() == "old"
    assert names(tmp_path) == ["state.json"]


def test_nothing_lies_under_the_final_name_while_it_is_written(tmp_path):
    seen = []

    def write(part: Path) -> None:
        part.write_bytes(b"x")
        seen.extend(names(tmp_path))

    storage.write_whole(tmp_path / "state.pt", write)
    assert [name for name in seen if not name.endswith(storage.PART)] == []
    made = storage.write_new(tmp_path, "person", ".safetensors", write)
    assert [name for name in seen if not name.endswith(storage.PART)] == ["state.pt"]
    assert made.read_bytes() == b"x"


def test_the_file_and_its_folder_are_on_the_disk_before_the_call_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(os.fstat(handle).st_mode & 0o170000), real(handle)))
    storage.write_whole(tmp_path / "a", lambda part: part.write_bytes(b"x"))
    assert synced == [0o100000, 0o040000]


def test_taken_names_are_numbered(tmp_path):
    for expected in ("person.png", "person_2.png", "person_3.png"):
        assert storage.write_new(tmp_path, "person", ".png", lambda part: part.touch()).name == expected


@pytest.mark.parametrize("links", [True, False])
def test_a_name_taken_while_writing_is_not_overwritten(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)

    def write(part: Path) -> None:
        part.write_text("ours")
        (tmp_path / "person.png").write_text("theirs")

    made = storage.write_new(tmp_path, "person", ".png", write)
    assert (made.name, made.read_text()) == ("person_2.png", "ours")
    assert (tmp_path / "person.png").read_text() == "theirs"
    assert names(tmp_path) == ["person.png", "person_2.png"]


def test_long_names_of_wide_letters_fit(tmp_path):
    stem = "像" * 80  # 240 bytes, of 255 that are allowed
    assert storage.write_new(tmp_path, stem, ".png", lambda part: part.touch()).name == stem + ".png"


def test_what_a_killed_process_left_is_swept_and_a_living_one_is_not(tmp_path):
    old, fresh = tmp_path / ".a.1-00.part", tmp_path / ".a.2-00.part"
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    storage.write_whole(tmp_path / "a", lambda part: part.touch())
    assert names(tmp_path) == [".a.2-00.part", "a"]


def test_what_is_set_aside_is_kept_whole_under_another_name(tmp_path):
    for content in ("one", "two"):
        (tmp_path / "losses.csv").write_text(content)
        storage.set_aside(tmp_path / "losses.csv")
    (tmp_path / "losses.csv").mkdir()
    storage.set_aside(tmp_path / "losses.csv")
    assert names(tmp_path) == ["losses.damaged.csv", "losses.damaged_2.csv", "losses.damaged_3.csv"]
    assert [(tmp_path / name).read_text() for name in names(tmp_path)[:2]] == ["one", "two"]


def _save_twenty(folder: Path, mark: str) -> None:
    for _ in range(20):
        storage.write_new(folder, "person", ".txt", lambda part: part.write_text(mark))


def test_processes_that_save_under_one_name_lose_nothing(tmp_path):
    context: Any = multiprocessing.get_context("fork" if hasattr(os, "fork") else "spawn")
    processes = [context.Process(target=_save_twenty, args=(tmp_path, str(i))) for i in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    marks = [path.read_text() for path in tmp_path.iterdir()]
    assert sorted(marks) == sorted(str(i) for i in range(4) for _ in range(20))


# Names and folders that a user chooses


@pytest.mark.parametrize("name", bad_values.NAMES)
def test_names_that_some_system_cannot_keep_are_refused(name: str):
    with pytest.raises(LikenessError, match=r"^--name '.*choose a short name") as caught:
        storage.check_name(name, "--name")
    message = str(caught.value)
    assert len(message) < 400 and message.isprintable() and message.encode()


@pytest.mark.parametrize("name", bad_values.GOOD_NAMES)
def test_usual_names_pass_unchanged(name: str):
    assert storage.check_name(name, "--name") is name


def test_a_folder_is_made_and_tried(tmp_path: Path):
    storage.check_folder(tmp_path / "a" / "b", "--out")
    assert names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize("place", ["file", "file/below", "n" * 300, "a\0b", "\ud800"])
def test_what_cannot_be_a_folder_is_told_in_words(place: str, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LikenessError, match=r"^--out '.*choose another folder"):
        storage.check_folder(tmp_path / place, "--out")
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(("number", "words"), [(28, "disk is full"), (13, "Permission denied"), (30, "Read-only")])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(number: int, words: str, tmp_path: Path, monkeypatch):
    def refuse(self: Path, *arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(LikenessError, match=words):
        storage.check_folder(tmp_path, "--out")
    assert names(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_finished_file_never_takes_the_place_of_another(links: bool, tmp_path: Path, monkeypatch):
    if not links:
        monkeypatch.setattr(os, "link", refuse_links)
    part, file = tmp_path / "x.part", tmp_path / "x"
    part.write_text("new")
    storage.keep_new(part, file)
    assert names(tmp_path) == ["x"]
    part.write_text("newer")
    with pytest.raises(FileExistsError):
        storage.keep_new(part, file)
    assert (part.read_text(), file.read_text()) == ("newer", "new")


def test_an_error_is_one_line_that_can_be_logged_anywhere():
    message = str(LikenessError("The file 'a\n\tb\ud800\x1b[2J\0' is\r\nnot 李明’s."))
    assert message == r"The file 'a b\ud800\x1b[2J\x00' is not 李明’s."
    assert str(copy.copy(LikenessError("x\ud800"))) == r"x\ud800"
