"""The engine: the same numbers however a run is cut, shared or cached, and nothing lost when it ends badly."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.shared_trainings import RECIPES

from likeness.errors import LikenessError
from likeness.training.base.noise import NoiseSchedule, Prediction
from likeness.training.config import Optimiser, RateSchedule, RunSettings, make_optimiser
from likeness.training.engine import Callbacks, _SharedRun, train
from likeness.training.loss_log import loss_picture, read_losses
from likeness.training.recipe import Objective, Recipe, epochs, generator, uniform_timesteps
from likeness.training.recipes.dreambooth import DreamBoothSettings, dreambooth
from likeness.training.recipes.textual_inversion import TextualInversionSettings, textual_inversion

HERE = Path(__file__).parent


def lora_recipe(base: Any, photos: Any, steps: int = 4, **options: Any) -> Recipe:
    settings = DreamBoothSettings(
        steps=steps, prior_weight=0, flip=0.5, text_encoder=True, schedule=RateSchedule.LINEAR, **options
    )
    return dreambooth(base, photos, settings)


def two_phases(base: Any, photos: Any) -> Recipe:
    """Textual Inversion, then a LoRA."""
    words = textual_inversion(base, photos, TextualInversionSettings(token="<me>", steps=2))
    return replace(words, phases=[*words.phases, *lora_recipe(base, photos).phases])


def weights(base: Any) -> dict[str, torch.Tensor]:
    return {
        f"{number}.{name}": value.clone()
        for number, network in enumerate(base.networks)
        for name, value in network.state_dict().items()
        if "lora_" in name or name.endswith("rows")
    }


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys() and one
    assert all(torch.equal(one[name], other[name]) for name in one)


class Stop:
    """Cancels before step number `after`."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.mark.parametrize("after", [2, 3], ids=["between phases", "within a phase"])
def test_a_cancelled_run_goes_on_bit_for_bit(make_base, photos, tmp_path, after):
    settings = RunSettings(batch=2, ema=0.9)
    unbroken = make_base()
    whole = train(unbroken, two_phases(unbroken, photos), settings, tmp_path / "unbroken")
    cut = make_base()
    result = train(cut, two_phases(cut, photos), settings, tmp_path / "cut", Callbacks(cancelled=Stop(after)))
    assert not result.complete and result.steps == after
    resumed = make_base()
    torch.rand(5)  # whatever else the process did in the meantime
    assert train(resumed, two_phases(resumed, photos), settings, tmp_path / "cut").complete
    assert_same(weights(resumed), weights(unbroken))
    assert read_losses(whole.losses) == read_losses(tmp_path / "cut" / "losses.csv")


def test_the_weights_left_are_the_moving_average(make_base, photos, tmp_path):
    """min(decay, (1 + n) / (10 + n)) after step n, from the weights before the first step on."""
    plain, averaged = make_base(), make_base()
    expected: list[dict[str, torch.Tensor]] = []

    def remember(done: int, total: int, losses: Any) -> None:
        now = weights(plain)
        decay = min(0.3, (1 + done) / (10 + done))
        if expected:
            now = {name: decay * expected[-1][name] + (1 - decay) * value for name, value in now.items()}
        expected.append(now)

    recipe = lora_recipe(plain, photos)
    begin = recipe.phases[0].begin

    def began() -> Any:
        groups = begin()
        expected.append(weights(plain))
        return groups

    recipe = replace(recipe, phases=[replace(recipe.phases[0], begin=began)])
    train(plain, recipe, RunSettings(), tmp_path / "plain", Callbacks(progress=remember))
    train(averaged, lora_recipe(averaged, photos), RunSettings(ema=0.3), tmp_path / "averaged")
    found = weights(averaged)
    assert found.keys() == expected[-1].keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[-1][name], atol=1e-6, rtol=1e-4)
    assert any(not torch.equal(found[name], value) for name, value in weights(plain).items())


def test_rows_after_the_last_saved_step_are_forgotten(make_base, photos, tmp_path):
    base = make_base()
    recipe = lora_recipe(base, photos)
    train(base, recipe, RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    with (tmp_path / "losses.csv").open("a") as file:
        file.write("tuning,3,1.0,1.0\n")  # a crash between a row and a save
    base = make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path)
    assert [row["step"] for row in read_losses(tmp_path / "losses.csv")] == ["1", "2", "3", "4"]


