"""PuLID for FLUX: which files it takes, what folding leaves unchanged, and what it says when something does not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import pulid as files
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from likeness import adapters
from likeness.adapters import eva_clip
from likeness.adapters.effects import BlockTerm, Scope
from likeness.adapters.pulid import NEUTRAL, CrossAttentions, PuLIDFlux, PuLIDOptions, TokenPooling
from likeness.adapters.system import Request
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.weights import families
from likeness.weights.families import DitLayout, TransformerLayout

WIDTH, LAYOUT = 64, DitLayout(3, 6, 64)
TOWER = eva_clip.build_eva(files.eva())


def load(tmp_path, weights, name: str = "pulid_flux_v0.9.1.safetensors"):
    save_file(weights, tmp_path / name)
    return adapters.load(tmp_path / name)


def person(photos: int = 1, seed: int = 0) -> Identity:
    generator = torch.Generator().manual_seed(seed)

    def crops(side: int) -> Tensor:
        return torch.randint(0, 256, (photos, side, side, 3), generator=generator, dtype=torch.uint8)

    return Identity(
        name="Ada", recogniser="antelopev2", embeddings=torch.randn(photos, 512, generator=generator) * 20,
        weights=torch.ones(photos), aligned=crops(224), portraits=crops(512), heads=crops(512),
        keypoints=torch.zeros(photos, 5, 2), boxes=torch.zeros(photos, 4), photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip


def request(identity: Identity | None, dit: DitLayout | None = LAYOUT, **changes) -> Request:
    def parse(crops: Tensor) -> Tensor:
        return torch.ones(crops.shape[:3], dtype=torch.uint8)

    layout = TransformerLayout((), False, ())
    return Request(layout, {}, identity=identity, find_eva=lambda: TOWER, parse=parse, dit=dit, **changes)


def term(adapter: PuLIDFlux, identity: Identity, **changes) -> BlockTerm:
    (effect,) = adapter.effects(request(identity, **changes))
    assert isinstance(effect, BlockTerm)
    return effect


def refused(call, *arguments) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.fixture(scope="module")
def adapter() -> PuLIDFlux:
    return PuLIDFlux(files.flux_adapter(WIDTH), "pulid_flux.safetensors")


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pulid_flux_v0.9.0.safetensors", "pulid_flux_v0.9.1.safetensors", "any.safetensors"])
def test_both_versions_load_under_any_name(tmp_path, name):
    found = load(tmp_path, files.flux_adapter(WIDTH), name)
    assert isinstance(found, PuLIDFlux) and found.title == "PuLID for FLUX"
    assert found.needs.base is families.FLUX and found.needs.recogniser == "antelopev2"
    assert found.needs.raw and found.needs.every_photo and (found.width, found.dim) == (WIDTH, 48)


def test_the_state_dict_has_the_official_keys():
    weights = files.flux_adapter(WIDTH)
    assert PuLIDFlux(weights, "x").state_dict().keys() == weights.keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_modules_stay_in_the_precision_of_the_file(dtype):
    found = PuLIDFlux({key: value.to(dtype) for key, value in files.flux_adapter(WIDTH).items()}, "x")
    assert {value.dtype for value in found.pulid_ca.state_dict().values()} == {dtype}
    assert {value.dtype for value in found.pulid_encoder.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("left_out", "says"),
    [("pulid_ca.", "modules pulid_ca.* are missing"),
     ("pulid_encoder.", "encoder pulid_encoder.* is missing"),
     ("pulid_encoder.latents", "do not fit together"),
     ("pulid_encoder.layers.3.", "do not fit together"),
     ("pulid_ca.2.to_kv.", "pulid_ca.2.to_kv.weight is missing"),
     ("pulid_ca.1.", "pulid_ca.1.norm1.weight is missing"),
     ("pulid_ca.0.norm2.bias", "pulid_ca.0.norm2.bias is missing")],
)  # fmt: skip
def test_an_incomplete_file_says_what_is_missing(tmp_path, left_out, says):
    weights = {k: v for k, v in files.flux_adapter(WIDTH).items() if not k.startswith(left_out)}
    text = refused(load, tmp_path, weights, "cut.safetensors")
    assert "cut.safetensors" in text and "PuLID file for FLUX" in text and says in text


@pytest.mark.parametrize(
    "other",
    [{k: v for k, v in files.flux_adapter(WIDTH, dim=32).items() if k.startswith("pulid_encoder.")},
     {"pulid_ca.3.to_q.weight": torch.zeros(100, WIDTH)},
     {k: v for k, v in files.flux_adapter(32).items() if k.startswith("pulid_ca.1.")}],
    ids=["another encoder", "no whole head", "a module of another width"],
)  # fmt: skip
def test_parts_that_do_not_fit_together(tmp_path, other):
    assert "do not fit together" in refused(load, tmp_path, files.flux_adapter(WIDTH) | other)


def test_a_file_with_nan_is_refused(tmp_path):
    weights = files.flux_adapter(WIDTH)
    weights["pulid_ca.1.to_q.weight"][0, 0] = float("nan")
    assert "pulid_ca.1.to_q.weight" in refused(load, tmp_path, weights)


@pytest.mark.parametrize(
    ("weights", "system", "is_of"),
    [(files.flux_adapter(WIDTH), "PuLID for SDXL", "PuLID for FLUX"),
     (files.adapter([(32, 64)] * 3), "PuLID for FLUX", "PuLID for SDXL")],
    ids=["flux as sdxl", "sdxl as flux"],
)  # fmt: skip
def test_a_file_of_one_base_chosen_as_the_other_s(tmp_path, weights, system, is_of):
    save_file(weights, tmp_path / "pulid.safetensors")
    text = refused(adapters.load, tmp_path / "pulid.safetensors", None, system)
    assert "pulid.safetensors" in text and f"of {is_of}, not of {system}" in text


# The equation ---------------------------------------------------------------------------------------------------------


def as_published(weights: dict[str, Tensor], tokens: Tensor, images: Tensor, heads: int) -> Tensor:
    """CA(E, x), written down as in the paper."""
    x = F.layer_norm(images, images.shape[-1:], weights["norm2.weight"], weights["norm2.bias"])
    e = F.layer_norm(tokens, tokens.shape[-1:], weights["norm1.weight"], weights["norm1.bias"])
    q, k, v = (
        t.unflatten(-1, (heads, -1)).transpose(1, 2)
        for t in (x @ weights["to_q.weight"].T, *(e @ weights["to_kv.weight"].T).chunk(2, dim=-1))
    )
    shares = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (shares @ v).transpose(1, 2).flatten(2) @ weights["to_out.weight"].T


@given(
    heads=st.integers(1, 3), head_width=st.sampled_from([4, 8]), width=st.sampled_from([8, 24]),
    count=st.integers(1, 9), places=st.integers(1, 7), batch=st.integers(1, 3), per_image=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_folding_changes_nothing(heads, head_width, width, count, places, batch, per_image, seed):
    generator = torch.Generator().manual_seed(seed)
    inner, dim = heads * head_width, 12

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = {
        "norm1.weight": normal(dim), "norm1.bias": normal(dim), "norm2.weight": normal(width),
        "norm2.bias": normal(width), "to_q.weight": normal(inner, width) / width**0.5,
        "to_kv.weight": normal(2 * inner, dim) / dim**0.5, "to_out.weight": normal(width, inner) / inner**0.5,
    }  # fmt: skip
    modules = CrossAttentions({f"pulid_ca.0.{key}": value for key, value in weights.items()}, "x", head_width)
    tokens, images = normal(batch if per_image else 1, count, dim), 3 * normal(batch, places, width) + 1
    before = images.clone()
    found = modules.residual(0, images, modules.prepare(0, tokens))
    torch.testing.assert_close(found, as_published(weights, tokens, images, heads), atol=1e-5, rtol=1e-4)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_is_as_near_as_the_published_order_of_products(adapter, dtype, error):
    tokens, images = torch.randn(1, 32, 48), torch.randn(2, 50, WIDTH)
    exact = adapter.residual(1, images, adapter.prepare(1, tokens))
    prepared = tuple(part.to(dtype) for part in adapter.prepare(1, tokens))
    found = adapter.residual(1, images.to(dtype), prepared)
    assert found.dtype is dtype and (found.float() - exact).norm() < error * exact.norm()


# A person -------------------------------------------------------------------------------------------------------------


def test_every_second_double_and_fourth_single_block_has_a_module(adapter):
    assert [(block.kind.value, block.index) for block in term(adapter, person()).numbers] == [
        ("double_block", 0), ("double_block", 2), ("single_block", 0), ("single_block", 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("double", "single", "modules"), [(19, 38, 20), (8, 38, 14), (19, 12, 13), (2, 3, 2), (1, 0, 1)]
)
def test_models_of_other_depths_by_counting_their_blocks(double, single, modules):
    """FLUX.1, a pruned one, and tiny ones: the numbers of the modules follow one another."""
    found = PuLIDFlux(files.flux_adapter(WIDTH, modules=20), "x")
    numbers = term(found, person(), dit=DitLayout(double, single, WIDTH)).numbers
    assert list(numbers.values()) == list(range(modules))
    notes = found.notes(request(person(), DitLayout(double, single, WIDTH)))
    assert any(f"{modules} of 20 modules" in note for note in notes) is (modules < 20)


def test_a_model_that_is_deeper_than_the_file(adapter):
    text = refused(adapter.effects, request(person(), DitLayout(19, 38, WIDTH)))
    assert "4 modules" in text and "19 + 38 blocks" in text and "takes 20" in text


def test_the_halves_read_the_person_and_nobody(adapter):
    one, other = term(adapter, person(seed=1)).tokens, term(adapter, person(seed=2)).tokens
    assert one.cond.shape == one.uncond.shape == (1, 32, 48)
    assert torch.equal(one.uncond, other.uncond) and one.uncond.any()
    assert not torch.allclose(one.cond, other.cond)


def test_several_photos_are_one_pass_or_a_mean(adapter):
    who = person(3)
    each = [term(adapter, who.take([i])).tokens.cond for i in range(3)]
    assert term(adapter, who).tokens.cond.shape == (1, 32, 48)
    mean = term(adapter, who, options=PuLIDOptions(photos=TokenPooling.MEAN)).tokens.cond
    torch.testing.assert_close(mean, torch.stack(each).mean(dim=0))


def test_a_start_step_stands_in_for_the_window_s_start(adapter):
    scope = Scope(0.1, 0.9)
    plain = term(adapter, person(), scope=scope).scope
    later = term(adapter, person(), scope=scope, options=PuLIDOptions(start_step=4)).scope
    assert plain is scope and later.first_step is not None
    assert (later.first_step(20), later.end) == (4, 0.9)


def test_what_has_no_effect_is_said(adapter):
    assert adapter.notes(request(person())) == []
    assert "no effect on FLUX" in " ".join(adapter.notes(request(person(), options=PuLIDOptions(NEUTRAL))))


def test_what_is_missing_is_said(adapter):
    assert "Identity from Photos" in refused(adapter.effects, request(None))
    assert "antelopev2" in refused(adapter.effects, request(replace(person(), recogniser="buffalo_l")))
    assert "no aligned faces" in refused(adapter.effects, request(replace(person(), portraits=person().portraits[:0])))
    assert "FLUX" in refused(adapter.effects, request(person(), None))
    assert "PuLID Options" in refused(adapter.effects, request(person(), options="reference"))
