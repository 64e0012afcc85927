"""Weight files that would keep their reader busy, or fill the memory, end in one sentence and in good time."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis.strategies import binary, lists, sampled_from

from likeness.errors import LikenessError
from likeness.weights.files import read_weights
from likeness.weights.pickles import check_pickle

START, ORDERED = b"\x80\x02", b"ccollections\nOrderedDict\nq\0"
PRIME = (1 << 61) - 1  # whole numbers that differ by it have one hash


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def encoded(codec: str) -> bytes:
    wide = "".join(chr(0x4E00 + number % 20000) for number in range(100_000))
    return START + b"c_codecs\nencode\n" + text(wide) + text(codec) + b"\x86R."


CRAFTED = {
    "punycode": encoded("punycode"),
    "idna": encoded("IDNA"),
    "codec by memory": START + b"c_codecs\nencode\nq\0" + b"h\0" + text("x") + text("bz2") + b"\x86q\1R.",
    "tuples of tuples": START + b")q\0" + b"h\0h\0\x86q\0" * 70 + b"}h\0Ns.",
    "large key again and again": START + b"(" + b"N" * 1000 + b"tq\0}" + b"h\0Ns" * 20_000 + b".",
    "numbers of one hash": START
    + b"}("
    + b"".join(b"\x8a\x0a" + (number * PRIME).to_bytes(10, "little") + b"N" for number in range(1, 40_000))
    + b"u.",
    "tuples as keys": START + b"}(" + b"".join(b"J" + struct.pack("<i", n) + b"\x85N" for n in range(40_000)) + b"u.",
    "a set of tuples": START + b"c__builtin__\nset\n](" + b"K\1K\2\x86" * 40_000 + b"e\x85R.",
    "calls": START + ORDERED + b"h\0)R" * 1_000_000 + b".",
    "steps": START + b"N" * 5_000_000 + b".",
    "marks": START + b"N" * 500_000 + b"(t" * 1_000_000 + b".",
    "memory": START + b"c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
}


def archived(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little"}.items():
            archive.writestr(f"a/{name}", content)
    return path


@pytest.mark.parametrize("form", ["archive", "legacy"])
@pytest.mark.parametrize("name", CRAFTED)
def test_a_pickle_that_would_never_end_is_refused_at_once(name: str, form: str, tmp_path: Path):
    path = tmp_path / "a.bin"
    if form == "archive":
        archived(path, CRAFTED[name])
    else:
        before = (
            pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
        )
        path.write_bytes(before + CRAFTED[name])
    begun = time.process_time()
    with pytest.raises(LikenessError, match="asks for more than tensors") as caught:
        check_pickle(path)
    assert time.process_time() - begun < 5
    assert str(caught.value).count("a.bin") == 1


def test_a_long_pickle_is_not_read_whole(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("likeness.weights.pickles._MOST_BYTES", 10_000)
    for pickled in (START + b"X" + struct.pack("<I", 50_000) + b"a" * 50_000 + b".", START + b"c" + b"a" * 50_000):
        with pytest.raises(LikenessError, match="too many bytes"):
            check_pickle(archived(tmp_path / "a.bin", pickled))


def test_archives_that_no_weight_file_is_are_refused(tmp_path: Path):
    with pytest.raises(LikenessError, match="compressed"):
        check_pickle(archived(tmp_path / "a.bin", START + b"}.", zipfile.ZIP_DEFLATED))
    path = archived(tmp_path / "b.bin", START + b"}.")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a/DATA.pkl", CRAFTED["steps"])
    with pytest.raises(LikenessError, match="two with the same name"):
        check_pickle(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_what_checkpoints_really_hold_passes(legacy: bool, tmp_path: Path):
    network = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(200)))
    optimiser = torch.optim.Adam(network.parameters())
    network(torch.zeros(1, 2)).sum().backward()
    optimiser.step()
    content = {
        "state_dict": network.state_dict(),
        "parameters": list(network.parameters()),
        "optimiser": optimiser.state_dict(),
        "random": [torch.get_rng_state(), b"bytes", {1, 2, 3}, (1.5, None, True), 2**62],
        "epoch": OrderedDict(a=OrderedDict(b=torch.Size([1, 2]))),
    }
    torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=not legacy)
    check_pickle(tmp_path / "a.ckpt")
    weights, _ = read_weights(tmp_path / "a.ckpt")
    assert torch.equal(weights["state_dict.7.weight"], network.state_dict()["7.weight"])


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_settings_of_peft_beside_weights_are_read_as_words_and_numbers(tmp_path: Path):
    """Its enumerations are program code to the reader, and stand there for a word alone."""
    from peft import LoraConfig

    settings = LoraConfig(r=8, lora_alpha=3, target_modules=["to_k"], task_type="CAUSAL_LM").to_dict()
    torch.save({"a": torch.ones(2), "lora_config": settings}, tmp_path / "x.pt")
    weights, metadata = read_weights(tmp_path / "x.pt")
    assert list(weights) == ["a"]
    assert metadata["lora_config.r"] == "8" and metadata["lora_config.lora_alpha"] == "3"


def test_dictionaries_inside_themselves_and_each_other_end(tmp_path: Path):
    loop: dict[str, Any] = {}
    loop["a"] = loop
    many: dict[str, Any] = {}
    for _ in range(60):
        many = {"a": many, "b": many}
    deep: dict[str, Any] = {}
    for _ in range(200):
        deep = {"a": deep}
    for content in (loop, many, deep):
        begun = time.process_time()
        with pytest.raises(LikenessError, match="damaged"):
            read_weights(saved(tmp_path / "a.bin", {"weights": content}))
        assert time.process_time() - begun < 5


def test_a_tensor_larger_than_its_bytes_is_refused(tmp_path: Path):
    content = {"a": torch.zeros(1).expand(1 << 40), "b": torch.zeros(3)}
    with pytest.raises(LikenessError, match="damaged"):
        read_weights(saved(tmp_path / "a.bin", content))
    assert len(read_weights(saved(tmp_path / "b.bin", {"a": torch.zeros(1).expand(1, 77)}))[0]["a"][0]) == 77


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_a_tensor_of_another_kind_is_refused(kind: str, tmp_path: Path):
    odd = torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (1 << 40,)) if kind == "sparse" else None
    content = {"a": torch.zeros(1 << 40, device="meta") if odd is None else odd}
    with pytest.raises(LikenessError):
        read_weights(saved(tmp_path / "a.bin", content))


STEPS = [
    START,
    b"(",
    b"t",
    b"N",
    b"}",
    b"]",
    b")",
    b"u",
    b"s",
    b"a",
    b"e",
    b"q\0",
    b"h\0",
    b"\x85",
    b"\x86",
    b"R",
    b"b",
    b".",
]


@given(
    lists(
        sampled_from([*STEPS, ORDERED, b"c_codecs\nencode\n", text("a"), b"K\1", b"Q", b"0", b"2", b"\x81", b"\x8a\1"])
    )
)
@settings(max_examples=400, deadline=None)
def test_any_order_of_steps_ends_as_the_reader_does_or_in_a_sentence(steps: list[bytes]):
    path = Path("unused.bin")
    from likeness.weights import pickles

    try:
        pickles._check_stream(pickles._Bounded(io.BytesIO(b"".join(steps)), 1000), path.name)
    except (ValueError, IndexError, KeyError):
        return


@given(binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_left_to_the_reader(noise: bytes):
    from likeness.weights import pickles

    try:
        pickles._check_stream(pickles._Bounded(io.BytesIO(START + noise), 1000), "a.bin")
    except (ValueError, IndexError, KeyError):
        return
