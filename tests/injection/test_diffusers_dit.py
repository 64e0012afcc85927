"""Modules behind the blocks of a diffusers FLUX: inject and eject are a pair, every half reads its own tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import toy_dit
from torch import Tensor

from likeness.adapters.effects import BlockTerm, Scope
from likeness.adapters.system import WeightFile
from likeness.adapters.types import IdentityTokens
from likeness.errors import LikenessError
from likeness.injection.diffusers import InjectedDit
from likeness.injection.diffusers.place import Place
from likeness.injection.plan import Role
from likeness.weights.families import BlockKind, DitBlock, DitLayout

LAYOUT, GRID, TEXT = DitLayout(3, 6, 32), (4, 3), 5
BOTH = (Role.UNCOND, Role.COND)


@pytest.fixture(scope="module")
def flux() -> Any:
    return toy_dit.network()


@pytest.fixture
def toy() -> toy_dit.ToyDit:
    return toy_dit.ToyDit(WeightFile("toy.safetensors", toy_dit.weights(32, modules=4)))


def term(toy: Any, seed: int = 0, strength: float = 1.0, **scope: Any) -> BlockTerm:
    halves = torch.randn(2, 1, 5, 24, generator=torch.Generator().manual_seed(seed))
    return BlockTerm(toy, LAYOUT.every(2, 4), IdentityTokens(*halves), strength, Scope(**scope))


def run(flux: Any, rows: int = 2, extra: int = 0) -> Tensor:
    """The same image and text in every row; `extra` tokens of a reference image behind the image's own."""
    generator = torch.Generator().manual_seed(1)
    count = GRID[0] * GRID[1] + extra
    given = [torch.randn(1, *shape, generator=generator) for shape in ((count, 16), (TEXT, 20), (12,))]
    images, text, pooled = (t.expand(rows, *t.shape[1:]) for t in given)
    places = torch.zeros(count, 3)
    places[:, 1] = torch.arange(count)
    full = torch.full((rows,), 0.5)
    with torch.no_grad():
        return flux(
            images, text, pooled, full, img_ids=places, txt_ids=torch.zeros(TEXT, 3), guidance=full, return_dict=False
        )[0]


def test_the_chosen_blocks_run_their_modules_and_forget_them_again(flux, toy):
    plain = run(flux)
    injected = InjectedDit(flux, [term(toy)], Place(BOTH), GRID)
    changed = run(flux)
    injected.eject()
    assert {number for kind, number in toy.calls if kind == "residual"} == {0, 1, 2, 3}
    assert not torch.allclose(changed, plain, atol=1e-3)
    assert torch.equal(run(flux), plain)
    assert not any(module._forward_hooks for module in flux.modules())


def test_every_half_reads_its_own_tokens(flux, toy):
    found = {}
    for roles in (BOTH, (Role.COND,), (Role.UNCOND,)):
        injected = InjectedDit(flux, [term(toy)], Place(roles), GRID)
        found[roles] = run(flux, len(roles))
        injected.eject()
    alone = torch.cat([found[(Role.UNCOND,)], found[(Role.COND,)]])
    torch.testing.assert_close(found[BOTH], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=1e-4)


def test_tokens_are_prepared_once_whatever_the_steps(flux, toy):
    injected = InjectedDit(flux, [term(toy)], Place(BOTH), GRID)
    for _ in range(3):
        run(flux)
    injected.eject()
    assert {n for key, n in toy.calls.items() if key[0] == "prepare"} == {2}


def test_reference_pictures_and_what_is_masked_stay_as_they_are(flux, toy):
    mask = torch.zeros(1, 8, 6)
    mask[:, :4] = 1
    last = DitBlock(BlockKind.SINGLE, LAYOUT.single - 1)
    plain = run(flux, extra=4)
    injected = InjectedDit(flux, [replace(term(toy, mask=mask), numbers={last: 0})], Place(BOTH), GRID)
    changed = (run(flux, extra=4) != plain).any(dim=-1)
    injected.eject()
    assert changed[:, :6].all() and not changed[:, 6:].any()


def test_two_people_commute(flux, toy):
    found = []
    for seeds in ((1, 2), (2, 1)):
        injected = InjectedDit(flux, [term(toy, seed) for seed in seeds], Place(BOTH), GRID)
        found.append(run(flux))
        injected.eject()
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_strength_0_is_bit_identical(flux, toy):
    plain = run(flux)
    injected = InjectedDit(flux, [term(toy, strength=0.0)], Place(BOTH), GRID)
    assert torch.equal(run(flux), plain)
    injected.eject()


def test_another_width_is_refused_by_name(flux):
    other = toy_dit.ToyDit(WeightFile("wide.safetensors", toy_dit.weights(48, modules=4)))
    with pytest.raises(LikenessError, match=r"wide\.safetensors"):
        InjectedDit(flux, [term(other)], Place(BOTH), GRID)


def test_every_so_manieth_block_has_a_number_of_its_own():
    """PuLID on FLUX.1: 10 + 10 modules behind 19 + 38 blocks."""
    numbers = DitLayout(19, 38, 3072).every(2, 4)
    assert list(numbers.values()) == list(range(20))
    assert numbers[DitBlock(BlockKind.DOUBLE, 18)] == 9 and numbers[DitBlock(BlockKind.SINGLE, 36)] == 19
