"""PhotoVerse's files: three layouts, told apart by content, and what is said of those that are none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import official
from helpers import photoverse as made
from safetensors.torch import save_file

from likeness.adapters.photoverse import PhotoVerse, load, recognise
from likeness.adapters.photoverse.layouts import Layout, layout_of, read, to_ours
from likeness.adapters.system import Sureness, WeightFile
from likeness.errors import LikenessError
from likeness.weights.files import read_weights

TINY = [(width, 128) for width in (32, 64, 64, 64, 32, 32, 64)]
SD15 = [(width, 768) for width, _ in official.SD15][:7]


def file(weights: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> WeightFile:
    return WeightFile("face.safetensors", weights, metadata or {})


def sentence(call: Callable[..., Any], *arguments: Any) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and "face" in text
    return text


def saved(path: Path, tree: dict[str, Any]) -> WeightFile:
    torch.save(tree, path)
    return WeightFile(path.name, *read_weights(path))


ALL = {
    Layout.OURS: lambda: file(*made.ours(TINY)),
    Layout.UNOFFICIAL: lambda: file(made.unofficial(TINY)),
    Layout.ELITE: lambda: file(made.elite(TINY)),
}


@pytest.mark.parametrize("layout", Layout)
def test_a_layout_is_told_by_its_keys(layout):
    one = ALL[layout]()
    assert layout_of(one) is layout and recognise(one) is Sureness.YES
    adapter = load(one)
    assert adapter.site_shapes == {2 * i + 1: shape for i, shape in enumerate(TINY)}
    assert adapter.title == layout.value and (adapter.image_adapter is None) is (layout is Layout.ELITE)


def test_layers_that_are_counted_as_they_run_are_those_that_are_named():
    """diffusers registers the middle block last, the host runs it between the others."""
    one, other = read(file(*made.ours(TINY))), read(file(made.unofficial(TINY)))
    assert one.attention == other.attention == made.attention(TINY)
    for path, pair in one.visual.items():
        assert all(torch.equal(a, b) for a, b in zip(pair, other.visual[path], strict=True))


def test_elites_names_without_dots_are_taken_apart():
    content = read(file(made.elite(TINY)))
    assert content.attention == made.attention(TINY)
    assert content.whole.keys() == {f"{path}.{layer}" for path in made.attention(TINY) for layer in ("to_k", "to_v")}


def test_the_unofficial_pickle_is_read_as_it_was_saved(tmp_path):
    """Its optimiser is passed over, and its LoRA has alpha beside the tensors."""
    weights = made.unofficial(TINY)
    one = saved(tmp_path / "face.pt", made.nested(weights, alpha=1))
    content = read(one)
    assert content.text.keys() == {k.partition(".")[2] for k in weights if k.startswith("text_adapter.")}
    assert {pair.scale for pair in content.lora.values()} == {1 / made.RANK}
    assert PhotoVerse(content, "face.pt").site_shapes


@pytest.mark.parametrize(("alpha", "scale"), [(1, 0.25), (8, 2.0), (None, 0.25)])
def test_the_unofficial_lora_is_divided_by_its_rank(tmp_path, alpha, scale):
    content = read(saved(tmp_path / "face.pt", made.nested(made.unofficial(TINY), alpha=alpha)))
    assert {pair.scale for pair in content.lora.values()} == {scale}


@pytest.mark.parametrize("alpha", [1.0, 0.75])
def test_the_papers_alpha_is_the_factor_itself(alpha):
    content = read(file(*made.ours(TINY, alpha=alpha)))
    assert {pair.scale for pair in content.lora.values()} == {alpha}


def test_a_file_without_lora_is_whole():
    content = read(file(made.unofficial(TINY, lora=False)))
    assert not content.lora and len(content.visual) == len(TINY)


def test_what_is_written_is_what_is_read(tmp_path):
    content = read(file(made.unofficial(TINY)))
    tensors, metadata = to_ours(content, {"base": "SD1.5", "m": 5})
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "face.safetensors", metadata)
    again = read(WeightFile("face.safetensors", *read_weights(tmp_path / "face.safetensors")))
    assert again.layout is Layout.OURS and again.attention == content.attention
    for path, pair in content.lora.items():
        assert torch.allclose(again.lora[path].delta(), pair.delta())
    assert all(torch.equal(again.image[key], value) for key, value in content.image.items())


# What is none of them -------------------------------------------------------------------------------------------------


MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn2"


def without(weights: dict[str, torch.Tensor], *endings: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in weights.items() if not key.endswith(endings)}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (without(made.unofficial(TINY), f"{MIDDLE}.processor.to_v_ip.0.weight"),
         "keys or values alone"),
        (without(made.unofficial(TINY), f"{MIDDLE}.to_k.lora_B.default.weight"),
         "LoRA"),
        (without(made.unofficial(TINY), "text_adapter.mapping_1.3.weight"), "mapping_1"),
        ({k: v for k, v in made.unofficial(TINY).items() if not k.startswith("image_adapter.")}, "image_adapter"),
        ({k: v for k, v in made.unofficial(TINY).items() if not k.startswith("cross_")}, "image branch"),
        ({**made.unofficial(TINY), "cross_attention_adapter.x.to_w": torch.zeros(1)}, "x.to_w"),
        ({**made.unofficial(TINY), "surprise": torch.zeros(1)}, "'surprise'"),
        ({**made.elite(TINY), "surprise": torch.zeros(1)}, "'surprise'"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_whole_says_what_is_wrong(weights, said):
    assert said in sentence(load, file(weights))


def test_more_unknown_keys_than_anybody_reads_are_counted():
    weights = {**made.unofficial(TINY), **{f"surprise_{i}": torch.zeros(1) for i in range(9)}}
    assert "and 6 more" in sentence(load, file(weights))


def test_our_file_without_its_metadata_is_refused():
    tensors, _ = made.ours(TINY)
    assert "metadata" in sentence(load, file(tensors))


@pytest.mark.parametrize("alpha", ["much", ""])
def test_our_file_with_a_broken_number_is_refused(alpha):
    tensors, metadata = made.ours(TINY)
    assert "alpha" in sentence(load, file(tensors, {**metadata, "alpha": alpha}))


def test_an_adapter_of_another_width_is_refused():
    """As of a file that was put together from SD1.5's and SD2's."""
    wide = {k: v for k, v in made.unofficial([(w, 96) for w, _ in TINY]).items() if k.startswith("text_adapter.")}
    text = sentence(load, file({**made.unofficial(TINY), **wide}))
    assert "96 wide" in text and "128" in text


def test_nothing_else_is_taken_for_it():
    assert recognise(file({"visual.proj": torch.zeros(1)})) is Sureness.NO
    assert recognise(file({"mapping_0.0.weight": torch.zeros(1)})) is Sureness.NO
    assert "not a PhotoVerse file" in sentence(read, file({}))
