"""What becomes of a row that did not end well, case by case."""

from __future__ import annotations

import pytest

from likeness.batch.failures import MOST_ATTEMPTS, Failure, Then, decide, says_out_of_memory
from likeness.batch.journal import Attempt


def tried(*outcomes: str) -> list[Attempt]:
    """Attempts on servers a, b, c …; `outcome` or `outcome/detail`, with `@server` where it matters."""
    made = []
    for number, text in enumerate(outcomes):
        what, _, server = text.partition("@")
        outcome, _, detail = what.partition("/")
        made.append(Attempt(str(number), 1, number + 1, server or "abcdefghi"[number], outcome, detail))
    return made


@pytest.mark.parametrize(
    ("outcomes", "servers", "then"),
    [
        # what may be the network's fault: anywhere, five times
        (["away"], 1, Then.AGAIN),
        (["lost"] * (MOST_ATTEMPTS - 1), 1, Then.AGAIN),
        (["lost", "away", "bad file", "stalled", "lost"], 1, Then.FAIL),
        (["error/RuntimeError: x", "lost", "away"], 2, Then.AGAIN),
        # memory: once more there, then elsewhere, then no more
        (["memory"], 2, Then.AGAIN_HERE),
        (["memory", "memory"], 2, Then.ELSEWHERE),
        (["memory", "memory"], 1, Then.FAIL),
        (["memory"] * 3, 2, Then.FAIL),
        # an error: another server; the same class again is the row's own
        (["error/RuntimeError: x"], 2, Then.ELSEWHERE),
        (["error/RuntimeError: x", "error/RuntimeError: y"], 2, Then.FAIL),
        (["error/RuntimeError: x", "error/OSError: y"], 2, Then.ELSEWHERE),
        (["error/RuntimeError: x", "error/OSError: y", "error/EOFError: z"], 3, Then.FAIL),
        # with one server: a mistake in the graph is not repeated, anything else once
        (["error/ValueError: x"], 1, Then.FAIL),
        (["error/likeness.errors.LikenessError: x"], 1, Then.FAIL),
        (["error/RuntimeError: x"], 1, Then.AGAIN),
        (["error/RuntimeError: x", "error/OSError: y"], 1, Then.FAIL),
        (["invalid/bad"], 3, Then.FAIL),
        (["empty"], 3, Then.FAIL),
        (["interrupted"], 1, Then.AGAIN),
        (["interrupted", "interrupted"], 1, Then.FAIL),
        (["stopped"] * 9, 1, Then.AGAIN),
        # a row that ends servers
        (["died"], 2, Then.AGAIN),
        (["died", "died"], 2, Then.PARK),
        (["died", "lost", "died"], 2, Then.PARK),
        (["died", "died", "died"], 2, Then.FAIL),
    ],
)
def test_what_follows(outcomes, servers, then):
    verdict = decide(tried(*outcomes), servers)
    assert verdict.then is then
    if then is Then.ELSEWHERE:
        assert verdict.exclude == {tried(*outcomes)[-1].server}
    if then is Then.FAIL:
        assert verdict.kind


def test_every_outcome_has_a_verdict():
    for outcome in Failure:
        assert decide(tried(outcome.value), 1).then in Then


@pytest.mark.parametrize(
    ("kind", "words", "is_memory"),
    [
        ("torch.OutOfMemoryError", "", True),
        ("torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried to allocate", True),
        ("RuntimeError", "MPS backend out of memory", True),
        ("RuntimeError", "not enough memory: you tried to allocate", True),
        ("RuntimeError", "shapes cannot be multiplied", False),
    ],
)
def test_out_of_memory_is_known_by_its_words(kind, words, is_memory):
    assert says_out_of_memory(kind, words) is is_memory
