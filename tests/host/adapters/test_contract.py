"""The contract of every identity adapter: one line in the registry, and a file to try, takes a system in.

A system is listed in `adapters.SYSTEMS`; its module in `tests/helpers/contract/` says how its file is written for the
tiny MODEL of this folder. The toy system of the tests stands for one that uses every kind of effect.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from comfyui import REPOSITORY
from helpers import toy
from helpers.contract import cases, concepts
from helpers.quantised import FLOAT8, FORMATS, quantised_copy
from helpers.small_world import official, same, sentence
from helpers.small_world import person as one_person
from helpers.windows import in_context_windows, in_windows_of_animatediff
from safetensors.torch import save_file

from likeness import adapters
from likeness.adapters.effects import PromptEdit, Scope, WeightDelta
from likeness.adapters.system import WeightFile
from likeness.injection.comfy import edited

SYSTEMS = {kind.title: kind for kind in (*adapters.SYSTEMS, toy.SYSTEM)}
CASES = {**cases(), **concepts()}
# Trained concepts have files, nodes and bad input of their own, and keep to what is about a run.
in_any_run = pytest.mark.parametrize("title", CASES, indirect=True)
# Applied by Apply Identity; the others write the prompt, which the host's nodes put into areas.
in_the_model = pytest.mark.parametrize("title", [kind for kind in SYSTEMS if not CASES[kind].prompt], indirect=True)
in_cross_attention = pytest.mark.parametrize(
    "title", [kind for kind in SYSTEMS if not CASES[kind].prompt and CASES[kind].base == "sd15"], indirect=True
)


def test_every_system_is_in_the_contract():
    assert SYSTEMS.keys() == cases().keys()


@pytest.mark.parametrize("kind", adapters.SYSTEMS, ids=lambda kind: kind.title)
def test_it_has_a_workflow_and_a_row_of_the_table_in_both_languages(kind):
    name = kind.title.split(" for ")[0]  # what a base model's part of a system is called
    for language in ("en", "zh"):
        rows = [p.read_text("utf-8") for p in (REPOSITORY / "docs/parts/methods").glob(f"*.{language}.md")]
        assert any(name in row for row in rows), language
    graphs = [json.loads(path.read_text("utf-8")) for path in (REPOSITORY / "workflows").glob("*.json")]
    nodes = [node for graph in graphs for node in graph["nodes"]]
    assert {model["directory"] for node in nodes for model in node["properties"].get("models", [])} & set(kind.folders)


def person(seed: int = 0, photos: int = 2) -> Any:
    """Somebody whom the recognisers of all systems have seen."""
    return replace(one_person(photos, seed=seed), also={"antelopev2": one_person(photos, seed=seed + 100).embeddings})


@pytest.fixture(params=SYSTEMS, name="title")
def _title(request, monkeypatch) -> str:
    """One system after the other; the toy is added to the registry by its one line."""
    monkeypatch.setattr(adapters, "SYSTEMS", tuple(SYSTEMS.values()))
    return request.param


@pytest.fixture
def world(world, title, request) -> Any:
    """The world of the system's base model."""
    base = CASES[title].base
    return world if base == world.base else request.getfixturevalue(f"{base}_world")


@pytest.fixture
def load(world, title, monkeypatch) -> Callable[..., Any]:
    """load(seed, shapes) -> the adapter of a file in models/ipadapter, through Load Identity Adapter.

    It is applied with what the system needs beside the identity.
    """
    if CASES[title].reads_clip:
        for use in ("apply", "prompt"):
            monkeypatch.setattr(world, use, partial(getattr(world, use), clip_vision=world.clip_vision))

    def make(seed: int = 0, shapes: Any = None) -> Any:
        if CASES[title].use:
            return seed
        name = f"{seed} {len(shapes or world.shapes)} {title} {CASES[title].file_name}"
        weights = CASES[title].weights(shapes or world.shapes, seed)
        save_file({key: value.contiguous() for key, value in weights.items()}, world.folder / "ipadapter" / name)
        return world.run("LikenessLoadIdentityAdapter", adapter_file=name)

    return make