def test_a_finished_run_is_taken_up_without_a_step(make_base, photos, tmp_path):
    first, second = make_base(), make_base()
    train(first, two_phases(first, photos), RunSettings(), tmp_path)
    steps = []
    watch = Callbacks(progress=lambda done, total, losses: steps.append(done))
    assert train(second, two_phases(second, photos), RunSettings(), tmp_path, watch).complete
    assert steps == []
    assert_same(weights(first), weights(second))


def test_a_run_folder_of_an_older_version_is_refused_and_stays(make_base, photos, tmp_path):
    """Releases before format 2 told runs apart by other things: going on from them would mix two trainings."""
    base = make_base()
    train(base, lora_recipe(base, photos, steps=2), RunSettings(), tmp_path)
    record = tmp_path / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"format": 1}))
    before = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = make_base()
    with pytest.raises(LikenessError, match="is of another version of this pack: choose a new folder"):
        train(again, lora_recipe(again, photos, steps=3), RunSettings(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_caches_on_disk_and_none_at_all_change_nothing(make_base, photos, tmp_path):
    results = []
    for name, options in {
        "memory": {},
        "disk": {"cache_megabytes": 0},
        "none": {"cache_latents": False, "cache_text": False},
    }.items():
        base = make_base()
        recipe = dreambooth(base, photos, DreamBoothSettings(steps=3, prior_weight=0, flip=0.5))
        train(base, recipe, RunSettings(**options), tmp_path / name)
        results.append(weights(base))
        assert not list((tmp_path / name).glob("cache-*"))
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


def test_what_does_not_change_is_computed_once(make_base, photos, tmp_path):
    base = make_base()
    encoded, read = [], []
    encode, text = base.codec.encode, base.encode
    object.__setattr__(base.codec, "encode", lambda pictures: encoded.append(1) or encode(pictures))
    base.encode = lambda prompts: read.append(1) or text(prompts)
    recipe = dreambooth(base, photos, DreamBoothSettings(steps=9, prior_weight=0))
    train(base, recipe, RunSettings(), tmp_path)
    assert len(encoded) == len(photos) and len(read) == 1


def test_the_callers_random_numbers_and_networks_are_left_as_they_were(base, photos, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    train(base, lora_recipe(base, photos, steps=1), RunSettings(gradient_checkpointing=True), tmp_path)
    assert torch.equal(torch.rand(4), expected)
    assert not any(network.training for network in base.networks) and not base.unet.is_gradient_checkpointing


def test_checkpointing_accumulation_and_seed(make_base, photos, tmp_path):
    def trained(name: str, **options: Any) -> dict[str, torch.Tensor]:
        base = make_base()
        train(base, lora_recipe(base, photos, steps=2), RunSettings(**options), tmp_path / name)
        return weights(base)

    plain = trained("plain", batch=4)
    for name, options in {
        "accumulated": {"accumulation": 4},
        "recomputed": {"batch": 4, "gradient_checkpointing": True},
    }.items():
        other = trained(name, **options)
        for key, value in plain.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-6)
    other = trained("another seed", batch=4, seed=1)
    assert not all(torch.equal(value, other[key]) for key, value in plain.items())


def test_bfloat16_keeps_what_is_trained_in_single_precision(base, photos, tmp_path):
    from likeness.training.config import Precision

    train(base, two_phases(base, photos), RunSettings(precision=Precision.BFLOAT16), tmp_path)
    assert base.unet.dtype == torch.bfloat16 and base.codec.module.dtype == torch.float32
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in weights(base).values())


def test_previews_come_with_the_learned_words(base, photos, tmp_path):
    seen = []
    watch = Callbacks(preview=lambda phase, step, pictures: seen.append((phase, step, tuple(pictures.shape))))
    settings = RunSettings(preview_every=2, preview_prompts=("a photo of <me> person",))
    recipe = textual_inversion(base, photos, TextualInversionSettings(token="<me>", steps=2))
    train(base, recipe, settings, tmp_path, watch)
    assert seen == [("inversion", 2, (1, 3, 64, 64))]


# Half precision -------------------------------------------------------------------------------------------------------


def with_scaler(**options: Any) -> Any:
    """accelerate as it is for float16 on a graphics card, on the CPU and in single precision: losses are scaled."""
    from accelerate.utils import AutocastKwargs
    from torch.amp.grad_scaler import GradScaler

    from likeness.training.engine import make_accelerator

    accelerator: Any = make_accelerator(RunSettings(), cpu=True)
    accelerator.state._mixed_precision = "fp16"
    accelerator.native_amp, accelerator.autocast_handler = True, AutocastKwargs(enabled=False)
    accelerator.scaler = GradScaler("cpu", **{"init_scale": 2.0**10, "growth_interval": 2, **options})
    return accelerator


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "1-tuning" / "state.pt", weights_only=True)


