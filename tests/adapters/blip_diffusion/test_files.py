"""BLIP-Diffusion's files: every published layout gives the same network, and what is missing is named."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blip_diffusion as made
from helpers.small_world import sentence
from safetensors.torch import save_file

from likeness import adapters
from likeness.adapters.blip_diffusion import BlipDiffusion
from likeness.adapters.blip_diffusion.files import to_hub, to_own
from likeness.weights.families import MINIATURE, SD15

DIM = 768
HUB = made.encoder(DIM)
IMAGES = torch.randn(2, 3, made.SIDE, made.SIDE, generator=torch.Generator().manual_seed(3))
IDS, MASK = torch.tensor([[2, 5, 3], [2, 3, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
VECTORS = torch.randn(1, made.QUERIES, DIM, generator=torch.Generator().manual_seed(4))


def loaded(path: Path) -> Any:
    found = adapters.load(path)
    assert isinstance(found, BlipDiffusion)
    return found


def hub_folder(tmp_path: Path, weights: dict[str, torch.Tensor] | None = None) -> Path:
    path = tmp_path / "blipdiffusion" / "qformer" / "pytorch_model.bin"
    path.parent.mkdir(parents=True)
    torch.save(weights or HUB, path)
    return path


@pytest.fixture
def expected(tmp_path: Path) -> torch.Tensor:
    return loaded(hub_folder(tmp_path / "as published")).encode(IMAGES, IDS, MASK)


LAYOUTS = {
    "a single file": lambda at: _saved(HUB, at / "qformer.safetensors"),
    "a pipeline in one file": lambda at: _saved({f"qformer.{k}": v for k, v in HUB.items()}, at / "all.safetensors"),
    "LAVIS's encoder": lambda at: made.write_pair(at, HUB)[0],
    "LAVIS's projection": lambda at: made.write_pair(at, HUB)[1],
    "LAVIS's files in one folder": lambda at: _flat_pair(at),
    "a checkpoint": lambda at: _pickled(made.checkpoint(HUB, VECTORS), at / "checkpoint_40.pth"),
}


def _saved(weights: dict[str, torch.Tensor], path: Path) -> Path:
    save_file(weights, path)
    return path


def _pickled(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def _flat_pair(folder: Path) -> Path:
    encoder, projection = made.write_pair(folder, HUB)
    projection.rename(folder / projection.name)
    return encoder.rename(folder / encoder.name)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_the_same_network(tmp_path, layout, expected):
    adapter = loaded(LAYOUTS[layout](tmp_path))
    assert torch.equal(adapter.encode(IMAGES, IDS, MASK), expected)
    assert adapter.base is SD15


def test_the_text_of_another_word_makes_other_vectors(expected):
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)


def test_half_precision_beside_single_is_read(tmp_path, expected):
    mixed = {k: v.half() if k.startswith("visual_encoder.") else v for k, v in HUB.items()}
    found = loaded(hub_folder(tmp_path, mixed)).encode(IMAGES, IDS, MASK)
    assert torch.allclose(found, expected, atol=2e-2) and found.dtype == torch.float32


def test_the_hub_layout_is_written_as_it_was_read():
    written = to_hub(to_own(HUB))
    assert written.keys() == HUB.keys()
    assert all(torch.equal(written[key], value) for key, value in HUB.items())
    assert to_own(made.as_lavis(HUB)).keys() == to_own(HUB).keys()


# --- a subject that was trained


def test_a_checkpoint_brings_its_subject_and_its_unet(tmp_path):
    shapes = [(32, 128)] * 7
    content = made.checkpoint(made.encoder(128), VECTORS[..., :128], made.attention(shapes))
    adapter = loaded(_pickled(content, tmp_path / "checkpoint_40.pth"))
    assert torch.equal(adapter.vectors, VECTORS[0, :, :128]) and adapter.base is MINIATURE
    delta = adapter.unet(0.5)
    assert delta.replaces and delta.strength == 0.5 and len(delta.changes) == 3 * 7
    assert adapter.site_shapes == {2 * i + 1: (32, 128) for i in range(7)}


def test_a_checkpoint_without_a_subject_has_zeros_for_it(tmp_path):
    adapter = loaded(_pickled(made.checkpoint(HUB, torch.zeros_like(VECTORS)), tmp_path / "base.pth"))
    assert adapter.vectors is None and adapter.unet() is None


def test_the_folder_of_a_trained_subject_brings_its_vectors(tmp_path):
    path, _ = made.write_pair(tmp_path, HUB)
    cache = tmp_path / "ctx_embeddings_cache" / "ctx_embeddings_cache.pt"
    cache.parent.mkdir()
    torch.save(torch.nn.Parameter(VECTORS), cache)
    assert torch.equal(loaded(path).vectors, VECTORS[0])


def test_vectors_alone_are_a_subject(tmp_path):
    path = tmp_path / "dog.safetensors"
    save_file({"ctx_embeddings_cache": VECTORS}, path, {"subject": "dog"})
    adapter = loaded(path)
    assert adapter.encoder is None and "'dog'" in adapter.title and adapter.base is SD15


# --- what a config.json says


@pytest.mark.parametrize(("told", "eps"), [({"layer_norm_eps": 1e-3}, 1e-3), ({}, 1e-6)])
def test_the_norms_of_the_tower_are_those_of_the_config(tmp_path, told, eps):
    path = hub_folder(tmp_path)
    heads = {"hidden_size": made.WIDTH, "num_attention_heads": 2, **told}
    (path.parent / "config.json").write_text(json.dumps({"vision_config": heads, "qformer_config": {}}))
    tower = loaded(path).encoder.visual_encoder
    assert tower.post_layernorm.eps == tower.encoder.layers[0].layer_norm1.eps == eps
    assert tower.encoder.layers[0].self_attn.heads == 2


@pytest.mark.parametrize("text", ["{", "[]", '{"vision_config": 3}', '"words"'])
def test_a_config_that_says_nothing_is_passed_over(tmp_path, text):
    path = hub_folder(tmp_path)
    (path.parent / "config.json").write_text(text)
    assert loaded(path).encoder.visual_encoder.post_layernorm.eps == 1e-5


# --- what is wrong with a file


@pytest.mark.parametrize(
    "missing",
    [
        "encoder.layer.1.output_query.dense.weight",
        "visual_encoder.post_layernorm.bias",
        "visual_encoder.encoder.layers.1.self_attn.qkv.bias",
        "embeddings.word_embeddings.weight",
        "proj_layer.dense2.bias",
    ],
)
def test_what_is_missing_is_named(tmp_path, missing):
    path = hub_folder(tmp_path, {key: value for key, value in HUB.items() if key != missing})
    text = sentence(adapters.load, path)
    assert "not a complete BLIP-Diffusion file" in text and "missing" in text


@pytest.mark.parametrize("half", [0, 1])
def test_half_of_the_pair_asks_for_the_other(tmp_path, half):
    paths = made.write_pair(tmp_path, HUB)
    paths[1 - half].unlink()
    text = sentence(adapters.load, paths[half])
    assert ("proj_layer/proj_weight.pt", "blip_model/blip_weight.pt")[half] in text


def test_unknown_weights_are_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        loaded(hub_folder(tmp_path, {**HUB, "encoder.layer.0.strange.weight": torch.zeros(2)}))
    assert "encoder.layer.0.strange.weight" in caplog.text and "1 unknown" in caplog.text


def test_vectors_of_another_shape_are_refused(tmp_path):
    text = sentence(adapters.load, _saved({"ctx_embeddings_cache": torch.ones(3, DIM)}, tmp_path / "a.safetensors"))
    assert "(3, 768)" in text


def test_other_files_are_not_taken_for_it(tmp_path):
    blip2 = {"query_tokens": torch.zeros(1, 32, 768), "Qformer.bert.embeddings.LayerNorm.bias": torch.zeros(768)}
    assert "not an identity adapter" in sentence(adapters.load, _saved(blip2, tmp_path / "blip2.safetensors"))
