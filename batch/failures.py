"""What becomes of a row that did not end well: one table, in words that a journal keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .journal import Attempt

MOST_ATTEMPTS = 5  # of what may be the network's fault
MOST_DEATHS = 2  # crashes of servers while the row ran, before it is run last
_PROGRAMMING = ("ValueError", "TypeError", "LikenessError", "KeyError", "AssertionError", "NotImplementedError")


class Failure(str, Enum):
    """Why an attempt failed."""

    AWAY = "away"  # the server did not answer for too long; it may run it yet
    LOST = "lost"  # the server does not know it, or has forgotten it
    DIED = "died"  # the server ended while it ran this row
    BAD_FILE = "bad file"
    MEMORY = "memory"
    ERROR = "error"
    INVALID = "invalid"
    INTERRUPTED = "interrupted"  # by somebody else
    STALLED = "stalled"
    EMPTY = "empty"
    STOPPED = "stopped"  # by us, at the user's wish


class Then(Enum):
    """What happens next."""

    AGAIN = "again"  # anywhere, after a pause
    AGAIN_HERE = "again here"  # after the server's memory was freed
    ELSEWHERE = "elsewhere"
    PARK = "park"
    FAIL = "fail"


@dataclass(frozen=True)
class Ruling:
    """What to do, and what to write down where that is the end."""

    then: Then
    kind: str = ""
    error: str = ""
    exclude: frozenset[str] = frozenset()  # servers


def decide(tried: Sequence[Attempt], servers: int) -> Ruling:
    """What follows from a row's attempts, the last of which has just failed. `servers` could run it."""
    last = tried[-1]
    outcome, detail = Failure(last.outcome), last.detail
    same = [attempt for attempt in tried if attempt.outcome == last.outcome]
    here = frozenset([last.server])
    fail = Ruling(Then.FAIL, outcome.value, detail)
    if outcome is Failure.INVALID:
        return fail
    if outcome is Failure.EMPTY:
        return Ruling(Then.FAIL, "empty", "it finished, but saved no file")
    if outcome is Failure.STOPPED:
        return Ruling(Then.AGAIN)
    if outcome is Failure.INTERRUPTED:
        return Ruling(Then.AGAIN) if len(same) == 1 else Ruling(Then.FAIL, "interrupted", "it was interrupted twice")
    if outcome is Failure.DIED:
        if len(same) < MOST_DEATHS:
            return Ruling(Then.AGAIN)
        if len(same) == MOST_DEATHS:
            return Ruling(Then.PARK, "poison", f"{MOST_DEATHS} servers ended while they ran it")
        return Ruling(Then.FAIL, "poison", "kills the server")
    if outcome is Failure.MEMORY:
        if len(same) == 1:
            return Ruling(Then.AGAIN_HERE)
        if len(same) == 2 and servers > 1:
            return Ruling(Then.ELSEWHERE, exclude=here)
        return fail
    if outcome is Failure.ERROR:
        kind = detail.split(":")[0]
        if len(same) > 1 and same[-2].detail.split(":")[0] == kind:
            return fail
        if servers > 1:
            return Ruling(Then.ELSEWHERE, exclude=here) if len(same) < 3 else fail
        return fail if kind.rpartition(".")[2] in _PROGRAMMING or len(same) > 1 else Ruling(Then.AGAIN)
    if len([one for one in tried if one.outcome in _NETWORK]) < MOST_ATTEMPTS:
        return Ruling(Then.AGAIN)
    return Ruling(Then.FAIL, outcome.value, detail or f"it was lost {MOST_ATTEMPTS} times")


_NETWORK = tuple(one.value for one in (Failure.AWAY, Failure.LOST, Failure.BAD_FILE, Failure.STALLED))


def says_out_of_memory(error_type: str, words: str) -> bool:
    """Whether a server's error says that its memory was not enough."""
    text = f"{error_type} {words}".lower()
    return "outofmemory" in text.replace("_", "") or "out of memory" in text or "not enough memory" in text