def test_a_resumed_half_precision_run_goes_on_with_its_loss_scale(make_base, photos, tmp_path):
    unbroken, cut, resumed = make_base(), make_base(), make_base()
    train(unbroken, lora_recipe(unbroken, photos, 7), RunSettings(), tmp_path / "a", accelerator=with_scaler())
    stop = Callbacks(cancelled=Stop(5))
    train(cut, lora_recipe(cut, photos, 7), RunSettings(), tmp_path / "b", stop, accelerator=with_scaler())
    half_way = saved(tmp_path / "b")["scaler"]
    assert half_way["scale"] == 2.0**12 and half_way["_growth_tracker"] == 1
    train(resumed, lora_recipe(resumed, photos, 7), RunSettings(), tmp_path / "b", accelerator=with_scaler())
    assert saved(tmp_path / "b")["scaler"] == saved(tmp_path / "a")["scaler"]
    assert saved(tmp_path / "b")["scaler"]["scale"] == 2.0**13
    assert_same(weights(resumed), weights(unbroken))


def test_a_state_without_a_loss_scale_is_taken_up_too(make_base, photos, tmp_path):
    base, other = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    assert "scaler" not in saved(tmp_path)
    assert train(other, lora_recipe(other, photos), RunSettings(), tmp_path, accelerator=with_scaler()).complete


def test_a_loss_scale_changes_nothing_that_is_learned(make_base, photos, tmp_path):
    plain, scaled = make_base(), make_base()
    train(plain, words_twice(plain, photos), RunSettings(), tmp_path / "plain")
    train(scaled, words_twice(scaled, photos), RunSettings(), tmp_path / "scaled", accelerator=with_scaler())
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(scaled)[name], value, rtol=1e-5, atol=1e-7)


def words_twice(base: Any, photos: Any) -> Recipe:
    """Two phases that train the same parameters, the second with gradients clipped."""
    recipe = textual_inversion(base, photos, TextualInversionSettings(token="<me>", steps=2))
    [phase] = recipe.phases
    return replace(recipe, phases=[phase, replace(phase, name="again", clip=1e-3)])


def test_gradients_that_are_never_finite_end_the_run(base, photos, tmp_path):
    recipe = lora_recipe(base, photos, 30)
    phase = replace(recipe.phases[0], objectives=[Objective("loss", no_gradient)])
    scaler = with_scaler(backoff_factor=0.01)
    with pytest.raises(LikenessError, match=r"still not finite in float16 at step 3"):
        train(base, replace(recipe, phases=[phase]), RunSettings(), tmp_path, accelerator=scaler)


def no_gradient(found: Any) -> torch.Tensor:
    """A loss of 0 whose gradient is infinite."""
    return (found.prediction * 0).abs().sum().sqrt()


# Bad ends -------------------------------------------------------------------------------------------------------------


def breaking(recipe: Recipe, step: int) -> Recipe:
    """The recipe with a loss that is not a number at one step."""
    phase = recipe.phases[0]
    at = {"calls": 0}

    def loss(found: Any) -> torch.Tensor:
        at["calls"] += 1
        return phase.objectives[0].loss(found) * (float("nan") if at["calls"] == step + 1 else 1.0)

    return replace(recipe, phases=[replace(phase, objectives=[Objective("loss", loss)])])


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(make_base, photos, tmp_path):
    base, good = make_base(), make_base()
    with pytest.raises(LikenessError, match="at step 2"):
        train(base, breaking(lora_recipe(base, photos), 2), RunSettings(), tmp_path / "broken")
    train(good, lora_recipe(good, photos), RunSettings(), tmp_path / "good", Callbacks(cancelled=Stop(2)))
    broken, expected = (
        torch.load(tmp_path / name / "1-tuning" / "state.pt", weights_only=True) for name in ("broken", "good")
    )
    assert broken["step"] == 2
    assert_same(broken["modules"]["trained"], expected["modules"]["trained"])


