"""Workers on a cluster: Ray places actors on GPUs, each of which starts a ComfyUI as its child and talks to it there.

Ray starts and replaces actors (`max_restarts=-1`); what is repeated is decided by the journal alone
(`max_task_retries=0`). A Ray port is a shell for whoever reaches it: keep it in a private network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from .client import Access
from .graph import Graph
from .local import Comfy, LocalServer
from .workers import Away, BadFile, Ending, Queue, Served, ServerFacts, State, Upload

OLDEST = (2, 52)  # before, a web page could run code in a local cluster
MOST_BYTES = 50 * 10**6  # of a file that is carried through Ray
HOW_TO_GET_IT = "`pip install 'likeness[ray]'`"
_START = 600.0  # seconds


class ComfyActor:
    """In the cluster: a ComfyUI of its own, and the client that speaks to it."""

    def __init__(self, number: int, comfy: Comfy, access: Access):
        folder = Path(tempfile.mkdtemp(prefix=f"likeness-worker{number}-"))
        self._server = LocalServer(number, comfy, folder, access=access)  # Ray has set CUDA_VISIBLE_DEVICES

    async def call(self, method: str, *arguments: Any) -> Any:
        """A method of the worker, in the cluster."""
        return await getattr(self._server, method)(*arguments)

    async def has_ended(self) -> bool:
        """Whether the child is gone."""
        return self._server.has_ended

    async def wake(self, prompt_id: str, seconds: float) -> tuple[bool, float]:
        """Whether there was news, and how many seconds ago the last message came; -1 for none."""
        news = await self._server.wake(prompt_id, seconds)
        heard = self._server.heard(prompt_id)
        return news, time.monotonic() - heard if heard else -1.0

    async def fetch(self, file: Served, most: int) -> bytes:
        """A file's bytes."""
        part = self._server.folder / "fetched"
        part.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=part, delete=False) as made:
            path = Path(made.name)
        try:
            await self._server.fetch(file, path, min(most, MOST_BYTES))
            return path.read_bytes()
        finally:
            path.unlink(missing_ok=True)

    async def take(self, upload: Upload, content: bytes) -> None:
        """A file of the user's, for the child's input folder."""
        path = self._server.folder / "taken"
        path.mkdir(exist_ok=True)
        file = path / upload.filename
        file.write_bytes(content)
        await self._server.upload(replace(upload, path=file))


class RayWorker:
    """One actor, as the engine sees it."""

    is_own = True

    def __init__(self, number: int, actor: Any):
        self.number, self._actor = number, actor
        self._ended = False
        self._heard: dict[str, float] = {}

    @property
    def name(self) -> str:
        return f"ray{self.number}"

    @property
    def has_ended(self) -> bool:
        return self._ended

    async def _ask(self, reference: Any, seconds: float = 120.0) -> Any:
        """Away where the actor or its node is gone; what the worker raised otherwise."""
        import ray.exceptions

        try:
            return await asyncio.wait_for(asyncio.shield(_awaited(reference)), seconds)
        except asyncio.TimeoutError:
            raise Away(f"{self.name} does not answer") from None
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from None
            raise Away(f"{self.name} failed ({str(error).splitlines()[-1][:200]})") from None
        except (ray.exceptions.RayActorError, ray.exceptions.RayError) as error:
            self._ended = True
            raise Away(f"{self.name} was lost ({str(error).splitlines()[0][:200]})", is_dead=True) from None

    async def _call(self, method: str, *arguments: Any, seconds: float = 120.0) -> Any:
        return await self._ask(self._actor.call.remote(method, *arguments), seconds)

    async def open(self) -> None:
        await self._call("open", seconds=_START)
        self._ended = False

    async def restart(self) -> bool:
        await self._call("restart", seconds=_START)
        self._ended = False
        return True

    async def close(self) -> None:
        import ray

        with contextlib.suppress(Away):
            await self._call("close", seconds=30.0)
        ray.kill(self._actor)

    def listen_as(self, client: str) -> None:
        """Its server ends with this client: there are no older messages."""

    async def facts(self) -> ServerFacts:
        if await self._ask(self._actor.has_ended.remote()):
            self._ended = True
            raise Away(f"{self.name}'s server has ended", is_dead=True)
        return await self._call("facts")

    async def object_info(self) -> Mapping[str, Any]:
        return await self._call("object_info")

    async def post(self, prompt_id: str, graph: Graph, extra: Mapping[str, Any]) -> None:
        await self._call("post", prompt_id, graph, extra)

    async def wake(self, prompt_id: str, seconds: float) -> bool:
        try:
            news, ago = await self._ask(self._actor.wake.remote(prompt_id, seconds), seconds + 30.0)
        except Away:
            return True  # the next question will tell
        if ago >= 0:
            self._heard[prompt_id] = time.monotonic() - ago
        return news

    def heard(self, prompt_id: str) -> float:
        return self._heard.get(prompt_id, 0.0)

    async def ending(self, prompt_id: str) -> Ending | None:
        try:
            return await self._call("ending", prompt_id)
        except Away:
            if await self._ask(self._actor.has_ended.remote()):
                self._ended = True
            raise

    async def state(self, prompt_id: str) -> State:
        return await self._call("state", prompt_id)

    async def queue(self) -> Queue:
        return await self._call("queue")

    async def fetch(self, file: Served, to: Path, most: int) -> None:
        content = await self._ask(self._actor.fetch.remote(file, most))
        if not content:
            raise BadFile(f"{file.filename!r} is empty")
        to.write_bytes(content)

    async def has(self, file: Served, size: int | None = None) -> bool:
        return await self._call("has", file, size)

    async def upload(self, upload: Upload) -> None:
        await self._ask(self._actor.take.remote(upload, upload.path.read_bytes()))

    async def cancel(self, prompt_id: str) -> None:
        await self._call("cancel", prompt_id)

    async def forget(self, prompt_id: str) -> None:
        self._heard.pop(prompt_id, None)
        await self._call("forget", prompt_id)

    async def free(self) -> None:
        await self._call("free")


async def _awaited(reference: Any) -> Any:
    return await reference


def ray_workers(
    address: str, count: int, comfy: Comfy, access: Access | None = None, gpus: float = 1.0, cpus: float = 1.0
) -> list[RayWorker]:
    """Actors in the cluster at `address`, or one of this machine for `local`. LikenessError without a Ray."""
    ray = _ray()
    if not ray.is_initialized():
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            if address == "local":
                ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
            else:
                ray.init(address=address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            words = str(error).splitlines()[0][:200]
            raise LikenessError(f"The Ray cluster {address!r} cannot be reached ({words}): start it first.") from None
    actor = ray.remote(ComfyActor).options(
        num_gpus=gpus, num_cpus=cpus, max_restarts=-1, max_task_retries=0, max_concurrency=64
    )
    return [RayWorker(number, actor.remote(number, comfy, access or Access())) for number in range(count)]


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        why = "" if isinstance(error, ModuleNotFoundError) and error.name == "ray" else f" ({error})"
        raise LikenessError(f"Workers on a cluster need Ray{why}: {HOW_TO_GET_IT}.") from None
    version = tuple(int(number) for number in re.findall(r"\d+", ray.__version__)[:2])
    if version < OLDEST:
        raise LikenessError(
            f"Ray {ray.__version__} has a vulnerability that lets others run code: {HOW_TO_GET_IT}, 2.52 or newer."
        )
    return ray


def check_count(count: int) -> int:
    """A number of workers that makes sense."""
    if not 1 <= count <= 4096:
        raise LikenessError(f"--workers is {count}: write a number from 1 to 4096.")
    return count
