"""Custom Diffusion's files: every layout is read, what does not fit is said, what is written is read back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from likeness.errors import LikenessError
from likeness.weights.concept_compression import RankRule, compress, rank_by_share, rank_choice, rank_official
from likeness.weights.concept_merging import Constraints, Merger, check_residual, merge_concepts
from likeness.weights.concepts import (
    Concept,
    Layout,
    changes_of,
    concept_tensors,
    delta_content,
    left_alone,
    load_concept,
    read_concept,
    whole_weights,
)
from likeness.weights.lora import LoraPair

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
COMPVIS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"
KEYS = (f"{ATTENTION}.to_k.weight", f"{ATTENTION}.to_v.weight")
WIDTH = 768


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def base(width: int = WIDTH) -> dict[str, Tensor]:
    return {name: noise(4, width, seed=9 + n) for n, name in enumerate(KEYS)} | {
        f"{ATTENTION}.to_q.weight": noise(4, 4, seed=20),
        f"{ATTENTION}.to_out.0.weight": noise(4, 4, seed=21),
        f"{ATTENTION}.to_out.0.bias": noise(4, seed=22),
    }


def trained(width: int = WIDTH) -> dict[str, Tensor]:
    return {name: noise(4, width, seed=n) for n, name in enumerate(KEYS)}


def whole() -> dict[str, Tensor]:
    return {name: value + 0.1 for name, value in base().items()}


def processors(weights: dict[str, Tensor]) -> dict[str, Any]:
    named = {
        f"{ATTENTION}.processor.{name.removeprefix(ATTENTION + '.').replace('.', '_custom_diffusion.', 1)}": value
        for name, value in weights.items()
    }
    return {**named, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor": {}}


PAIR = {"u": noise(4, 2, seed=3), "v": noise(2, WIDTH, seed=4)}
LAYOUTS: dict[str, tuple[Any, tuple[Layout, ...], list[str]]] = {
    "delta": ({"unet": trained(), "modifier_token": {"<new1>": noise(WIDTH)}}, (Layout.DELTA,), ["<new1>"]),
    "queries": ({"unet": whole(), "modifier_token": {}}, (Layout.DELTA,), []),
    "compressed": ({"unet": {KEYS[0]: PAIR, KEYS[1]: PAIR}}, (Layout.COMPRESSED,), []),
    "mixed": ({"unet": {KEYS[0]: PAIR, KEYS[1]: noise(4, WIDTH)}}, (Layout.DELTA, Layout.COMPRESSED), []),
    "compvis": (
        {"state_dict": {f"{COMPVIS}.to_k.weight": noise(4, WIDTH), "embed": noise(2, WIDTH)}, "epoch": 3},
        (Layout.COMPVIS,),
        ["<new1>", "<new2>"],
    ),
    "flat": (
        {"state_dict": {f"{COMPVIS}.to_k.weight": noise(4, WIDTH), "embed": noise(2 * WIDTH)}},
        (Layout.COMPVIS,),
        ["<new1>", "<new2>"],
    ),
    "processors": (processors(whole()), (Layout.PROCESSORS,), []),
    "token": ({"<new1>": noise(WIDTH)}, (Layout.TOKENS,), ["<new1>"]),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_is_read_and_named(tmp_path, kind):
    content, layouts, words = LAYOUTS[kind]
    torch.save(content, tmp_path / "delta.bin")
    concept = load_concept(tmp_path / "delta.bin")
    assert concept.layouts == layouts and list(concept.tokens) == words
    assert set(concept.weights) <= set(base())
    if concept.weights:
        changes = changes_of(concept, base())
        for path, change in changes.items():
            name = path if path.endswith(".bias") else f"{path}.weight"
            expected = whole_weights(concept, base())[name] - base()[name]
            delta = change.delta() if isinstance(change, LoraPair) else change
            torch.testing.assert_close(delta, expected, atol=1e-5, rtol=1e-5)


def test_a_token_of_sdxl_is_a_list_of_two(tmp_path):
    torch.save({"unet": trained(2048), "modifier_token": {"<a>": [noise(768), noise(1280)]}}, tmp_path / "delta.bin")
    (token,) = load_concept(tmp_path / "delta.bin").tokens.values()
    assert {kind: tuple(rows.shape) for kind, rows in token.vectors.items()} == {
        "clip_l": (1, 768),
        "clip_g": (1, 1280),
    }


def test_safetensors_lose_the_empty_dictionaries_and_are_read_all_the_same(tmp_path):
    content = {key: value for key, value in processors(whole()).items() if isinstance(value, Tensor)}
    save_file(content, tmp_path / "x.safetensors")
    assert set(load_concept(tmp_path / "x.safetensors").weights) == set(base())


@pytest.mark.parametrize("kind", ["delta", "queries", "mixed", "flat"])
def test_what_is_written_is_read_back_exactly(tmp_path, kind):
    concept = read_concept(LAYOUTS[kind][0], "x")
    save_file({k: v.contiguous().clone() for k, v in concept_tensors(concept).items()}, tmp_path / "x.safetensors")
    torch.save(delta_content(concept), tmp_path / "delta.bin")
    for file in ("x.safetensors", "delta.bin"):
        again = load_concept(tmp_path / file)
        assert list(again.tokens) == list(concept.tokens)
        for name, value in concept.weights.items():
            other: Any = again.weights[name]
            if isinstance(value, LoraPair):
                assert torch.equal(other.up, value.up) and torch.equal(other.down, value.down)
            else:
                assert torch.equal(other, value)
        for word, token in concept.tokens.items():
            assert torch.equal(again.tokens[word].vectors["clip_l"], token.vectors["clip_l"])


# What does not fit ----------------------------------------------------------------------------------------------------


def sentence(call: Any, *arguments: Any) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_unknown_entries_are_listed():
    content = {"unet": {**trained(), f"{ATTENTION}.to_k.bias": noise(4), "down_blocks.0.x": noise(4)}}
    text = sentence(read_concept, content, "x.bin")
    assert "2 entries" in text and "to_k.bias" in text and "down_blocks.0.x" in text


def test_a_file_without_anything_of_ours_is_refused():
    assert "none of its 2 entries" in sentence(read_concept, {"a.b": noise(3), "c.d": noise(3)}, "x.bin")


def test_values_that_are_no_numbers_are_refused():
    content = {"unet": {KEYS[0]: torch.full((4, WIDTH), torch.nan)}}
    assert "not numbers" in sentence(read_concept, content, "x.bin")


def test_half_a_pair_is_refused():
    assert "halves" in sentence(read_concept, {"unet": {KEYS[0]: {"u": noise(4, 2)}}}, "x.bin")


def test_flat_words_that_no_width_divides_are_refused():
    content = {"state_dict": {f"{COMPVIS}.to_k.weight": noise(4, WIDTH), "embed": noise(WIDTH + 1)}}
    assert "not a multiple of 768" in sentence(read_concept, content, "x.ckpt")


@pytest.mark.parametrize(("width", "family"), [(1024, "SD2"), (2048, "SDXL")])
def test_another_base_model_is_named_with_both_widths(width, family):
    concept = read_concept({"unet": trained()}, "x.bin")
    text = sentence(changes_of, concept, base(width))
    assert "768 (SD1.5)" in text and f"{width} ({family})" in text


def test_layers_that_the_model_lacks_are_listed():
    there = {name: value for name, value in base().items() if "to_v" not in name}
    assert "to_v.weight" in sentence(changes_of, read_concept({"unet": trained()}, "x.bin"), there)


def test_layers_that_stay_alone_are_known():
    assert left_alone(read_concept({"unet": {KEYS[0]: noise(4, WIDTH)}}, "x"), base()) == [KEYS[1]]


def test_code_in_a_pickle_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"unet": Evil()}, tmp_path / "delta.bin")
    assert "code" in sentence(load_concept, tmp_path / "delta.bin")


def test_words_are_renamed_one_for_one():
    concept = read_concept(LAYOUTS["compvis"][0], "x.ckpt")
    assert list(concept.called(["<anna>", "<bob>"]).tokens) == ["<anna>", "<bob>"]
    assert "gets 1 names" in sentence(concept.called, ["<anna>"])
    assert "different" in sentence(concept.called, ["<a>", "<A>"])


def test_words_of_several_vectors_have_no_place_in_delta_bin():
    concept = read_concept({"modifier_token.<a>.clip_l": noise(2, 768)}, "x")
    assert "2 vectors" in sentence(delta_content, concept)


# Merging --------------------------------------------------------------------------------------------------------------


def merge(captions: Tensor, rows: list[Tensor], w0: Tensor, weights: list[Tensor]) -> tuple[Tensor, float, Merger]:
    merger = Merger.of(captions, Constraints.of(rows))
    return *merger.merged(w0, weights), merger


@settings(max_examples=20, deadline=None)
@given(concepts=st.integers(1, 4), m=st.integers(1, 5), rows=st.integers(3, 80), seed=st.integers(0, 1000))
def test_the_merge_keeps_what_every_concept_says_however_few_captions(concepts, m, rows, seed):
    d, o = 24, 6
    constraints = [noise(m, d, seed=seed + n) for n in range(concepts)]
    w0 = noise(o, d, seed=seed + 50)
    weights = [w0 + 0.1 * noise(o, d, seed=seed + 60 + n) for n in range(concepts)]
    w, residual, merger = merge(noise(rows, d, seed=seed + 90), constraints, w0, weights)
    assert residual < 1e-3 and bool(torch.isfinite(w).all())
    assert (merger.ridge > 0) or rows >= d
    for c, one in zip(constraints, weights, strict=True):
        torch.testing.assert_close(c @ w.T, c @ one.T, atol=2e-3, rtol=2e-3)


def test_identical_concepts_and_repeated_rows_do_not_make_it_singular():
    c, w0 = noise(3, 24), noise(6, 24, seed=1)
    w1 = w0 + 0.1 * noise(6, 24, seed=2)
    once, residual, _ = merge(noise(100, 24, seed=3), [c], w0, [w1])
    twice, again, _ = merge(noise(100, 24, seed=3), [c, torch.cat([c, c])], w0, [w1, w1])
    assert residual < 1e-6 and again < 1e-6 and torch.equal(once, twice)


def test_nearly_equal_rows_are_kept_and_do_no_harm():
    c, w0 = noise(3, 24), noise(6, 24, seed=1)
    w1 = w0 + 0.1 * noise(6, 24, seed=2)
    w, residual, _ = merge(noise(100, 24, seed=3), [c, c * (1 + 1e-7)], w0, [w1, w1])
    assert residual < 1e-3 and float((w - w0).abs().max()) < 2


def test_prompts_that_say_nearly_the_same_grow_the_weights_unless_they_are_kept_softly():
    c, names = noise(3, WIDTH), KEYS
    own = base()
    one, two = (
        Concept(w, (Layout.DELTA,), {n: own[n] + 0.1 * noise(4, WIDTH, seed=s) for n in names}, {})
        for w, s in (("a", 50), ("b", 60))
    )
    near = Constraints.of([c, c + 1e-4 * noise(3, WIDTH, seed=7)])
    captions = noise(2 * WIDTH, WIDTH, seed=3)
    exact = merge_concepts([one, two], own, Merger.of(captions, near))
    soft = merge_concepts([one, two], own, Merger.of(captions, near, softness=0.01))
    assert exact.residual < 1e-3 and exact.growth > 20
    assert soft.growth < 2 and soft.residual > exact.residual


def test_concepts_that_contradict_each_other_are_refused():
    c, w0 = noise(3, 24), noise(6, 24, seed=1)
    near = c * (1 + 1e-6)  # the same prompts with other results
    _, residual, _ = merge(noise(100, 24, seed=3), [c, near], w0, [w0 + 1, w0 - 1])
    with pytest.raises(LikenessError, match="contradict"):
        check_residual({"layer": max(residual, 0.01)})
    assert check_residual({"layer": 1e-5}) == 1e-5
    with pytest.raises(LikenessError, match="contradict"):
        check_residual({"layer": float("nan")})


# Compressing ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_ours_keeps_at_least_the_share_and_the_official_rule_at_most(share, seed):
    values = torch.linalg.svdvals(noise(8, 6, seed=seed))
    ours, official = rank_by_share(values, share), rank_official(values, share)
    total = float(values.sum())
    assert ours >= 1 and float(values[:ours].sum()) >= share * total - 1e-4
    assert float(values[:official].sum()) <= share * total + 1e-4 and ours >= official


def test_one_value_that_dominates_leaves_nothing_by_the_official_rule_and_that_is_handled():
    difference = torch.outer(noise(4), noise(WIDTH, seed=1))
    pair = compress(difference, rank_choice(RankRule.OFFICIAL, 0.6, 1))
    assert pair.rank == 0
    concept = Concept("x", (Layout.COMPRESSED,), {KEYS[0]: pair}, {})
    assert changes_of(concept, base()) == {} and torch.equal(whole_weights(concept, base())[KEYS[0]], base()[KEYS[0]])
    again = read_concept(delta_content(concept), "x")
    assert isinstance(again.weights[KEYS[0]], LoraPair)
    ours = compress(difference, rank_choice(RankRule.SHARE, 0.6, 1))
    assert ours.rank == 1
    torch.testing.assert_close(ours.delta(), difference, atol=1e-4, rtol=1e-4)


def test_a_difference_of_nothing_is_of_rank_one():
    assert compress(torch.zeros(4, 6), rank_choice(RankRule.SHARE, 0.6, 1)).rank == 1


@pytest.mark.parametrize(("rule", "share", "rank"), [(RankRule.SHARE, 0.0, 1), (RankRule.FIXED, 0.5, 0)])
def test_shares_and_ranks_that_are_none_are_refused(rule, share, rank):
    with pytest.raises(LikenessError, match="enter"):
        rank_choice(rule, share, rank)
