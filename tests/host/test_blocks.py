"""Modules behind the blocks of a real FLUX: which blocks, which tokens, which half, and together with other patches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import small_world, toy_dit
from torch import Tensor

from likeness.errors import LikenessError

GRID, CHANNELS = (6, 4), 16  # tokens of the latents that are sampled here
SHAPE = (1, CHANNELS, 2 * GRID[0], 2 * GRID[1])


@pytest.fixture(scope="module")
def flux(recipes) -> Any:
    return recipes.tiny_flux(depth=3, depth_single_blocks=6)


@pytest.fixture(scope="module")
def layout(flux) -> Any:
    from likeness.injection.comfy import dit_of

    found = dit_of(flux)
    assert found is not None and (found.double, found.single, found.width) == (3, 6, 64)
    return found


@pytest.fixture
def toy() -> Any:
    from likeness.adapters.system import WeightFile

    return toy_dit.ToyDit(WeightFile("toy.safetensors", toy_dit.weights(64, modules=4)))


def tokens_of(seed: int, rows: int = 1) -> Any:
    from likeness.adapters.types import IdentityTokens

    halves = torch.randn(2, rows, 5, 24, generator=torch.Generator().manual_seed(seed))
    return IdentityTokens(*halves)


def term(modules: Any, layout: Any, seed: int = 0, strength: float = 1.0, rows: int = 1, **scope: Any) -> Any:
    from likeness.adapters.effects import BlockTerm, Scope

    numbers = layout.every(toy_dit.DOUBLE, toy_dit.SINGLE)
    return BlockTerm(modules, numbers, tokens_of(seed, rows), strength, Scope(**scope))


def applied(model: Any, *terms: Any) -> Any:
    from likeness.injection.comfy import apply_effects

    return apply_effects(model, terms).model


def sample(recipes: Any, model: Any, shape: tuple[int, ...] = SHAPE, **options: Any) -> Tensor:
    positive, negative = (recipes.conditioning(48, pooled=32, tokens=7, seed=s, guidance=3.5) for s in (1, 2))
    return recipes.sample(model, positive, negative, shape=shape, **{"steps": 3, "cfg": 2.0, **options})


def call(model: Any, x: Tensor, roles: list[int], **extra: Any) -> Tensor:
    """The denoiser itself, once."""
    base, count = model.model, len(x)
    random = torch.Generator().manual_seed(5)
    given = {
        "c_crossattn": torch.randn(1, 7, 48, generator=random).expand(count, -1, -1),
        "y": torch.randn(1, 32, generator=random).expand(count, -1),
        "guidance": torch.full((count,), 3.5),
        **extra,
    }
    options = {**model.model_options["transformer_options"], "wrappers": model.wrappers, "cond_or_uncond": roles}
    with torch.inference_mode():
        return base.apply_model(x, torch.full((count,), 0.6), transformer_options=options, **given).clone()


def noise(count: int = 1, seed: int = 3) -> Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


# Which blocks ---------------------------------------------------------------------------------------------------------


def test_every_chosen_block_runs_its_module_once_and_tokens_are_prepared_once(flux, layout, toy, recipes):
    sample(recipes, applied(flux, term(toy, layout)), steps=3)
    # Double blocks 0 and 2, single blocks 0 and 4; three steps, each half for itself.
    assert {key: n for key, n in toy.calls.items() if key[0] == "residual"} == {("residual", i): 6 for i in range(4)}
    assert {key: n for key, n in toy.calls.items() if key[0] == "prepare"} == {("prepare", i): 2 for i in range(4)}


def test_one_module_may_stand_behind_several_blocks(flux, layout, toy):
    from likeness.adapters.effects import BlockTerm

    everywhere = BlockTerm(toy, dict.fromkeys(layout.blocks, 1), tokens_of(0))
    call(applied(flux, everywhere), noise(), [0])
    assert toy.calls["residual", 1] == 9 and toy.calls["prepare", 1] == 2


# Which tokens, which half ---------------------------------------------------------------------------------------------


def test_text_and_reference_pictures_stay_as_the_block_left_them(flux, layout, toy):
    """Of the block itself: what follows mixes everything."""
    seen: list[Tensor] = []

    def watch(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args)
        seen.append(out["img"].clone())
        return out

    model, after = flux.clone(), []
    model.set_model_patch_replace(watch, "dit", "single_block", 0)
    plain = model.model.diffusion_model.single_blocks[1].register_forward_pre_hook(
        lambda _m, args: after.append(args[0].clone())
    )
    try:
        references = [torch.randn(1, CHANNELS, 4, 4)]
        call(applied(model, term(toy, layout)), noise(), [0], ref_latents=references)
    finally:
        plain.remove()
    changed = (after[0] != seen[0]).any(dim=-1)[0]
    text, own, others = 7, GRID[0] * GRID[1], 4
    assert len(changed) == text + own + others
    assert changed[text : text + own].all() and not changed[:text].any() and not changed[text + own :].any()


@pytest.mark.parametrize("roles", [[1, 0], [0, 1], [0, 0, 1], [0], [1]])
@pytest.mark.parametrize("pictures", [1, 2])
def test_every_half_reads_its_own_tokens_in_any_order(flux, layout, toy, roles, pictures):
    model, x = applied(flux, term(toy, layout)), noise(pictures)
    alone = {role: call(model, x, [role]) for role in set(roles)}
    together = call(model, torch.cat([x] * len(roles)), roles)
    torch.testing.assert_close(together, torch.cat([alone[role] for role in roles]), atol=2e-5, rtol=1e-4)
    if len(alone) == 2:
        assert not torch.allclose(alone[0], alone[1], atol=1e-4)


def test_a_row_of_tokens_for_every_picture(flux, layout, toy):
    from dataclasses import replace

    from likeness.adapters.types import IdentityTokens

    both, x = term(toy, layout, rows=2), noise(2)
    together = call(applied(flux, both), x, [0])
    for i in range(2):
        one = IdentityTokens(both.tokens.cond[i : i + 1], both.tokens.uncond[i : i + 1])
        alone = call(applied(flux, replace(both, tokens=one)), x[i : i + 1], [0])
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=1e-4)


def test_a_mask_keeps_the_person_in_its_place(flux, layout, toy):
    """Behind the last block nothing mixes any more."""
    from likeness.adapters.effects import BlockTerm, Scope
    from likeness.weights.families import BlockKind, DitBlock

    last, mask = DitBlock(BlockKind.SINGLE, layout.single - 1), torch.zeros(1, 96, 64)
    mask[:, :, 32:] = 1
    plain, x = call(flux, noise(), [0]), noise()
    painted = call(applied(flux, BlockTerm(toy, {last: 0}, tokens_of(0), scope=Scope(mask=mask))), x, [0])
    left, right = (painted - plain)[..., :4], (painted - plain)[..., 4:]
    assert not left.any() and right.any(dim=1).all()


# Together with others -------------------------------------------------------------------------------------------------


def test_a_patch_that_is_found_runs_and_ours_reads_what_it_made(flux, layout, toy):
    made, read = [], []

    def louder(args: dict, extra: dict) -> dict:
        out = extra["original_block"](args)
        made.append(1.5 * out["img"])
        return {**out, "img": made[-1]}

    model, residual = flux.clone(), toy.residual
    model.set_model_patch_replace(louder, "dit", "double_block", 0)
    toy.residual = lambda number, images, kv: read.append(images.clone()) or residual(number, images, kv)
    call(applied(model, term(toy, layout)), noise(), [0])
    assert len(made) == 1 and torch.equal(read[0], made[0])


def test_a_patch_put_there_later_is_found_as_well(flux, layout, toy):
    calls = []

    def watch(args: dict, extra: dict) -> dict:
        calls.append(1)
        return extra["original_block"](args)

    model = applied(flux, term(toy, layout))
    plain = call(model, noise(), [0])
    model.set_model_patch_replace(watch, "dit", "single_block", 4)
    assert torch.equal(call(model, noise(), [0]), plain) and len(calls) == 1


def test_two_people_commute_and_differ_from_one(flux, layout, toy, recipes):
    ann, ben = term(toy, layout, seed=1), term(toy, layout, seed=2)
    one = sample(recipes, applied(applied(flux, ann), ben))
    other = sample(recipes, applied(applied(flux, ben), ann))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(one, sample(recipes, applied(flux, ann)), atol=1e-3)


@pytest.mark.parametrize("scope", [{"strength": 0.0}, {"start": 0.7, "end": 0.7}])
def test_what_is_off_is_bit_identical(flux, layout, toy, recipes, scope):
    model = applied(flux, term(toy, layout, **scope))
    assert torch.equal(sample(recipes, model, steps=2), sample(recipes, flux, steps=2))
    assert not any(kind == "residual" for kind, _ in toy.calls)


def test_a_window_opens_and_closes(flux, layout, toy, recipes):
    sample(recipes, applied(flux, term(toy, layout, start=0.0, end=0.4)), steps=6, cfg=1.0)
    assert 0 < toy.calls["residual", 0] < 6


def test_strengths_are_scaled_with_the_others(flux, layout, toy, recipes):
    from likeness.injection.comfy import rescale

    half = sample(recipes, applied(flux, term(toy, layout, strength=0.5)))
    assert torch.equal(sample(recipes, rescale(applied(flux, term(toy, layout)), 0.5)), half)


# In the host's care ---------------------------------------------------------------------------------------------------


def test_the_host_loads_what_a_step_reads_with_the_model(flux, layout, toy):
    """What was made of each person's tokens, and the modules themselves, once, where they run at every step."""
    from likeness.injection.comfy import ManagedAdapter

    managed = ManagedAdapter(toy)
    before = (dict(flux.patches), dict(flux.wrappers), dict(flux.additional_models))
    for at_every_step, beside in ((False, 0), (True, 1)):
        toy.at_every_step = at_every_step
        model = applied(applied(flux, term(managed, layout, seed=1)), term(managed, layout, seed=2))
        along = [patcher.model for patcher in model.get_additional_models()]
        assert len(along) == 2 + beside and sum(one is managed.adapter for one in along) == beside
    assert (dict(flux.patches), dict(flux.wrappers), dict(flux.additional_models)) == before


