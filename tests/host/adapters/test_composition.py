"""Every pair of what an artist puts onto one MODEL, in the real host.

Both decide over the image; the order of chaining makes no difference where mathematics says so; one at strength 0
leaves the other bit-identical; nothing raises. A new system is in here by being in the registry.
"""

from __future__ import annotations

import gc
from dataclasses import replace
from itertools import combinations
from typing import Any

import comfyui
import pytest
import torch
from helpers.composition import Part, State, commute, parts, table
from helpers.contract import cases
from helpers.small_world import person, same
from safetensors.torch import save_file
from torch import Tensor

from likeness import adapters

REPOSITORY = comfyui.REPOSITORY
CASES = cases()
BASES = ("sd15", "flux")
TITLES = {base: tuple(k.title for k in adapters.SYSTEMS if CASES[k.title].base == base) for base in BASES}
PARTS = {base: parts(base, titles) for base, titles in TITLES.items()}
PAIRS = [(base, *pair) for base in BASES for pair in combinations(PARTS[base], 2)]


class Bench:
    """The small world, with an adapter and a person for every system; and what was painted already."""

    def __init__(self, world: Any) -> None:
        self._world, self._adapters, self._nets, self._painted = world, {}, {}, {}
        self.parts = PARTS[world.base]
        self._alive: list[State] = []  # the host collects garbage for every MODEL that has gone

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def case_adapter(self, case: Any) -> Any:
        """The loaded adapter of a system."""
        if case.title not in self._adapters:
            weights = {key: value.contiguous() for key, value in case.weights(self.shapes, 5).items()}
            name = f"{case.title} composed {case.file_name}"
            save_file(weights, self.folder / "ipadapter" / name)
            self._adapters[case.title] = self.run("LikenessLoadIdentityAdapter", adapter_file=name)
        return self._adapters[case.title]

    def case_person(self, case: Any) -> Any:
        """Somebody else for each system, whom all recognisers have seen."""
        seed = TITLES[self.base].index(case.title)
        return replace(person(seed=seed), also={"antelopev2": person(seed=seed + 100).embeddings})

    def net(self, seed: int) -> Any:
        """A ControlNet of the small model."""
        if seed not in self._nets:
            self._nets[seed] = self._world.controlnet(seed)
        return self._nets[seed]

    def begin(self, writers: tuple[str, ...], strengths: dict[str, float]) -> State:
        """Prompts of those that write one, all combined; without anybody in it where one is not in the graph."""
        positive, negative = self.text
        written = []
        for title in writers:
            part = self.parts[title]
            state = State(self.model, self.encoded(part.plain)[0], negative)
            begun = part.begin(self, state, strengths[title]) if part.begin and title in strengths else state
            written += begun.positive
        return State(self.model, written or positive, negative)

    def paint(self, *chain: tuple[str, float], among: tuple[Part, ...] = ()) -> Tensor:
        """What is sampled with these parts at these strengths, one after the other.

        among: parts it is compared with; the prompts are those of all that write one.
        """
        parts = (*(self.parts[title] for title, _ in chain), *among)
        writers = tuple(sorted({part.title for part in parts if part.begin}))
        if (chain, writers) not in self._painted:
            state = self.begin(writers, dict(chain))
            for title, strength in chain:
                state = self.parts[title].join(self, state, strength)
            shape = self.latents(1, 8, 8)
            painted = self.recipes.sample(state.model, state.positive, state.negative, steps=2, shape=shape)
            self._painted[chain, writers] = painted
            self._alive.append(state)
            gc.freeze()  # newer hosts collect garbage at every load while a MODEL that has gone shares its network
        return self._painted[chain, writers]


@pytest.fixture(scope="module")
def benches(world, flux_world) -> dict[str, Bench]:
    return {one.base: Bench(one) for one in (world, flux_world)}


@pytest.fixture(params=BASES)
def bench(request, benches) -> Bench:
    """That of one base model after the other."""
    return benches[request.param]


@pytest.fixture(params=PAIRS, ids=" + ".join)
def pair_on_bench(request, benches) -> tuple[tuple[Part, Part], Bench]:
    base, one, other = request.param
    return (PARTS[base][one], PARTS[base][other]), benches[base]


def test_both_decide_over_the_picture(pair_on_bench):
    pair, bench = pair_on_bench
    one, other = (part.title for part in pair)
    both = bench.paint((one, 0.7), (other, 0.7))
    assert both.isfinite().all()
    assert not any(same(both, bench.paint((title, 0.7), among=pair)) for title in (one, other))


def test_the_order_makes_no_difference_where_mathematics_says_so(pair_on_bench):
    pair, bench = pair_on_bench
    one, other = (part.title for part in pair)
    there, back = bench.paint((one, 0.7), (other, 0.7)), bench.paint((other, 0.7), (one, 0.7))
    assert same(there, back) is commute(*pair)


def test_one_at_strength_0_leaves_the_other_as_it_is(pair_on_bench):
    pair, bench = pair_on_bench
    for silent, other in (pair, pair[::-1]):
        alone = bench.paint((other.title, 0.7), among=pair)
        for chain in (
            ((silent.title, 0.0), (other.title, 0.7)),
            ((other.title, 0.7), (silent.title, 0.0)),
        ):
            painted = bench.paint(*chain)
            assert torch.equal(painted, alone) if silent.exact else same(painted, alone)


def test_all_of_them_together_in_any_order_of_those_that_commute(bench):
    every = sorted(bench.parts, key=lambda title: not bench.parts[title].adds)  # prompts: added, and then changed
    first = [title for title in every if bench.parts[title].adds]
    rest = [title for title in every if title not in first]
    there = bench.paint(*((title, 0.5) for title in [*first, *rest]))
    back = bench.paint(*((title, 0.5) for title in [*first, *reversed(rest)]))
    assert there.isfinite().all() and same(there, back)


def test_the_given_model_and_prompts_are_left_as_they_were(bench):
    before = bench.sample(bench.model)
    bench.paint(*((title, 0.6) for title in bench.parts))
    assert torch.equal(bench.sample(bench.model), before)


def test_the_table_of_the_docs_says_what_is_tested():
    page = (REPOSITORY / "docs" / "composition.md").read_text(encoding="utf-8")
    for base, titles in TITLES.items():
        assert table(base, titles) in page, f"docs/composition.md should hold:\n{table(base, titles)}"
