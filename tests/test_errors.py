"""Messages and log lines: one line each, whatever names and paths stand in them."""

from __future__ import annotations

import io
import logging
import traceback
from multiprocessing import Pipe
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.errors import LikenessError, logger, one_line

NASTY = st.text(st.characters(blacklist_categories=())) | st.sampled_from(
    ["\ud800", "x\udcff", "\x1b[2J", "a\r\nb", "\0", "a\u2028b", "\x85"]
)


@pytest.fixture
def terminal():
    """What a logger has written to a stream that refuses what it cannot encode, as ComfyUI's does."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    handler = logging.StreamHandler(stream)
    log = logger("likeness.tests.terminal")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False

    def written() -> str:
        stream.flush()
        return stream.buffer.getvalue().decode()

    yield log, written
    log.removeHandler(handler)


@given(NASTY)
def test_every_text_becomes_one_line_that_can_be_encoded(text):
    line = one_line(text)
    line.encode()
    assert line.splitlines() in ([], [line]) and not [letter for letter in line if ord(letter) < 32]
    assert str(LikenessError(text)) == line


@pytest.mark.parametrize("kind", [str, Path, OSError])
def test_names_paths_and_errors_cannot_stop_forge_or_command_a_log(terminal, kind, capsys):
    log, written = terminal
    log.warning("[likeness] %s was left out, %d of %s", kind("a\ud800\x1b[2J\nforged"), 2, [1])
    assert written() == "[likeness] a\\ud800\\x1b[2J forged was left out, 2 of [1]\n"
    assert "Logging error" not in capsys.readouterr().err


def test_a_logger_that_is_asked_for_twice_filters_once():
    assert logger("likeness.tests.twice").filters == logger("likeness.tests.twice").filters
    assert len(logger("likeness.tests.twice").filters) == 1


def through_a_pipe(error: Exception) -> Exception:
    """As another process gets it."""
    here, there = Pipe()
    here.send(error)
    return there.recv()


def test_an_error_goes_through_pickle_and_shows_no_module():
    error = LikenessError("The photo is upside down: turn it.")
    again = through_a_pipe(error)
    assert type(again) is LikenessError and str(again) == str(error)
    assert traceback.format_exception_only(error) == ["LikenessError: The photo is upside down: turn it.\n"]


def test_subclasses_go_through_pickle_as_themselves():
    from likeness.training.run_record import AnotherMethod

    assert type(through_a_pipe(AnotherMethod("Another one."))) is AnotherMethod
