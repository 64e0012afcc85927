"""Single-file checkpoints, as the command line reads them: what was saved comes back and computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from likeness.errors import LikenessError
from likeness.training.base import files as base_files
from likeness.training.base import single_file
from likeness.training.base.model import BaseModel, Codec, TextTower
from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.training.base.single_file import find_tokenizer, load_single_file, unet_config
from likeness.training.command import Openers, read_configuration, run
from likeness.training.export import TrainingRecord, save_checkpoint
from likeness.weights import families
from likeness.weights.checkpoint_layout import to_original, unet_names

FAMILIES = pytest.mark.parametrize("family", families.TRAINABLE, ids=lambda family: family.title)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from likeness.miniature.models.networks import build_tokenizer

    return build_tokenizer()


def text_encoder(words: int, act: str, projected: bool = False) -> Any:
    """A CLIP text encoder of width 64: one head."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=1,
        hidden_act=act,
        projection_dim=16,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def small_model(family: families.Family, tokenizer: Any, prediction: Prediction = Prediction.EPSILON) -> BaseModel:
    """Random weights in the family's layout, with its kinds of heads, projections, activations and blocks."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    config: dict[str, Any] = {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    }
    encoders = [text_encoder(len(tokenizer), "gelu" if family is families.SD2 else "quick_gelu")]
    if family is not families.SD15:
        config |= {"block_out_channels": (64, 128), "attention_head_dim": (1, 2), "use_linear_projection": True}
    if family is families.SDXL:
        encoders.append(text_encoder(len(tokenizer), "gelu", projected=True))
        config |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "cross_attention_dim": 128,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 16 + 6 * 8,
        }
    vae: Any = AutoencoderKL(
        block_out_channels=(32, 64),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        scaling_factor=0.13025 if family is families.SDXL else 0.18215,
    ).eval()
    kinds = {families.SD15: ("clip_l",), families.SD2: ("clip_h",), families.SDXL: ("clip_l", "clip_g")}[family]
    towers = tuple(TextTower(tokenizer, e, kind) for e, kind in zip(encoders, kinds, strict=True))
    unet = UNet2DConditionModel(**config).eval()
    skip = 1 if family is families.SD2 else 0
    return BaseModel(unet, towers, Codec.of(vae), NoiseSchedule.scaled_linear(prediction), clip_skip=skip)


def saved(model: BaseModel, folder: Path, tokenizer: Any) -> Path:
    """The model as a checkpoint with the tokenizer's files beside it."""
    tokenizer.save_pretrained(folder / "tokenizer")
    record = TrainingRecord("DreamBooth", model.family, 1, prediction=model.schedule.prediction)
    assert model.codec.in_checkpoints is not None
    vae = model.codec.in_checkpoints()
    return save_checkpoint(model.unet, vae, model.encoders, folder, "full", record, torch.float32)