def spoiling(recipe: Recipe, base: Any, step: int) -> Recipe:
    """The recipe with a weight that is not a number after one step, as a learning rate that is too high makes it."""
    phase, done = recipe.phases[0], []

    def after_step(_rates: Any) -> None:
        done.append(1)
        if len(done) == step:
            next(p for name, p in base.unet.named_parameters() if ".lora_B." in name).fill_(float("inf"))

    return replace(recipe, phases=[replace(phase, after_step=after_step)])


@pytest.mark.parametrize("step", [5, 6, 8], ids=["between saves", "at a save", "at the end"])
def test_weights_that_are_no_numbers_never_replace_the_last_good_state(make_base, photos, tmp_path, step):
    base, again = make_base(), make_base()
    recipe = spoiling(lora_recipe(base, photos, 8), base, step)
    kept = {5: 4, 6: 4, 8: 6}[step]
    with pytest.raises(
        LikenessError, match=rf"step {step}.*The last good state, of step {kept}, is kept in '.*state\.pt'"
    ):
        train(base, recipe, RunSettings(save_every=2), tmp_path)
    assert saved(tmp_path)["step"] == kept
    assert train(again, lora_recipe(again, photos, 8), RunSettings(), tmp_path).complete, "it goes on from there"


@pytest.mark.parametrize("part", ["averages", "optimizer"])
def test_averages_and_optimisers_that_are_no_numbers_are_not_saved_either(base, photos, tmp_path, monkeypatch, part):
    from likeness.training.engine import _SharedRun

    state = _SharedRun.state

    def spoilt(run: Any) -> dict[str, Any]:
        found = state(run)
        if run.step == 3:
            found[part] = {"state": [{"x": torch.tensor([1.0, float("nan")])}]}
        return found

    monkeypatch.setattr(_SharedRun, "state", spoilt)
    with pytest.raises(LikenessError, match=rf"\({part}/state/0/x\) are not numbers after step 3.*of step 2, is kept"):
        train(base, lora_recipe(base, photos), RunSettings(save_every=1, ema=0.9), tmp_path)
    assert saved(tmp_path)["step"] == 2


def test_a_saved_state_that_is_no_number_is_not_taken_up(make_base, photos, tmp_path):
    """Older versions wrote such."""
    base, again = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    file = tmp_path / "1-tuning" / "state.pt"
    state = saved(tmp_path)
    next(iter(state["modules"]["trained"].values())).view(-1)[0] = float("nan")
    torch.save(state, file)
    with pytest.raises(LikenessError, match=r"values that are not numbers \(modules/trained/.*move it away"):
        train(again, lora_recipe(again, photos), RunSettings(), tmp_path)


def test_a_step_that_is_cut_short_leaves_the_state_before_it(make_base, photos, tmp_path):
    """By a second Ctrl-C: the weights have moved, and the step is not counted yet."""
    base, resumed, unbroken = make_base(), make_base(), make_base()
    recipe, done = lora_recipe(base, photos), []

    def cut(_rates: Any) -> None:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt

    recipe = replace(recipe, phases=[replace(recipe.phases[0], after_step=cut)])
    with pytest.raises(KeyboardInterrupt):
        train(base, recipe, RunSettings(save_every=1), tmp_path / "cut")
    assert torch.load(tmp_path / "cut" / "1-tuning" / "state.pt", weights_only=True)["step"] == 2
    train(resumed, lora_recipe(resumed, photos), RunSettings(), tmp_path / "cut")
    train(unbroken, lora_recipe(unbroken, photos), RunSettings(), tmp_path / "unbroken")
    assert_same(weights(resumed), weights(unbroken))


