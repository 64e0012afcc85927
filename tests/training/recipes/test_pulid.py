"""PuLID's training: where gradients flow, what the fast branch costs, and what is missing or wrong."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.people import few_step_lora, people_materials, some_people
from safetensors.torch import save_file

from likeness.errors import LikenessError
from likeness.training.at_once import at_once
from likeness.training.base.model import BaseModel
from likeness.training.data.alignment_prompts import PROMPTS, SLOT
from likeness.training.fast_branch import QueryProbe, ThroughSteps, load_few_step, sample, switched_on
from likeness.training.few_step import FewStep, Sampler
from likeness.training.objectives.pulid import align_layer
from likeness.training.pulid import fresh_pulid
from likeness.training.recipe import Pass, generator
from likeness.training.recipes.adapter_training import PeopleStream
from likeness.training.recipes.pulid import PuLIDSettings, pulid
from likeness.weights.lora import merged

ID_DIM, HIDDEN = 16 + 32, 64


@pytest.fixture
def start(base, tmp_path) -> Path:
    """An adapter of stage 1 that does something."""
    torch.manual_seed(1)
    weights = fresh_pulid(base.unet, ID_DIM, HIDDEN, width=64)
    weights = {key: value + 0.3 * torch.randn(value.shape) for key, value in weights.items()}
    save_file(weights, tmp_path / "start.safetensors")
    return tmp_path / "start.safetensors"


@pytest.fixture
def few(base, tmp_path) -> Path:
    return few_step_lora(base.unet, tmp_path / "few.safetensors")


class Stage:
    """A recipe's fast losses on a batch of two, ready to be asked."""

    def __init__(self, base: BaseModel, start: Path, few: Path, **settings: Any) -> None:
        chosen = PuLIDSettings(**{"stage": 3, "fast_steps": 3, "width": 64, **settings})
        materials = people_materials(some_people(), start=start, few_step=few)
        self.base, self.recipe = base, pulid(base, materials, chosen)
        self.phase = self.recipe.phases[0]
        (group,) = self.phase.begin()
        self.parameters = group.parameters
        for parameter in [*base.unet.parameters(), *base.codec.module.parameters()]:
            parameter.requires_grad_(False)
        samples = [PeopleStream(materials.people, chosen.drop)(n, generator(n)) for n in range(2)]
        z = torch.randn(2, 4, 16, 16, generator=generator("z"))
        t = torch.tensor([100, 600])
        self.found = Pass(samples, base.schedule, 0.0, z, z, t, z, z, [], lambda: self.found)
        self.losses = {objective.name: objective.loss for objective in self.phase.objectives}

    def gradient(self, name: str) -> tuple[float, torch.Tensor]:
        """A loss and its gradient to everything that is trained."""
        with self.phase.hooks():  # type: ignore[misc]
            loss = self.losses[name](self.found)
            found = torch.autograd.grad(loss, list(self.parameters.values()))
        return float(loss.detach()), torch.cat([each.flatten() for each in found])


# Which steps a gradient flows through ---------------------------------------------------------------------------------


def toy_predict(weight: torch.Tensor):
    return lambda x, step: torch.tanh(weight[step] * x + 0.1 * step)


