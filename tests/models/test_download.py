from __future__ import annotations

import contextlib
import errno
import gzip
import http.server
import io
import os
import shutil
import stat
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath, PureWindowsPath

import bad_values
import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, data, integers, sampled_from, text

from likeness.errors import LikenessError
from likeness.models import archive as archives
from likeness.models import connection, transfer
from likeness.models import registry as registry_module
from likeness.models.archive import unpack
from likeness.models_download import HUB, DownloadOutcome, Health, ModelFile, check_file, download, registry

BODY = bytes(range(256)) * 400  # 102400 bytes
MakeModel = Callable[..., ModelFile]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_READ", 4096)


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    seen: list[tuple[int, int | None]] = []
    outcome, path = download(model(BODY), tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (outcome, path) == (DownloadOutcome.DOWNLOADED, tmp_path / "ipadapter" / "thing.bin")
    assert path.read_bytes() == BODY
    assert files(tmp_path) == ["ipadapter/thing.bin"]
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)


# Interruptions


def test_a_broken_connection_is_resumed_where_it_broke(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY, drops=[50_000, 20_000])
    _, path = download(model(BODY), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges() == [None, "bytes=50000-", "bytes=70000-"]


def test_a_later_run_goes_on_with_the_part(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)

    class Cancelled(Exception):
        pass

    def cancel(done: int, total: int | None) -> None:
        if done > 30_000:
            raise Cancelled

    with pytest.raises(Cancelled):
        download(model(BODY), tmp_path, progress=cancel)
    assert files(tmp_path) == ["ipadapter/thing.bin.part"]
    done = (tmp_path / "ipadapter" / "thing.bin.part").stat().st_size
    _, path = download(model(BODY), tmp_path)
    assert path.read_bytes() == BODY
    assert server.ranges() == [None, f"bytes={done}-"]


def test_a_server_without_ranges_starts_again(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY, ranges=False, drops=[50_000])
    _, path = download(model(BODY), tmp_path)
    assert path.read_bytes() == BODY


def test_a_complete_part_needs_no_more_bytes(server, model: MakeModel, tmp_path: Path, page, put):
    server.pages["/thing.bin"] = page(BODY)
    put(tmp_path / "ipadapter" / "thing.bin.part", BODY)
    _, path = download(model(BODY), tmp_path)
    assert path.read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_part_that_is_too_long_is_thrown_away(server, model: MakeModel, tmp_path: Path, page, put):
    server.pages["/thing.bin"] = page(BODY)
    put(tmp_path / "ipadapter" / "thing.bin.part", BODY + b"rubbish")
    _, path = download(model(BODY), tmp_path)
    assert path.read_bytes() == BODY


def test_an_old_part_that_nothing_could_prove_is_not_continued(server, model: MakeModel, tmp_path: Path, page, put):
    server.pages["/thing.bin"] = page(BODY)
    put(tmp_path / "ipadapter" / "thing.bin.part", b"of an older revision")
    _, path = download(model(sha256=()), tmp_path)
    assert path.read_bytes() == BODY


def test_a_file_that_changes_between_two_tries_is_not_mixed(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(b"x" * 90_000, drops=[50_000], headers={"ETag": '"old"'})

    def swap(done: int, total: int | None) -> None:
        server.pages["/thing.bin"] = page(BODY, headers={"ETag": '"new"'})

    _, path = download(model(sha256=()), tmp_path, progress=swap)
    assert path.read_bytes() == BODY
    assert server.requests[1][1]["if-range"] == '"old"'


def test_a_line_that_never_delivers_is_given_up_in_words(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY, drops=[0] * 50)
    with pytest.raises(LikenessError, match="check the network"):
        download(model(BODY), tmp_path)
    assert len(server.requests) == transfer._TRIES


def test_a_busy_server_is_asked_again(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(status=503)
    with pytest.raises(LikenessError, match="503"):
        download(model(BODY), tmp_path)
    assert len(server.requests) == transfer._TRIES


# Wrong content


def test_a_wrong_hash_never_reaches_its_place(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    with pytest.raises(LikenessError, match="not the published file"):
        download(model(b"what was published"), tmp_path)
    assert files(tmp_path) == ["ipadapter/thing.bin.mismatch"]


def test_any_of_several_known_hashes_is_accepted(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    known = ("0" * 64, *model(BODY).sha256)
    assert download(model(sha256=known), tmp_path)[0] is DownloadOutcome.DOWNLOADED


def test_without_a_hash_the_exact_size_decides(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    with pytest.raises(LikenessError, match="99 bytes"):
        download(model(sha256=(), size_bytes=99), tmp_path)
    assert download(model(sha256=(), size_bytes=len(BODY)), tmp_path)[0] is DownloadOutcome.DOWNLOADED


def test_without_a_pinned_hash_the_one_the_hub_states_decides(server, model: MakeModel, tmp_path: Path, page):
    stated = {"Location": "/cdn", "X-Linked-Etag": f'"{"0" * 64}"'}
    server.pages["/thing.bin"] = page(status=302, headers=stated)
    server.pages["/cdn"] = page(BODY)
    with pytest.raises(LikenessError, match=r"0{64}"):
        download(model(sha256=()), tmp_path)
    stated["X-Linked-Etag"] = model(BODY).sha256[0]
    server.pages["/thing.bin"] = page(status=302, headers=stated)
    assert download(model(sha256=()), tmp_path)[0] is DownloadOutcome.DOWNLOADED


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>log in</html>", "a web page"),
    ],
)
def test_what_is_no_model_is_recognised(body: bytes, words: str, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(body)
    with pytest.raises(LikenessError, match=words):
        download(model(sha256=()), tmp_path)
    assert files(tmp_path) == []


# Refusals


@pytest.mark.parametrize(("status", "words"), [(404, "no longer at"), (403, "error 403"), (418, "error 418")])
def test_a_refusal_is_told_in_words(status: int, words: str, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(status=status)
    with pytest.raises(LikenessError, match=words):
        download(model(BODY), tmp_path)
    assert files(tmp_path) == []
    assert len(server.requests) == 1


def test_no_network_is_told_in_words(server, model: MakeModel, tmp_path: Path):
    with pytest.raises(LikenessError, match="check the network"):
        download(model(BODY, url="http://127.0.0.1:9/thing.bin"), tmp_path)


@pytest.mark.parametrize("url", ["http://example.org/x.bin", "file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_only_https_is_fetched(url: str, model: MakeModel, tmp_path: Path):
    with pytest.raises(LikenessError, match="not https"):
        download(model(BODY, url=url), tmp_path)


@pytest.mark.parametrize("location", ["http://example.org/x.bin", "file:///etc/passwd"])
def test_redirects_off_https_are_not_followed(location: str, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(status=302, headers={"Location": location})
    with pytest.raises(LikenessError, match=r"not https|not allowed"):
        download(model(BODY), tmp_path)


def test_a_redirect_from_the_internet_cannot_reach_this_machine():
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(LikenessError, match="not https"):
        connection.Redirects().redirect_request(request, None, 302, "", {}, "http://127.0.0.1:8188/free")


@pytest.fixture
def on_hub(monkeypatch: pytest.MonkeyPatch, server, model: MakeModel) -> Callable[..., ModelFile]:
    """Makes entries for files of the hub, which the test server is a mirror of."""
    monkeypatch.setenv("HF_ENDPOINT", f"{server.address}/hub/")
    return lambda body=BODY, **changes: model(body, url=f"{HUB}x", filename="x.bin", **changes)


def authorizations(server) -> list[str | None]:
    return [headers.get("authorization") for _, headers in server.requests]


def test_the_access_token_goes_to_the_hub_only(monkeypatch, server, model: MakeModel, on_hub, tmp_path, page):
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.pages["/thing.bin"] = page(BODY)
    server.pages["/hub/x"] = page(status=302, headers={"Location": "/hub/renamed"})
    server.pages["/hub/renamed"] = page(status=302, headers={"Location": "/cdn"})
    server.pages["/cdn"] = page(BODY)
    download(model(BODY), tmp_path)
    download(on_hub(), tmp_path)
    assert authorizations(server) == [None, "Bearer secret", "Bearer secret", None]


def test_a_stored_token_is_used_unless_that_is_switched_off(
    monkeypatch, server, on_hub, tmp_path: Path, page, put, bare_machine: Path
):
    server.pages["/hub/x"] = page(BODY)
    path = put(bare_machine.parents[2] / ".cache" / "huggingface" / "token", b"stored\n")
    download(on_hub(), tmp_path / "a")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    download(on_hub(), tmp_path / "b")
    monkeypatch.delenv("HF_HUB_DISABLE_IMPLICIT_TOKEN")
    path.write_bytes(b"\xff\xfe two\nlines")
    download(on_hub(), tmp_path / "c")
    assert authorizations(server) == ["Bearer stored", None, None]


def test_a_token_that_cannot_be_sent_is_told(monkeypatch, server, on_hub, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", "hf_\nX-Evil: 1")
    with pytest.raises(LikenessError, match="HF_TOKEN"):
        download(on_hub(), tmp_path)
    assert server.requests == []


def test_the_hub_is_not_asked_when_the_user_is_offline(monkeypatch, server, on_hub, tmp_path: Path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(LikenessError, match="HF_HUB_OFFLINE"):
        download(on_hub(), tmp_path)
    assert server.requests == []


@pytest.mark.parametrize("mirror", ["http://mirror.example.org", "file:///tmp", "//x", "http://[", "nonsense"])
def test_a_mirror_must_be_https(mirror: str, monkeypatch, model: MakeModel, tmp_path: Path):
    monkeypatch.setenv("HF_ENDPOINT", mirror)
    with pytest.raises(LikenessError, match=r"not https|is not a valid address"):
        download(model(BODY, url=f"{HUB}x"), tmp_path)


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_file_says_how_to_get_in(status: int, server, on_hub, tmp_path: Path, page):
    server.pages["/hub/x"] = page(status=status)
    with pytest.raises(LikenessError, match="accept its licence there, set the environment variable HF_TOKEN"):
        download(on_hub(), tmp_path)


# Bounds


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_PATIENCE_SECONDS", 0.2)


Handler = http.server.BaseHTTPRequestHandler


def endless(handler: Handler, total: int | None = None) -> None:
    handler.send_response(200)
    if total is not None:
        handler.send_header("Content-Length", str(total))
    handler.end_headers()
    for _ in range(20_000):  # 1.3 GB, if anybody takes it
        handler.wfile.write(bytes(1 << 16))


@pytest.mark.parametrize("known", [{"size_bytes": len(BODY)}, {"size_about": len(BODY)}])
@pytest.mark.parametrize("total", [None, 10**12])
def test_more_than_the_known_size_is_never_taken(known, total, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(script=lambda handler: endless(handler, total))
    taken = []
    with pytest.raises(LikenessError, match="nothing of it was kept"):
        download(model(BODY, **known), tmp_path, progress=lambda done, _: taken.append(done))
    assert max(taken, default=0) <= 1.1 * len(BODY)
    assert files(tmp_path) == [] and len(server.requests) == 1


def test_a_file_of_unknown_size_has_a_bound_too(monkeypatch, server, model: MakeModel, tmp_path: Path, page):
    monkeypatch.setattr(transfer, "_LARGEST", 10**6)
    server.pages["/thing.bin"] = page(script=endless)
    with pytest.raises(LikenessError, match=r"no file of a model has more than 1 MB"):
        download(model(sha256=()), tmp_path)


def test_room_is_asked_for_by_the_known_size_where_the_server_says_none(
    monkeypatch, server, model: MakeModel, tmp_path: Path, page
):
    server.pages["/thing.bin"] = page(script=endless)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(LikenessError, match="disk is full"):
        download(model(BODY, size_bytes=10**7), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("status", [206, 416, 301, 503])
def test_the_same_wrong_answer_is_not_asked_for_without_end(status: int, server, model, tmp_path: Path, page, put):
    put(tmp_path / "ipadapter" / "thing.bin.part", BODY[:1000])
    headers = {"Location": f"{server.address}/thing.bin", "Content-Range": "bytes 7-8/9"}
    server.pages["/thing.bin"] = page(BODY, status=status, headers=headers)
    with pytest.raises(LikenessError) as caught:
        download(model(BODY), tmp_path)
    assert len(server.requests) <= 2 * transfer._TRIES + 2 and str(caught.value).isprintable()


def test_a_server_that_breaks_off_after_every_few_bytes_is_left(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY, drops=[1] * 10_000)
    with pytest.raises(LikenessError, match="was interrupted"):
        download(model(BODY), tmp_path)
    assert len(server.requests) == transfer._TRIES


def trickle(handler: Handler, start: bytes) -> None:
    handler.wfile.write(start)
    for _ in range(1000):
        handler.wfile.write(b"a")
        time.sleep(0.02)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"HTTP/1.0 200 OK\r\nX: ",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 102400\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["status", "header", "body", "body of known length", "chunk"],
)
def test_a_server_that_trickles_is_left(start: bytes, impatient, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(script=lambda handler: trickle(handler, start))
    begun = time.monotonic()
    with pytest.raises(LikenessError, match="less than 1000 bytes a second"):
        download(model(BODY), tmp_path)
    assert time.monotonic() - begun < 10
    assert threading.active_count() < 10


def test_a_whole_download_has_an_end(monkeypatch, server, model: MakeModel, tmp_path: Path, page):
    for module in (connection, transfer):
        monkeypatch.setattr(module, "LONGEST_SECONDS", 0.3)
    server.pages["/thing.bin"] = page(script=lambda handler: trickle(handler, b"HTTP/1.0 200 OK\r\n\r\n"))
    with pytest.raises(LikenessError, match="takes longer than"):
        download(model(BODY), tmp_path)
    assert len(server.requests) == 1
    assert files(tmp_path) == ["ipadapter/thing.bin.part"], "the next run goes on with it"


@pytest.mark.parametrize("encoding", ["gzip", "br", "x-\xe9"])
def test_an_encoded_body_is_not_taken_for_the_file(encoding: str, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(gzip.compress(BODY), headers={"Content-Encoding": encoding})
    with pytest.raises(LikenessError, match="encoding"):
        download(model(sha256=()), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("length", ["-5", "x", "9" * 40, "", "102400, 102400"])
def test_a_length_that_is_none_is_not_believed(length: str, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY, headers={"Content-Length": length})
    assert download(model(BODY), tmp_path)[0] is DownloadOutcome.DOWNLOADED


@pytest.mark.parametrize(("length", "words"), [("1000", "not the published file"), ("102401", "was interrupted")])
def test_a_wrong_length_never_ends_in_a_file(length: str, words: str, server, model, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY, ranges=False, headers={"Content-Length": length})
    with pytest.raises(LikenessError, match=words):
        download(model(BODY), tmp_path)
    assert not (tmp_path / "ipadapter" / "thing.bin").exists()


def test_an_empty_answer_is_no_model(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(b"")
    with pytest.raises(LikenessError, match="answered with nothing"):
        download(model(sha256=()), tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\xff\r\n\r\n",
        b"HTTP/1.0 999999 X\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.0 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.0 302 X\r\nLocation: https://\xff\xfe/\r\n\r\n",
        b"HTTP/1.0 302 X\r\nLocation: https://[\r\n\r\n",
        b"HTTP/1.0 302 X\r\nLocation: //a..b/\r\n\r\n",
        b"HTTP/1.0 302 X\x1b[2J\r\nLocation: ftp://127.0.0.1/\r\n\r\n",
        b"HTTP/1.0 404 \x1b[2J\r\n\r\n",
    ],
)
def test_nonsense_is_told_in_one_line(answer: bytes, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(script=lambda handler: handler.wfile.write(answer))
    with pytest.raises(LikenessError) as caught:
        download(model(BODY), tmp_path)
    assert str(caught.value).isprintable() and files(tmp_path) == []


# Who else writes


def test_two_processes_do_not_mix_their_bytes(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    seen: list[str] = []

    def other(done: int, total: int | None) -> None:
        if not seen:
            with pytest.raises(LikenessError, match="Another process") as caught:
                download(model(BODY), tmp_path)
            seen.append(str(caught.value))

    assert download(model(BODY), tmp_path, progress=other)[1].read_bytes() == BODY
    assert seen


@pytest.mark.parametrize("kind", ["folder", "fifo", "socket", "broken link", "looping link"])
@pytest.mark.parametrize("name", ["thing.bin", "thing.bin.part"])
def test_what_is_no_file_is_neither_opened_nor_replaced(
    kind: str, name: str, server, model: MakeModel, tmp_path: Path, page
):
    server.pages["/thing.bin"] = page(BODY)
    (tmp_path / "ipadapter").mkdir()
    bad_values.FILES[kind](tmp_path / "ipadapter" / name)
    with pytest.raises(LikenessError, match="move it away"):
        download(model(BODY), tmp_path)
    assert [path.name for path in (tmp_path / "ipadapter").iterdir()] == [name]


@pytest.mark.parametrize("kind", ["garbage", "fifo", "broken link", "looping link"])
def test_a_models_folder_that_is_none_is_told(kind: str, server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    bad_values.FILES[kind](tmp_path / "ipadapter")
    with pytest.raises(LikenessError, match="--models-dir"):
        download(model(BODY), tmp_path)
    with pytest.raises(LikenessError, match="--models-dir"):
        download(model(BODY), tmp_path / ("x" * 300))


# The disk


def test_a_disk_that_is_too_small_is_noticed_before_the_download(
    monkeypatch: pytest.MonkeyPatch, server, model: MakeModel, tmp_path: Path, page
):
    server.pages["/thing.bin"] = page(BODY)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(LikenessError, match="disk is full"):
        download(model(BODY), tmp_path)
    assert files(tmp_path) == []


def test_a_disk_that_fills_up_keeps_the_part(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)

    def full(done: int, total: int | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LikenessError, match="disk is full"):
        download(model(BODY), tmp_path, progress=full)
    assert files(tmp_path) == ["ipadapter/thing.bin.part"]


# Files that are there


def test_the_right_file_is_not_fetched_again(server, model: MakeModel, tmp_path: Path, put):
    put(tmp_path / "ipadapter" / "thing.bin", BODY)
    assert download(model(BODY), tmp_path)[0] is DownloadOutcome.PRESENT
    assert server.requests == []


def test_another_file_of_that_name_is_kept(server, model: MakeModel, tmp_path: Path, put):
    path = put(tmp_path / "ipadapter" / "thing.bin", b"mine")
    with pytest.raises(LikenessError, match="left as it is"):
        download(model(BODY), tmp_path)
    assert path.read_bytes() == b"mine"
    assert server.requests == []


def test_a_file_that_appears_meanwhile_is_kept(server, model: MakeModel, tmp_path: Path, page, put):
    server.pages["/thing.bin"] = page(BODY)
    with pytest.raises(LikenessError, match="appeared"):
        download(model(BODY), tmp_path, progress=lambda *_: put(tmp_path / "ipadapter" / "thing.bin", b"mine"))
    assert (tmp_path / "ipadapter" / "thing.bin").read_bytes() == b"mine"


def test_a_dry_run_writes_and_asks_nothing(server, model: MakeModel, tmp_path: Path):
    root = tmp_path / "not there"
    outcome, path = download(model(BODY, commercial=False), root, dry_run=True)
    assert outcome is DownloadOutcome.WOULD_DOWNLOAD and path == root / "ipadapter" / "thing.bin"
    assert not root.exists() and server.requests == []


# Licences


def test_a_non_commercial_file_needs_consent(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    restricted = model(BODY, commercial=False, licence="research only")
    for consent in (None, lambda _: False):
        with pytest.raises(LikenessError, match="research only"):
            download(restricted, tmp_path, confirm_licence=consent)
    assert server.requests == [] and files(tmp_path) == []
    asked: list[ModelFile] = []
    download(restricted, tmp_path, confirm_licence=lambda entry: asked.append(entry) is None)
    assert asked == [restricted] and files(tmp_path) == ["ipadapter/thing.bin"]


def test_a_file_without_an_address_says_where_it_is(model: MakeModel, tmp_path: Path):
    by_hand = model(url="", page="https://example.org/zoo", notes="by hand only")
    with pytest.raises(LikenessError, match=r"https://example\.org/zoo.*by hand only"):
        download(by_hand, tmp_path)


# Archives


def archive(members: dict[str, bytes], link: str = "", compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
        if link:
            entry = zipfile.ZipInfo(link)
            entry.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(entry, "/etc/passwd")
    return buffer.getvalue()


@pytest.fixture
def pack(server, model: MakeModel, page) -> Callable[..., ModelFile]:
    def make(body: bytes) -> ModelFile:
        server.pages["/pack.zip"] = page(body)
        return model(body, url=f"{server.address}/pack.zip", filename="pack.zip", folder="insightface/models")

    return make


@pytest.mark.parametrize("prefix", ["", "pack/"])
def test_an_archive_is_unpacked_without_its_nested_folder(prefix: str, pack, tmp_path: Path):
    outcome, path = download(pack(archive({f"{prefix}a.onnx": b"a", f"{prefix}b.onnx": b"b"})), tmp_path)
    assert (outcome, path) == (DownloadOutcome.UNPACKED, tmp_path / "insightface" / "models" / "pack")
    assert files(tmp_path) == ["insightface/models/pack/a.onnx", "insightface/models/pack/b.onnx"]


EVIL = [
    *(
        "../evil.onnx",
        "/evil.onnx",
        "pack/../../evil.onnx",
        "..\\evil.onnx",
        "C:\\evil.onnx",
        "\\\\host\\share\\evil.onnx",
    ),
    *("D:evil.onnx", "pack/D:evil.onnx", "a.onnx:x", "pack/sub/a.onnx:x.onnx", "pack/CON", "nul.onnx", "com1.onnx"),
    *(
        "pack/LPT9/evil.onnx",
        "pack./evil.onnx",
        "evil.onnx.",
        "evil.onnx ",
        "pack/ /evil.onnx",
        "...",
        "pack/\x1b[2J.onnx",
    ),
    *("evil?.onnx", "a|b.onnx", "x" * 300 + ".onnx", "/".join(["deep"] * 50) + ".onnx"),
]


@pytest.mark.parametrize("name", EVIL)
def test_members_that_some_system_would_put_elsewhere_are_refused(name: str, pack, tmp_path: Path):
    with pytest.raises(LikenessError, match=r"which .*: it was not unpacked") as caught:
        download(pack(archive({"a.onnx": b"a", name: b"evil"})), tmp_path / "root")
    assert files(tmp_path) == ["root/insightface/models/pack.zip.part"]
    assert len(str(caught.value)) < 400


@given(text(sampled_from("ab./\\: \x00*CONnul1¹~$"), min_size=1, max_size=12))
@settings(max_examples=500, deadline=None)
def test_what_is_not_refused_stays_in_its_folder_by_the_rules_of_windows_too(name: str):
    entry = zipfile.ZipInfo(name)
    path = PurePosixPath(entry.filename.replace("\\", "/"))
    if archives._fault(entry, path):
        return
    placed = PureWindowsPath("D:/pack", *path.parts)
    assert placed.parts == ("D:\\", "pack", *path.parts) and not placed.is_reserved()
    assert not any(":" in part or part != part.rstrip(". ") for part in path.parts)


@pytest.mark.parametrize(
    "names",
    [["a.onnx", "A.onnx"], ["x/a.onnx", "X"], ["x", "x/a.onnx"], ["stra\u00dfe", "STRASSE"], ["\u00e9", "e\u0301"]],
)
def test_members_that_are_one_file_on_some_systems_are_refused(names: list[str], pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="differ only in case"):
        download(pack(archive(dict.fromkeys(names, b"a"))), tmp_path)
    assert files(tmp_path) == ["insightface/models/pack.zip.part"]


def test_links_in_an_archive_are_refused(pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="leads out"):
        download(pack(archive({"a.onnx": b"a"}, link="passwd")), tmp_path)


def test_a_member_whose_name_goes_on_after_a_nul_is_refused(pack, tmp_path: Path):
    """zipfile cuts such a name at the NUL, so that another name would be kept than the one that is packed."""
    body = archive({"a.onnx_evil": b"a"}).replace(b"a.onnx_evil", b"a.onnx\0evil")
    with pytest.raises(LikenessError, match="cannot be kept"):
        download(pack(body), tmp_path)


def test_an_archive_that_unpacks_to_far_more_than_its_size_is_refused(pack, tmp_path: Path):
    body = archive({"a.onnx": bytes(1 << 25)}, compression=zipfile.ZIP_DEFLATED)
    assert len(body) < 1 << 16
    with pytest.raises(LikenessError, match="33554432 bytes, more than 10 times"):
        download(pack(body), tmp_path)
    assert files(tmp_path) == ["insightface/models/pack.zip.part"]


def test_an_archive_of_countless_files_is_refused(pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="2000 files"):
        download(pack(archive({f"{number}.onnx": b"" for number in range(2000)})), tmp_path)


@pytest.mark.parametrize("members", [{}, {"pack/": b""}, {"__MACOSX/._a.onnx": b"a"}])
def test_an_empty_archive_is_not_called_unpacked(members: dict[str, bytes], pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="holds no files"):
        download(pack(archive(members)), tmp_path)


def changed(body: bytes, local: int, central: int, value: int) -> bytes:
    """A zip file of one member with a 16-bit field of its two headers changed."""
    raw = bytearray(body)
    for at in (local, body.index(b"PK\1\2") + central):
        raw[at : at + 2] = value.to_bytes(2, "little")
    return bytes(raw)


@pytest.mark.parametrize(
    ("local", "central", "value", "words"),
    [
        (6, 8, 1, "is encrypted"),
        (8, 10, 99, "compressed in an unusual way"),
        (8, 10, 12, "compressed in an unusual way"),
        (8, 10, 8, "not a complete zip"),  # stored, but called deflated
        (4, 6, 255, "not a complete zip"),  # a version of the format that nobody has
        (14, 16, 1, "not a complete zip"),  # the checksum
        (26, 28, 3, "not a complete zip"),  # the length of the name
    ],
)
def test_an_odd_archive_is_told_in_one_sentence(local, central, value, words: str, pack, tmp_path: Path):
    with pytest.raises(LikenessError, match=words):
        download(pack(changed(archive({"a.onnx": b"a" * 100}), local, central, value)), tmp_path)
    assert files(tmp_path) == ["insightface/models/pack.zip.part"]


@given(data())
@settings(max_examples=200, deadline=None)
def test_a_damaged_archive_ends_in_files_or_in_a_sentence(draw):
    body = bytearray(
        archive({"a.onnx": bytes(range(200)) * 5, "pack/b.onnx": b"b" * 99}, compression=zipfile.ZIP_DEFLATED)
    )
    for _ in range(draw.draw(integers(1, 4))):
        body[draw.draw(integers(0, len(body) - 1))] = draw.draw(integers(0, 255))
    cut = draw.draw(integers(0, len(body)))
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "pack.zip"
        path.write_bytes(body[:cut] if draw.draw(booleans()) else body)
        with contextlib.suppress(LikenessError):
            unpack(path, Path(place) / "pack")
        assert {name.split("/")[0] for name in files(Path(place))} <= {"pack", "pack.zip"}


def test_what_a_killed_process_left_of_unpacking_is_cleared_away(pack, tmp_path: Path, put):
    old = put(tmp_path / "insightface" / "models" / ".pack.old.part.d" / "a.onnx").parent
    fresh = put(tmp_path / "insightface" / "models" / ".pack.new.part.d" / "a.onnx").parent
    os.utime(old, (0, 0))
    download(pack(archive({"a.onnx": b"a"})), tmp_path)
    assert not old.exists() and fresh.exists()


def test_an_archive_without_the_files_it_is_known_for_is_told(monkeypatch, pack, tmp_path: Path, model: MakeModel):
    entry = pack(archive({"a.onnx": b"a"}))
    member = model(name="pack/b", filename="b.onnx", folder="insightface/models/pack")
    monkeypatch.setattr(registry_module, "_known", lambda: (entry, member))
    with pytest.raises(LikenessError, match=r"lacks b\.onnx"):
        download(entry, tmp_path)


def test_unpacking_keeps_files_that_are_there(pack, tmp_path: Path, put):
    mine = put(tmp_path / "insightface" / "models" / "pack" / "a.onnx", b"mine")
    with pytest.raises(LikenessError, match="left as it is"):
        download(pack(archive({"a.onnx": b"a"})), tmp_path)
    assert mine.read_bytes() == b"mine"


def test_an_archive_fetched_by_hand_is_unpacked_and_kept(pack, server, tmp_path: Path, put):
    body = archive({"a.onnx": b"a"})
    entry = pack(body)
    put(tmp_path / "insightface" / "models" / "pack.zip", body)
    assert download(entry, tmp_path)[0] is DownloadOutcome.UNPACKED
    assert files(tmp_path) == ["insightface/models/pack.zip", "insightface/models/pack/a.onnx"]
    assert server.requests == []


def test_an_archive_whose_files_are_all_there_is_not_fetched(tmp_path: Path, put):
    (entry,) = [model for model in registry() if model.name == "antelopev2.zip"]
    for model in registry():
        if model.folder == "insightface/models/antelopev2":
            put(tmp_path / model.target)
    assert download(entry, tmp_path)[0] is DownloadOutcome.PRESENT


def test_a_damaged_archive_is_told_in_words(pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="not a complete zip"):
        download(pack(b"PK but no zip"), tmp_path)


# Checks of what is there


def test_a_check_tells_right_wrong_renamed_and_unknown_files_apart(
    monkeypatch: pytest.MonkeyPatch, model: MakeModel, tmp_path: Path, put
):
    known = model(BODY)
    monkeypatch.setattr(registry_module, "_known", lambda: (known,))
    right, wrong = put(tmp_path / "right", BODY), put(tmp_path / "wrong", b"other")
    pointer = put(tmp_path / "pointer", b"version https://git-lfs.github.com/spec/v1\n")
    assert check_file(right, known).health is Health.OK
    assert check_file(wrong, known).health is Health.DIFFERENT
    assert check_file(right).health is Health.RENAMED and check_file(right).recognised == (known,)
    assert check_file(wrong).health is Health.UNKNOWN
    assert check_file(pointer, known).health is Health.POINTER
    assert check_file(wrong, model(sha256=(), size_bytes=5)).health is Health.UNPROVEN
    assert check_file(wrong, model(sha256=(), size_bytes=6)).health is Health.DIFFERENT


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "socket", "broken link", "looping link"])
def test_a_check_of_what_cannot_be_read_is_a_finding(kind: str, tmp_path: Path):
    bad_values.FILES[kind](tmp_path / "x.bin")
    result = check_file(tmp_path / "x.bin")
    assert result.health is Health.UNREADABLE and result.health.is_problem and result.reason in result.in_words


def test_hub_addresses_have_one_base():
    assert sum(model.url.startswith(HUB) for model in registry()) > 60
