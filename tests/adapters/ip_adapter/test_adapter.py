"""IP-Adapter files of every variant: what they are is read from their content, whatever their name and layout."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from likeness.adapters import Evidence, IPAdapter, Variant, build, load
from likeness.errors import LikenessError
from likeness.weights import families
from likeness.weights.families import Family

# name -> how it is made, what it is, which base, what it needs (embedding, hidden states, pooled), LoRA, tokens
FILES: dict[str, tuple[Any, Variant, Family, str, bool, int]] = {
    "sd15 base": (lambda o: o.pooled(768), Variant.BASE, families.SD15, "pooled", False, 4),
    "sd15 light": (lambda o: o.pooled(768, seed=5), Variant.BASE, families.SD15, "pooled", False, 4),
    "sd15 vit-G": (lambda o: o.pooled(768, o.VIT_G), Variant.BASE, families.SD15, "pooled", False, 4),
    "sd15 plus": (lambda o: o.resampler(768), Variant.PLUS, families.SD15, "hidden", False, 16),
    "sd15 plus-face": (lambda o: o.resampler(768, seed=6), Variant.PLUS, families.SD15, "hidden", False, 16),
    "sd15 full-face": (lambda o: o.full_face(768), Variant.FULL_FACE, families.SD15, "hidden", False, 257),
    "sd15 faceid": (lambda o: o.identity(768), Variant.FACEID, families.SD15, "id", True, 4),
    "sd15 faceid-plus": (lambda o: o.identity_plus(768), Variant.FACEID_PLUS, families.SD15, "id hidden", True, 4),
    "sd15 faceid-plusv2": (
        lambda o: o.identity_plus(768), Variant.FACEID_PLUS_V2, families.SD15, "id hidden", True, 4,
    ),
    "sd15 portrait": (lambda o: o.identity(768, 16), Variant.PORTRAIT, families.SD15, "id every", False, 16),
    "sdxl base vit-G": (lambda o: o.pooled(2048, o.VIT_G), Variant.BASE, families.SDXL, "pooled", False, 4),
    "sdxl base vit-h": (lambda o: o.pooled(2048), Variant.BASE, families.SDXL, "pooled", False, 4),
    "sdxl plus": (lambda o: o.resampler(2048), Variant.PLUS, families.SDXL, "hidden", False, 16),
    "sdxl faceid": (lambda o: o.identity(2048), Variant.FACEID, families.SDXL, "id", True, 4),
    "sdxl faceid-plusv2": (
        lambda o: o.identity_plus(2048, depth=1), Variant.FACEID_PLUS_V2, families.SDXL, "id hidden", True, 4,
    ),
    "sdxl portrait": (lambda o: o.identity(2048, 16), Variant.PORTRAIT, families.SDXL, "id every", False, 16),
    "sdxl portrait-unnorm": (
        lambda o: o.resampler(2048, 512), Variant.PORTRAIT_UNNORM, families.SDXL, "id every raw", False, 16,
    ),
}  # fmt: skip


@cache
def content(official: Any, name: str) -> dict:
    """The groups of a file; nobody changes them."""
    make, *_, with_lora, _ = FILES[name]
    shapes = official.SD15 if name.startswith("sd15") else official.SDXL
    return official.groups(make(official), shapes, with_lora=with_lora)


def neutral(name: str) -> str:
    """A file name that tells nothing but the version of FaceID-Plus."""
    version = next((v for v in ("faceid-plusv2", "faceid-plus") if name.endswith(v)), "")
    return f"my download {version}"


@pytest.fixture(params=FILES)
def name(request) -> str:
    return request.param


@pytest.fixture
def adapter(official, name) -> IPAdapter:
    return build(official.flat(content(official, name)), neutral(name))


def test_the_variant_and_its_base_model_are_read_from_the_content(adapter, name):
    _, variant, base, *_ = FILES[name]
    assert (adapter.variant, adapter.base) == (variant, base)
    assert adapter.dim == (768 if base is families.SD15 else 2048)
    assert list(adapter.site_shapes) == list(range(1, 32 if base is families.SD15 else 140, 2))


def test_an_adapter_says_what_it_needs(adapter, name):
    needs = FILES[name][3].split()
    assert adapter.needs_embedding == ("id" in needs)
    assert adapter.needs_features == ("hidden" in needs)
    assert adapter.needs_pooled == ("pooled" in needs)
    assert adapter.reads_every_photo == ("every" in needs)
    assert adapter.needs_raw_embedding == ("raw" in needs)
    assert adapter.id_dim == (512 if "id" in needs else None)
    encoder = (1664, 1280) if "vit-G" in name else (1280, 1024)
    assert adapter.feature_dim == (encoder[0] if "hidden" in needs else encoder[1] if "pooled" in needs else None)


def test_keys_stay_official(official, adapter, name):
    given = {k: v for k, v in official.flat(content(official, name)).items() if "_lora." not in k}
    assert adapter.state_dict().keys() == given.keys()
    assert all(torch.equal(value, given[key]) for key, value in adapter.state_dict().items())


def test_each_photo_gives_the_variant_s_number_of_tokens(adapter, name):
    tokens = FILES[name][5]
    sequence = 257 if adapter.variant is Variant.FULL_FACE else 9
    evidence = Evidence(
        id_embeds=torch.randn(2, 512) if adapter.needs_embedding else None,
        features=torch.randn(2, sequence, 1280) if adapter.needs_features
        else torch.randn(2, adapter.feature_dim) if adapter.needs_pooled else None,  # type: ignore[arg-type]
        uncond_features=torch.randn(1, sequence, 1280) if adapter.needs_features else None,
    )  # fmt: skip
    made = adapter.encode(evidence)
    assert made.cond.shape == (2, tokens, adapter.dim)
    assert made.uncond.shape[1:] == (tokens, adapter.dim)
    assert made.cond.isfinite().all() and not torch.allclose(made.cond[:1], made.uncond[:1], atol=1e-3)
    keys, values = adapter.project(1, made.cond)
    assert keys.shape == values.shape == (2, tokens, adapter.site_shapes[1][0])


def test_nothing_of_an_adapter_is_trained_by_accident(adapter):
    assert not adapter.training
    assert not any(p.requires_grad for p in adapter.parameters())
    assert not any(p.is_meta for p in adapter.parameters())


@pytest.mark.parametrize("name", ["sd15 faceid", "sd15 plus", "sd15 base"], indirect=True)
@pytest.mark.parametrize(
    ("suffix", "layout"),
    [
        (".bin", "nested"), (".safetensors", "flat"), (".bin", "flat"), (".pt", "nested"),
        (".safetensors", "adapter_modules"), (".bin", "accelerate"), (".safetensors", "accelerate"),
    ],
)  # fmt: skip
def test_every_layout_gives_the_same_adapter(official, tmp_path, name, suffix, layout):
    groups = content(official, name)
    plain = build(official.flat(groups), "plain")
    given = {
        "nested": groups,
        "flat": official.flat(groups),
        "adapter_modules": official.renamed(groups),
        "accelerate": {
            **official.renamed(groups, projection="image_proj_model"),
            "unet.conv_in.weight": torch.zeros(4, 4),
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_ip.weight": torch.zeros(8, 768),
        },
    }[layout]
    adapter = load(official.write(tmp_path / f"model{suffix}", given))
    assert adapter.variant is plain.variant
    assert adapter.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in adapter.state_dict().items())
    assert set(adapter.lora_pairs()) == set(plain.lora_pairs())


def test_half_precision_files_stay_half(official, tmp_path):
    groups = {g: {k: v.half() for k, v in w.items()} for g, w in content(official, "sd15 base").items()}
    adapter = load(official.write(tmp_path / "a.safetensors", groups))
    assert {p.dtype for p in adapter.parameters()} == {torch.float16}


# FaceID-Plus 1 and 2 --------------------------------------------------------------------------------------------------

VERSION = {1: Variant.FACEID_PLUS, 2: Variant.FACEID_PLUS_V2}


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("ip-adapter-faceid-plus_sd15.bin", 1),
        ("ip-adapter-faceid-plusv2_sd15.bin", 2),
        ("IP-Adapter-FaceID-PlusV2_SDXL.safetensors", 2),
        ("faceid_plus_v2.safetensors", 2),
        ("faceid plus v1.safetensors", 1),
    ],
)
def test_the_file_s_name_tells_the_version(official, name, version):
    adapter = build(official.flat(content(official, "sd15 faceid-plus")), name)
    assert adapter.variant is VERSION[version]


def test_without_a_word_it_is_version_2_and_the_log_says_so(official, caplog):
    with caplog.at_level(logging.INFO, "likeness"):
        adapter = build(official.flat(content(official, "sd15 faceid-plus")), "download.bin")
    assert adapter.variant is Variant.FACEID_PLUS_V2
    assert "download.bin" in caplog.text and "version 2" in caplog.text


@pytest.mark.parametrize("version", [1, 2])
def test_the_caller_overrules_the_name(official, tmp_path, version):
    other = {1: "faceid-plusv2.safetensors", 2: "faceid-plus.safetensors"}[version]
    path = official.write(tmp_path / other, content(official, "sd15 faceid-plus"))
    assert load(path, plus_version=version).variant is VERSION[version]


@pytest.mark.parametrize("version", [1, 2])
def test_the_metadata_tells_the_version(official, tmp_path, version):
    path = official.write(
        tmp_path / "a.safetensors", content(official, "sd15 faceid-plus"), {"faceid_plus_version": str(version)}
    )
    assert load(path).variant is VERSION[version]
    assert load(path, plus_version=3 - version).variant is VERSION[3 - version]


def test_version_2_adds_the_identity_and_structure_scales_the_rest(official):
    weights = official.flat(content(official, "sd15 faceid-plus"))
    evidence = Evidence(torch.randn(1, 512), torch.randn(1, 9, 1280), torch.randn(1, 9, 1280))
    first, second = (build(weights, "a", plus_version=v) for v in (1, 2))
    only_identity = second.encode(evidence, structure=0.0)
    refined = first.encode(evidence, structure=7.0)  # version 1 has no such knob
    both = second.encode(evidence, structure=0.5)
    torch.testing.assert_close(both.cond, only_identity.cond + 0.5 * refined.cond)
    torch.testing.assert_close(both.uncond, only_identity.uncond + 0.5 * refined.uncond)


# LoRA -----------------------------------------------------------------------------------------------------------------


def test_the_lora_of_a_faceid_file_comes_in_pairs(official):
    weights = official.flat(content(official, "sd15 faceid"))
    adapter = build(weights, "faceid")
    pairs = adapter.lora_pairs()
    assert set(pairs) == {(slot, layer) for slot in range(32) for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    for (slot, layer), pair in pairs.items():
        stem = f"ip_adapter.{slot}.{layer.removesuffix('.0')}_lora"
        assert torch.equal(pair.down, weights[f"{stem}.down.weight"])
        assert torch.equal(pair.up, weights[f"{stem}.up.weight"])


def test_the_lora_is_a_change_of_weights_by_the_layers_paths(official):
    adapter = build(official.flat(content(official, "sd15 faceid")), "faceid.bin")
    delta = adapter.lora({slot: f"layer.{slot}" for slot in range(32)}, 0.5)
    assert delta is not None and (delta.name, delta.strength) == ("faceid.bin", 0.5)
    assert len(delta.changes) == 2 * 16 * 4
    (slot, layer), pair = next(iter(adapter.lora_pairs().items()))
    assert delta.changes[f"layer.{slot}.{layer}"].up is pair.up


def test_other_files_have_no_lora(official):
    adapter = build(official.flat(content(official, "sd15 portrait")), "portrait")
    assert adapter.lora({}) is None and not adapter.lora_pairs()


def test_a_faceid_file_without_its_lora_is_still_faceid(official):
    """Another pack takes it for a Portrait file, whose tokens are four times as many."""
    adapter = build(official.flat(official.groups(official.identity(768), official.SD15)), "no lora")
    assert adapter.variant is Variant.FACEID


def test_a_lora_is_told_from_another_by_its_weights_and_not_by_the_file_s_name(official):
    one, same, other = (
        build(official.flat(official.groups(official.identity(768), official.SD15, with_lora=True, seed=s)), n)
        for s, n in ((0, "a"), (0, "b"), (1, "a"))
    )
    assert one.lora_id == same.lora_id != other.lora_id
    assert build(official.flat(content(official, "sd15 portrait")), "a").lora_id is None


# Incomplete -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost",
    [
        "image_proj.proj.2.bias",
        "image_proj.norm.weight",
        "ip_adapter.7.to_v_ip.weight",
        "ip_adapter.7.to_k_ip.weight",
        "ip_adapter.4.to_q_lora.up.weight",
        "ip_adapter.4.to_q_lora.down.weight",
    ],
)
def test_a_file_that_lost_a_tensor_is_refused_in_one_sentence(official, lost):
    weights = official.flat(content(official, "sd15 faceid"))
    del weights[lost]
    with pytest.raises(LikenessError, match=r"'broken\.bin' is not a complete IP-Adapter") as error:
        build(weights, "broken.bin")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", ["image_proj", "ip_adapter"])
def test_half_a_file_is_refused(official, group):
    with pytest.raises(LikenessError, match=r"half\.bin"):
        build(
            {k: v for k, v in official.flat(content(official, "sd15 faceid")).items() if k.startswith(group)},
            "half.bin",
        )


@pytest.mark.parametrize("name", ["sd15 plus", "sd15 faceid-plus"])
def test_a_resampler_that_lost_a_layer_is_refused(official, name):
    weights = official.flat(content(official, name))
    lost = next(key for key in weights if key.endswith("layers.1.0.to_kv.weight"))
    del weights[lost]
    with pytest.raises(LikenessError, match="not a complete IP-Adapter"):
        build(weights, "x")


def test_widths_that_do_not_belong_together_are_refused(official):
    """The projection of an SDXL file with the layers of an SD1.5 file."""
    mixed = official.flat(official.groups(official.identity(2048), official.SD15))
    with pytest.raises(LikenessError, match="not a complete IP-Adapter"):
        build(mixed, "mixed")


def test_encoding_without_the_empty_picture_is_explained(official):
    adapter = build(official.flat(content(official, "sd15 plus")), "plus")
    with pytest.raises(LikenessError, match="zero image"):
        adapter.encode(Evidence(features=torch.randn(1, 9, 1280)))


def test_a_file_of_another_family_still_loads(official):
    """SD2, and nets of other text widths, are told apart by the width of their keys."""
    for dim, base in ((1024, families.SD2), (96, families.OTHER)):
        shapes = [(w, dim) for w, _ in official.SD15]
        assert build(official.flat(official.groups(official.pooled(dim), shapes)), "x").base is base


def test_repository_files_are_recognised_by_path_objects(official, tmp_path):
    folder = tmp_path / "sub folder with ünïcode"
    path = official.write(folder / "adapter.safetensors", content(official, "sd15 base"))
    assert load(Path(path)).name == "adapter.safetensors"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["first", "last"])
def test_weights_that_are_no_numbers_are_refused_with_their_place(official, tmp_path, bad, where):
    weights = {key: tensor.clone() for key, tensor in official.flat(content(official, "sd15 faceid")).items()}
    key = list(weights)[0 if where == "first" else -1]
    weights[key].view(-1)[-1] = bad
    save_file(weights, tmp_path / "nan.safetensors")
    with pytest.raises(LikenessError, match=r"'nan\.safetensors' holds values that are NaN or infi") as caught:
        load(tmp_path / "nan.safetensors")
    assert key in str(caught.value)
