"""Rows that wait: in groups that load the same files, with those that failed once set apart until their time comes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class _Later:
    seq: int
    group: int
    at: float  # monotonic
    avoid: frozenset[str]  # servers that failed with it: others first
    cannot: frozenset[str]  # servers that lack what it needs


class Todo:
    """Which row a server runs next. A group stays on one server, because servers keep what they loaded last."""

    def __init__(self, rows: Iterable[tuple[int, int]]):
        self._groups: dict[int, deque[int]] = {}
        for seq, group in rows:
            self._groups.setdefault(group, deque()).append(seq)
        self._later: list[_Later] = []
        self._held_by: dict[int, str] = {}  # group -> server
        self._count = sum(map(len, self._groups.values()))

    def __len__(self) -> int:
        return self._count + len(self._later)

    def put(
        self,
        seq: int,
        group: int,
        pause: float = 0.0,
        avoid: frozenset[str] = frozenset(),
        cannot: frozenset[str] = frozenset(),
    ) -> None:
        """A row comes back, after `pause` seconds; not to servers that cannot run it."""
        self._later.append(_Later(seq, group, time.monotonic() + pause, avoid, cannot))

    def take(self, server: str, live: frozenset[str]) -> tuple[int, frozenset[str]] | None:
        """The next row for a server, and the servers that cannot run it; None where there is none now."""
        now = time.monotonic()
        for number, later in enumerate(self._later):
            others = live - later.avoid - later.cannot
            if later.at <= now and server not in later.cannot and (server not in later.avoid or not others):
                del self._later[number]
                return later.seq, later.cannot
        group = self._group_for(server)
        if group is None:
            return None
        rows = self._groups[group]
        seq = rows.popleft()
        self._count -= 1
        if not rows:
            del self._groups[group]
            self._held_by.pop(group, None)
        return seq, frozenset()

    def nobody_can(self, servers: frozenset[str]) -> list[int]:
        """Takes out the rows that none of these servers can run."""
        hopeless = [later.seq for later in self._later if servers <= later.cannot]
        self._later = [later for later in self._later if not servers <= later.cannot]
        return hopeless

    def due_in(self) -> float:
        """Seconds until the next row that was set apart; infinity for none."""
        return min((later.at for later in self._later), default=float("inf")) - time.monotonic()

    def _group_for(self, server: str) -> int | None:
        mine = [group for group, holder in self._held_by.items() if holder == server and group in self._groups]
        if mine:
            return mine[0]
        free = [group for group in self._groups if group not in self._held_by]
        chosen = free[0] if free else max(self._groups, key=lambda group: len(self._groups[group]), default=None)
        if chosen is not None and free:
            self._held_by[chosen] = server
        return chosen
