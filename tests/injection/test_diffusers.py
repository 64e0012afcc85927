"""The diffusers binding: inject and eject are a pair, masks follow the batch, a merged LoRA leaves no trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import tiny_unets
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.adapters import build
from likeness.adapters.effects import AttentionTerm, Scope
from likeness.adapters.types import IdentityTokens, SiteWeight
from likeness.errors import LikenessError
from likeness.injection.diffusers import Applied, apply_effects, inject
from likeness.injection.plan import Role, uniform
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet

LAYOUTS = tiny_unets.LAYOUTS
BOTH = (Role.UNCOND, Role.COND)


@pytest.fixture
def unet(tiny):
    return tiny.unet("small SD")


def injection(tiny: Any, unet: Any, seed: int = 0, strength: float = 1.0, rows: int = 1, **scope: Any) -> AttentionTerm:
    sites = sites_of_diffusers_unet(unet)
    given = tiny.tokens(sites[0].context_dim, seed, rows=rows, **scope.pop("tokens", {}))
    return AttentionTerm(tiny.StandInProjector(sites, seed), given, uniform(strength, sites), scope=Scope(**scope))


def run(unet: Any, batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, *size, generator=generator)
    text = torch.randn(batch, 7, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor(10), text).sample


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


# Inject, eject --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_site_hears_the_identity_and_forgets_it_again(tiny, layout):
    unet = tiny.unet(layout)
    before, plain = dict(unet.attn_processors), run(unet)
    one = injection(tiny, unet)
    injected = inject(unet, [one])
    try:
        heard = run(unet)
    finally:
        injected.eject()
    assert set(one.projector.calls) == {site.slot for site in sites_of_diffusers_unet(unet)}
    assert not close(heard, plain)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    assert torch.equal(run(unet), plain)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_keys_and_values_are_projected_once_whatever_the_steps(tiny, unet):
    one = injection(tiny, unet)
    injected = inject(unet, [one])
    for step in range(3):
        run(unet, seed=step)
    injected.eject()
    assert set(one.projector.calls.values()) == {2}, "once for each half"


def test_only_the_sites_that_listen_are_touched(tiny, unet):
    one = injection(tiny, unet)
    weights = tuple(SiteWeight(float(i == 0)) for i in range(len(one.site_weights)))
    injected = inject(unet, [replace(one, site_weights=weights)])
    touched = [n for n, p in unet.attn_processors.items() if type(p).__name__ == "IdentityAttnProcessor"]
    injected.eject()
    assert touched == ["down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"]


@pytest.mark.parametrize("changes", [{"strength": 0.0}, {"start": 0.5, "end": 0.5}, {"mask": torch.zeros(1, 8, 8)}])
def test_whoever_is_silent_changes_not_a_bit(tiny, unet, changes):
    plain = run(unet)
    injected = inject(unet, [injection(tiny, unet, **changes)])
    heard = run(unet)
    injected.eject()
    assert torch.equal(heard, plain)


@pytest.mark.parametrize("strength", [-1.0, 0.3, 2.0])
def test_strengths_of_either_sign_are_heard(tiny, unet, strength):
    injected = inject(unet, [injection(tiny, unet, strength=strength)])
    heard = run(unet)
    injected.eject()
    assert heard.isfinite().all() and not close(heard, run(unet))


def test_an_adapter_for_another_network_is_refused(tiny, unet):
    with pytest.raises(LikenessError, match=r"'stand-in' was made for .*UNet2DConditionModel"):
        inject(unet, [injection(tiny, tiny.unet("SD1.5"))])


def test_two_identities_add_up_in_any_order(tiny, unet):
    a, b = injection(tiny, unet, 1), injection(tiny, unet, 2)
    outputs = []
    for order in ([a, b], [b, a]):
        injected = inject(unet, order)
        outputs.append(run(unet))
        injected.eject()
    assert close(*outputs)


# Halves, images, masks ----------------------------------------------------------------------------------------------


def test_each_half_hears_its_own_tokens(tiny, unet):
    one = injection(tiny, unet)
    swapped = replace(one, tokens=IdentityTokens(one.tokens.uncond, one.tokens.cond))
    outputs = []
    for this, roles in ((one, BOTH), (swapped, BOTH[::-1])):
        injected = inject(unet, [this], roles)
        outputs.append(run(unet))
        injected.eject()
    assert close(*outputs)


def test_halves_with_different_numbers_of_tokens_share_a_batch(tiny, unet):
    one = injection(tiny, unet, tokens={"n": 12, "empty": 8})
    injected = inject(unet, [one])
    together = run(unet)
    injected.eject()
    for chunk, role in enumerate(BOTH):
        injected = inject(unet, [one], [role])
        sample = run_part(unet, chunk)
        injected.eject()
        assert close(sample, together[chunk : chunk + 1])


def run_part(unet: Any, row: int, batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    """One row of the batch that `run` makes."""
    generator = torch.Generator().manual_seed(seed)
    sample = torch.randn(batch, 4, *size, generator=generator)[row : row + 1]
    text = torch.randn(batch, 7, unet.config.cross_attention_dim, generator=generator)[row : row + 1]
    with torch.no_grad():
        return unet(sample, torch.tensor(10), text).sample


def test_a_row_per_picture_goes_with_its_picture(tiny, unet):
    one = injection(tiny, unet, rows=2)
    injected = inject(unet, [one])
    together = run(unet, batch=4)  # two halves of two images
    injected.eject()
    for row in range(4):
        half, picture = divmod(row, 2)
        tokens = IdentityTokens(one.tokens.cond[picture : picture + 1], one.tokens.uncond)
        injected = inject(unet, [replace(one, tokens=tokens)], [BOTH[half]])
        alone = run_part(unet, row, batch=4)
        injected.eject()
        assert close(alone, together[row : row + 1])


def test_masks_and_weights_per_picture_go_with_their_picture_in_both_halves(tiny, unet):
    mask = torch.rand(2, 9, 5, generator=torch.Generator().manual_seed(7))
    one = injection(tiny, unet, mask=mask, image_weights=(0.5, 2.0))
    injected = inject(unet, [one])
    together = run(unet, batch=4)
    injected.eject()
    for row in range(4):
        half, picture = divmod(row, 2)
        alone_one = replace(
            one, scope=Scope(mask=mask[picture : picture + 1], image_weights=(one.scope.image_weights[picture],))
        )
        injected = inject(unet, [alone_one], [BOTH[half]])
        alone = run_part(unet, row, batch=4)
        injected.eject()
        assert close(alone, together[row : row + 1])


def test_a_row_weight_is_a_strength(tiny, unet):
    outputs = []
    one = injection(tiny, unet)
    for this in (replace(one, scope=Scope(image_weights=(0.5,))), injection(tiny, unet, strength=0.5)):
        injected = inject(unet, [this])
        outputs.append(run(unet))
        injected.eject()
    assert close(*outputs)


@settings(max_examples=15)
@given(
    size=st.tuples(st.integers(1, 12).map(lambda n: 2 * n), st.integers(1, 12).map(lambda n: 2 * n)),
    mask_size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    masks=st.integers(1, 3),
)
def test_masks_of_any_size_and_number_fit_grids_of_any_size(size, mask_size, masks):
    from helpers import tiny_unets as tiny

    unet = tiny.unet("small SD")
    injected = inject(unet, [injection(tiny, unet, mask=torch.rand(masks, *mask_size))])
    try:
        assert run(unet, batch=4, size=size).isfinite().all()
    finally:
        injected.eject()


def test_a_full_mask_is_the_same_as_none(tiny, unet):
    outputs = []
    for mask in (None, torch.ones(1, 7, 3)):
        injected = inject(unet, [injection(tiny, unet, mask=mask)])
        outputs.append(run(unet, size=(12, 20)))
        injected.eject()
    assert close(*outputs)


def test_a_text_mask_is_kept(tiny, unet):
    """Pipelines hide padding of the prompt; silent but for a hair, the identity must not switch that off."""
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 7, unet.config.cross_attention_dim)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0]] * 2)

    def call() -> Tensor:
        with torch.no_grad():
            return unet(sample, torch.tensor(10), text, encoder_attention_mask=mask).sample

    plain = call()
    injected = inject(unet, [injection(tiny, unet, strength=1e-9)])
    heard = call()
    injected.eject()
    assert close(heard, plain)


# LoRA -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def faceid(tiny, unet):
    """A FaceID adapter with a LoRA that fits the small network."""
    from helpers import official

    shapes = [(site.width, site.context_dim) for site in sites_of_diffusers_unet(unet)]
    groups = official.groups(official.identity(shapes[0][1], inner=8), shapes, with_lora=True)
    return build(official.flat(groups), "faceid.bin")


def merged_lora(unet: Any, adapter: Any, strength: float) -> Applied:
    return apply_effects(unet, [adapter.lora(diffusers_layers(sites_of_diffusers_unet(unet)), strength)])


def weights_of(unet: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in unet.state_dict().items()}


def test_a_merged_lora_adds_up_times_down_to_every_matrix(unet, faceid):
    before = weights_of(unet)
    sites = sites_of_diffusers_unet(unet)
    expected = {}
    for (slot, layer), pair in faceid.lora_pairs().items():
        name = f"{sites[slot // 2].diffusers_path}.attn{slot % 2 + 1}.{layer}.weight"
        expected[name] = before[name] + 0.6 * pair.up @ pair.down
    with merged_lora(unet, faceid, 0.6):
        during = weights_of(unet)
    assert len(expected) == 8 * len(sites)
    for name, value in during.items():
        torch.testing.assert_close(value, expected.get(name, before[name]))


def test_a_merged_lora_leaves_no_trace(unet, faceid):
    before = weights_of(unet)
    with pytest.raises(KeyboardInterrupt), merged_lora(unet, faceid, 1.0):
        assert not all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
        raise KeyboardInterrupt
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_merged_loras_nest(unet, faceid):
    before = weights_of(unet)
    with merged_lora(unet, faceid, 0.3), merged_lora(unet, faceid, 0.4):
        twice = weights_of(unet)
    with merged_lora(unet, faceid, 0.7):
        once = weights_of(unet)
    assert all(torch.allclose(twice[name], once[name], atol=1e-6) for name in once)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_a_lora_for_another_network_is_refused_before_anything_changes(tiny, faceid):
    other = tiny.unet("SD1.5")
    before = weights_of(other)
    with (
        pytest.raises(LikenessError, match=r"change of weights does not fit the model"),
        merged_lora(other, faceid, 1.0),
    ):
        pass
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