@pytest.mark.parametrize("words", ["all", "last:1", "last:2", "random:2", "last:9"])
@pytest.mark.parametrize("sampler", list(Sampler))
def test_gradients_agree_with_the_definition(base, words, sampler):
    """In double precision: predictions of the other steps are constants, their updates are not."""
    branch = FewStep.of(sampler, base.schedule, 4)
    noise = torch.randn(1, 2, 3, 3, dtype=torch.float64, generator=generator("x"))
    between = [torch.randn(noise.shape, dtype=torch.float64, generator=generator(n)) for n in range(3)] + [None]
    between = between if sampler.draws_noise else [None] * 4
    through = ThroughSteps.of(words).steps(4, generator("chosen"))
    assert len(through) == {"all": 4, "last:1": 1, "last:2": 2, "random:2": 2, "last:9": 4}[words]
    weight = torch.randn(4, dtype=torch.float64, generator=generator("w")).requires_grad_()
    x0 = sample(branch, toy_predict(weight), noise, between, through)
    (gradient,) = torch.autograd.grad(x0.square().sum(), weight)

    known: list[torch.Tensor] = []  # the predictions of the run, which those outside of `through` stay
    sample(branch, lambda x, s: known.append(toy_predict(weight.detach())(x, s)) or known[-1], noise, between, ())

    def value(moved: torch.Tensor) -> torch.Tensor:
        chain = toy_predict(moved)
        found = sample(branch, lambda x, s: chain(x, s) if s in through else known[s], noise, between, range(4))
        return found.square().sum()

    small = 1e-6
    for step in range(4):
        moved = torch.zeros(4, dtype=torch.float64)
        moved[step] = small
        with torch.no_grad():
            slope = (value(weight + moved) - value(weight - moved)) / (2 * small)
        torch.testing.assert_close(gradient[step], slope, rtol=1e-4, atol=1e-6)


def test_a_local_alignment_is_the_sum_of_its_steps(base, start, few):
    """The definition: at each step the latents that enter it are constants."""
    stage = Stage(base, start, few)
    loss, gradient = stage.gradient("alignment")
    _, through = stage.gradient("alignment")
    assert torch.equal(gradient, through), "the same again"
    assert loss > 0 and float(gradient.abs().max()) > 0
    whole = Stage(base, start, few, align_backprop="through")
    same, chained = whole.gradient("alignment")
    assert same == pytest.approx(loss, rel=1e-4) and not torch.allclose(chained, gradient, rtol=1e-2)
    single, once = (Stage(base, start, few, fast_steps=1, align_backprop=how) for how in ("local", "through"))
    torch.testing.assert_close(
        single.gradient("alignment")[1], once.gradient("alignment")[1], rtol=1e-4, atol=1e-6
    )  # where there is one step, there is no difference


def test_terms_that_are_differentiated_at_once_add_up():
    weights = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    terms = [lambda: weights[0].square().sum(), lambda: (weights[0] * weights[1]).sum(), lambda: torch.tensor(2.0)]
    wanted = torch.autograd.grad(3 * sum(term() for term in terms), weights)  # type: ignore[arg-type]
    loss = at_once((term() for term in terms), weights)
    torch.testing.assert_close(loss.detach(), sum(term() for term in terms).detach())  # type: ignore[union-attr]
    (3 * loss).backward()
    for weight, gradient in zip(weights, wanted, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


# What it costs --------------------------------------------------------------------------------------------------------


class Memory:
    """Bytes that graphs keep for their backward passes: of all tensors but the networks' own, now and at most."""

    def __init__(self, *networks: torch.nn.Module) -> None:
        self.now = self.most = 0
        self._held: dict[int, int] = {}
        self.own = {p.untyped_storage().data_ptr() for network in networks for p in network.parameters()}

    @contextmanager
    def counted(self):
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor):
            yield

    def _pack(self, tensor: torch.Tensor) -> Any:
        return _Kept(self, tensor)


class _Kept:
    def __init__(self, memory: Memory, tensor: torch.Tensor) -> None:
        self.memory, self.tensor, self.key = memory, tensor, tensor.untyped_storage().data_ptr()
        self.size = 0 if self.key in memory.own else tensor.untyped_storage().nbytes()
        held = memory._held
        held[self.key] = held.get(self.key, 0) + 1
        memory.now += self.size if held[self.key] == 1 else 0
        memory.most = max(memory.most, memory.now)

    def __del__(self) -> None:
        held = self.memory._held
        held[self.key] -= 1
        if held[self.key] == 0:
            self.memory.now -= self.size


def peak(base: BaseModel, start: Path, few: Path, name: str, **settings: Any) -> int:
    stage = Stage(base, start, few, fast_steps=4, **settings)
    memory = Memory(base.unet, base.codec.module, stage.losses["identity"].__self__.live._term.projector)  # type: ignore[attr-defined]
    with stage.phase.hooks(), memory.counted():  # type: ignore[misc]
        stage.losses[name](stage.found)
    return memory.most


