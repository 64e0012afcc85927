from __future__ import annotations

import errno
import io
import shutil
import stat
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from likeness.errors import LikenessError
from likeness.models import archive as archives
from likeness.models import content, transfer
from likeness.models import registry as registry_module
from likeness.models_download import HUB, Health, ModelFile, Outcome, check, download, registry

BODY = bytes(range(256)) * 400  # 102400 bytes
MakeModel = Callable[..., ModelFile]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transfer, content, archives):
        monkeypatch.setattr(module, "CHUNK", 4096)


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def test_a_file_arrives_whole_and_leaves_nothing_beside_it(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    seen: list[tuple[int, int | None]] = []
    outcome, path = download(model(BODY), tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert (outcome, path) == (Outcome.DOWNLOADED, tmp_path / "ipadapter" / "thing.bin")
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
    assert download(model(sha256=known), tmp_path)[0] is Outcome.DOWNLOADED


def test_without_a_hash_the_exact_size_decides(server, model: MakeModel, tmp_path: Path, page):
    server.pages["/thing.bin"] = page(BODY)
    with pytest.raises(LikenessError, match="99 bytes"):
        download(model(sha256=(), size_bytes=99), tmp_path)
    assert download(model(sha256=(), size_bytes=len(BODY)), tmp_path)[0] is Outcome.DOWNLOADED


def test_without_a_pinned_hash_the_one_the_hub_states_decides(server, model: MakeModel, tmp_path: Path, page):
    stated = {"Location": "/cdn", "X-Linked-Etag": f'"{"0" * 64}"'}
    server.pages["/thing.bin"] = page(status=302, headers=stated)
    server.pages["/cdn"] = page(BODY)
    with pytest.raises(LikenessError, match=r"0{64}"):
        download(model(sha256=()), tmp_path)
    stated["X-Linked-Etag"] = model(BODY).sha256[0]
    server.pages["/thing.bin"] = page(status=302, headers=stated)
    assert download(model(sha256=()), tmp_path)[0] is Outcome.DOWNLOADED


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


@pytest.mark.parametrize(("status", "words"), [(404, "no longer at"), (403, "HF_TOKEN"), (418, "error 418")])
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
        transfer._Redirects().redirect_request(request, None, 302, "", {}, "http://127.0.0.1:8188/free")


def test_the_access_token_goes_to_the_hub_only(
    monkeypatch: pytest.MonkeyPatch, server, model: MakeModel, tmp_path, page
):
    monkeypatch.setenv("HF_TOKEN", "secret")
    server.pages["/thing.bin"] = page(BODY)
    download(model(BODY), tmp_path)
    assert "authorization" not in server.requests[0][1]
    monkeypatch.setattr(transfer, "HUB", f"{server.address}/hub/")
    server.pages["/hub/x"] = page(status=302, headers={"Location": "/cdn"})
    server.pages["/cdn"] = page(BODY)
    download(model(BODY, url=f"{server.address}/hub/x", filename="x.bin"), tmp_path)
    assert [headers.get("authorization") for _, headers in server.requests[1:]] == ["Bearer secret", None]


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
    assert download(model(BODY), tmp_path)[0] is Outcome.PRESENT
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
    assert outcome is Outcome.WOULD_DOWNLOAD and path == root / "ipadapter" / "thing.bin"
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


def archive(members: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
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
    assert (outcome, path) == (Outcome.UNPACKED, tmp_path / "insightface" / "models" / "pack")
    assert files(tmp_path) == ["insightface/models/pack/a.onnx", "insightface/models/pack/b.onnx"]


@pytest.mark.parametrize(
    "name", ["../evil.onnx", "/evil.onnx", "pack/../../evil.onnx", "..\\evil.onnx", "C:\\evil.onnx"]
)
def test_members_that_lead_out_of_the_folder_are_refused(name: str, pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="leads out"):
        download(pack(archive({"a.onnx": b"a", name: b"evil"})), tmp_path / "root")
    assert not list(tmp_path.rglob("*.onnx"))


def test_links_in_an_archive_are_refused(pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="leads out"):
        download(pack(archive({"a.onnx": b"a"}, link="passwd")), tmp_path)


def test_unpacking_keeps_files_that_are_there(pack, tmp_path: Path, put):
    mine = put(tmp_path / "insightface" / "models" / "pack" / "a.onnx", b"mine")
    with pytest.raises(LikenessError, match="left as it is"):
        download(pack(archive({"a.onnx": b"a"})), tmp_path)
    assert mine.read_bytes() == b"mine"


def test_an_archive_fetched_by_hand_is_unpacked_and_kept(pack, server, tmp_path: Path, put):
    body = archive({"a.onnx": b"a"})
    entry = pack(body)
    put(tmp_path / "insightface" / "models" / "pack.zip", body)
    assert download(entry, tmp_path)[0] is Outcome.UNPACKED
    assert files(tmp_path) == ["insightface/models/pack.zip", "insightface/models/pack/a.onnx"]
    assert server.requests == []


def test_an_archive_whose_files_are_all_there_is_not_fetched(tmp_path: Path, put):
    (entry,) = [model for model in registry() if model.name == "antelopev2.zip"]
    for model in registry():
        if model.folder == "insightface/models/antelopev2":
            put(tmp_path / model.target)
    assert download(entry, tmp_path)[0] is Outcome.PRESENT


def test_a_damaged_archive_is_told_in_words(pack, tmp_path: Path):
    with pytest.raises(LikenessError, match="not a whole zip"):
        download(pack(b"PK but no zip"), tmp_path)


# Checks of what is there


def test_a_check_tells_right_wrong_renamed_and_unknown_files_apart(
    monkeypatch: pytest.MonkeyPatch, model: MakeModel, tmp_path: Path, put
):
    known = model(BODY)
    monkeypatch.setattr(registry_module, "_known", lambda: (known,))
    right, wrong = put(tmp_path / "right", BODY), put(tmp_path / "wrong", b"other")
    pointer = put(tmp_path / "pointer", b"version https://git-lfs.github.com/spec/v1\n")
    assert check(right, known).health is Health.OK
    assert check(wrong, known).health is Health.DIFFERENT
    assert check(right).health is Health.RENAMED and check(right).recognised == (known,)
    assert check(wrong).health is Health.UNKNOWN
    assert check(pointer, known).health is Health.POINTER
    assert check(wrong, model(sha256=(), size_bytes=5)).health is Health.UNPROVEN
    assert check(wrong, model(sha256=(), size_bytes=6)).health is Health.DIFFERENT


def test_hub_addresses_have_one_base():
    assert sum(model.url.startswith(HUB) for model in registry()) > 60