def test_a_sentence_is_not_hidden_by_one_about_saving(base, photos, tmp_path, monkeypatch):
    recipe = lora_recipe(base, photos)

    def loss(_: Any) -> torch.Tensor:
        monkeypatch.setattr(torch, "save", full)
        raise LikenessError("the sentence")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    phase = replace(recipe.phases[0], objectives=[Objective("loss", loss)])
    with pytest.raises(LikenessError, match="the sentence"):
        train(base, replace(recipe, phases=[phase]), RunSettings(), tmp_path)


def test_gradients_that_are_no_numbers_stop_the_run_though_the_loss_is_one(base, photos, tmp_path):
    recipe = lora_recipe(base, photos)
    phase = replace(recipe.phases[0], objectives=[Objective("loss", no_gradient)])
    with pytest.raises(LikenessError, match="at step 0: lower the learning rate"):
        train(base, replace(recipe, phases=[phase]), RunSettings(), tmp_path)
    assert saved(tmp_path)["step"] == 0
    assert all(torch.isfinite(value).all() for value in saved(tmp_path)["modules"]["trained"].values())


def test_a_full_disk_keeps_the_losses_that_were_written(make_base, photos, tmp_path, monkeypatch):
    base, other = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    before = (tmp_path / "losses.csv").read_bytes()
    write = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "losses" in path.name and mode[0] != "r":
            write(path, mode, *rest, **options).close()
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(LikenessError, match=r"losses could not be written.*No space left"):
        train(other, lora_recipe(other, photos), RunSettings(), tmp_path)
    assert (tmp_path / "losses.csv").read_bytes() == before


@pytest.mark.parametrize("part", ["denoiser", "text encoder 1", "VAE"])
def test_a_base_model_that_is_not_all_numbers_is_refused_before_a_step(base, photos, tmp_path, part):
    module = {"denoiser": base.unet, "text encoder 1": base.text[0].encoder, "VAE": base.codec.module}[part]
    with torch.no_grad():
        list(module.parameters())[-1].view(-1)[-1] = float("nan")
    steps = []
    watch = Callbacks(progress=lambda done, total, losses: steps.append(done))
    with pytest.raises(LikenessError, match=rf"The base model's {part} holds values that are not numbers \("):
        train(base, lora_recipe(base, photos), RunSettings(), tmp_path, watch)
    assert steps == []


def test_weights_that_half_precision_cannot_hold_are_named(base, photos, tmp_path):
    from likeness.training.config import Precision
    from likeness.training.engine import make_accelerator

    with torch.no_grad():
        base.unet.conv_in.weight[0] = 1e6
    on_cpu = make_accelerator(RunSettings(), cpu=True)
    with pytest.raises(LikenessError, match=r"denoiser holds values that are not numbers \(conv_in\.weight\)"):
        train(base, lora_recipe(base, photos), RunSettings(precision=Precision.FLOAT16), tmp_path, accelerator=on_cpu)


def test_one_photo_is_enough(base, photos, tmp_path):
    assert train(base, lora_recipe(base, photos[:1], steps=2), RunSettings(batch=2), tmp_path).complete


def test_a_full_disk_is_named_and_the_old_state_survives(make_base, photos, tmp_path, monkeypatch):
    base = make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    before = (tmp_path / "1-tuning" / "state.pt").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    base = make_base()
    with pytest.raises(LikenessError, match="No space left"):
        train(base, lora_recipe(base, photos), RunSettings(), tmp_path)
    assert (tmp_path / "1-tuning" / "state.pt").read_bytes() == before


def test_a_run_goes_on_with_its_own_base_model_only(make_base, photos, tmp_path):
    base, other = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(1)))
    with torch.no_grad():
        other.unet.conv_in.weight += 1
    family = make_base(sdxl=True)
    for wrong in (other, family):
        with pytest.raises(LikenessError, match="another base model"):
            train(wrong, lora_recipe(wrong, photos), RunSettings(), tmp_path)