def test_the_last_step_alone_needs_less_than_two_fifths_of_the_memory(base, start, few):
    last, every = (peak(base, start, few, "identity", id_backprop=words) for words in ("last:1", "all"))
    assert 0 < last <= 0.4 * every


def test_a_local_alignment_needs_the_memory_of_one_pass(base, start, few):
    local, through = (peak(base, start, few, "alignment", align_backprop=how) for how in ("local", "through"))
    assert 0 < local <= 0.4 * through


# The two paths --------------------------------------------------------------------------------------------------------


def test_without_the_person_the_network_is_the_base_bit_for_bit(base, start, few):
    z, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 700])
    conditioning = base.encode(["a photo", "a cat"])
    with torch.no_grad():
        bare = base.predict(z, t, conditioning)
    stage = Stage(base, start, few)
    live = stage.losses["identity"].__self__.live  # type: ignore[attr-defined]
    with torch.no_grad(), stage.phase.hooks():  # type: ignore[misc]
        assert stage.phase.show is not None
        stage.phase.show(stage.found.samples)
        assert not torch.allclose(base.predict(z, t, conditioning), bare, atol=1e-4)
        with live.switched_off():
            assert torch.equal(base.predict(z, t, conditioning), bare)


def test_an_adapter_that_says_nothing_changes_nothing(base, start, few, tmp_path):
    weights = fresh_pulid(base.unet, ID_DIM, HIDDEN, width=64)
    silent = {key: torch.zeros_like(value) if "id_to_v" in key else value for key, value in weights.items()}
    save_file(silent, tmp_path / "silent.safetensors")
    loss, _ = Stage(base, tmp_path / "silent.safetensors", few).gradient("alignment")
    assert loss == 0
    assert Stage(base, start, few).gradient("alignment")[0] > 0


def test_the_alignment_is_what_the_layers_see(base, start, few):
    """Once more, by hand, for one step."""
    stage = Stage(base, start, few, fast_steps=1, lambda_semantic=0.0, lambda_layout=1.0, drop={"person": 0.0})
    loss, _ = stage.gradient("alignment")
    fast = stage.losses["alignment"].__self__  # type: ignore[attr-defined]
    people = [sample.about for sample in stage.found.samples]
    prompts = [fast._prompt_of(person) for person in people]
    x = torch.stack([torch.randn(4, 16, 16, generator=generator(person.seed, "alignment")) for person in people])
    probe = QueryProbe(base.unet)
    seen = []
    with torch.no_grad(), stage.phase.hooks(), probe.attached(), switched_on(base.unet, fast._lora):  # type: ignore[misc]
        fast.live.show(fast.tokens_of(people, [False, False]))
        for off in (False, True):
            with probe.recording() as found:
                if off:
                    with fast.live.switched_off():
                        base.predict(x, torch.tensor([999, 999]), base.encode(prompts))
                else:
                    base.predict(x, torch.tensor([999, 999]), base.encode(prompts))
            seen.append(found)
    layers = [align_layer(q, bare, k).layout for (q, k), (bare, _) in zip(*seen, strict=True)]
    assert loss == pytest.approx(float(torch.stack(layers).mean()), rel=1e-4)


def test_losses_of_weight_zero_cost_no_pass(base, start, few, monkeypatch):
    calls = []
    forward = type(base.unet).forward
    monkeypatch.setattr(type(base.unet), "forward", lambda *a, **k: calls.append(1) or forward(*a, **k))
    stage = Stage(base, start, few, lambda_id=0.0, lambda_semantic=0.0, lambda_layout=0.0)
    assert [objective.name for objective in stage.phase.objectives if objective.weight] == ["reconstruction"]
    Stage(base, start, few, every_id=2).gradient("identity")
    made = len(calls)
    idle = Stage(base, start, few, every_id=2, every_alignment=2)
    idle.found.step = 1
    assert idle.losses["identity"](idle.found) == idle.losses["alignment"](idle.found) == 0 and len(calls) == made


# The few-step LoRA ----------------------------------------------------------------------------------------------------


