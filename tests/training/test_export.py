"""Files: read back as written, in every spelling, never over another file, never half."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from likeness.errors import LikenessError
from likeness.training import export
from likeness.training.base.lora import (
    Reach,
    add_lora,
    continue_lora,
    fill_lora,
    load_lora,
    lora_targets,
    trained_pairs,
)
from likeness.training.export import TrainingRecord
from likeness.weights import checkpoint_layout as layout
from likeness.weights import families, lora_files
from likeness.weights.embedding_files import TokenEmbedding, load_embedding, read_embedding
from likeness.weights.lora import LoraPair, merged
from likeness.weights.lora_files import SDXL_TEXT_2, TEXT, UNET, read_lora

RECORD = TrainingRecord("MagiCapture", families.SD15, 300, ("sks person",), seed=7, resolution=(512, 512))


def random_pairs(unet: Any, rank: int = 2, reach: Reach = Reach.EVERYTHING) -> dict[str, LoraPair]:
    generator, pairs = torch.Generator().manual_seed(0), {}
    for path in lora_targets(unet, reach):
        out, into, *kernel = unet.get_submodule(path).weight.shape
        down = torch.randn(rank, into, *kernel, generator=generator)
        up = torch.randn(out, rank, *[1] * len(kernel), generator=generator)
        pairs[path] = LoraPair(down, up, alpha=1.0)
    return pairs


def text_encoder(width: int = 32, projection: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=60,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        bos_token_id=58,
        eos_token_id=59,
        pad_token_id=0,
        projection_dim=24,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


# LoRA -----------------------------------------------------------------------------------------------------------------


def test_what_is_trained_is_what_is_read_back(unet, tmp_path):
    parameters = add_lora(unet, lora_targets(unet, Reach.TRANSFORMER), rank=3, alpha=1.5)
    for parameter in parameters:
        torch.nn.init.normal_(parameter)
    pairs = trained_pairs(unet)
    plain = type(unet).from_config(unet.config)
    path = export.save_lora(plain, pairs, tmp_path, "mine", RECORD, dtype=torch.float32)
    file = read_lora(load_file(path), lora_files.unet_spellings(plain))
    assert not file.others and set(file.pairs) == set(pairs)
    for name, pair in pairs.items():
        torch.testing.assert_close(file.pairs[name].delta(), pair.delta())
        assert file.pairs[name].scale == pytest.approx(0.5)


def test_a_trained_lora_merged_gives_the_pictures_of_training(make_unet):
    trained, plain = make_unet().eval(), make_unet().eval()
    pairs = random_pairs(plain)
    pairs = {path: LoraPair(0.05 * p.down, p.up, p.alpha) for path, p in pairs.items()}
    add_lora(trained, pairs, rank=2)
    fill_lora(trained, pairs)
    inputs = torch.randn(1, 4, 32, 32), torch.tensor([400]), torch.randn(1, 5, 24)
    with torch.no_grad():
        before, during = plain(*inputs).sample, trained(*inputs).sample
        with merged(plain, pairs):
            torch.testing.assert_close(plain(*inputs).sample, during, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(before, during, atol=1e-3)
        assert torch.equal(plain(*inputs).sample, before)


def test_a_new_lora_changes_nothing_and_freezes_the_rest(unet):
    inputs = torch.randn(1, 4, 32, 32), torch.tensor([400]), torch.randn(1, 5, 24)
    with torch.no_grad():
        before = unet(*inputs).sample
        parameters = add_lora(unet, lora_targets(unet, Reach.ATTENTION), rank=4)
        assert torch.equal(unet(*inputs).sample, before)
    trainable = [p for p in unet.parameters() if p.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in parameters}
    assert float(parameters[0].std()) == pytest.approx(1 / 4, rel=0.3)


def test_a_lora_of_several_ranks_and_strengths_is_trained_further_as_it_is(make_unet, tmp_path):
    plain, encoder = make_unet(), text_encoder()
    pairs = {
        path: replace(pair, down=pair.down[: 1 + number % 2], up=pair.up[:, : 1 + number % 2], alpha=0.5 + number % 3)
        for number, (path, pair) in enumerate(random_pairs(plain).items())
    }
    written = export.save_lora(plain, pairs, tmp_path, "mine", RECORD, dtype=torch.float32)
    start = load_lora(written, plain, [encoder])
    assert start.rank == 2 and start.encoders == ({},) and set(start.unet) == set(pairs)
    trained = make_unet()
    continue_lora(trained, start.unet)
    again = trained_pairs(trained)
    assert set(again) == set(pairs)
    for path, pair in pairs.items():
        assert again[path].rank == pair.rank and again[path].scale == pytest.approx(pair.scale)
        torch.testing.assert_close(again[path].delta(), pair.delta())
    with torch.no_grad(), merged(plain, pairs, 0.01):
        for pair in pairs.values():
            pair.up.mul_(0.01)
        fill_lora(trained, pairs)
        inputs = torch.randn(1, 4, 32, 32), torch.tensor([400]), torch.randn(1, 5, 24)
        torch.testing.assert_close(trained(*inputs).sample, plain(*inputs).sample, atol=1e-3, rtol=1e-3)


def spoilt(weights: dict[str, torch.Tensor], what: str) -> dict[str, torch.Tensor]:
    key = next(key for key in weights if key.endswith("lora_up.weight"))
    name = key.removesuffix(".lora_up.weight")
    changes: dict[str, dict[str, torch.Tensor]] = {
        "NaN": {key: weights[key] * float("nan")},
        "half": {f"{name}.other.weight": weights[key]},
        "scalar": {key: torch.tensor(1.0)},
        "strengths": {f"{name}.alpha": torch.ones(3)},
        "three": {f"{name}.lora_mid.weight": torch.ones(2, 2, 3, 3)},
        "another model": {key: torch.ones(7, 2)},
        "dora": {f"{name}.dora_scale": torch.ones(4)},
    }
    return weights | changes[what]


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("NaN", "holds values that are not numbers"),
        ("half", "1 entries fit none of its layers"),
        ("scalar", "do not fit each other"),
        ("strengths", "strength of .* is not a number"),
        ("three", "three matrices"),
        ("another model", "does not fit the model"),
        ("dora", "of a kind that cannot be trained further"),
    ],
)
def test_what_cannot_be_trained_further_is_one_sentence(make_unet, tmp_path, what, sentence):
    plain = make_unet()
    weights = lora_files.kohya_weights(random_pairs(plain), lora_files.kohya_unet_names(plain))
    file = tmp_path / "mine.safetensors"
    save_file({key: value.clone() for key, value in spoilt(weights, what).items()}, file)
    with pytest.raises(LikenessError, match=sentence):
        continue_lora(make_unet(), load_lora(file, plain, [text_encoder()]).unet)


@pytest.mark.parametrize("header", ["[]", "[" * 100_000, '{"unet.lora_alpha": "x", "unet.alpha_pattern": [1]}', "{"])
def test_a_header_that_says_nothing_useful_is_passed_over(header):
    pair = {"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": torch.ones(8, 2)}
    found = read_lora(pair, {"unet.conv_in": "conv_in"}, UNET, {"lora_adapter_metadata": header})
    assert found.pairs["conv_in"].scale == 1


@pytest.mark.parametrize("sdxl", [False, True])
def test_every_spelling_of_a_module_is_read(make_unet, sdxl):
    overrides: dict[str, Any] = {"use_linear_projection": True} if sdxl else {}
    unet = make_unet(**overrides)
    pairs = random_pairs(unet)
    spellings = lora_files.unet_spellings(unet)
    original = layout.unet_names(pairs)
    kohya, peft, older = (".lora_down", ".lora_up"), (".lora_A", ".lora_B"), (".lora.down", ".lora.up")

    def file_of(name_of: Callable[[str], str], ends: tuple[str, str]) -> dict[str, torch.Tensor]:
        down = {f"{name_of(path)}{ends[0]}.weight": pair.down for path, pair in pairs.items()}
        return down | {f"{name_of(path)}{ends[1]}.weight": pair.up for path, pair in pairs.items()}

    files = [
        file_of(lambda p: f"lora_unet_{p.replace('.', '_')}", kohya),
        file_of(lambda p: f"lora_unet_{original[p].replace('.', '_')}", kohya),
        file_of(lambda p: f"lycoris_{p.replace('.', '_')}", kohya),
        file_of(lambda p: f"diffusion_model.{original[p]}", peft),
        file_of(lambda p: f"base_model.model.{p}", peft),
        file_of(lambda p: f"unet.{p}", older),
    ]
    for file in files:
        read = read_lora(file, spellings)
        assert not read.others and set(read.pairs) == set(pairs)
        assert all(pair.scale == 1 for pair in read.pairs.values())


def test_the_strength_of_a_peft_file_is_taken_from_its_header():
    pair = {"unet.conv_in.lora_A.weight": torch.ones(2, 4), "unet.conv_in.lora_B.weight": torch.ones(8, 2)}
    settings = {"lora_adapter_metadata": '{"unet.r": 2, "unet.lora_alpha": 6}'}
    spellings = {"unet.conv_in": "conv_in"}
    assert read_lora(pair, spellings, UNET, settings).pairs["conv_in"].scale == 3
    assert read_lora(pair, spellings, UNET).pairs["conv_in"].scale == 1


def test_keys_of_other_models_are_reported_not_dropped(unet):
    pairs = random_pairs(unet, reach=Reach.ATTENTION)
    weights = lora_files.kohya_weights(pairs, lora_files.kohya_unet_names(unet))
    weights["lora_te_text_model_encoder_layers_0_mlp_fc1.alpha"] = torch.tensor(1.0)
    weights["something.dora_scale"] = torch.ones(1)
    assert set(read_lora(weights, lora_files.unet_spellings(unet)).others) == {
        "lora_te_text_model_encoder_layers_0_mlp_fc1.alpha",
        "something.dora_scale",
    }


def test_damaged_files_are_refused_in_words():
    spellings = {"a": "a"}
    half = {"a.lora_down.weight": torch.ones(2, 4)}
    with pytest.raises(LikenessError, match="not complete"):
        read_lora(half, spellings)
    with pytest.raises(LikenessError, match=r"shapes \(2, 4\) and \(4, 3\)"):
        read_lora({**half, "a.lora_up.weight": torch.ones(4, 3)}, spellings)
    with pytest.raises(LikenessError, match=r"shapes \(0, 4\)"):
        read_lora({"a.lora_down.weight": torch.ones(0, 4), "a.lora_up.weight": torch.ones(4, 0)}, spellings)


def test_a_lora_for_another_width_is_refused_before_anything_changes(make_unet):
    small, large = make_unet(), make_unet(block_out_channels=(16, 64))
    before = {name: value.clone() for name, value in small.state_dict().items()}
    with pytest.raises(LikenessError, match="made for this base model"), merged(small, random_pairs(large)):
        pass
    assert all(torch.equal(value, before[name]) for name, value in small.state_dict().items())


def test_alpha_zero_counts_as_rank_and_tucker_files_compose():
    assert LoraPair(torch.ones(4, 2), torch.ones(3, 4), alpha=0.0).scale == 1
    down, mid, up = torch.randn(2, 5, 1, 1), torch.randn(3, 2, 3, 3), torch.randn(7, 3, 1, 1)
    x, conv = torch.randn(1, 5, 6, 6), torch.nn.functional.conv2d
    delta = LoraPair(down, up, alpha=2.0, mid=mid).delta()
    torch.testing.assert_close(conv(x, delta), conv(conv(conv(x, down), mid), up), atol=1e-4, rtol=1e-4)


def test_text_encoder_keys_are_those_that_comfyui_maps():
    encoder = text_encoder(projection=True)
    names = lora_files.kohya_text_names(encoder, SDXL_TEXT_2)
    assert names["text_model.encoder.layers.1.mlp.fc1"] == "lora_te2_text_model_encoder_layers_1_mlp_fc1"
    older = lora_files.kohya_text_names(text_encoder(), TEXT)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in older.values()


# Metadata -------------------------------------------------------------------------------------------------------------


def test_a_lora_says_how_it_was_made_and_nothing_private(unet, tmp_path):
    pairs = random_pairs(unet, reach=Reach.ATTENTION)
    record = TrainingRecord(
        **{**vars(RECORD), "finished": datetime(2024, 5, 1, tzinfo=timezone.utc), "extra": {"unet_lr": 1e-4}}
    )
    path = export.save_lora(unet, pairs, tmp_path, "mine", record)
    entries = header(path)
    assert entries["ss_network_dim"] == "2" and entries["ss_network_alpha"] == "1.0"
    assert entries["ss_base_model_version"] == "sd_v1" and entries["ss_unet_lr"] == "0.0001"
    assert entries["modelspec.trigger_phrase"] == "sks person" and entries["ss_steps"] == "300"
    assert entries["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert entries["modelspec.date"] == "2024-05-01T00:00:00"
    assert "modelspec.license" not in entries
    assert not any(str(tmp_path) in value for value in entries.values())
    content = path.read_bytes()
    body = 8 + int.from_bytes(content[:8], "little")
    assert entries["sshs_model_hash"] == hashlib.sha256(content[body:]).hexdigest()
    assert all(value.dtype == torch.float16 for value in load_file(path).values())


# Embeddings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "vectors", [{"clip_l": (2, 768)}, {"clip_h": (1, 1024)}, {"clip_l": (3, 768), "clip_g": (3, 1280)}]
)
def test_an_embedding_is_read_back_for_the_same_encoders(tmp_path, vectors):
    embedding = TokenEmbedding({name: torch.randn(*shape) for name, shape in vectors.items()})
    path = export.save_embedding(embedding, tmp_path, "<sks>", RECORD)
    back = load_embedding(path)
    assert path.name == "sks.safetensors" and set(back.vectors) == set(vectors)
    assert all(torch.equal(back.vectors[name], embedding.vectors[name]) for name in vectors)


def test_a_single_vector_may_be_one_dimensional():
    assert read_embedding({"<sks>": torch.zeros(768)}).vectors["clip_l"].shape == (1, 768)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"a": torch.zeros(768), "b": torch.zeros(768)}, "2 tensors"),
        ({}, "0 tensors"),
        ({"a": torch.zeros(2, 3, 4)}, "not a textual-inversion"),
        ({"bundle_emb.a.clip_l": torch.zeros(1, 8), "bundle_emb.b.clip_l": torch.zeros(1, 8)}, "a, b"),
    ],
)
def test_other_files_are_no_embeddings(content, words):
    with pytest.raises(LikenessError, match=words):
        read_embedding(content)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"string_to_param": Payload()}, tmp_path / "bad.pt")
    with pytest.raises(LikenessError, match=r"bad\.pt"):
        load_embedding(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(LikenessError, match="missing"):
        load_embedding(tmp_path / "gone.safetensors")


# Writing --------------------------------------------------------------------------------------------------------------


def test_a_taken_name_gets_a_number(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(b"precious")
    paths = [export.write_safetensors({"a": torch.full((2,), value)}, tmp_path, "mine") for value in (1.0, 2.0)]
    assert [p.name for p in paths] == ["mine_2.safetensors", "mine_3.safetensors"]
    assert (tmp_path / "mine.safetensors").read_bytes() == b"precious"


def test_nothing_lies_under_a_results_name_until_it_is_whole(tmp_path, monkeypatch):
    """So a kill at any moment leaves no empty LoRA, and the next start no `mine_2` beside it."""
    import safetensors.torch

    save, seen = safetensors.torch.save_file, []

    def watched(tensors: Any, path: Path, metadata: Any) -> None:
        save(tensors, path, metadata)
        seen.extend(found.name for found in tmp_path.glob("mine*"))

    monkeypatch.setattr(safetensors.torch, "save_file", watched)
    assert export.write_safetensors({"a": torch.ones(2)}, tmp_path, "mine").name == "mine.safetensors"
    assert seen == []


@pytest.mark.parametrize("other", [{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(1)}], ids=["one", "two"])
def test_a_result_that_is_there_already_is_not_written_twice(tmp_path, other):
    (tmp_path / "mine.safetensors").write_bytes(b"")  # what an older version left when it was killed
    first = export.write_safetensors(other, tmp_path, "mine", {"finished": "yesterday"})
    again = export.write_safetensors(other, tmp_path, "mine", {"finished": "today"})
    assert first == again == tmp_path / "mine_2.safetensors"
    halved = {name: value.half() for name, value in other.items()}
    assert export.write_safetensors(halved, tmp_path, "mine").name == "mine_3.safetensors"
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"mine{n}.safetensors" for n in ("", "_2", "_3")]


@pytest.mark.parametrize(
    ("name", "file"), [("../../etc/x", "etc_x"), ("<sks>|<a>", "sks_a"), ("  ", "result"), ("a/b c", "a_b_c")]
)
def test_names_stay_inside_the_folder(tmp_path, name, file):
    path = export.write_safetensors({"a": torch.ones(2)}, tmp_path / "out", name)
    assert path.parent == tmp_path / "out" and path.stem.strip("_") == file


def test_values_that_are_not_numbers_are_not_saved(tmp_path):
    with pytest.raises(LikenessError, match="not numbers"):
        export.write_safetensors({"a": torch.tensor([1.0, float("nan")])}, tmp_path, "mine")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    import safetensors.torch

    def full(_tensors: Any, path: Path, _metadata: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "mine.safetensors").write_bytes(b"precious")
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(LikenessError, match="No space left"):
        export.write_safetensors({"a": torch.ones(2)}, tmp_path, "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]


# Checkpoints ----------------------------------------------------------------------------------------------------------


def small_vae() -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),  # type: ignore[arg-type]
        down_block_types=("DownEncoderBlock2D",) * 2,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * 2,  # type: ignore[arg-type]
        norm_num_groups=4,
    )


@pytest.mark.parametrize("sdxl", [False, True])
def test_a_checkpoint_is_read_back_bit_by_bit(make_unet, tmp_path, sdxl):
    unet, vae = make_unet(), small_vae()
    encoders = [text_encoder(), text_encoder(projection=True)] if sdxl else [text_encoder()]
    family = families.SDXL if sdxl else families.SD15
    record = replace(RECORD, base=family)
    path = export.save_checkpoint(unet, layout.vae_weights(vae), encoders, tmp_path, "full", record, torch.float32)
    weights = load_file(path)
    for model, names, prefix in (
        (unet, layout.unet_names(unet.state_dict()), layout.UNET),
        (vae, layout.vae_names(vae.state_dict()), layout.VAE),
    ):
        own = model.state_dict()
        back = layout.from_original(weights, own, names, prefix)
        assert all(torch.equal(back[key], own[key]) for key in own)
    first = layout.below(weights, family.texts[0][0])
    assert set(first) == {layout.with_text_model(key) for key in encoders[0].state_dict()}
    if sdxl:
        back = layout.from_open_clip(layout.below(weights, family.texts[1][0]))
        own = encoders[1].state_dict()
        assert set(back) == set(own) and all(torch.equal(back[key], own[key]) for key in own)
    with pytest.raises(LikenessError, match="another model"):
        layout.from_original({}, unet.state_dict(), layout.unet_names(unet.state_dict()), layout.UNET)


def test_a_model_with_lora_layers_is_not_written_as_a_checkpoint(unet):
    add_lora(unet, lora_targets(unet, Reach.ATTENTION), rank=2)
    with pytest.raises(ValueError, match="LoRA"):
        layout.checkpoint_weights(unet, {}, [text_encoder()], families.SD15)
