"""ONNX files that are damaged or made to keep their reader busy end in one sentence, in good time."""

from __future__ import annotations

import time
from pathlib import Path

import bad_values
import pytest
from hypothesis import given, settings
from hypothesis.strategies import binary, lists, sampled_from, tuples

from likeness.errors import LikenessError
from likeness.faces.onnx_file import read_graph


def number(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def part(field: int, content: bytes) -> bytes:
    return number(field << 3 | 2) + number(len(content)) + content


def graph(*parts: bytes) -> bytes:
    return part(7, b"".join(parts))


CRAFTED = {
    "ones": b"\xff" * 800_000,
    "a number without end": graph(b"\x08" + b"\xff" * 800_000 + b"\x01"),
    "a tag without end": graph(b"\xff" * 800_000),
    "a length without end": b"\x3a" + b"\xff" * 800_000,
    "numbers without end in a list": graph(part(5, part(1, b"\xff" * 800_000))),
    "countless fields": b"\x08\x00" * 5_000_000,
    "countless nodes": graph(b"\x0a\x00" * 5_000_000),
    "countless attributes": graph(part(1, b"\x2a\x00" * 5_000_000)),
    "countless numbers": graph(part(5, part(8, b"x") + part(7, b"\x01" * 5_000_000))),
    "countless floats": graph(part(1, part(5, part(7, bytes(4 * 5_000_000))))),
    "a tensor larger than the file": graph(part(5, b"\x08" + number(1 << 40) + part(8, b"x") + part(9, bytes(400)))),
    "more dimensions than there are": graph(part(5, b"\x08\x01" * 100 + part(8, b"x") + part(9, bytes(4)))),
    "a dimension past 64 bits": graph(part(5, b"\x08" + b"\xff" * 9 + b"\x7f" + part(8, b"x"))),
    "a tensor without a name": graph(part(5, b"\x08\x01")),
    "a type that is a text": graph(part(5, part(2, b"x") + part(8, b"x"))),
}


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_left_in_good_time(name: str, weights: bool, tmp_path: Path):
    path = tmp_path / "a.onnx"
    path.write_bytes(CRAFTED[name])
    begun = time.process_time()
    try:
        read_graph(path, weights)
    except LikenessError as error:
        assert "a.onnx" in str(error) and str(error).isprintable()
    else:
        assert not weights, "only what is not looked at may pass"
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("kind", sorted(set(bad_values.FILES) - {"unreadable"}))
def test_whatever_lies_at_the_path_ends_in_a_sentence(kind: str, tmp_path: Path):
    bad_values.FILES[kind](tmp_path / "a.onnx")
    with pytest.raises(LikenessError, match=r"a\.onnx"):
        read_graph(tmp_path / "a.onnx")


def test_a_sparse_file_of_a_terabyte_is_left(tmp_path: Path):
    path = tmp_path / "a.onnx"
    with path.open("wb") as file:
        file.write(number(7 << 3 | 2) + number(1 << 40) + number(5 << 3 | 2) + number((1 << 40) - 20))
        file.write(part(8, b"x") + number(9 << 3 | 2) + number((1 << 40) - 40))
        file.truncate((1 << 40) + 8)
    with pytest.raises(LikenessError, match=r"a\.onnx"):
        read_graph(path)


FIELDS = tuples(sampled_from(range(14)), sampled_from([0, 1, 2, 5]), binary(max_size=12))


@given(lists(FIELDS, max_size=8), sampled_from([1, 5, 11, 12]))
@settings(max_examples=300, deadline=None)
def test_any_fields_end_in_a_graph_or_in_a_sentence(tmp_path_factory, fields, where: int):
    inner = b"".join(
        number(field << 3 | wire) + (number(len(content)) + content if wire == 2 else content)
        for field, wire, content in fields
    )
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(graph(part(where, inner), part(where, part(5, inner))))
    try:
        read_graph(path)
    except LikenessError as error:
        assert "any.onnx" in str(error)
