"""Fetching one file over the network into a part file, which a later run goes on with."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from ..errors import LikenessError
from .content import POINTER
from .progress import CHUNK, Progress
from .registry import HUB, ModelFile

_TIMEOUT_SECONDS = 30.0
_TRIES = 5
_RETRY_SECONDS = 1.0
_MAY_RECOVER = frozenset({408, 425, 429, 500, 502, 503, 504})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and remembers the hash that the hub states for a large file."""

    linked_sha256 = ""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        _must_be_safe(newurl, loopback=_is_loopback(req.full_url))
        etag = headers.get("X-Linked-Etag", "").strip('"')
        if _is_loopback(req.full_url) or req.full_url.startswith(HUB):
            self.linked_sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else self.linked_sha256
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_loopback(url: str) -> bool:
    return urllib.parse.urlsplit(url).hostname in _LOOPBACK


def _must_be_safe(url: str, *, loopback: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (loopback and parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise LikenessError(f"The address {url} is not https: nothing was fetched from it.")


class _Part:
    """The unfinished file: how much is there, and the hash of it so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hasher = hashlib.sha256()
        self.done = 0
        self.etag = ""
        if path.exists():
            with path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self.hasher.update(chunk)
        self.done += len(chunk)

    def restart(self) -> None:
        self.path.unlink(missing_ok=True)
        self.hasher, self.done, self.etag = hashlib.sha256(), 0, ""

    def extend(self, reply: Any, total: int | None, progress: Progress | None) -> None:
        with self.path.open("ab") as file:
            while chunk := reply.read(CHUNK):
                file.write(chunk)
                self._count(chunk)
                if progress:
                    progress(self.done, total)

    def starts_with(self, *signatures: bytes) -> bool:
        with self.path.open("rb") as file:
            return file.read(128).lstrip().lower().startswith(signatures)


def fetch(model: ModelFile, part_path: Path, progress: Progress | None) -> None:
    """Stream `model.url` into the part file until it is complete and proved."""
    _must_be_safe(model.url, loopback=True)
    part, stated = _Part(part_path), ""
    failures = 0
    while True:
        before = part.done
        try:
            stated = _stream(model, part, progress) or stated
            break
        except urllib.error.HTTPError as error:
            if error.code == 416 and part.done:  # nothing follows what is there: complete, or of another file
                if model.sha256 and part.hasher.hexdigest() in model.sha256:
                    break
                part.restart()
            elif error.code not in _MAY_RECOVER or failures + 1 >= _TRIES:
                raise LikenessError(_refused(model, error)) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            failures = 0 if part.done > before else failures  # a bad line that still delivers is worth going on
            if failures + 1 >= _TRIES:
                reason = getattr(error, "reason", None) or error
                raise LikenessError(
                    f"{urllib.parse.urlsplit(model.url).hostname} cannot be reached or stops answering ({reason}): "
                    f"check the network and run the same again, or fetch {model.source} elsewhere and put "
                    f"{model.filename} in models/{model.folder}."
                ) from error
        failures += 1
        time.sleep(_RETRY_SECONDS * failures)
    _must_be_right(model, part, stated)


def _stream(model: ModelFile, part: _Part, progress: Progress | None) -> str:
    """One request: append what the server sends. Returns the SHA-256 that the hub states for the file, or ''."""
    redirects = _Redirects()
    request = urllib.request.Request(model.url, headers={"User-Agent": "likeness", "Accept-Encoding": "identity"})
    if part.done:
        request.add_header("Range", f"bytes={part.done}-")
        if part.etag:
            request.add_header("If-Range", part.etag)
    if model.url.startswith(HUB) and (token := os.environ.get("HF_TOKEN")):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # never sent on to another host
    with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_SECONDS) as reply:
        resumed = reply.status == 206
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("Content-Range", ""))
        # A continuation can be trusted when the server ties it to what we have, or when a hash will prove the whole.
        proved = bool(model.sha256 or redirects.linked_sha256 or part.etag)
        if resumed and not (span and int(span[1]) == part.done and proved):
            part.restart()
            return _stream(model, part, progress)
        if not resumed and part.done:
            part.restart()
        etag = reply.headers.get("ETag", "")
        part.etag = "" if etag.startswith("W/") else etag
        remaining = reply.headers.get("Content-Length")
        total = None if remaining is None else part.done + int(remaining)
        if total is not None and shutil.disk_usage(part.path.parent).free < total - part.done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        part.extend(reply, total, progress)
        if total is not None and part.done < total:
            raise ConnectionError("the connection broke off")
    return redirects.linked_sha256


def _refused(model: ModelFile, error: urllib.error.HTTPError) -> str:
    if error.code in (401, 403):
        return (
            f"{model.source} lets nobody fetch {model.name} without an account: accept its licence there, set the "
            "environment variable HF_TOKEN to your access token and run the same again."
        )
    if error.code in (404, 410):
        return (
            f"{model.filename} is no longer at {model.url} (error {error.code}): look for it at {model.source} and "
            f"put it in models/{model.folder}."
        )
    return f"The server answered {model.url} with error {error.code} ({error.reason}): try again later."


def _must_be_right(model: ModelFile, part: _Part, stated: str) -> None:
    """Raise LikenessError unless the finished part is the file we meant; a wrong one is put aside."""
    digest = part.hasher.hexdigest()
    if part.done <= 1024 and part.starts_with(POINTER):
        part.restart()
        raise LikenessError(
            f"{model.url} answered with a Git LFS pointer, not the model itself: get it at {model.source}."
        )
    if not model.sha256 and part.starts_with(b"<!doctype html", b"<html"):
        part.restart()
        raise LikenessError(f"{model.url} answered with a web page, not a model: get the file at {model.source}.")
    expected = model.sha256 or ((stated,) if stated else ())
    wrong_size = not expected and model.size_bytes not in (None, part.done)
    if wrong_size or (expected and digest not in expected):
        aside = part.path.with_suffix(".mismatch")
        part.path.replace(aside)
        wanted = f"{model.size_bytes} bytes" if wrong_size else f"SHA-256 {' or '.join(expected)}"
        raise LikenessError(
            f"What {model.url} delivered ({part.done} bytes, SHA-256 {digest}) is not the published file ({wanted}): "
            f"it was put aside as {aside} and is not used; delete it and try again, or compare with {model.source}."
        )