class Painter:
    """Samples with the effects of an adapter, on the model and on the positive prompt."""

    def __init__(self, world: Any, case: Any) -> None:
        self.world, self.case = world, case
        self.words: dict[int, str] = {}  # of people in one prompt, whatever the order they are connected in

    @property
    def text(self) -> Any:
        """The two prompts without anybody."""
        return self.world.encoded(self.case.plain) if self.case.prompt else self.world.text

    def __call__(self, adapter: Any, who: Any, strength: float = 1.0, **inputs: Any) -> Any:
        self.model, positive, self.report = self.apply(adapter, who, strength, **inputs)
        return self.sample(self.model, positive)

    def sample(self, model: Any, positive: Any = None, **options: Any) -> Any:
        plain, negative = self.text
        settings = {"steps": 4, **options, "shape": self.world.latents(*options.get("shape", (1, 8, 8)))}
        return self.world.recipes.sample(model, positive or plain, negative, **settings)

    def apply(self, adapter: Any, who: Any = None, strength: float = 1.0, **inputs: Any) -> tuple[Any, Any, str]:
        """MODEL, positive prompt and report of the node that this system is for."""
        if self.case.use:
            return self.case.use(self.world, adapter, strength, inputs.get("model", self.world.model))
        if self.case.prompt:
            given = {"text": self.case.prompt, "start_at": 0.0, "options": self.case.options(), **inputs}
            return self.world.prompt(adapter, who, strength=strength, **given)
        model, report = self.world.apply(adapter, who, weight=strength, **inputs)
        if who is None:
            return model, None, report
        windows = {name: value for name, value in inputs.items() if name in ("start_at", "end_at")}
        return model, edited(self.text[0], self.effects(adapter, who, strength, **windows)), report

    def both(self, adapter: Any, first: Any, second: Any) -> Any:
        """Two people in one image."""
        if not self.case.prompt:
            model, *_ = self.apply(adapter, first)
            self.model, *_ = self.apply(adapter, second, model=model)
            return self.sample(self.model)
        words = [self.words.setdefault(id(who), ("img", "jpg")[len(self.words) % 2]) for who in (first, second)]
        text = f"{self.case.prompt} and a man jpg"
        model, positive, _ = self.apply(adapter, first, identity_2=second, trigger_word=", ".join(words), text=text)
        return self.sample(model, positive)

    def effects(self, adapter: Any, who: Any, strength: float, start_at: float = 0.0, end_at: float = 1.0) -> Any:
        from likeness.adapters.system import Request
        from likeness.injection import comfy
        from likeness.nodes import companions

        layout, attention = comfy.request_layout(self.world.model)
        encoder = comfy.ComfyClipEncoder(self.world.clip_vision)
        beside = {
            "find_eva": partial(companions.find_eva, adapter),
            "parse": companions.parse_aligned,
            "find_vocabulary": companions.find_vocabulary,
            "dit": comfy.dit_of(self.world.model),
        }
        request = Request(layout, attention, strength, Scope(start_at, end_at), who, encoder, **beside)
        if self.case.prompt:
            reader = comfy.ComfyTextEncoder(self.world.text_clip)
            request = replace(request, text=self.case.prompt, text_encoder=reader, trigger_words=("img",))
        return adapter.effects(request)


@pytest.fixture
def paint(world, title) -> Painter:
    return Painter(world, CASES[title])


@pytest.fixture
def alone(paint) -> Any:
    """What the MODEL paints without anybody."""
    return paint.sample(paint.world.model)


def test_a_file_is_recognised_by_its_own_system_alone(world, title):
    """Another may think it possible, where two systems' files look the same and only the name tells."""
    file = WeightFile(CASES[title].file_name, CASES[title].weights(world.shapes, 0))
    sure = {kind.title: kind.recognise(file) for kind in SYSTEMS.values()}
    assert {name for name, sureness in sure.items() if sureness >= CASES[title].least} == {title}


def test_a_foreign_file_is_refused_by_name(world, title):
    save_file({"pulid_ca.0.to_q.weight": torch.zeros(2, 2)}, world.folder / "ipadapter" / "foreign.safetensors")
    text = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file="foreign.safetensors")
    assert "foreign.safetensors" in text and "PuLID" in text


@in_any_run
def test_the_identity_changes_the_picture(load, paint, alone):
    assert not same(paint(load(), person()), alone)


@in_any_run
def test_strength_0_is_bit_identical(load, paint, alone):
    assert torch.equal(paint(load(), person(), strength=0.0), alone)
    assert "no effect" in paint.report


def test_a_closed_window_is_bit_identical(load, paint, alone):
    assert torch.equal(paint(load(), person(), start_at=0.7, end_at=0.7), alone)


def test_two_people_commute(load, paint):
    adapter, ann, ben = load(), person(seed=1), person(seed=2)
    one, other = paint.both(adapter, ann, ben), paint.both(adapter, ben, ann)
    assert same(one, other)
    assert not same(one, paint(adapter, ann)) and not same(one, paint.both(adapter, ann, ann))


@in_any_run
def test_the_given_model_is_untouched(load, paint, world, alone):
    before = (dict(world.model.patches), dict(world.model.attachments), dict(world.model.wrappers))
    paint(load(), person())
    assert (dict(world.model.patches), dict(world.model.attachments), dict(world.model.wrappers)) == before
    assert torch.equal(paint.sample(world.model), alone)


