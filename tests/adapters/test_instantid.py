"""InstantID's adapter: its files, what it reads of a person, and what it makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.adapters import load
from likeness.adapters.effects import AttentionTerm, ControlContext, Scope
from likeness.adapters.instantid import EmbeddingPooling, InstantID, InstantIDOptions, face_embedding
from likeness.adapters.system import Request, WeightFile
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.weights import families
from likeness.weights.families import TransformerLayout

SDXL = TransformerLayout.of_family(families.SDXL)


@pytest.fixture(scope="module")
def groups(official) -> Any:
    """A whole file at the text width, the number of sites and the recogniser of the published one."""
    return official.groups(official.resampler(2048, features=512), official.SDXL)


@pytest.fixture(scope="module")
def adapter(official, groups) -> InstantID:
    return InstantID(official.flat(groups), "ip-adapter.bin")


def person(photos: int = 1, seed: int = 0, recogniser: str = "antelopev2", width: int = 512) -> Identity:
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(0, 512, 512, 3, dtype=torch.uint8)
    return Identity(
        name="Ada", recogniser=recogniser, embeddings=20 * torch.randn(photos, width, generator=generator),
        weights=torch.ones(photos), aligned=torch.zeros(0, 224, 224, 3, dtype=torch.uint8), portraits=none,
        heads=torch.zeros(photos, 512, 512, 3, dtype=torch.uint8), keypoints=torch.zeros(0, 5, 2),
        boxes=torch.zeros(photos, 4), photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip


def effects(adapter: InstantID, who: Identity | None, **request: Any) -> tuple[AttentionTerm, ControlContext]:
    found = adapter.effects(Request(SDXL, {}, identity=who, **request))
    assert [type(effect) for effect in found] == [AttentionTerm, ControlContext]
    return found  # type: ignore[return-value]


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ip-adapter.bin", "ip-adapter.safetensors", "instantid/any.bin"])
def test_both_layouts_load_under_the_published_names_and_in_the_own_folder(official, groups, adapter, tmp_path, name):
    (tmp_path / "instantid").mkdir()
    found = load(official.write(tmp_path / name, groups))
    assert isinstance(found, InstantID) and found.state_dict().keys() == adapter.state_dict().keys()
    assert len(found.site_shapes) == 70 and found.needs.base is families.SDXL
    assert (found.needs.recogniser, found.needs.raw, found.needs.keypoints) == ("antelopev2", True, True)


def test_the_official_keys_are_its_own(official, groups, adapter):
    assert adapter.state_dict().keys() == official.flat(groups).keys()


def test_the_resampler_computes_in_single_precision_whatever_the_file_s(official, groups, adapter):
    half = {key: value.half() for key, value in official.flat(groups).items()}
    low = InstantID(half, "half.bin")
    assert low.image_proj.latents.dtype is torch.float32
    tokens = low.encode(torch.ones(1, 1, 512))
    assert tokens.cond.dtype is torch.float32
    torch.testing.assert_close(tokens.cond, adapter.encode(torch.ones(1, 1, 512)).cond, rtol=0.02, atol=0.02)
    keys, values = low.project(1, tokens.cond)
    assert keys.isfinite().all() and values.isfinite().all()


def _without(weights: dict[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights.items() if not key.startswith(prefixes)}


@pytest.mark.parametrize(
    "missing",
    [
        "image_proj.latents",
        "image_proj.layers.0.0.to_kv",
        "image_proj.norm_out",
        "ip_adapter.1.to_k_ip",
        "ip_adapter.139.to_v_ip",
    ],
)
def test_an_incomplete_file_is_named_with_what_was_expected(official, groups, tmp_path, missing):
    weights = _without(official.flat(groups), missing)
    with pytest.raises(LikenessError, match=r"'x\.bin' is not a complete InstantID adapter \(a Resampler below"):
        InstantID(weights, "x.bin")


def test_tokens_of_another_width_than_the_layers_read_are_told(official):
    weights = official.flat(official.groups(official.resampler(1024, features=512), official.SDXL))
    with pytest.raises(LikenessError, match="its tokens are 1024 wide, but its layers read 2048"):
        InstantID(weights, "x.bin")


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(LikenessError) as error:
        load(path, **options)
    text = str(error.value)
    assert path.name in text and "\n" not in text and text.endswith(".")
    return text


def test_other_systems_files_chosen_as_instantid_are_named(official, tmp_path):
    plus = official.write(tmp_path / "plus.bin", official.groups(official.resampler(2048), official.SDXL))
    assert "is an adapter of IP-Adapter, not of InstantID" in refused(plus, system="InstantID")
    torch.save({"pulid_ca.0.to_q.weight": torch.zeros(2, 2)}, tmp_path / "pulid.bin")
    assert "PuLID" in refused(tmp_path / "pulid.bin", system="InstantID")
    torch.save({"image_proj": {"proj_in.weight": torch.zeros(8, 1280)}}, tmp_path / "half.bin")
    assert "reads 1280 numbers, and InstantID a face embedding of 512" in refused(
        tmp_path / "half.bin", system="InstantID"
    )


def test_instantid_s_file_chosen_as_ip_adapter_is_taken_at_its_word(official, groups, tmp_path):
    """Only the user can know: the contents are the same."""
    assert not isinstance(load(official.write(tmp_path / "ip-adapter.bin", groups), system="IP-Adapter"), InstantID)


# A person -------------------------------------------------------------------------------------------------------------


def test_one_photo_is_read_raw(adapter):
    who = person()
    assert torch.equal(face_embedding(who), who.embeddings.unsqueeze(0))
    longer = replace(who, embeddings=2 * who.embeddings)
    assert not torch.allclose(effects(adapter, who)[0].tokens.cond, effects(adapter, longer)[0].tokens.cond)


def test_several_photos_are_their_mean_direction_at_their_mean_length():
    who = person(3)
    mean = face_embedding(who)
    assert mean.shape == (1, 1, 512)
    torch.testing.assert_close(mean.norm(), who.embeddings.norm(dim=1).mean())
    torch.testing.assert_close(torch.nn.functional.normalize(mean[0, 0], dim=0), who.mean_embedding())


def test_the_weights_of_photos_count(adapter):
    who = replace(person(2), weights=torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(face_embedding(who), who.embeddings[:1].unsqueeze(0), rtol=1e-4, atol=1e-4)


def test_several_photos_can_be_read_one_after_the_other(adapter):
    who = person(3)
    each = effects(adapter, who, options=InstantIDOptions(EmbeddingPooling.EACH))[0].tokens
    assert each.cond.shape == each.uncond.shape == (1, 16, 2048)
    torch.testing.assert_close(each.cond, adapter.image_proj(who.embeddings.unsqueeze(0)))
    assert not torch.allclose(each.cond, effects(adapter, who)[0].tokens.cond)


def test_the_unconditioned_half_is_the_resampler_of_zeros(adapter):
    tokens = effects(adapter, person())[0].tokens
    torch.testing.assert_close(tokens.uncond, adapter.image_proj(torch.zeros(1, 1, 512)))
    assert tokens.uncond.abs().max() > 0.01


def test_noise_is_off_by_default_belongs_to_the_face_and_leaves_the_rng_alone(adapter):
    who, other = person(), person(seed=1)
    state = torch.random.get_rng_state()
    noisy, again, others = (
        effects(adapter, identity, options=InstantIDOptions(noise=0.35))[0].tokens for identity in (who, who, other)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(noisy.uncond, again.uncond) and not torch.equal(noisy.uncond, others.uncond)
    assert torch.equal(noisy.cond, effects(adapter, who)[0].tokens.cond)
    seed = int(who.embeddings.sum()) % 1_000_000_007
    drawn = torch.rand(1, 1, 512, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(noisy.uncond, adapter.image_proj(0.35 * drawn))


def test_adapter_and_net_read_the_same_tokens_in_the_same_scope(adapter):
    scope = Scope(0.1, 0.9)
    term, control = effects(adapter, person(), strength=0.8, scope=scope)
    assert term.tokens is control.tokens and term.scope is control.scope is scope
    assert control.strength == 0.8 and {weight.strength for weight in term.site_weights} == {0.8}
    assert len(term.site_weights) == len(SDXL)


@pytest.mark.parametrize(
    ("who", "said"),
    [
        (None, "needs an identity: connect Identity from Photos"),
        (person(recogniser="buffalo_l"), "was trained on the recogniser antelopev2"),
        (person(width=128, recogniser="antelopev2"), "reads embeddings of 512 numbers"),
        (replace(person(), embeddings=torch.zeros(1, 0), recogniser=None), "has none: make it with a face analysis"),
    ],
    ids=["nobody", "another recogniser", "another width", "no embedding"],
)
def test_whatever_it_cannot_read_is_told(adapter, who, said):
    with pytest.raises(LikenessError, match=said):
        effects(adapter, who)


def test_another_recogniser_can_be_allowed_and_is_asked_to_see_the_person_again_otherwise(adapter):
    stranger = person(recogniser="buffalo_l")
    effects(adapter, stranger, options=InstantIDOptions(any_recogniser=True))
    seen = replace(stranger, also={"antelopev2": person(seed=5).embeddings})
    tokens = effects(adapter, stranger, seen_by=lambda identity, recogniser: seen)[0].tokens
    assert torch.equal(tokens.cond, effects(adapter, person(seed=5))[0].tokens.cond)


def test_a_file_of_another_base_model_says_which(official):
    shapes = official.SD15
    weights = official.flat(official.groups(official.resampler(768, features=512), shapes))
    assert InstantID(weights, "instantid.bin").needs.base is families.SD15
    assert WeightFile("x", weights).shape("image_proj.proj_in.weight") is not None