@FAMILIES
def test_a_saved_checkpoint_comes_back_and_computes_the_same(family, tokenizer, tmp_path):
    model = small_model(family, tokenizer)
    found = load_single_file(saved(model, tmp_path, tokenizer))
    assert found.family is family and found.clip_skip == model.clip_skip
    assert torch.equal(found.schedule.alphas_cumprod, model.schedule.alphas_cumprod)
    random = torch.Generator().manual_seed(1)
    z, t = torch.randn(2, 4, 16, 16, generator=random), torch.tensor([10, 900])
    pictures = torch.rand(1, 3, 32, 32, generator=random) * 2 - 1
    time_ids = torch.rand(2, 6, generator=random) if family is families.SDXL else None
    ids = [tower.ids(["a photo of a person"] * 2) for tower in found.text]
    with torch.no_grad():

        def recorded(base: BaseModel) -> list[torch.Tensor]:
            if not base.is_sdxl:
                return [base.text[0].last(ids[0], base.clip_skip)]
            parts = [tower.penultimate(i) for tower, i in zip(base.text, ids, strict=True)]
            return [torch.cat([states for states, _ in parts], -1), parts[1][1]]

        for ours, theirs in zip(recorded(found), recorded(model), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        conditioning = type(model.encode(["a"]))(*recorded(model))
        torch.testing.assert_close(
            found.predict(z, t, conditioning, time_ids), model.predict(z, t, conditioning, time_ids), rtol=0, atol=1e-6
        )
        ours, theirs = found.codec.encode(pictures), model.codec.encode(pictures)
        torch.testing.assert_close(ours.mean, theirs.mean, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            found.codec.decoder.picture(z[:1]), model.codec.decoder.picture(z[:1]), rtol=0, atol=1e-6
        )


FULL = {
    families.SD15: {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    families.SD2: {
        "sample_size": 96,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    families.SDXL: {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


@pytest.mark.parametrize("family", FULL, ids=lambda family: family.title)
def test_the_published_sizes_are_read_off_the_weights(family):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**FULL[family])
        state = unet.state_dict()
        found: Any = UNet2DConditionModel(**unet_config(to_original(state, unet_names(state)), family, 1280))
    assert {name: value.shape for name, value in found.state_dict().items()} == {n: v.shape for n, v in state.items()}
    assert {name: found.config[name] for name in FULL[family]} == {name: unet.config[name] for name in FULL[family]}


def test_the_second_encoder_of_sdxl_is_padded_with_word_0(tokenizer, tmp_path):
    found = load_single_file(saved(small_model(families.SDXL, tokenizer), tmp_path, tokenizer))
    one, two = (tower.ids(["a person"])[0] for tower in found.text)
    assert one[-1] == tokenizer.pad_token_id and two[-1] == 0 and torch.equal(one[:4], two[:4])


@pytest.mark.parametrize("family", [families.SD15, families.SDXL], ids=lambda family: family.title)
def test_what_a_checkpoint_predicts_is_kept(family, tokenizer, tmp_path):
    model = small_model(family, tokenizer, Prediction.VELOCITY)
    assert load_single_file(saved(model, tmp_path, tokenizer)).schedule.prediction is Prediction.VELOCITY


def test_a_cut_text_encoder_of_sd2_gets_its_last_layer_back():
    from likeness.weights.checkpoint_layout import _all_layers_of_sd2

    cut = {f"text_model.encoder.layers.{layer}.x": torch.tensor(layer) for layer in range(23)}
    whole = _all_layers_of_sd2(cut)
    assert len(whole) == 24 and whole["text_model.encoder.layers.23.x"] == 22
    assert _all_layers_of_sd2(whole) == whole
    small = {"text_model.encoder.layers.1.x": torch.tensor(1)}
    assert _all_layers_of_sd2(small) == small


def test_a_checkpoint_is_trained_by_the_command_line(tokenizer, tmp_path):
    checkpoint = saved(small_model(families.SD15, tokenizer), tmp_path / "models", tokenizer)
    (tmp_path / "photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / "photos/one.png")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(tmp_path / "photos/one.mask.png")
    (tmp_path / "config.toml").write_text(
        f"""
        name = "anna"
        base = "{checkpoint.as_posix()}"
        output = "{(tmp_path / "run").as_posix()}"
        [data]
        person = "{(tmp_path / "photos").as_posix()}"
        resolution = 64
        [recipe]
        kind = "dreambooth"
        full = true
        prior_weight = 0
        steps = 2
        learning_rate = 0.01
        """
    )
    openers = Openers(lambda name: base_files.load_base(Path(name)), lambda name: None)  # type: ignore[arg-type, return-value]
    [result] = run(read_configuration(tmp_path / "config.toml"), openers)
    tokenizer.save_pretrained(result.parent / "tokenizer")
    before, after = load_single_file(checkpoint).unet.state_dict(), load_single_file(result).unet.state_dict()
    assert before.keys() == after.keys() and not torch.equal(before["conv_in.weight"], after["conv_in.weight"])


# What is none ---------------------------------------------------------------------------------------------------------


def test_a_comfyui_around_the_checkpoint_lends_its_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "comfy" / "sd1_tokenizer")
    assert len(find_tokenizer(tmp_path / "models" / "checkpoints" / "a.safetensors")) == len(tokenizer)


def test_a_tokenizer_that_is_nowhere_or_broken_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(single_file, "model_roots", lambda: [tmp_path / "nowhere" / "models"])
    monkeypatch.setattr(single_file, "_cached", list)
    with pytest.raises(LikenessError, match="no tokenizer was found: set COMFYUI_PATH"):
        find_tokenizer(tmp_path / "a.safetensors")
    (tmp_path / "tokenizer").mkdir()
    for content, words in (("{", "cannot be read"), ('{"a": 0}', "cannot be read|not complete")):
        (tmp_path / "tokenizer" / "vocab.json").write_text(content)
        with pytest.raises(LikenessError, match=words):
            find_tokenizer(tmp_path / "a.safetensors")


def test_a_tokenizer_with_more_words_than_the_encoder_is_refused(tokenizer, tmp_path):
    model = small_model(families.SD15, tokenizer)
    path = saved(model, tmp_path, tokenizer)
    larger = type(tokenizer).from_pretrained(tmp_path / "tokenizer")
    larger.add_tokens(["<one>", "<two>"])
    larger.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(LikenessError, match=r"has \d+ words and its text encoder \d+"):
        load_single_file(path)


def test_other_files_say_what_they_are(tokenizer, tmp_path):
    one = torch.zeros(1)
    unet = {"model.diffusion_model.input_blocks.0.0.weight": one, "model.diffusion_model.middle_block.0.x": one}
    vae = {"first_stage_model.decoder.mid.block_1.x": one}
    text = {"conditioner.embedders.0.transformer.text_model.x": one}
    for content, words in (
        ({"lora_unet_x.lora_down.weight": one}, "holds no denoiser"),
        ({"model.diffusion_model.double_blocks.0.x": one}, "another family"),
        ({**unet, **text}, "holds no VAE"),
        ({**unet, **vae, **text}, "lacks one of SDXL's two"),
    ):
        save_file({name: value.clone() for name, value in content.items()}, tmp_path / "other.safetensors")
        with pytest.raises(LikenessError, match=words):
            base_files.load_base(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{")
    with pytest.raises(LikenessError, match="cannot be read as a"):
        base_files.load_base(tmp_path / "cut.safetensors")
    with pytest.raises(LikenessError, match="There is no base model"):
        base_files.load_base(tmp_path / "gone.safetensors")
    with pytest.raises(LikenessError, match=r"a \.safetensors checkpoint, or 'miniature'"):
        base_files.load_base(tmp_path)


def test_a_pickled_checkpoint_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Payload()}, tmp_path / "model.ckpt")
    with pytest.raises(LikenessError, match=r"is a pickle.*Save Checkpoint"):
        base_files.load_base(tmp_path / "model.ckpt")
    assert not (tmp_path / "ran").exists()


def test_models_of_other_layouts_are_refused(tokenizer, tmp_path):
    from safetensors.torch import load_file

    path = saved(small_model(families.SD15, tokenizer), tmp_path, tokenizer)
    weights = load_file(path)
    extended = {**weights, "model.diffusion_model.input_blocks.1.2.extra.weight": torch.zeros(1)}
    save_file(extended, tmp_path / "extended.safetensors")
    with pytest.raises(LikenessError, match="another layout"):
        load_single_file(tmp_path / "extended.safetensors")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    save_file({**weights, first: torch.zeros(32, 9, 3, 3)}, tmp_path / "inpainting.safetensors")
    with pytest.raises(LikenessError, match="reads 9 channels"):
        load_single_file(tmp_path / "inpainting.safetensors")
