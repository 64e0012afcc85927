"""SeFi-IDE: what it trains and leaves alone, its stages and its attention loss, what comes out, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.adapters.sefi_ide.file import load_subject
from likeness.errors import LikenessError
from likeness.training.base.noise import Prediction
from likeness.training.base.stage_tokens import StageTokens
from likeness.training.config import Precision, RunSettings
from likeness.training.engine import Callbacks, train
from likeness.training.export import SavedKind, TrainingRecord
from likeness.training.loss_log import read_losses
from likeness.training.methods import sefi_ide as front
from likeness.training.previews import sample_pictures
from likeness.training.recipe import Recipe
from likeness.training.recipes.sefi_ide import Layers, SefiIdeSettings, Tokens, sefi_ide
from likeness.weights.embedding_files import TokenEmbedding, load_embedding

FAMILIES = pytest.mark.parametrize("sdxl", [False, True], ids=["SD1.5", "SDXL"])
EACH = pytest.mark.parametrize("tokens", list(Tokens), ids=lambda tokens: tokens.value)
STEPS = 5  # a round of all stages


def chosen(**values: Any) -> SefiIdeSettings:
    given = {"steps": STEPS, "placeholder": "<anna>", "tokens": Tokens.TABLE, "learning_rate": 1e-2, **values}
    return SefiIdeSettings(**given)


def everything(base: Any) -> dict[str, torch.Tensor]:
    parts = [*base.networks, base.codec.module]
    return {f"{n}/{name}": value.clone() for n, part in enumerate(parts) for name, value in part.state_dict().items()}


def subject(recipe: Recipe, base: Any, folder: Path) -> Any:
    return load_subject(recipe.save(folder, "anna", TrainingRecord(recipe.name, base.family, STEPS))[0].path)


def losses(folder: Path) -> list[dict[str, float]]:
    return [
        {n: float(row[n]) for n in ("reconstruction", "attention", "total")}
        for row in read_losses(folder / "losses.csv")
    ]


# What is trained ------------------------------------------------------------------------------------------------------


@FAMILIES
@EACH
def test_the_tokens_are_all_that_moves_and_every_stage_does(make_base, photos, tmp_path, sdxl, tokens):
    base = make_base(sdxl)
    recipe = sefi_ide(base, photos[:1], chosen(tokens=tokens))
    before, start = everything(base), subject(recipe, base, tmp_path / "start").tables
    assert train(base, recipe, RunSettings(), tmp_path / "run").complete
    moved = {name for name, value in everything(base).items() if not torch.equal(value, before[name])}
    part = ".made_by." if tokens is Tokens.GENERATOR else ".rows"
    assert moved and all(part in name for name in moved)
    after = subject(recipe, base, tmp_path / "end").tables
    assert after.keys() == ({"clip_l", "clip_g"} if sdxl else {"clip_l"})
    for kind, table in after.items():
        assert table.shape == (5, 2, 32 if kind == "clip_g" else 24)
        assert bool(((table - start[kind]).abs().sum(-1) > 0).all())


def test_sd2_is_trained_on_its_own_encoder_and_velocities(make_base, photos, tmp_path):
    base = make_base(prediction=Prediction.VELOCITY)
    base.text[0].kind, base.clip_skip = "clip_h", 1
    recipe = sefi_ide(base, photos[:1], chosen(lambda_attention=0.5))
    start = subject(recipe, base, tmp_path / "start").tables
    train(base, recipe, RunSettings(), tmp_path / "run")
    after = subject(recipe, base, tmp_path / "end").tables
    assert after.keys() == {"clip_h"}
    assert bool(((after["clip_h"] - start["clip_h"]).abs().sum(-1) > 0).all())


@EACH
def test_training_starts_near_the_class_word(make_base, tokens):
    base = make_base()
    table = base.encoders[0].get_input_embeddings().weight.detach().clone()
    row = table[base.text[0].tokenizer("person").input_ids[1]]
    found = StageTokens(base, "<anna>", "person", "person", 5, tokens is Tokens.GENERATOR).tables()["clip_l"]
    if tokens is Tokens.TABLE:
        assert torch.equal(found, row.expand(5, 2, 24))
    nearest = (found.flatten(0, 1)[:, None] - table).norm(dim=-1).argmin(-1)
    assert torch.equal(table[nearest], row.expand(10, 24))


def test_only_the_tokens_of_the_stage_have_gradient(make_base):
    base = make_base()
    tokens = StageTokens(base, "<anna>", "person", "person", 5, False)
    with tokens.reading():
        found = tokens.read(["a photo of <anna>", "a photo"], torch.tensor([399, 999]))
        assert found.values is not None
        (found.states.sum() + found.values.sum()).backward()
    rows = base.encoders[0].get_input_embeddings().rows.grad.unflatten(0, (5, 2))
    assert rows.abs().sum(-1).nonzero().tolist() == [[1, 0], [1, 1]]


def test_keys_learn_from_both_losses(make_base, photos, tmp_path):
    def moved(**values: Any) -> torch.Tensor:
        base = make_base()
        recipe = sefi_ide(base, photos[:1], chosen(steps=1, stages=1, start="forest", **values))
        start = subject(recipe, base, tmp_path / "start").tables["clip_l"]
        train(base, recipe, RunSettings(), tmp_path / f"run {values}")
        return subject(recipe, base, tmp_path / "end").tables["clip_l"] - start

    with_loss, without = moved(lambda_attention=100.0), moved(lambda_attention=0.0)
    assert not torch.allclose(with_loss[0, 0], without[0, 0])
    assert bool(without.abs().sum(-1).all())


@FAMILIES
def test_tokens_of_the_class_word_change_nothing_and_cost_no_attention(make_base, sdxl):
    base, plain = make_base(sdxl), make_base(sdxl)
    z, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([20, 700])
    sizes = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)
    tokens = StageTokens(base, "<anna>", "person", "person", 5, False)
    long = "a photo of " + "forest " * 80 + "<anna> in the forest"
    with torch.no_grad(), tokens.reading():
        found = base.predict(z, t, tokens.read([long, "a photo of <anna>"], t), sizes)
        expected = plain.encode([long.replace("<anna>", "person"), "a photo of person"])
        assert base.staged is not None
    assert base.staged is None
    torch.testing.assert_close(found[1:], plain.predict(z, t, expected, sizes)[1:], atol=1e-5, rtol=1e-5)


def test_the_word_may_stand_twice_in_a_prompt_and_in_none(make_base):
    base = make_base()
    tokens = StageTokens(base, "<anna>", "person", "photo", 5, False)
    with torch.no_grad(), tokens.reading():
        twice, none = (tokens.read([said], torch.tensor([0])) for said in ("<anna> and <ANNA>", "a photo"))
    assert twice.values is not None and twice.reference is not None
    assert not torch.allclose(twice.states[0, 1:], twice.reference[0, 1:]) and none.values is None


@FAMILIES
def test_of_a_long_prompt_only_the_chunks_with_the_word_are_read_again(make_base, sdxl):
    base = make_base(sdxl)
    tokens = StageTokens(base, "<anna>", "person", "photo", 5, False)
    torch.nn.init.normal_(base.encoders[0].get_input_embeddings().rows)
    long, rows = "forest " * 90 + "<anna> in the forest" + " forest" * 90, []
    chunks = [tower.chunks(base.spell(long)) for tower in base.text]
    first = base.text[0].words[0][0]
    says = (chunks[0] == first).any(1)
    assert len(says) > 2 and says.sum() == 1
    whole = [[torch.where(ids == tower.words[0][0], tower.words[0][0] + 5, ids)] for ids, tower in zip(
        chunks, base.text, strict=True)]  # fmt: skip
    with torch.no_grad(), tokens.reading():
        tokens.read([long], torch.tensor([500]))
        hook = base.encoders[0].register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        found = tokens.read([long, "a photo of <anna>"], torch.tensor([500, 999]))
        hook.remove()
        assert rows == [1, 4]  # the new prompt as its class, and both prompts' chunks for keys and for values
        assert found.values is not None
        torch.testing.assert_close(found.values[:1], base.encode_ids(whole).states, atol=1e-5, rtol=1e-5)
        same = ~says.repeat_interleave(chunks[0].shape[1])
        assert torch.equal(found.states[0, same], found.values[0, same])
        assert not torch.allclose(found.states[0, ~same][1:], found.values[0, ~same][1:])


def test_what_pools_the_text_is_the_class(make_base):
    base = make_base(True)
    plain = base.encode(["a photo of person"])
    tokens = StageTokens(base, "<anna>", "person", "forest", 5, False)
    with torch.no_grad(), tokens.reading():
        found = tokens.read(["a photo of <anna>"], torch.tensor([500]))
    torch.testing.assert_close(found.pooled, plain.pooled)
    assert not torch.allclose(found.states, plain.states)


# The attention loss ---------------------------------------------------------------------------------------------------


@FAMILIES
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_are_those_of_both(make_base, photos, tmp_path, sdxl, checkpointing):
    base = make_base(sdxl)
    settings = chosen(lambda_attention=0.5, start="forest")
    run = RunSettings(batch=2, gradient_checkpointing=checkpointing)
    train(base, sefi_ide(base, photos, settings), run, tmp_path / "run")
    for row in losses(tmp_path / "run"):
        assert row["total"] == pytest.approx(row["reconstruction"] + 0.5 * row["attention"], rel=1e-4)
        assert row["attention"] > 0


def test_checkpointing_trains_the_same(make_base, photos, tmp_path):
    def trained(on: bool) -> list[dict[str, float]]:
        base = make_base()
        run = RunSettings(gradient_checkpointing=on)
        train(base, sefi_ide(base, photos[:1], chosen(lambda_attention=0.5)), run, tmp_path / f"{on}")
        return losses(tmp_path / f"{on}")

    for one, other in zip(trained(False), trained(True), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_the_loss_keeps_attention_near_the_class_words(make_base, photos, tmp_path):
    def last(weight: float) -> float:
        base = make_base()
        settings = chosen(steps=30, start="forest", lambda_attention=weight, stages=1, templates=("a photo of {}",))
        train(base, sefi_ide(base, photos[:1], settings), RunSettings(), tmp_path / f"{weight}")
        return sum(row["attention"] for row in losses(tmp_path / f"{weight}")[-5:])

    assert last(10.0) < 0.7 * last(1e-6)


def test_prompts_of_several_lengths_count_their_own_tokens(make_base, photos, tmp_path):
    base = make_base()
    long = "a photo of {} " + "forest " * 90
    settings = chosen(templates=("{}", long), steps=6)
    assert train(base, sefi_ide(base, photos, settings), RunSettings(batch=3), tmp_path / "run").complete


# A run ----------------------------------------------------------------------------------------------------------------


@EACH
def test_a_run_that_is_killed_resumes_bit_exactly(make_base, photos, tmp_path, tokens):
    def tables(stop: int | None) -> torch.Tensor:
        done = [0]
        for attempt in range(2):
            base = make_base()
            recipe = sefi_ide(base, photos[:1], chosen(tokens=tokens, token_dropout=0.1))
            watch = Callbacks(
                lambda at, *_: done.__setitem__(0, at),
                cancelled=lambda n=attempt: stop is not None and n == 0 and done[0] >= stop,
            )
            if train(base, recipe, RunSettings(save_every=1), tmp_path / f"{stop}", watch).complete:
                return subject(recipe, base, tmp_path / f"{stop}").tables["clip_l"]
        raise AssertionError

    unbroken = tables(None)
    assert torch.equal(unbroken, tables(1)) and torch.equal(unbroken, tables(3))


def test_the_seed_decides(make_base, photos, tmp_path):
    def tables(seed: int) -> torch.Tensor:
        base = make_base()
        recipe = sefi_ide(base, photos[:1], chosen(tokens=Tokens.GENERATOR), seed)
        train(base, recipe, RunSettings(seed=seed), tmp_path / f"{seed}")
        return subject(recipe, base, tmp_path / "out").tables["clip_l"]

    first = tables(1)
    assert torch.equal(first, tables(1)) and not torch.equal(first, tables(2))


def test_half_precision_keeps_the_tokens_whole(make_base, photos, tmp_path):
    base = make_base()
    recipe = sefi_ide(base, photos[:1], chosen(tokens=Tokens.GENERATOR))
    train(base, recipe, RunSettings(precision=Precision.BFLOAT16), tmp_path / "run")
    embedding = base.encoders[0].get_input_embeddings()
    assert embedding.table.weight.dtype == torch.bfloat16
    assert {p.dtype for p in embedding.made_by.parameters()} == {embedding.rows.dtype} == {torch.float32}


def test_a_loss_that_is_no_number_stops_and_the_last_state_stays(make_base, photos, tmp_path):
    base = make_base()
    settings = chosen(steps=4)

    def spoil(done: int, *_: Any) -> None:
        if done == 2:
            base.unet.conv_in.weight.data.fill_(float("nan"))

    with pytest.raises(LikenessError, match="lower the learning rate"):
        train(base, sefi_ide(base, photos[:1], settings), RunSettings(save_every=1), tmp_path / "run", Callbacks(spoil))
    again = make_base()
    recipe = sefi_ide(again, photos[:1], settings)
    assert train(again, recipe, RunSettings(save_every=1), tmp_path / "run").complete
    assert bool(torch.isfinite(subject(recipe, again, tmp_path).tables["clip_l"]).all())


def test_previews_and_samples_show_the_subject(make_base, photos, tmp_path):
    base, shown = make_base(), []
    recipe = sefi_ide(base, photos[:1], chosen())
    watch = Callbacks(preview=lambda phase, step, pictures: shown.append(pictures))
    run = RunSettings(preview_every=STEPS, preview_prompts=("a photo of <anna>",))
    train(base, recipe, run, tmp_path / "run", watch)
    with recipe.reading():
        sample = sample_pictures(base, ["a photo of <anna>"], seed=run.seed)
    assert len(shown) == 1 and torch.equal(shown[0], sample)


# What comes out -------------------------------------------------------------------------------------------------------


@FAMILIES
def test_the_file_says_what_it_is_and_an_embedding_is_written_when_asked(make_base, photos, tmp_path, sdxl):
    base = make_base(sdxl)
    recipe = sefi_ide(base, photos[:1], chosen(plain_embedding=True, stages=3))
    train(base, recipe, RunSettings(), tmp_path / "run")
    file, lossy = recipe.save(tmp_path / "out", "anna", TrainingRecord("SeFi-IDE", base.family, STEPS))
    assert (file.kind, lossy.kind) == (SavedKind.SUBJECT, SavedKind.EMBEDDING) and "lossy" in lossy.path.name
    found = load_subject(file.path)
    assert (found.placeholder, found.class_word, found.stages, found.timesteps) == ("<anna>", "person", 3, 1000)
    said = found.training
    assert (said["lambda"], said["reduction"], said["steps"]) == ("0.003", "sum", "5") and said["base_model"]
    for kind, vector in load_embedding(lossy.path).vectors.items():
        torch.testing.assert_close(vector[0], found.tables[kind][:, 1].mean(0))


def test_a_vector_of_an_earlier_training_may_be_the_start(make_base, photos, tmp_path):
    base = make_base()
    start = TokenEmbedding({"clip_l": torch.randn(1, 24)})
    recipe = sefi_ide(base, photos[:1], chosen(), 0, start)
    assert torch.equal(subject(recipe, base, tmp_path).tables["clip_l"], start.vectors["clip_l"].expand(5, 2, 24))


def test_the_front_offers_the_choices_there_are():
    assert tuple(each.value for each in Tokens) == front.TOKENS and tuple(each.value for each in Layers) == front.LAYERS


# Bad input ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"class_word": "personforest"}, r"class word 'personforest' is \d tokens \(.+, .+\): choose one"),
        ({"class_word": ""}, "class word '' is 0 tokens"),
        ({"start": "person forest"}, r"that <anna> should start from is 2 tokens \(person</w>, forest</w>\)"),
        ({"placeholder": "person"}, "'person' is already a word of the text encoder"),
        ({"templates": ("a photo of a person",)}, r"has no \{\}: write \{\} where the trigger word goes"),
        ({"templates": ()}, "There is no template for '<anna>'"),
        ({"captions": True}, "lacks the trigger word '<anna>'"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_learned_are_refused(make_base, make_photo, values, sentence):
    with pytest.raises(LikenessError, match=sentence):
        sefi_ide(make_base(), [make_photo(1, "a photo of somebody")], chosen(**values))


def test_photos_that_cannot_be_learned_from_are_refused(make_base, make_photo):
    with pytest.raises(LikenessError, match="no photo to train on"):
        sefi_ide(make_base(), [], chosen())
    with pytest.raises(LikenessError, match="sides that 8 divides"):
        sefi_ide(make_base(), [make_photo(1, side=20)], chosen())


def test_a_start_of_another_model_is_refused(make_base, photos):
    wide = TokenEmbedding({"clip_l": torch.randn(1, 24), "clip_g": torch.randn(1, 99)})
    with pytest.raises(LikenessError, match="of another base model"):
        sefi_ide(make_base(True), photos, chosen(), 0, wide)
    with pytest.raises(LikenessError, match=r"this one needs clip_g \(1, 32\)"):
        sefi_ide(make_base(True), photos, chosen(), 0, TokenEmbedding({"clip_l": torch.randn(1, 24)}))
