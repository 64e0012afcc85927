"""What the engine asks of anything that runs graphs: a ComfyUI at an address, a child process, an actor of Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from .graph import Graph


async def happens_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event is set within this many seconds. `asyncio.wait_for` may swallow a cancellation."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        done, _ = await asyncio.wait({waiting}, timeout=seconds)
        return bool(done)
    finally:
        waiting.cancel()


class Away(Exception):
    """Nobody answered, or not as a ComfyUI does. The words say what was seen; `is_dead` where nobody listens there."""

    def __init__(self, words: str = "", is_dead: bool = False) -> None:
        self.is_dead = is_dead
        super().__init__(words)

    def __reduce__(self) -> tuple[type, tuple[str, bool]]:
        return type(self), (str(self), self.is_dead)


class Unwelcome(Away):
    """It answers, and will not serve us: a redirect, a wrong key, a page in place of an answer."""


class Refused(Exception):
    """The graph was not accepted (HTTP 400): it will never be."""


class BadFile(Exception):
    """A file of a result is not there, not whole, or not what it is said to be."""


class State(Enum):
    """Where a prompt is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Served:
    """A file as a server names it; these texts are never used as a path here."""

    node: str
    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True)
class Ending:
    """How a run ended."""

    status: str  # success, error, interrupted
    files: tuple[Served, ...] = ()
    error_type: str = ""  # the exception's class
    error: str = ""  # its words
    node: str = ""
    cached: int = 0
    seconds: float = 0.0  # that the server worked on it


@dataclass(frozen=True)
class ServerFacts:
    """What a server says of itself."""

    version: tuple[int, ...] = ()
    version_text: str = ""
    torch: str = ""
    devices: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Upload:
    """A file of ours that rows need: `name` is what their inputs hold."""

    name: str
    path: Path
    subfolder: str
    type: str  # input or output

    @property
    def filename(self) -> str:
        """Its name in the subfolder."""
        return self.name.rsplit("/", 1)[-1]

    @property
    def served(self) -> Served:
        """The file as the server names it."""
        return Served("", self.filename, self.subfolder, self.type)


@dataclass(frozen=True)
class Queue:
    """What a server has to do."""

    running: frozenset[str]
    waiting: frozenset[str]

    def is_stuck(self, ours: Sequence[str]) -> bool:
        """Whether ours wait and nothing runs."""
        return not self.running and any(prompt in self.waiting for prompt in ours)


class Worker(Protocol):
    """Runs graphs, one after the other. Every method may raise Away."""

    @property
    def name(self) -> str:
        """How it is called in the journal: the same in every session."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether what was sent to it is lost for certain, with its process."""
        ...

    async def open(self) -> None:
        """Start it where it has to be started, and begin to listen."""
        ...

    async def close(self) -> None:
        """Stop what was started."""
        ...

    def listen_as(self, client: str) -> None:
        """Receive what is sent to this client, also of prompts that it sent before it was killed."""
        ...

    async def facts(self) -> ServerFacts: ...

    async def object_info(self) -> Mapping[str, Any]: ...

    async def post(self, prompt_id: str, graph: Graph, extra: Mapping[str, Any]) -> None:
        """Queue a graph. Refused when it never will be."""
        ...

    async def wake(self, prompt_id: str, seconds: float) -> bool:
        """Wait until something may have happened to this prompt, or for this long. Whether a message about it came."""
        ...

    def heard(self, prompt_id: str) -> float:
        """When the last message about it came, by the monotonic clock; 0 for none."""
        ...

    async def ending(self, prompt_id: str) -> Ending | None:
        """How it ended; None where it has not, or where nobody knows it."""
        ...

    async def state(self, prompt_id: str) -> State: ...

    async def queue(self) -> Queue: ...

    async def fetch(self, file: Served, to: Path, most: int) -> None:
        """Write a file of a result, at most this many bytes. BadFile."""
        ...

    async def has(self, file: Served, size: int | None = None) -> bool:
        """Whether the server has a file, of this size."""
        ...

    async def upload(self, upload: Upload) -> None: ...

    async def cancel(self, prompt_id: str) -> None:
        """Take this prompt, and no other, off the queue, or interrupt it."""
        ...

    async def forget(self, prompt_id: str) -> None:
        """Drop what the server remembers of a prompt that is done."""
        ...

    async def free(self) -> None:
        """Unload models and free memory after the prompt under way."""
        ...

    async def restart(self) -> bool:
        """Kill and start it again, where it is ours; else False."""
        ...
