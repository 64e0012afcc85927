"""Which file an embedding is in, its name does not decide; and what is none is refused in a sentence."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from likeness.errors import LikenessError
from likeness.weights.embedding_files import load_embedding


def test_the_content_decides_over_the_suffix(tmp_path):
    vectors = torch.randn(2, 768)
    save_file({"emb_params": vectors}, tmp_path / "really_safetensors.pt")
    torch.save({"string_to_param": {"*": vectors}}, tmp_path / "really_pickle.safetensors")
    for name in ("really_safetensors.pt", "really_pickle.safetensors"):
        assert torch.equal(load_embedding(tmp_path / name).vectors["clip_l"], vectors)


@pytest.mark.parametrize("content", [torch.zeros(2, 768), [1, 2], 5], ids=["tensor", "list", "number"])
def test_a_pickle_of_something_else_is_no_embedding(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(LikenessError, match=r"odd\.pt"):
        load_embedding(tmp_path / "odd.pt")


@pytest.mark.parametrize("data", [b"", b"nothing", b"<html>", b"version https://git-lfs.github.com/spec/v1"])
def test_what_no_reader_reads_is_named(tmp_path, data):
    (tmp_path / "cut.safetensors").write_bytes(data)
    with pytest.raises(LikenessError, match=r"cut\.safetensors"):
        load_embedding(tmp_path / "cut.safetensors")