@pytest.mark.parametrize("what", ["text encoder", "VAE", "layers left out", "prediction", "schedule"])
def test_the_rest_of_the_base_model_tells_runs_apart_too(make_base, photos, tmp_path, what):
    base, other = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(1)))
    with torch.no_grad():
        if what == "text encoder":
            next(iter(other.text[0].encoder.parameters())).add_(1)
        elif what == "VAE":
            next(iter(other.codec.module.parameters())).add_(1)
        elif what == "layers left out":
            other = replace(other, clip_skip=1)
        elif what == "prediction":
            other = replace(other, schedule=replace(other.schedule, prediction=Prediction.VELOCITY))
        else:
            other = replace(other, schedule=NoiseSchedule.scaled_linear(beta_end=0.02))
    with pytest.raises(LikenessError, match="another base model, text encoder or VAE"):
        train(other, lora_recipe(other, photos), RunSettings(), tmp_path)


def test_a_disk_that_is_full_when_a_run_is_taken_up_leaves_it_whole(make_base, photos, tmp_path, monkeypatch):
    base, again, third = make_base(), make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(1)))
    before = (tmp_path / "run.json").read_text()

    def full(path: Path, text: str, **_: Any) -> None:
        with path.open("w") as file:
            file.write(text[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(LikenessError, match="No space left"):
            train(again, lora_recipe(again, photos), RunSettings(), tmp_path)
    assert (tmp_path / "run.json").read_text() == before
    assert not list(tmp_path.glob(".run.json*")), "what was begun is gone"
    assert train(third, lora_recipe(third, photos), RunSettings(), tmp_path).complete


def test_a_row_of_losses_that_was_cut_is_forgotten(make_base, photos, tmp_path):
    base, again = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(save_every=1), tmp_path, Callbacks(cancelled=Stop(2)))
    table = tmp_path / "losses.csv"
    table.write_text(table.read_text() + "tuning,")
    assert train(again, lora_recipe(again, photos), RunSettings(), tmp_path).complete
    steps = [row["step"] for row in read_losses(table)]
    assert steps == [str(step) for step in range(1, len(steps) + 1)]


def test_a_run_goes_on_with_its_own_settings_only(make_base, photos, tmp_path):
    base, other, third = make_base(), make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(1)))
    with pytest.raises(LikenessError, match=r"other settings \(flip\): resume it with the same ones, or choose"):
        recipe = dreambooth(other, photos, lora_recipe(other, photos).settings.model_copy(update={"flip": 0.25}))
        train(other, recipe, RunSettings(), tmp_path)
    with pytest.raises(LikenessError, match=r"other settings \(seed\)"):
        train(third, lora_recipe(third, photos), RunSettings(seed=1), tmp_path)
    with pytest.raises(LikenessError, match=r"another method \(DreamBooth\)"):
        train(third, textual_inversion(third, photos, TextualInversionSettings(token="<me>")), RunSettings(), tmp_path)


def test_what_has_no_effect_on_the_weights_may_change(make_base, photos, tmp_path):
    """Other class images where the prior weighs nothing, another rate of a text encoder that is not trained."""

    def recipe(base: Any, **options: Any) -> Recipe:
        return dreambooth(base, photos, DreamBoothSettings(steps=2, prior_weight=0, **options))

    base, again = make_base(), make_base()
    train(base, recipe(base), RunSettings(), tmp_path)
    steps = []
    watch = Callbacks(progress=lambda done, total, losses: steps.append(done))
    other = recipe(again, class_prompt="a photo of a dog", class_pictures=3, text_learning_rate=0.5, text_until=1)
    assert train(again, other, RunSettings(save_every=7, preview_prompts=("a dog",)), tmp_path, watch).complete
    assert steps == []
    assert_same(weights(base), weights(again))


