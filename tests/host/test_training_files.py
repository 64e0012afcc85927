"""What training writes, read by ComfyUI's own loaders: the same weights change by the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.training import export
from likeness.training.base.lora import Reach, lora_targets
from likeness.training.export import TrainingRecord
from likeness.weights import checkpoint_layout as layout
from likeness.weights import families
from likeness.weights.embedding_files import TokenEmbedding
from likeness.weights.lora import LoraPair, merged

RECORD = TrainingRecord("DreamBooth", families.SD15, 10)
_COMMON: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "norm_num_groups": 32,
}
SD15 = {
    **_COMMON,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 4,
}
SDXL = {
    **_COMMON,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 40,
    "attention_head_dim": (2, 2),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


def unet_of(config: dict[str, Any]) -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**config).requires_grad_(False)


def random_pairs(unet: Any) -> dict[str, LoraPair]:
    pairs = {}
    for path in lora_targets(unet, Reach.EVERYTHING):
        out, into, *kernel = unet.get_submodule(path).weight.shape
        pairs[path] = LoraPair(torch.randn(2, into, *kernel), torch.randn(out, 2, *[1] * len(kernel)), alpha=1.0)
    return pairs


@pytest.mark.parametrize("config", [SD15, SDXL], ids=["SD1.5", "SDXL"])
def test_a_saved_lora_changes_every_weight_as_in_training(config, recipes, tmp_path):
    import comfy.sd
    import comfy.utils

    unet = unet_of(config)
    pairs = random_pairs(unet)
    path = export.save_lora(unet, pairs, tmp_path, "mine", RECORD, dtype=torch.float32)
    model = recipes.unet_from_diffusers(config, unet.state_dict())
    patched, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), 0.7, 0.0)
    assert len(patched.patches) == len(pairs)
    with merged(unet, pairs, 0.7):
        expected = layout.to_original(unet.state_dict(), layout.unet_names(unet.state_dict()))
        expected = {name: value.clone() for name, value in expected.items()}
    patched.patch_model(torch.device("cpu"))
    try:
        actual = patched.model.diffusion_model.state_dict()
        assert set(actual) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(actual[name].float(), value, atol=1e-5, rtol=1e-4, msg=name)
    finally:
        patched.unpatch_model(torch.device("cpu"))


@pytest.mark.parametrize(
    "vectors", [{"clip_l": (2, 768)}, {"clip_l": (3, 768), "clip_g": (3, 1280)}], ids=["SD1.5", "SDXL"]
)
def test_a_saved_embedding_is_what_a_prompt_gets(vectors, host_nodes, tmp_path):
    from comfy import sd1_clip

    embedding = TokenEmbedding({name: torch.randn(*shape) for name, shape in vectors.items()})
    path: Path = export.save_embedding(embedding, tmp_path, "person", RECORD)
    for name, expected in embedding.vectors.items():
        found = sd1_clip.load_embed(path.stem, [str(tmp_path)], expected.shape[1], name)
        torch.testing.assert_close(found, expected)


def test_the_second_text_encoder_of_a_checkpoint_is_read_by_the_host(host_nodes):
    import comfy.utils
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=60, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    )
    own = encoder.state_dict()
    read = comfy.utils.clip_text_transformers_convert(dict(layout.to_open_clip(own)), "", "")
    assert set(read) == set(own)
    assert all(torch.equal(read[name], own[name]) for name in own)