def test_a_switched_lora_is_that_of_merged_weights_and_leaves_nothing(base, few):
    z, t, conditioning = torch.randn(1, 4, 16, 16), torch.tensor([500]), base.encode(["a photo"])
    pairs = load_few_step(few, base.unet)
    with torch.no_grad():
        bare = base.predict(z, t, conditioning)
        with switched_on(base.unet, pairs, 0.7):
            beside = base.predict(z, t, conditioning)
        after = base.predict(z, t, conditioning)
        with merged(base.unet, pairs, 0.7):
            wanted = base.predict(z, t, conditioning)
    assert torch.equal(after, bare) and not torch.allclose(beside, bare, atol=1e-4)
    torch.testing.assert_close(beside, wanted, rtol=1e-3, atol=1e-4)


# What is missing or wrong ---------------------------------------------------------------------------------------------


def test_images_without_a_face_count_for_nothing_and_are_reported(base, start, few, caplog):
    stage = Stage(base, start, few)
    fast = stage.losses["identity"].__self__  # type: ignore[attr-defined]
    alone, _ = stage.gradient("identity")
    find, asked = fast.materials.detect, []
    object.__setattr__(
        fast.materials, "detect", lambda picture: asked.append(1) or (find(picture) if asked == [1] else None)
    )
    some, gradient = stage.gradient("identity")
    assert some > 0 and float(gradient.abs().max()) > 0 and some != alone
    object.__setattr__(fast.materials, "detect", lambda picture: None)
    none, gradient = stage.gradient("identity")
    assert none == 0 and float(gradient.abs().max()) == 0
    with caplog.at_level(logging.WARNING):
        for _ in range(50):
            fast._count(torch.tensor([False, False]))
    assert "No face was found" in caplog.text


@pytest.mark.parametrize(
    ("settings", "given", "words"),
    [
        ({"stage": 2}, {"few_step": None}, r"few steps.*data\.few_step"),
        ({"stage": 2}, {"start": None}, r"stage 1.*data\.start_from"),
        ({"stage": 1}, {"parse": None}, r"data\.parser"),
        ({"stage": 1}, {"eva": None}, r"data\.eva"),
        ({"stage": 2}, {"measure": None}, r"recipe\.lambda_id"),
        ({"stage": 1}, {"people": some_people(width=20)}, r"antelopev2"),
    ],
)
def test_what_is_missing_is_named(base, start, few, settings, given, words):
    usual: dict[str, Any] = {"start": start, "few_step": few, "people": some_people()}
    with pytest.raises(LikenessError, match=words):
        pulid(base, people_materials(**{**usual, **given}), PuLIDSettings(width=64, **settings))


def test_files_of_another_kind_are_refused(base, few, make_unet, tmp_path):
    save_file(
        {"a.lora_down.weight": torch.ones(2, 2), "a.lora_up.weight": torch.ones(2, 2)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(LikenessError, match=r"'x\.safetensors' holds no LoRA of this base model"):
        load_few_step(tmp_path / "x.safetensors", base.unet)
    with pytest.raises(LikenessError, match=r"'few\.safetensors' cannot be used: .*does not fit"):
        load_few_step(few, make_unet(block_out_channels=(16, 64)))


def test_prompts_show_what_an_identity_should_leave_alone(base, start, few, tmp_path):
    assert len(set(PROMPTS)) == len(PROMPTS) >= 200 and sum(SLOT not in prompt for prompt in PROMPTS) >= 10
    own = tmp_path / "prompts.txt"
    own.write_text("a {subject} on the moon\n\n")
    fast = Stage(base, start, few, prompts=own).losses["alignment"].__self__  # type: ignore[attr-defined]
    assert fast.prompts == ("a {subject} on the moon",)
    own.write_text("\n")
    with pytest.raises(LikenessError, match="no prompt"):
        Stage(base, start, few, prompts=own)


@pytest.mark.parametrize("words", ["last", "last:0", "some:2"])
def test_steps_that_do_not_exist_are_refused(words):
    with pytest.raises(ValueError, match="id_backprop"):
        PuLIDSettings(id_backprop=words)