def test_a_finished_run_is_prolonged_to_what_an_unbroken_one_is(make_base, photos, tmp_path):
    def recipe(base: Any, steps: int) -> Recipe:
        return dreambooth(base, photos, DreamBoothSettings(steps=steps, prior_weight=0, flip=0.5))

    unbroken, short, longer, shorter = (make_base() for _ in range(4))
    train(unbroken, recipe(unbroken, 5), RunSettings(ema=0.9), tmp_path / "unbroken")
    train(short, recipe(short, 3), RunSettings(ema=0.9), tmp_path / "run")
    steps = []
    watch = Callbacks(progress=lambda done, total, losses: steps.append(done))
    train(longer, recipe(longer, 5), RunSettings(ema=0.9), tmp_path / "run", watch)
    assert steps == [4, 5]
    assert_same(weights(longer), weights(unbroken))
    assert read_losses(tmp_path / "run" / "losses.csv") == read_losses(tmp_path / "unbroken" / "losses.csv")
    with pytest.raises(LikenessError, match="with 5 steps and has made 5 of them: ask for at least that many"):
        train(shorter, recipe(shorter, 4), RunSettings(ema=0.9), tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "done", "expected"),
    [
        ({"tuning_steps": 9}, (4, 5), ""),
        ({"tuning_steps": 3}, (4, 2), ""),
        ({"tuning_steps": 3}, (4, 5), "5 steps and has made 5"),
        ({"inversion_steps": 9}, (4, 0), ""),
        ({"inversion_steps": 9}, (4, 1), r"other settings \(inversion_steps\)"),
        ({"inversion_steps": 2}, (3, 0), "4 steps and has made 3"),
        ({"inversion_steps": 0}, (0, 0), ""),
        ({"tuning_steps": 0}, (4, 0), r"other settings \(tuning_steps\)"),
        ({"refocusing": "paper", "lambda_attention": 0}, (0, 0), r"other settings \(lambda_attention\)"),
    ],
)
def test_a_phase_is_prolonged_until_a_later_one_has_learned_from_it(change, done, expected):
    from likeness.training.recipes.magicapture import MagiCaptureSettings
    from likeness.training.run_record import RunRecord

    before = {"inversion_steps": 4, "tuning_steps": 5}
    earlier, now = (
        RunRecord("base", "data", MagiCaptureSettings.model_validate(given), RunSettings())
        for given in (before, {**before, **change})
    )
    assert re.match(f"^{expected}", now.difference(earlier, done)) if expected else not now.difference(earlier, done)


def test_two_trainings_do_not_meet_in_one_folder(make_base, photos, tmp_path):
    base = make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    code = "import pathlib, sys; from likeness import locks; held = locks.locked(pathlib.Path(sys.argv[1]), '');"
    code += "held.__enter__(); print('held', flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", code, str(tmp_path)], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(LikenessError, match=rf"The run in '.*' is in use by process {other.pid} on .* since"):
            train(base, lora_recipe(base, photos), RunSettings(), tmp_path)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        other.communicate()
    again = make_base()
    assert train(again, lora_recipe(again, photos), RunSettings(), tmp_path).complete


def test_caches_of_killed_trainings_are_cleared_away(base, photos, tmp_path):
    for name in ("cache-abc12345", "cache-00000000-1-00000000-x"):  # of an older version, and of another machine
        (tmp_path / name / "latents").mkdir(parents=True)
    (tmp_path / "1-tuning").mkdir()
    (tmp_path / "1-tuning" / ".state.pt.1-00000000.part").touch()
    train(base, lora_recipe(base, photos, steps=1), RunSettings(), tmp_path)
    assert not list(tmp_path.glob("cache-*")) and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("content", ["", "{", "[" * 50_000, '{"format": 2, "method": []}', "\x00", "null"])
def test_a_damaged_record_of_a_run_is_one_sentence(make_base, photos, tmp_path, content):
    base, again = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(2)))
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(LikenessError, match=r"run\.json', which records what .* is damaged: choose a new folder"):
        train(again, lora_recipe(again, photos), RunSettings(), tmp_path)
    (tmp_path / "run.json").unlink()
    assert train(again, lora_recipe(again, photos), RunSettings(), tmp_path).complete, "as it says"


def test_a_damaged_state_is_named(make_base, photos, tmp_path):
    base, other = make_base(), make_base()
    train(base, lora_recipe(base, photos), RunSettings(), tmp_path, Callbacks(cancelled=Stop(1)))
    state = tmp_path / "1-tuning" / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(LikenessError, match="not the state of this training"):
        train(other, lora_recipe(other, photos), RunSettings(), tmp_path)


def test_full_memory_names_what_to_lower(base, photos, tmp_path):
    recipe = lora_recipe(base, photos)

    def loss(_: Any) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError

    phase = replace(recipe.phases[0], objectives=[Objective("loss", loss)])
    with pytest.raises(LikenessError, match="gradient checkpointing"):
        train(base, replace(recipe, phases=[phase]), RunSettings(), tmp_path)