def test_another_family_is_refused_by_name(load, paint):
    adapter = load(shapes=official.SDXL)
    text = sentence(paint.apply, adapter, person())
    assert adapter.name in text and paint.world.kin in text


@pytest.mark.parametrize("other", [0, 1])
def test_models_of_every_other_kind_are_refused_by_name(load, paint, recipes, other):
    """FLUX has no site at all; a model of the same family may still have other layers."""
    adapter = load()
    text = sentence(paint.apply, adapter, person(), model=getattr(recipes, paint.world.others[other])())
    assert adapter.name in text and "the connected MODEL is" in text


def test_what_is_missing_is_asked_for_in_one_sentence(load, paint, title):
    assert CASES[title].missing in sentence(paint.apply, load())


def test_a_photo_without_a_face_takes_no_part_and_is_nobody_alone(load, paint, title):
    """Find Faces has skipped the second of three photos; or it has shown the whole image in place of a face."""
    adapter, three = load(), person(photos=3)
    two = three.take([0, 2])
    assert torch.equal(
        *(paint(adapter, who) for who in (replace(two, kept=(True, False, True)), replace(two, kept=())))
    )
    rowless = {key: getattr(three, key)[:0] for key in ("aligned", "portraits", "keypoints")}
    nobody = replace(three, recogniser=None, embeddings=torch.zeros(3, 0), also={}, **rowless)
    if CASES[title].reads_faces:
        text = sentence(paint.apply, adapter, nobody)
        assert "'Ada'" in text or adapter.name in text
    else:
        assert paint(adapter, nobody).isfinite().all()


@in_any_run
def test_nothing_is_kept_after_a_run(load, paint):
    from likeness.injection.comfy import stack_of

    paint(load(), person())
    stack = stack_of(paint.model)
    assert stack is None or stack._run is None


def test_prompt_edits_ride_on_their_own_conditioning(load, paint):
    """What is edited is new; the prompt beside it, and the one it was made from, stay as they are."""
    positive, negative = paint.text
    states = positive[0][0].clone()
    effects = [e for e in paint.effects(load(), person(), 1.0, 0.2, 0.6) if isinstance(e, PromptEdit)]
    parts = edited(positive, effects)
    assert torch.equal(positive[0][0], states)
    assert edited(negative, []) is negative
    if effects:
        windows = [(options["start_percent"], options["end_percent"]) for _, options in parts]
        assert windows == [(0.0, 0.2), (0.2, 0.6), (0.6, 1.0)]
        assert [torch.equal(text, states) for text, _ in parts] == [True, False, True]


# --- whatever it is sampled with, and on


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind in FLOAT8])
def test_float8_weights_hear_the_person_as_what_they_stand_for(load, paint, recipes, kind):
    """To the last digit where nothing changes the weights; the host rounds those that a LoRA has changed to 8 bits."""
    adapter, plain = load(), paint.world.new_model()
    with torch.inference_mode():  # as the host's nodes run
        model, means, _ = quantised_copy(recipes, paint.world.new_model(), kind)
        plain.model.diffusion_model.load_state_dict(means)
    nobody = paint.sample(plain, steps=2)
    has_lora = any(isinstance(effect, WeightDelta) for effect in paint.effects(adapter, person(), 1.0))
    for lora_strength, error in ((0.0, 1e-4), (1.0, 0.3)) if has_lora else ((1.0, 1e-4),):
        found, expected = (
            paint.sample(*paint.apply(adapter, person(), model=base, lora_strength=lora_strength)[:2], steps=2)
            for base in (model, plain)
        )
        assert (found - expected).norm() < error * (expected - nobody).norm(), lora_strength


ODD_RUNS = {
    "no guidance": {"cfg": 1.0},
    "a batch without guidance": {"shape": (2, 8, 8), "cfg": 1.0},
    "an odd size": {"shape": (1, 6, 10)},
    "ancestral": {"sampler": "euler_ancestral"},
    "a single step": {"steps": 1},
    "the end of a run": {"denoise": 0.5},
    "align your steps": {"sigmas": (14.615, 6.315, 2.181, 0.862, 0.0)},
    "second order in uneven steps": {"sampler": "heun", "sigmas": (14.6, 9.0, 0.3, 0.0)},
}


@in_any_run
def test_every_way_of_sampling_hears_the_person(load, paint):
    model, positive, _ = paint.apply(load(), person())
    for name, run in ODD_RUNS.items():
        if "sigmas" in run:
            run = {**run, "sigmas": paint.world.sigmas(*run["sigmas"])}
        with_person, without = paint.sample(model, positive, **run), paint.sample(paint.world.model, **run)
        assert with_person.isfinite().all() and with_person.shape == without.shape, name
        assert not any(same(one, other) for one, other in zip(with_person, without, strict=True)), name


