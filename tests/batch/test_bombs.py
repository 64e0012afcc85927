"""Small files that become large: archives, images, tables and answers. Refused in a sentence, and never unpacked."""

from __future__ import annotations

import asyncio
import gzip
import io
import zipfile
import zlib

import pytest
from aiohttp import web
from batch_fake import Fake, graph, png, serving

from likeness.batch import table as tables
from likeness.batch.work import End
from likeness.errors import LikenessError

from .test_engine import manifest

LARGE = 300 * 10**6


def run(coroutine):
    return asyncio.run(coroutine)


def zip_bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb", "w") as file:
        for _ in range(50):
            file.write(bytes(10**6))
    return made.getvalue()


def picture_bomb(side: int = 60_000) -> bytes:
    """A PNG of 67 bytes whose header promises gigabytes of pixels, with every checksum right."""
    pixels, made = zlib.compress(b""), [b"\x89PNG\r\n\x1a\n"]
    header = side.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        made.append(len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big"))
    return b"".join(made)


def text_bomb() -> bytes:
    """An image with a compressed text that is 300 MB long."""
    packer, text = zlib.compressobj(9), b"note\0\0"
    text += b"".join(packer.compress(bytes(10**6)) for _ in range(LARGE // 10**6)) + packer.flush()
    chunk = len(text).to_bytes(4, "big") + b"zTXt" + text + zlib.crc32(b"zTXt" + text).to_bytes(4, "big")
    whole = png(1)
    return whole[:33] + chunk + whole[33:]


async def problems(desk, **options):
    async with serving(Fake()) as fakes:
        return (await desk.check(fakes, desk.plan(**options))).problems


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.jsonl", "rows.parquet"])
def test_an_archive_is_no_table_whatever_it_is_called(desk, name):
    (desk.folder / name).write_bytes(zip_bomb())
    with pytest.raises(LikenessError, match="spreadsheet or an archive"):
        run(problems(desk, table=desk.folder / name))


@pytest.mark.parametrize(("content", "words"), [(zip_bomb(), "not an image"), (picture_bomb(), "too many")])
def test_a_bomb_in_a_cell_for_a_picture(desk, content, words):
    made = graph()
    made["1"] = {"class_type": "LoadImage", "inputs": {"image": "here.png"}, "_meta": {"title": "Load"}}
    desk.write_graph(made)
    (desk.folder / "bomb.png").write_bytes(content)
    desk.table("Load.image", "bomb.png")
    [problem] = run(problems(desk)).found
    assert words in str(problem)


@pytest.mark.parametrize("content", [zip_bomb(), (2**40).to_bytes(8, "little") + b"{}", b"\x80\x04\x95pickle"])
def test_a_bomb_in_a_cell_for_an_identity(desk, content):
    made = graph()
    made["3"] = {"class_type": "LikenessLoadIdentity", "inputs": {"file": "somebody.safetensors"}}
    desk.write_graph(made)
    (desk.folder / "bomb.safetensors").write_bytes(content)
    desk.table("LikenessLoadIdentity.file", "bomb.safetensors")
    [problem] = run(problems(desk)).found
    assert "is not an identity" in str(problem)


@pytest.mark.parametrize("side", [60_000, 15_000])
def test_a_picture_bomb_from_a_server_is_not_kept(desk, monkeypatch, side):
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(2)

    async def go():
        fake = Fake()
        fake.contents = {1: picture_bomb(side)}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            assert end is End.SOME_FAILED
            row = manifest(made)[1]
            assert row["state"] == "failed" and ("too many" in row["error"] or "Bomb" in row["error"])
            assert len(list((made.folder / "images").rglob("*.png"))) == 1

    run(go())


def test_a_long_text_in_a_picture_is_never_unpacked(desk, monkeypatch):
    """Pillow refuses to unpack it; the image is damaged for us."""
    monkeypatch.setattr("likeness.batch.engine.pause_before", lambda attempt: 0.0)
    desk.rows(2)

    async def go():
        fake = Fake()
        fake.contents = {1: text_bomb()}
        async with serving(fake) as fakes:
            _, made = await desk.run(fakes)
            assert "damaged" in manifest(made)[1]["error"]

    run(go())


def test_an_archive_from_a_server_is_kept_as_it_is(desk):
    desk.rows(1)

    async def go():
        fake = Fake()
        fake.contents = {0: zip_bomb()}
        async with serving(fake) as fakes:
            end, made = await desk.run(fakes)
            [row] = manifest(made)
            assert end is End.DONE and row["file"].endswith(".bin")
            assert (made.folder / row["file"]).read_bytes() == fake.contents[0]

    run(go())


def test_an_answer_that_is_compressed_is_not_unpacked(desk):
    desk.rows(1)

    async def go():
        fake = Fake()
        bomb = gzip.compress(bytes(10**7))

        async def stats(_):
            return web.Response(body=bomb, headers={"Content-Encoding": "gzip"})

        fake._stats = stats
        async with serving(fake) as fakes:
            [problem] = (await desk.check(fakes)).problems.found
            assert "compresses its answers" in str(problem)

    run(go())


def test_an_answer_without_end_is_cut_off(desk, monkeypatch):
    monkeypatch.setattr("likeness.batch.client.MOST_BYTES", 2**20)
    desk.rows(1)

    async def go():
        fake = Fake()

        async def endless(request):
            answer = web.StreamResponse()
            await answer.prepare(request)
            for _ in range(64):
                await answer.write(bytes(2**16))
            return answer

        monkeypatch.setattr(fake, "_info", endless)
        async with serving(fake) as fakes:
            assert "answers with more than 1 MB" in str((await desk.check(fakes)).problems.found[0])

    run(go())


# --- tables and plans of a few bytes that mean billions of rows


def test_a_parquet_file_of_very_many_rows_or_bytes_is_refused_by_its_header(desk, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    path = desk.folder / "rows.parquet"
    parquet.write_table(pyarrow.table({"Paint.text": ["x" * 10**6] * 50}), path, compression="zstd")
    assert path.stat().st_size < 10**5
    monkeypatch.setattr(tables, "MOST_BYTES", 10**5)
    with pytest.raises(LikenessError, match="unpacks to more than"):
        run(problems(desk, table=path))
    many = pyarrow.table({"Paint.color": pyarrow.array([1] * 2000)})
    parquet.write_table(many, path)
    monkeypatch.setattr(tables, "MOST_ROWS", 1000)
    with pytest.raises(LikenessError, match="2000 rows"):
        run(problems(desk, table=path))


def test_a_grid_of_billions_is_refused_before_it_is_made(desk):
    values = list(range(1000))
    said = run(problems(desk, grid={"Paint.color": values, "Paint.width": values[1:], "Paint.seed": values}))
    assert "makes 999000000 points" in str(said.found[0])


def test_counting_rows_ends_where_there_are_too_many(desk, monkeypatch):
    monkeypatch.setattr("likeness.batch.check.MOST_ROWS", 50)
    desk.rows(60)
    assert "more than 50 rows" in str(run(problems(desk)).found[0])