def test_the_system_works_through_the_nodes(flux, tmp_path, monkeypatch, recipes):
    """Loaded by its line in the registry, applied like any other."""
    import folder_paths
    from safetensors.torch import save_file

    from likeness import adapters
    from likeness.nodes.adapters import ApplyIdentity, LoadIdentityAdapter

    monkeypatch.setattr(adapters, "SYSTEMS", (*adapters.SYSTEMS, toy_dit.SYSTEM))
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path)], {".safetensors"}))
    folder_paths.filename_list_cache.clear()
    save_file(toy_dit.weights(64, modules=4, dim=16), tmp_path / "toy.safetensors")
    with torch.inference_mode():
        adapter = LoadIdentityAdapter.execute(adapter_file="toy.safetensors").result[0]
        model, report = ApplyIdentity.execute(flux, adapter, 1.0, 0.0, 1.0, 0.6, identity=small_world.person()).result
        off, _ = ApplyIdentity.execute(flux, adapter, 0.0, 0.0, 1.0, 0.6, identity=small_world.person()).result
    assert "4 blocks" in report
    plain = sample(recipes, flux)
    assert not torch.allclose(sample(recipes, model), plain, atol=1e-3)
    assert torch.equal(sample(recipes, off), plain)


@pytest.mark.parametrize("other", ["tiny_sdxl", "narrow"])
def test_another_model_is_refused_by_name(recipes, layout, toy, other):
    model = recipes.tiny_sdxl() if other == "tiny_sdxl" else recipes.tiny_flux(hidden_size=32, num_heads=2)
    with pytest.raises(LikenessError) as error:
        applied(model, term(toy, layout))
    text = str(error.value)
    assert "toy.safetensors" in text and "FLUX" in text and "64 wide" in text and text.endswith(".")
    assert ("SDXL" if other == "tiny_sdxl" else "32 wide") in text
