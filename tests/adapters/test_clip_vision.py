from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from likeness.adapters.clip_vision import (
    PUBLISHED,
    EncoderSize,
    TransformersClipEncoder,
    Unconditional,
    check_encoder,
    config_of,
    encode_enhanced,
    encode_images,
    encode_unconditional,
)
from likeness.errors import LikenessError
from likeness.injection.comfy import ComfyClipEncoder

SMALL = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_channels": 3,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 25,
    "hidden_act": "gelu",
}


@pytest.fixture(scope="module")
def weights():
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**SMALL))
    # ComfyUI keeps encoders in half precision: weights that are exact there compare exactly.
    return {key: (weight + 0.02).half().float() for key, weight in model.state_dict().items()}


@pytest.fixture(scope="module")
def encoder(weights):
    return TransformersClipEncoder.from_weights(weights, SMALL)


def pictures(count, height=40, width=30):
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(1))


def test_features_have_the_encoder_s_widths(encoder):
    features = encode_images(encoder, pictures(2))
    assert encoder.size == EncoderSize(hidden=32, embed=25, image_size=28)
    assert features.image_embeds.shape == (2, 25)
    assert features.penultimate.shape == (2, 1 + 16, 32)


def test_encoding_in_parts_changes_nothing(encoder):
    whole, parts = encode_images(encoder, pictures(5)), encode_images(encoder, pictures(5), batch_size=2)
    torch.testing.assert_close(parts.image_embeds, whole.image_embeds)
    torch.testing.assert_close(parts.penultimate, whole.penultimate)


def test_no_picture_is_not_a_black_picture(encoder):
    zero = encode_unconditional(encoder)
    black = encode_unconditional(encoder, Unconditional.BLACK_IMAGE)
    assert zero.penultimate.shape == (1, 17, 32)
    assert not torch.allclose(zero.penultimate, black.penultimate, atol=1e-2)


def test_a_fully_masked_reference_is_the_unconditional_one(encoder):
    masked = encode_images(encoder, pictures(1), mask=torch.zeros(1, 40, 30))
    torch.testing.assert_close(masked.penultimate, encode_unconditional(encoder).penultimate)


def test_close_ups_come_as_a_second_row_or_mixed_in(encoder):
    one = encode_enhanced(encoder, pictures(1), tiles=2, share=0.5)
    assert one.penultimate.shape == (2, 17, 32)
    torch.testing.assert_close(one.penultimate[:1], 0.5 * encode_images(encoder, pictures(1)).penultimate)
    several = encode_enhanced(encoder, pictures(3), tiles=2, share=0.5)
    assert several.image_embeds.shape == (3, 25)
    alone = encode_enhanced(encoder, pictures(3), tiles=2, share=1.0)
    torch.testing.assert_close(alone.penultimate, encode_images(encoder, pictures(3)).penultimate)
    assert encode_enhanced(encoder, pictures(1), tiles=1, share=0.5).penultimate.shape == (1, 17, 32)


def test_close_ups_of_a_flat_picture_are_the_picture(encoder):
    flat = torch.full((2, 50, 80, 3), 0.4)
    close = encode_enhanced(encoder, flat, tiles=3, share=0.0)
    class_token = encode_images(encoder, flat).penultimate[:, 0]
    torch.testing.assert_close(close.penultimate[:, 0], class_token, atol=1e-5, rtol=1e-4)


def test_incomplete_weights_are_refused(weights):
    cut = {key: weight for key, weight in weights.items() if "layers.2" not in key}
    with pytest.raises(LikenessError, match="not complete"):
        TransformersClipEncoder.from_weights(cut, SMALL)


def test_position_ids_of_old_files_do_no_harm(weights, encoder):
    old = weights | {"vision_model.embeddings.position_ids": torch.arange(17)}
    again = TransformersClipEncoder.from_weights(old, SMALL)
    assert torch.equal(encode_unconditional(again).penultimate, encode_unconditional(encoder).penultimate)


