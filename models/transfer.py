"""Fetching one file over the network into a part file, which a later run resumes.

Everything has an end: the bytes (what the registry or the server says, at most `_LARGEST`), the requests, the time.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ..errors import LikenessError
from .address import address, is_on_hub, token
from .connection import LONGEST_SECONDS, Broken, Redirects, Reply, Watch, ask
from .content import POINTER
from .part import PartialFile
from .progress import Progress
from .registry import ModelFile, human_size

_TRIES = 5  # in a row without progress worth the name
_WORTH = 1 << 20  # bytes of such progress
_REQUESTS = 200  # for one file, whatever its progress
_RETRY_SECONDS = 1.0
_MAY_RECOVER = frozenset({408, 425, 429, 500, 502, 503, 504})
_LARGEST = 10**10  # bytes of a file of unknown size; the largest of the registry has 6.9 GB
_ROUNDED = 1.1  # by how much a file may exceed its rounded size


def fetch(model: ModelFile, path: Path, progress: Progress | None) -> None:
    """Stream the file into a part file until it is complete and proved."""
    with PartialFile(path, _limit(model)) as part:
        stated = _fetch(model, part, progress)
    _must_be_right(model, part, stated)


def _limit(model: ModelFile) -> int:
    """The most bytes that the file can have."""
    if model.size_bytes is not None:
        return model.size_bytes
    return _LARGEST if model.size_about is None else round(model.size_about * _ROUNDED)


def _fetch(model: ModelFile, part: PartialFile, progress: Progress | None) -> str:
    """Fill the part file. Returns the SHA-256 that the hub states for the file, or ''."""
    url, deadline = address(model), time.monotonic() + LONGEST_SECONDS
    failures, reached = 0, part.done
    for _ in range(_REQUESTS):
        try:
            return _request(_Wanted(model, url, deadline), part, progress)
        except urllib.error.HTTPError as error:
            if error.code == 416 and part.done:  # nothing follows what is there: complete, or of another file
                if part.digest in model.sha256:
                    return ""
                part.restart()
            elif error.code not in _MAY_RECOVER or failures + 1 >= _TRIES:
                raise LikenessError(_refused(model, url, error)) from error
        except Broken as error:
            if part.done >= reached + _WORTH:  # a bad line that still delivers is worth going on
                failures, reached = 0, part.done
            if failures + 1 >= _TRIES or time.monotonic() >= deadline:
                raise LikenessError(_unreachable(model, url, str(error))) from error
        failures += 1
        time.sleep(_RETRY_SECONDS * min(failures, _TRIES))
    raise LikenessError(_unreachable(model, url, f"{_REQUESTS} requests were not enough"))


@dataclass(frozen=True)
class _Wanted:
    model: ModelFile
    url: str
    deadline: float


def _request(wanted: _Wanted, part: PartialFile, progress: Progress | None) -> str:
    """One request: append what the server sends. Returns the SHA-256 that the hub states for the file, or ''."""
    redirects = Redirects()
    request = urllib.request.Request(wanted.url, headers={"User-Agent": "likeness", "Accept-Encoding": "identity"})
    if part.done:
        request.add_header("Range", f"bytes={part.done}-")
        if part.etag:
            request.add_header("If-Range", part.etag)
    if is_on_hub(wanted.model) and (secret := token()):
        request.add_unredirected_header("Authorization", f"Bearer {secret}")  # never sent on to another host
    with Watch(wanted.deadline) as watch, ask(request, watch, redirects) as reply:
        # A continuation can be trusted when the server ties it to what we have, or when a hash will prove the whole.
        proved = bool(wanted.model.sha256 or redirects.linked_sha256 or part.etag)
        total = _total(wanted, part, reply, proved)
        etag = reply.headers.get("ETag", "")
        part.etag = "" if etag.startswith("W/") else etag
        _must_fit(part, total if total is not None else wanted.model.size_bytes or wanted.model.size_about)
        limit = _limit(wanted.model)
        for piece in reply.pieces():
            if part.done + len(piece) > limit:
                part.restart()
                raise LikenessError(_too_long(wanted))
            part.append(piece)
            if progress:
                progress(part.done, total)
        if total is not None and part.done < total:
            raise Broken("the connection was interrupted")
    return redirects.linked_sha256


def _total(wanted: _Wanted, part: PartialFile, reply: Reply, proved: bool) -> int | None:
    """How long the server says the whole file is. Forgets the part where the answer does not continue it."""
    asked_to_go_on = bool(part.done)
    if encoding := reply.headers.get("Content-Encoding", "").strip().lower().replace("identity", ""):
        raise LikenessError(
            f"{wanted.url!r} answers in the encoding {encoding!r} though the plain file was asked for: get it at "
            f"{wanted.model.source}."
        )
    if reply.status == 206:
        span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", reply.headers.get("Content-Range", ""))
        if not (asked_to_go_on and proved and span and int(span[1]) == part.done):
            part.restart()
            raise Broken("it answers with another part of the file than was asked for")
        total = int(span[2]) if span[2].isdigit() else None
    else:
        if asked_to_go_on:
            part.restart()
        stated = reply.headers.get("Content-Length", "")
        total = int(stated) if re.fullmatch(r"\d{1,18}", stated) else None
    if total is not None and total > _limit(wanted.model):
        part.restart()
        raise LikenessError(_too_long(wanted, total))
    return total


def _must_fit(part: PartialFile, total: int | None) -> None:
    if total is not None and shutil.disk_usage(part.path.parent).free < total - part.done:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _too_long(wanted: _Wanted, total: int | None = None) -> str:
    model = wanted.model
    says = f"{total} bytes" if total is not None else "more"
    if model.size_bytes is not None:
        known = f"the published file has {model.size_bytes} bytes"
    elif model.size_about is not None:
        known = f"the published file has {model.size}"
    else:
        known = f"no file of a model has more than {human_size(_LARGEST)}"
    return f"{wanted.url!r} offers {says}, and {known}: nothing of it was kept; compare with {model.source}."


def _unreachable(model: ModelFile, url: str, reason: str) -> str:
    return (
        f"{urllib.parse.urlsplit(url).hostname} cannot be reached or stops answering ({reason}): check the network and "
        f"run the same again, or fetch {model.source} elsewhere and put {model.filename} in models/{model.folder}."
    )


def _refused(model: ModelFile, url: str, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403) and is_on_hub(model):
        return (
            f"{model.source} does not allow downloading {model.name} without an account: accept its licence there, set "
            "the environment variable HF_TOKEN to your access token and run the same again."
        )
    if error.code in (404, 410):
        return (
            f"{model.filename} is no longer at {url!r} (error {error.code}): look for it at {model.source} and "
            f"put it in models/{model.folder}."
        )
    return f"The server answered {url!r} with error {error.code} ({error.reason!r}): try again later."


def _must_be_right(model: ModelFile, part: PartialFile, stated: str) -> None:
    """Raise LikenessError unless the finished part is the file we meant; a wrong one is put aside."""
    for is_it, what in (
        (not part.done, "nothing"),
        (part.done <= 1024 and part.starts_with(POINTER), "a Git LFS pointer"),
        (not model.sha256 and part.starts_with(b"<!doctype html", b"<html"), "a web page"),
    ):
        if is_it:
            part.path.unlink(missing_ok=True)
            raise LikenessError(f"{model.url!r} answered with {what}, not the model: get the file at {model.source}.")
    expected = model.sha256 or ((stated,) if stated else ())
    wrong_size = not expected and model.size_bytes not in (None, part.done)
    if wrong_size or (expected and part.digest not in expected):
        aside = part.path.with_suffix(".mismatch")
        part.path.replace(aside)
        wanted = f"{model.size_bytes} bytes" if wrong_size else f"SHA-256 {' or '.join(expected)}"
        raise LikenessError(
            f"What {model.url!r} delivered ({part.done} bytes, SHA-256 {part.digest}) is not the published file "
            f"({wanted}): it was put aside as {aside} and is not used; delete it and try again, or compare with "
            f"{model.source}."
        )
