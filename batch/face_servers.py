"""Identities made by servers that have the face models, where this machine has none: one small graph for each photo.

Photos are sent as pixels, so that a server sees exactly what this machine would; what it saw of each comes back as a
file, and one person is made of all of them here.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LikenessError
from .files import INPUTS, sha256_of
from .graph import Graph
from .people import PersonPhotos
from .schema import Nodes
from .workers import Away, BadFile, Ending, Refused, State, Upload, Worker

if TYPE_CHECKING:
    from ..faces import Identity

NODES = frozenset(
    ["LoadImage"]
    + [f"Likeness{name}" for name in ("LoadFaceAnalysis", "FindFaces", "IdentityFromPhotos", "SaveIdentity")]
)
_FINDS, _SAVES = "LikenessFindFaces", "save"
_CALLED = {
    "sface": "opencv",
    "dlib": "dlib",
    "mtcnn": "mtcnn",
}  # here -> how the node's choice begins
_LARGEST = 100 * 10**6  # bytes of an identity
_POLL = (0.2, 5.0)  # seconds


@dataclass(frozen=True)
class FaceServer:
    """A server that can make identities, and its choice of a face analysis."""

    worker: Worker
    model: str


def face_server(worker: Worker, nodes: Nodes, faces: str) -> FaceServer | None:
    """The server as a maker of identities with this face analysis; None where it cannot."""
    if not all(name in nodes for name in NODES) or "place" not in nodes["LikenessSaveIdentity"].inputs:
        return None
    offered = list(nodes["LikenessLoadFaceAnalysis"].inputs["model"].options)
    if faces == "auto":  # as here: a pack, which is listed first, else what works now
        return FaceServer(worker, offered[0]) if offered else None
    wanted = _CALLED.get(faces, "")
    model = next((one for one in offered if one == faces or (wanted and one.lower().startswith(wanted))), None)
    return FaceServer(worker, model) if model is not None else None


async def identities_by_servers(
    people: Sequence[PersonPhotos], servers: Sequence[FaceServer]
) -> dict[str, Identity | LikenessError]:
    """Everybody by name, or why there is no identity. LikenessError where no server answers, or one cannot see."""
    from ..faces.identity import join_photos

    pieces: dict[str, list[Identity | None]] = {person.name: [None] * len(person.photos) for person in people}
    unread: dict[str, LikenessError] = {}
    jobs = deque((person.name, n, photo) for person in people for n, photo in enumerate(person.photos))
    live, trouble = list(servers), ""

    async def serve(server: FaceServer) -> None:
        nonlocal trouble
        while jobs:
            name, number, photo = job = jobs.popleft()
            try:
                pieces[name][number] = await _seen_by(server, photo)
            except _Unreadable as error:
                unread[name] = error
            except Away as error:
                jobs.append(job)
                live.remove(server)
                trouble = str(error)
                return

    while jobs:
        if not live:
            raise LikenessError(
                f"No server is available to analyse the photos of {jobs[0][0]!r} ({trouble}): start one."
            )
        await asyncio.gather(*map(serve, live))
    made: dict[str, Identity | LikenessError] = {}
    for name, seen in pieces.items():
        try:
            made[name] = join_photos(seen, name)
        except LikenessError as error:
            made[name] = unread.get(name, error)
    return made


class _Unreadable(LikenessError):
    """A photo that cannot be read."""


async def _seen_by(server: FaceServer, photo: Path) -> Identity | None:
    """What the server sees in a photo; None for no face."""
    from ..faces import Identity

    with tempfile.TemporaryDirectory(prefix="likeness-faces-") as folder:
        upload = await asyncio.to_thread(_pixels, photo, Path(folder))
        try:
            await server.worker.upload(upload)
            ending = await _run(server.worker, _graph(server.model, upload.name))
        except Refused as error:
            raise LikenessError(
                f"{server.worker.name} cannot analyse photos with {server.model!r} ({error}): choose other `faces`."
            ) from None
        if ending.status != "success":
            if ending.node.startswith(_FINDS):
                return None
            raise LikenessError(f"{server.worker.name} could not analyse {photo.name!r} ({ending.error}): see its log.")
        saved = [file for file in ending.files if file.node == _SAVES and file.type == "output"]
        if len(saved) != 1:
            raise LikenessError(f"{server.worker.name} saved no identity of {photo.name!r}: update its pack.")
        path = Path(folder) / "identity.safetensors"
        try:
            await server.worker.fetch(saved[0], path, _LARGEST)
        except BadFile as error:
            raise Away(str(error)) from None
        return Identity.load(path)


def _pixels(photo: Path, folder: Path) -> Upload:
    """The photo as this machine sees it, turned upright and without transparency."""
    from PIL import Image

    from ..faces import read_photo

    try:
        pixels = read_photo(photo)
    except LikenessError as error:
        raise _Unreadable(str(error)) from None
    path = folder / "photo.png"
    Image.fromarray(pixels).save(path, compress_level=1)
    return Upload(f"{INPUTS}/{sha256_of(path)[:32]}.png", path, INPUTS, "input")


def _graph(model: str, image: str) -> Graph:
    nodes = {
        "photo": ("LoadImage", {"image": image}),
        "analysis": ("LikenessLoadFaceAnalysis", {"model": model, "provider": "auto"}),
        "find": (
            _FINDS,
            {"face_analysis": ["analysis", 0], "image": ["photo", 0], "choice": "largest", "index": 0}
            | {"if_none": "error", "min_size": 32},
        ),
        "person": (
            "LikenessIdentityFromPhotos",
            {"faces": ["find", 0], "name": "person", "outliers": "keep", "outlier_threshold": -1.0},
        ),
        _SAVES: (
            "LikenessSaveIdentity",
            {"identity": ["person", 0], "filename": f"batch/made/{uuid.uuid4().hex}", "place": "output"},
        ),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


async def _run(worker: Worker, graph: Graph) -> Ending:
    """How a graph ended. It is cancelled where nobody waits for it any more."""
    prompt, (pause, most) = str(uuid.uuid4()), _POLL
    was_stuck = False
    try:
        await worker.post(prompt, graph, {})
        while (ending := await worker.ending(prompt)) is None:
            await worker.wake(prompt, pause)
            if pause >= most:
                if await worker.state(prompt) is State.UNKNOWN and await worker.ending(prompt) is None:
                    raise Away(f"{worker.name} was started again")
                is_stuck = (await worker.queue()).is_stuck([prompt])
                if is_stuck and was_stuck:
                    raise Away(f"{worker.name} accepts prompts but does not run them: restart it")
                was_stuck = is_stuck
            pause = min(pause * 2, most)
    except BaseException:
        with contextlib.suppress(Exception):
            await worker.cancel(prompt)
        raise
    with contextlib.suppress(Away):
        await worker.forget(prompt)
    return ending