@pytest.mark.parametrize(
    ("name", "layers", "intermediate", "activation"),
    [
        ("ViT-H/14", 32, 5120, "gelu"),
        ("ViT-bigG/14", 48, 8192, "gelu"),
        ("ViT-L/14@336", 24, 4096, "quick_gelu"),
        ("ViT-L/14", 24, 4096, "quick_gelu"),
    ],
)
def test_published_encoders_are_recognised_by_their_shapes(name, layers, intermediate, activation):
    size = PUBLISHED[name]

    def empty(*shape):
        return torch.empty(shape, device="meta")

    shapes = {
        "vision_model.embeddings.patch_embedding.weight": empty(size.hidden, 3, 14, 14),
        "vision_model.embeddings.position_embedding.weight": empty((size.image_size // 14) ** 2 + 1, size.hidden),
        "visual_projection.weight": empty(size.embed, size.hidden),
    }
    for i in range(layers):
        shapes[f"vision_model.encoder.layers.{i}.mlp.fc1.weight"] = empty(intermediate, size.hidden)
    config = config_of(shapes)
    assert size.name == name
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (layers, intermediate)
    assert (config["image_size"], config["hidden_act"]) == (size.image_size, activation)


def test_other_files_and_unknown_sizes_are_refused(weights):
    with pytest.raises(LikenessError, match="not a CLIP image encoder"):
        config_of({"image_proj.latents": torch.ones(1)})
    with pytest.raises(LikenessError, match=r"config\.json"):
        config_of(weights)


@pytest.mark.parametrize(
    ("hidden", "embed", "got", "sentence"),
    [
        (1280, None, "ViT-bigG/14", "this adapter needs ViT-H/14, got ViT-bigG/14 (1280 ≠ 1664)"),
        (None, 1024, "ViT-bigG/14", "this adapter needs ViT-H/14, got ViT-bigG/14 (1024 ≠ 1280)"),
        (None, 1280, "ViT-H/14", "this adapter needs ViT-bigG/14, got ViT-H/14 (1280 ≠ 1024)"),
        (1024, None, "ViT-H/14", "this adapter needs ViT-L/14@336, got ViT-H/14 (1024 ≠ 1280)"),
    ],
)
def test_the_wrong_encoder_is_named(hidden, embed, got, sentence):
    with pytest.raises(LikenessError) as error:
        check_encoder(hidden, embed, PUBLISHED[got])
    assert str(error.value).startswith(sentence)


def test_the_right_encoder_passes():
    check_encoder(1280, None, PUBLISHED["ViT-H/14"])
    check_encoder(None, 1280, PUBLISHED["ViT-bigG/14"])
    check_encoder(None, None, EncoderSize(1, 2, 3))


def test_a_socket_with_another_kind_of_model_is_refused():
    dino = SimpleNamespace(model=SimpleNamespace(embeddings=None), image_size=518)
    siglip = SimpleNamespace(model=SimpleNamespace(visual_projection=lambda a: a), image_size=384)
    for clip in (dino, siglip, None):
        with pytest.raises(LikenessError, match="not a CLIP image encoder"):
            ComfyClipEncoder(clip)


@pytest.mark.host
def test_comfyui_s_encoder_gives_the_same_features(host_nodes, tmp_path, weights, encoder):
    from comfy.clip_vision import ClipVisionModel

    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    host_model = ClipVisionModel(str(tmp_path / "config.json"))
    missing, _ = host_model.load_sd(dict(weights))
    assert not missing
    comfy = ComfyClipEncoder(host_model)
    assert comfy.size == encoder.size
    for ours, host in (
        (encode_images(encoder, pictures(2)), encode_images(comfy, pictures(2))),
        (encode_unconditional(encoder), encode_unconditional(comfy)),
    ):
        torch.testing.assert_close(host.image_embeds, ours.image_embeds, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(host.penultimate, ours.penultimate, atol=2e-5, rtol=1e-4)
    square = (pictures(1, 28, 28) * 255).round() / 255  # no resizing: the host's own preprocessing agrees as well
    host_output = host_model.encode_image(square)
    torch.testing.assert_close(
        encode_images(comfy, square).penultimate, host_output["penultimate_hidden_states"], atol=2e-5, rtol=1e-4
    )
