"""Web requests that end: redirects stay on https, and a server that trickles is left."""

from __future__ import annotations

import functools
import http.client
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from ..errors import LikenessError
from .address import hub, is_loopback, must_be_safe

_TIMEOUT_SECONDS = 30.0  # without a single byte
_PATIENCE_SECONDS = 60.0  # over which the least speed is looked at
_LEAST_SPEED = 1000  # bytes in a second
LONGEST_SECONDS = 24 * 3600.0  # of a whole download, however many requests it takes
_READ = 1 << 16


class Broken(Exception):
    """A connection that could not be made or did not deliver what it had begun; worth another try."""


class Watch:
    """Cuts the connection of a request that delivers too little, even where every single byte comes in time."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.received = 0
        self.verdict = ""
        self._socket: socket.socket | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def follow(self, connection: socket.socket) -> None:
        """Watch this one from now on."""
        before, self._socket = self._socket, connection.dup()
        if before:
            before.close()

    def _look(self) -> None:
        while True:
            before, left = self.received, self.deadline - time.monotonic()
            if self._over.wait(max(0.0, min(_PATIENCE_SECONDS, left))):
                return
            if time.monotonic() >= self.deadline:
                self.verdict = f"it takes longer than {LONGEST_SECONDS / 3600:.0f} hours"
            elif self.received - before < _LEAST_SPEED * _PATIENCE_SECONDS:
                self.verdict = f"it delivers less than {_LEAST_SPEED} bytes a second"
            if self.verdict:
                self._cut()
                return

    def _cut(self) -> None:
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # it is closed already
                return

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._socket is not None:
            self._socket.close()


class _Watched(http.client.HTTPConnection):
    watch: Watch

    def connect(self) -> None:
        super().connect()
        self.watch.follow(self.sock)


class _WatchedSecure(http.client.HTTPSConnection, _Watched):
    """Followed from before the encryption is agreed upon: `_Watched` stands between the two classes of the library."""


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(functools.partial(self._connection, _Watched), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        secure = functools.partial(_WatchedSecure, context=ssl.create_default_context())
        return self.do_open(functools.partial(self._connection, secure), req)

    def _connection(self, make: Any, host: str, **options: Any) -> http.client.HTTPConnection:
        connection = make(host, **options)
        connection.watch = self.watch
        return connection


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only, and remembers the hash that the hub states for a large file."""

    linked_sha256 = ""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        must_be_safe(newurl, loopback=is_loopback(req.full_url))
        etag = headers.get("X-Linked-Etag", "").strip('"')
        if is_loopback(req.full_url) or req.full_url.startswith(hub()):
            self.linked_sha256 = etag if re.fullmatch(r"[0-9a-f]{64}", etag) else self.linked_sha256
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and newurl.startswith(hub()) and req.has_header("Authorization"):
            following.add_unredirected_header("Authorization", req.get_header("Authorization", ""))
        return following

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it


class Reply:
    """What a server answers: status, headers, and the body piece by piece."""

    def __init__(self, raw: Any, watch: Watch) -> None:
        self.status: int = raw.status
        self.headers = raw.headers
        self._raw, self._watch = raw, watch

    def __enter__(self) -> Reply:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def pieces(self) -> Iterator[bytes]:
        """The body as it arrives; raises Broken where the line does."""
        while True:
            try:
                piece = self._raw.read1(_READ)
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise Broken(self._watch.verdict or str(error) or type(error).__name__) from error
            if self._watch.verdict:
                raise Broken(self._watch.verdict)
            if not piece:
                return
            self._watch.received += len(piece)
            yield piece


def ask(request: urllib.request.Request, watch: Watch, redirects: Redirects) -> Reply:
    """Send a request and wait for the headers. Raises HTTPError for refusals, Broken for a line that fails."""
    opener = urllib.request.build_opener(redirects, _Handler(watch))
    try:
        return Reply(opener.open(request, timeout=_TIMEOUT_SECONDS), watch)
    except (LikenessError, urllib.error.HTTPError):
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = watch.verdict or getattr(error, "reason", None) or str(error) or type(error).__name__
        raise Broken(str(reason)) from error