def test_zero_steps_are_refused_before_anything_is_written(base, photos, tmp_path):
    recipe = lora_recipe(base, photos)
    with pytest.raises(LikenessError, match="0 steps"):
        train(base, replace(recipe, phases=[replace(recipe.phases[0], steps=0)]), RunSettings(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_optimiser_package_is_named():
    with pytest.raises(LikenessError, match="prodigyopt"):
        make_optimiser(Optimiser.PRODIGY, [])


def test_the_run_folder_says_what_was_run(base, photos, tmp_path):
    train(base, lora_recipe(base, photos, steps=1), RunSettings(seed=5), tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["run"]["seed"] == 5 and record["method"]["steps"] == 1 and record["recipe"] == "DreamBooth"
    assert (tmp_path / "losses.png").exists()


# Pieces ---------------------------------------------------------------------------------------------------------------


def test_every_epoch_shows_each_item_once_in_an_order_of_its_own():
    orders = [tuple(epochs(7, 0, n) for n in range(7 * e, 7 * e + 7)) for e in range(4)]
    assert all(sorted(order) == list(range(7)) for order in orders) and len(set(orders)) > 1


def test_timesteps_stay_below_their_cap_and_reach_it():
    random = generator("test")
    drawn = {uniform_timesteps(5)(random, n) for n in range(200)}
    assert drawn == {0, 1, 2, 3, 4}


def test_schedules():
    linear, ahead = RateSchedule.LINEAR.factor(4), RateSchedule.LINEAR.factor(4, ahead=1)
    assert [linear(n) for n in range(4)] == [1, 0.75, 0.5, 0.25] and [ahead(n) for n in range(4)] == [
        0.75,
        0.5,
        0.25,
        0,
    ]
    assert RateSchedule.CONSTANT.factor(4, warm_up=2)(0) == 0.5 and RateSchedule.COSINE.factor(4)(2) == pytest.approx(
        0.5
    )


def test_losses_are_drawn_whatever_they_are():
    rows = [{"phase": "a", "step": "1", "x": "", "total": "nan"}, {"phase": "b", "step": "1", "x": "0", "total": "2"}]
    assert loss_picture(rows).size == loss_picture([]).size == (800, 420)


class OtherProcess:
    """accelerate as one of two processes, of which the other has a gradient of zeros for everything."""

    num_processes, device, scaler, is_main_process = 2, torch.device("cpu"), None, True

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def reduce(self, value: torch.Tensor, how: str) -> torch.Tensor:
        return value + 1 if how == "sum" else value / 2

    def unscale_gradients(self, optimizer: Any) -> None:
        pass


def test_parameters_that_only_another_process_used_take_part_in_the_exchange(tmp_path):
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([used, unused])
    run = _SharedRun(tmp_path, {}, optimizer, 1, clip=float("inf"), accelerator=OtherProcess())  # type: ignore[arg-type]
    run.gradients(lambda number, random: (3 * used).sum())
    assert used.grad is not None and used.grad.tolist() == [1.5, 1.5]
    assert unused.grad is not None and unused.grad.tolist() == [0, 0, 0]


SHARED = {"two_phases": two_phases, **RECIPES}


@pytest.mark.slow
@pytest.mark.parametrize("training", SHARED)
def test_two_processes_train_what_one_does(make_base, photos, tmp_path, training):
    # accelerate launches several processes for GPUs alone; where there is none, they take CPUs.
    options = "--multi_gpu --num_machines 1 --num_processes 2 --mixed_precision no --dynamo_backend no"
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", *options.split()]
    command += ["--main_process_port", "0", str(HERE / "two_processes.py"), str(tmp_path / "two"), training]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    base = make_base()
    recipe = SHARED[training](base, photos)
    train(base, recipe, RunSettings(batch=2), tmp_path / "one")
    last = f"{len(recipe.phases)}-{recipe.phases[-1].name}/state.pt"
    shared, alone = (
        torch.load(tmp_path / each / last, weights_only=True)["modules"]["trained"] for each in ("two", "one")
    )
    assert shared.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-4, atol=1e-6)
    one, two = (read_losses(tmp_path / name / "losses.csv") for name in ("one", "two"))
    assert [float(row["total"]) for row in two] == pytest.approx([float(row["total"]) for row in one], rel=1e-4)