@in_any_run
def test_frames_in_windows_are_those_of_one_batch(load, paint, title):
    """An image model paints every frame by itself, so that it may be given some of them at a time."""
    masks = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(2))
    model, positive, _ = paint.apply(load(), person(), **({} if CASES[title].prompt else {"attn_mask": masks}))
    frames = {"shape": (4, 8, 8), "steps": 3}  # 0.3.64 compares the sigmas of all steps with those of all frames
    whole = paint.sample(model, positive, **frames)
    without = paint.sample(paint.world.model, **frames)
    assert not any(same(one, other) for one, other in zip(whole, without, strict=True))
    for windows in (in_context_windows, in_windows_of_animatediff):
        assert same(paint.sample(windows(model, 2), positive, **frames), whole), windows.__name__


@in_cross_attention
def test_words_beyond_the_77th_are_read_as_text(load, paint):
    """Official codes cut the text there, or take the rest for tokens of theirs."""
    model, *_ = paint.apply(load(), person())
    ((states, told),), _ = paint.text
    more = [states, 0.5 * states, states.repeat(1, 2, 1)]  # a softmax does not notice that every token is there twice
    short, long, twice = (paint.sample(model, [[text, told]]) for text in (states, torch.cat(more[:2], 1), more[2]))
    assert same(twice, short) and not same(long, short)


@in_any_run
def test_two_prompts_of_one_batch_are_both_about_the_person(load, paint):
    """The host runs both beside the negative and takes their mean: one prompt twice is that prompt."""
    model, positive, _ = paint.apply(load(), person())
    once = positive or paint.text[0]
    assert same(paint.sample(model, [*once, *once], steps=2), paint.sample(model, once, steps=2))


@in_any_run
def test_weights_that_stay_in_main_memory_make_no_difference(load, paint, monkeypatch):
    """Where memory is short the host brings every layer when its turn comes, with what patches make of it."""
    import comfy.model_management as management

    model, positive, _ = paint.apply(load(), person())
    expected = paint.sample(model, positive, steps=2)
    whole = management.LoadedModel.model_load
    monkeypatch.setattr(management.LoadedModel, "model_load", lambda self, _=0, **how: whole(self, 0.1, **how))
    management.unload_all_models()
    found = paint.sample(model, positive, steps=2)
    assert model.model.model_lowvram and same(found, expected)


@in_any_run
def test_a_batch_is_its_pictures(load, paint):
    """Two images of one noise are the same image, and the one that is painted alone."""
    model, positive, _ = paint.apply(load(), person())
    plain, negative = paint.text
    shape = paint.world.latents(1, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)

    def painted(count: int) -> Any:
        import comfy.sample

        given = (model, noise[:count], 2, 5.0, "euler", "normal", positive or plain, negative, 0 * noise[:count])
        with torch.inference_mode():
            return comfy.sample.sample(*given, disable_pbar=True, seed=1)

    one, two = painted(1), painted(2)
    assert same(two[:1], one) and same(two[1:], one)


@in_any_run
def test_prompts_for_areas_beside_it(load, paint):
    """The host calls the MODEL once for the whole image and once for a part of it."""
    model, positive, _ = paint.apply(load(), person())
    plain, _ = paint.text
    for where in ({"area": (8, 4, 0, 4)}, {"mask": torch.ones(1, 8, 8), "set_area_to_bounds": True}):
        tree = paint.world.conditioning(seed=9, strength=1.0, mask_strength=1.0, **where)
        with_person = paint.sample(model, [*(positive or plain), *tree])
        assert with_person.isfinite().all()
        assert not same(with_person, paint.sample(paint.world.model, [*plain, *tree]))


@in_the_model
def test_masks_of_any_size_and_none_that_cannot_be_one(load, paint, alone):
    adapter, soft = load(), torch.linspace(0.2, 0.9, 7 * 5).view(7, 5)
    for mask in (soft, torch.ones(1, 640, 8), soft[None].repeat(3, 1, 1)):
        painted = paint.sample(paint.apply(adapter, person(), attn_mask=mask)[0])
        assert painted.isfinite().all() and not same(painted, alone)
    for wrong in (torch.zeros(0, 8, 8), torch.full((1, 8, 8), float("nan")), torch.ones(2, 3, 4, 5, 6), "left"):
        assert "attn_mask" in sentence(paint.apply, adapter, person(), attn_mask=wrong)


@in_any_run
def test_twenty_runs_in_a_row_keep_nothing(load, paint):
    model, positive, _ = paint.apply(load(), person())

    def held() -> tuple[int, int]:
        gc.collect()
        tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor)]
        return len(tensors), sum(one.untyped_storage().nbytes() for one in tensors if one.device.type != "meta")

    def run(times: int) -> tuple[int, int]:
        for _ in range(times):
            paint.sample(model, positive, steps=1)
        return held()

    assert run(2) == run(20)
