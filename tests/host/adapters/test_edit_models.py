"""Reference Adapter, Apply Identity and Identity Prompt on the host's own DiTs: what a user relies on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from helpers.references import FakeClip, FakeVae, Latents, velocity
from helpers.small_world import person, same, sentence
from torch import Tensor

from likeness.adapters.edit_models import positions
from likeness.adapters.effects import ReferenceTerm, Scope

pytestmark = pytest.mark.host(since="0.33")

IDENTITY_EDIT, REID, EDIT = "Krea 2 Identity Edit v1.2", "Krea 2 ReID", "Krea 2 edit (ai-toolkit)"


class Studio:
    """A tiny Krea 2 and the nodes, with the defaults of their widgets."""

    def __init__(self, recipes: Any) -> None:
        from likeness.nodes import adapters, edit_models, prompts

        rooms = (adapters, edit_models, prompts)
        self.classes = {cls.GET_SCHEMA().node_id: cls for room in rooms for cls in room.NODES}
        self.recipes = recipes
        self.model = recipes.dit("Krea2", recipes.KREA2_TINY)
        self.vae = FakeVae()
        self.width = 3 * 16
        self.text = [recipes.conditioning(self.width, tokens=7, seed=seed) for seed in (1, 2)]

    def run(self, node: str, **inputs: Any) -> Any:
        cls = self.classes[node]
        defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            return cls.execute(**{**defaults, **inputs}).result

    def adapter(self, scheme: str = IDENTITY_EDIT, **inputs: Any) -> Any:
        return self.run("LikenessReferenceAdapter", **{"vae": self.vae, "scheme": scheme, **inputs})[0]

    def apply(self, who: Any = None, adapter: Any = None, **inputs: Any) -> tuple[Any, str]:
        given = {"model": self.model, "adapter": adapter or self.adapter(), **inputs}
        return self.run("LikenessApplyIdentity", **({**given, "identity": who} if who is not None else given))

    def sample(self, model: Any, positive: Any = None, negative: Any = None, **options: Any) -> Tensor:
        plain, other = self.text
        settings = {"steps": 3, "cfg": 3.0, "shape": (1, 16, 1, 16, 12), **options}
        return self.recipes.sample(model, positive or plain, negative or other, **settings)

    def terms(self, model: Any) -> list[ReferenceTerm]:
        from likeness.nodes.edit_models import people_of

        return people_of(model)


@pytest.fixture(scope="module")
def studio(recipes) -> Studio:
    return Studio(recipes)


@pytest.fixture(scope="module")
def alone(studio) -> Tensor:
    return studio.sample(studio.model)


def term(*latents: Tensor, **options: Any) -> ReferenceTerm:
    settings = {"placement": positions.origin, **options}
    return ReferenceTerm("Ada", "a scheme", Latents(*latents), **settings)


def latent(seed: int, h: int = 8, w: int = 6) -> Tensor:
    return torch.randn(1, 16, 1, h, w, generator=torch.Generator().manual_seed(seed))


# --- off is off, and what is given stays


def test_a_person_changes_the_image_and_is_told_from_another(studio, alone):
    ann, report = studio.apply(person(seed=1))
    ben, _ = studio.apply(person(seed=2))
    assert not same(studio.sample(ann), alone) and not same(studio.sample(ann), studio.sample(ben))
    assert report.startswith(f"{IDENTITY_EDIT}: 'Ada' as reference 1, strength 1, from 0 to 1 of the sampling.")
    assert "no LoRA" in report


@pytest.mark.parametrize(
    "off", [{"weight": 0.0}, {"start_at": 0.6, "end_at": 0.6}, {"attn_mask": torch.zeros(1, 64, 64)}]
)
def test_off_is_bit_identical(studio, alone, off):
    model, report = studio.apply(person(), **off)
    assert torch.equal(studio.sample(model), alone) and "no effect" in report


def test_scaled_to_0_is_bit_identical(studio, alone):
    model, _ = studio.apply(person())
    [scaled] = studio.run("LikenessScaleIdentities", model=model, factor=0.0)
    assert torch.equal(studio.sample(scaled), alone)


def test_outside_of_its_window_a_person_is_not_there(studio, recipes):
    """A run whose steps all lie outside is the run without anybody, to the last bit."""
    model, _ = studio.apply(person(), start_at=0.95)
    for sigma, is_seen in ((0.5, False), (0.01, True)):
        x, t = latent(5, 16, 12), torch.tensor([sigma])
        with_person, without = (velocity(m, x, t, studio.text[0][0][0]) for m in (model, studio.model))
        assert torch.equal(with_person, without) is not is_seen


def test_given_model_and_conditioning_are_untouched(studio, alone):
    plain, other = studio.text
    before = (dict(studio.model.wrappers), dict(studio.model.patches), dict(studio.model.model_options))
    model, _ = studio.apply(person())
    studio.sample(model)
    assert (dict(studio.model.wrappers), dict(studio.model.patches), dict(studio.model.model_options)) == before
    assert all(not told for _, told in (*plain, *other))
    assert torch.equal(studio.sample(studio.model), alone)


def test_a_hundred_runs_keep_nothing(studio):
    model, _ = studio.apply(person(), weight=2.0)

    def held(times: int) -> int:
        for _ in range(times):
            studio.sample(model, steps=1)
        gc.collect()
        return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())

    assert held(2) == held(20)


# --- sizes


def test_the_same_size_is_encoded_once_and_another_anew(studio):
    vae = FakeVae()
    model, _ = studio.apply(person(photos=1), studio.adapter(vae=vae))
    for shape in ((1, 16, 1, 16, 12), (2, 16, 1, 16, 12), (1, 16, 1, 32, 24), (1, 16, 1, 16, 12)):
        studio.sample(model, shape=shape, steps=1)
    assert vae.encoded == [(96, 96), (192, 192)]


def test_heads_keep_their_pixels_where_the_scheme_does_not_enlarge(studio):
    vae = FakeVae()
    model, _ = studio.apply(person(photos=1), studio.adapter(REID, vae=vae))
    studio.sample(model, steps=1)
    assert vae.encoded == [(512, 512)]


def test_flux2_takes_several_photos_the_best_first(studio, recipes):
    vae = FakeVae(128, frames=False, pixels=16)
    base = recipes.dit("Flux2", recipes.FLUX2_TINY)
    who = replace(person(photos=3), weights=torch.tensor([1.0, 3.0, 2.0]))
    model, report = studio.apply(who, studio.adapter("by LoRA or model", vae=vae), model=base)
    [added] = studio.terms(model)
    heads = [photo.image for photo in added.photos.photos]
    for image, row in zip(heads, (1, 2, 0), strict=True):
        torch.testing.assert_close(image[0], who.heads[row].float() / 255)
    assert "references 1 to 3" in report
    text = recipes.conditioning(12, tokens=5, seed=1)
    images = [recipes.sample(m, text, text, shape=(1, 128, 6, 4), steps=2, cfg=1.0) for m in (model, base)]
    assert not same(*images) and vae.encoded == [(512, 512)] * 3
    second, report = studio.apply(who, studio.adapter("by LoRA or model", vae=vae), model=model)
    assert "reference 4," in report and "1 of 3 images are used" in report
    _, report = studio.apply(who, studio.adapter("by LoRA or model", vae=vae), model=second)
    assert "has 5 references" in report and "at most 4" in report


def test_a_sheet_is_one_reference(studio):
    model, report = studio.apply(person(photos=3), studio.adapter(picture="sheet"))
    [added] = studio.terms(model)
    [photo] = added.photos.photos
    assert photo.size == (1024, 1024) and "reference 1," in report


def test_images_of_ones_own_of_every_kind(studio):
    for image in (torch.rand(1, 80, 90, 4), torch.rand(1, 80, 90, 1), torch.rand(1, 80, 90, 3)):
        model, _ = studio.apply(None, studio.adapter(images=image))
        [added] = studio.terms(model)
        assert added.photos.photos[0].image.shape == (1, 80, 90, 3)
        assert studio.sample(model, steps=1).isfinite().all()


# --- other nodes


def scene(conditioning: Any, *latents: Tensor, **told: Any) -> Any:
    return [[states, {**options, "reference_latents": list(latents), **told}] for states, options in conditioning]


def seen_by(model: Any, watch: Callable[[Any], None]) -> Any:
    """The MODEL with a wrapper of another pack that looks at the references the denoiser gets."""
    from comfy.patcher_extension import WrappersMP

    def wrapper(executor: Any, *args: Any, **keywords: Any) -> Any:
        watch(args[4])
        return executor(*args, **keywords)

    model = model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "watch", wrapper)
    return model


def test_references_of_other_nodes_come_first(studio):
    from likeness.injection.comfy import apply_effects

    calls: list[Any] = []
    model = seen_by(apply_effects(studio.model, [term(latent(1))]).model, calls.append)
    positive, negative = (scene(text, latent(2, 4, 4)) for text in studio.text)
    studio.sample(model, positive, negative, steps=1)
    assert [tuple(one.shape[-2:]) for one in calls[0]] == [(4, 4), (8, 6)]
    both = apply_effects(studio.model, [term(latent(2, 4, 4)), term(latent(1))]).model
    assert same(studio.sample(model, positive, negative), studio.sample(both))


def test_latents_without_frames_of_other_nodes_get_one(studio):
    from likeness.injection.comfy import apply_effects

    model = apply_effects(studio.model, [term(latent(1))]).model
    five = [scene(text, latent(2)) for text in studio.text]
    four = [scene(text, latent(2).squeeze(2)) for text in studio.text]
    assert torch.equal(studio.sample(model, *four), studio.sample(model, *five))


def test_a_batch_in_one_latent_is_said(studio, caplog):
    from likeness.injection.comfy import apply_effects

    model = apply_effects(studio.model, [term(latent(1))]).model
    studio.sample(model, *(scene(text, torch.cat([latent(2), latent(3)])) for text in studio.text), steps=1)
    assert "holds 2 images, of which the model reads the first" in caplog.text


def test_the_wrong_reference_method_is_refused(studio):
    model, _ = studio.apply(person())
    positive = scene(studio.text[0], latent(2), reference_latents_method="index_timestep_zero")
    text = sentence(studio.sample, model, positive)
    assert "'index_timestep_zero'" in text and IDENTITY_EDIT in text and "'index'" in text


@pytest.mark.parametrize("before", [True, False])
def test_an_override_of_another_pack_computes_every_part(studio, before):
    """Sage and others own the one place for an override; ours calls theirs, whoever came first."""
    calls = []

    def theirs(func: Any, *args: Any, **keywords: Any) -> Tensor:
        calls.append(args[0].shape[2])
        return func(*args, **keywords)

    def with_theirs(model: Any) -> Any:
        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = theirs
        return model

    mask = torch.zeros(1, 8, 6)
    mask[:, :, :3] = 1
    inputs = {"weight": 3.0, "attn_mask": mask}
    alone, _ = studio.apply(person(), **inputs)
    expected = studio.sample(alone, steps=1)
    model = with_theirs(studio.model) if before else studio.model
    model, _ = studio.apply(person(), model=model, **inputs)
    model = model if before else with_theirs(model)
    assert torch.equal(studio.sample(model, steps=1), expected)
    assert set(calls) > {7, 48, 36}  # text, the target's, the reference's rows


def test_isolated_references_in_the_hosts_cache_are_what_they_are_without_it(studio):
    from comfy_extras.nodes_flux import FluxKVCache

    model, _ = studio.apply(person(), studio.adapter(REID))
    cached = FluxKVCache.execute(model).result[0]
    assert same(studio.sample(cached), studio.sample(model))


def test_isolated_references_are_computed_once_in_a_run(studio):
    """Whatever the text and the step, and for both halves of guidance; another run begins anew."""
    model, _ = studio.apply(person(photos=1), studio.adapter(REID), weight=2.0)
    lengths: list[int] = []

    def watch(func: Any, *args: Any, **keywords: Any) -> Tensor:
        if "block_index" in keywords["transformer_options"]:
            lengths.append(args[0].shape[2])
        return func(*args, **keywords)

    watched = model.clone()
    watched.model_options["transformer_options"]["optimized_attention_override"] = watch
    short, long = studio.text[0], studio.recipes.conditioning(studio.width, tokens=11, seed=3)
    kept = [studio.sample(watched, short, long) for _ in range(2)]
    assert torch.equal(*kept) and max(lengths) == 1024
    assert lengths.count(1024) == 2 * 2  # two blocks in each of two runs
    with pytest.MonkeyPatch.context() as patch:
        from likeness.injection.comfy.references import ReferencesOfRun

        plain = ReferencesOfRun.__init__

        def never(self: Any, *args: Any) -> None:
            plain(self, *args)
            self.is_constant = False

        patch.setattr(ReferencesOfRun, "__init__", never)
        anew = studio.sample(model, short, long)
    torch.testing.assert_close(kept[0], anew, atol=1e-5, rtol=1e-5)


def test_inpainting_keeps_the_rest(studio):
    import comfy.sample

    model, _ = studio.apply(person())
    image, noise = latent(7, 16, 12), latent(8, 16, 12)
    mask = torch.zeros(1, 1, 1, 16, 12)
    mask[..., 8:, :] = 1
    with torch.inference_mode():
        made = comfy.sample.sample(
            model, noise, 3, 1.0, "euler", "normal", *studio.text, image, noise_mask=mask, disable_pbar=True, seed=1
        )
    torch.testing.assert_close(made[..., :8, :], image[..., :8, :], atol=1e-4, rtol=1e-4)


# --- ways of sampling

RUNS = {
    "no guidance": {"cfg": 1.0},
    "a batch": {"shape": (2, 16, 1, 16, 12)},
    "odd tokens": {"shape": (1, 16, 1, 15, 13)},
    "ancestral": {"sampler": "euler_ancestral"},
}


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("inputs", [{}, {"weight": 2.5}, {"attn_mask": torch.tril(torch.ones(1, 9, 9))}])
def test_every_way_of_sampling_sees_the_person(studio, run, inputs):
    model, _ = studio.apply(person(), **inputs)
    found, without = studio.sample(model, **run), studio.sample(studio.model, **run)
    assert found.isfinite().all() and not same(found, without)


def test_prompts_with_masks_and_ranges_see_the_person(studio, recipes):
    model, _ = studio.apply(person(), weight=2.0)
    plain, _ = studio.text
    for where in ({"mask": torch.ones(1, 16, 12), "mask_strength": 1.0}, {"start_percent": 0.0, "end_percent": 0.5}):
        other = recipes.conditioning(studio.width, tokens=9, seed=9, **where)
        both = [*plain, *other]
        assert not same(studio.sample(model, both), studio.sample(studio.model, both))


def test_a_batch_is_its_images(studio):
    model, _ = studio.apply(person(), weight=2.0)
    import comfy.sample

    def painted(noise: Tensor) -> Tensor:
        given = (model, noise, 2, 3.0, "euler", "normal", *studio.text, 0 * noise)
        with torch.inference_mode():
            return comfy.sample.sample(*given, disable_pbar=True, seed=1)

    noise = latent(3, 16, 12)
    assert same(painted(noise.repeat(2, 1, 1, 1, 1))[1:], painted(noise))


def test_what_a_model_was_not_trained_on_is_said(studio, recipes, caplog):
    model, _ = studio.apply(person())
    studio.sample(model, shape=(1, 16, 1, 15, 12), steps=1)
    assert "The image is 96 x 120 pixels" in caplog.text and "multiples of 16" in caplog.text
    area = recipes.conditioning(studio.width, tokens=9, seed=9, area=(8, 12, 0, 0), strength=1.0)
    studio.sample(model, [*studio.text[0], *area], steps=1)
    assert "limited to an area" in caplog.text
    caplog.clear()
    studio.sample(model, steps=1)
    assert not [record for record in caplog.records if record.levelname == "WARNING" and record.name == "likeness"]


# --- several people


def halves() -> tuple[Tensor, Tensor]:
    left = torch.zeros(1, 16, 12)
    left[..., :6] = 1
    return left, 1 - left


def test_outside_of_a_region_a_person_is_not_read(studio, recipes):
    """One block of one attention: what the target's rows outside make of another person is the same to the bit."""
    from likeness.injection.comfy import apply_effects

    made = {}
    for name, seed in (("one", 1), ("other", 3)):
        rows: list[Tensor] = []

        def watch(func: Any, *args: Any, rows: list[Tensor] = rows, **keywords: Any) -> Tensor:
            out = func(*args, **keywords)
            rows.append(out)
            return out

        base = recipes.dit("Krea2", {**recipes.KREA2_TINY, "layers": 1})
        left, right = halves()
        people = [
            term(latent(seed), scope=Scope(mask=left), separate=True),
            term(latent(2), scope=Scope(mask=right), separate=True),
        ]
        model = apply_effects(base, people).model
        model.model_options["transformer_options"]["optimized_attention_override"] = watch
        velocity(model, latent(9, 16, 12), torch.tensor([0.7]), studio.text[0][0][0])
        made[name] = next(out for out in rows if out.shape[1] == 48 and out.shape[2] == 32)
    one, other = (rows.view(1, 8, 6, -1) for rows in made.values())
    assert torch.equal(one[:, :, 3:], other[:, :, 3:]) and not torch.equal(one[:, :, :3], other[:, :, :3])


def test_a_second_person_leaves_the_places_of_the_first(studio):
    """Also while the first is not there: a closed window does not move anybody to another frame."""
    from likeness.injection.comfy import apply_effects

    seen: list[Tensor] = []

    def ids(inputs: dict[str, Any]) -> dict[str, Any]:
        seen.append(inputs["img_ids"][0, 48:, 0].unique())
        return inputs

    for people, frames in (
        ([term(latent(1))], [1]),
        ([term(latent(1)), term(latent(2))], [1, 2]),
        ([term(latent(1), scope=Scope(0.0, 0.2)), term(latent(2))], [2]),
    ):
        from comfy.patcher_extension import WrappersMP

        model = apply_effects(studio.model, people).model

        def add(executor: Any, *args: Any, **keywords: Any) -> Any:
            options = args[5]
            patches = options["patches"]
            args = (*args[:5], {**options, "patches": {"post_input": [*patches["post_input"], ids]}})
            return executor(*args, **keywords)

        model.add_wrapper(WrappersMP.APPLY_MODEL, add)
        velocity(model, latent(9, 16, 12), torch.tensor([0.1]), studio.text[0][0][0])
        assert seen[-1].tolist() == frames


def test_order_is_the_order_of_frames(studio):
    ann, ben = person(seed=1), person(seed=2)
    one, _ = studio.apply(ben, model=studio.apply(ann)[0])
    other, _ = studio.apply(ann, model=studio.apply(ben)[0])
    assert not same(studio.sample(one), studio.sample(other))


# --- the prompt


def test_text_and_latents_have_the_people_in_one_order(studio):
    ann, ben = person(photos=1, seed=1), person(photos=1, seed=2)
    adapter = studio.adapter(EDIT)
    model, _ = studio.apply(ben, adapter, model=studio.apply(ann, adapter)[0])
    clip = FakeClip(studio.width)
    positive, given, report, negative = studio.run(
        "LikenessIdentityPrompt", clip=clip, adapter=adapter, text="they sit in a café", model=model
    )
    (text, images, _), (nothing, same_images, _) = clip.given
    assert text.startswith("Picture 1: ") and text.endswith("they sit in a café")
    assert nothing == text.removesuffix("they sit in a café") and len(same_images) == 2
    latents = [photo.image for term in studio.terms(model) for photo in term.photos.photos]
    for image, latent_image in zip(images, latents, strict=True):
        small = torch.nn.functional.interpolate(latent_image.movedim(-1, 1), size=image.shape[1:3], mode="area")
        torch.testing.assert_close(image, small.movedim(1, -1))
    assert clip.tokens[0].count("image") == 2 and given is model and "2 images (numbered" in report
    assert not same(studio.sample(model, positive, negative), studio.sample(studio.model, positive, negative))


def test_a_scene_comes_before_the_people(studio):
    adapter = studio.adapter()
    model, _ = studio.apply(person(photos=1), adapter)
    clip = FakeClip(studio.width)
    inputs = {"clip": clip, "adapter": adapter, "text": "the person from image 2", "model": model}
    *_, report, _ = studio.run("LikenessIdentityPrompt", **inputs, scene=torch.zeros(1, 1536, 768, 3))
    (text, images, template), _ = clip.given
    assert [tuple(image.shape[1:3]) for image in images] == [(768, 384), (512, 512)]
    assert "Picture" not in text and "Describe the image by detailing" in template
    assert "does not know images by number" in report


def test_flux2_reads_text_alone(studio, recipes):
    vae = FakeVae(128, frames=False, pixels=16)
    adapter = studio.adapter("by LoRA or model", vae=vae)
    base = recipes.dit("Flux2", recipes.FLUX2_TINY)
    model, _ = studio.apply(person(), adapter, model=base)
    clip = FakeClip(12)
    studio.run("LikenessIdentityPrompt", clip=clip, adapter=adapter, text="a woman", model=model)
    assert [text for text, *_ in clip.given] == ["a woman", ""]


# --- what cannot work is said


def test_every_mistake_is_one_sentence(studio, recipes):
    from likeness.nodes.references import Options

    who, adapter = person(), studio.adapter()
    flux2_vae = FakeVae(128, frames=False, pixels=16)
    flux2 = recipes.dit("Flux2", recipes.FLUX2_TINY)
    heads = {key: getattr(who, key)[:0] for key in ("aligned", "portraits", "keypoints")}
    by_model = studio.adapter("by LoRA or model")
    seen = studio.apply(who, adapter)[0]
    prompt = partial(studio.run, "LikenessIdentityPrompt", clip=FakeClip(48, has_eyes=False), adapter=adapter, text="")
    small, wide = torch.rand(1, 80, 63, 3), torch.rand(1, 64, 600, 3)
    cases: dict[str, Callable[[], Any]] = {
        "holds no VAE": lambda: studio.adapter(vae=None),
        "The VAE belongs to another model": lambda: studio.apply(who, studio.adapter(vae=flux2_vae)),
        "was made for Krea 2": lambda: studio.apply(who, adapter, model=recipes.tiny_sd15()),
        "does not attend to reference images": lambda: studio.apply(who, by_model, model=recipes.tiny_sd15()),
        "several ways": lambda: studio.apply(who, by_model),
        "needs a person": lambda: studio.apply(None, adapter),
        "holds no heads": lambda: studio.apply(replace(who, **heads, heads=who.heads[:0]), adapter),
        "none below 0": lambda: studio.apply(who, adapter, weight=-1.0),
        "strength is nan": lambda: studio.apply(who, adapter, weight=float("nan")),
        "start_at is 0.8": lambda: studio.apply(who, adapter, start_at=0.8, end_at=0.2),
        "where the face is": lambda: studio.apply(None, studio.adapter(images=wide, reach="face only")),
        "63 x 80 pixels": lambda: studio.apply(None, studio.adapter(images=small)),
        "600 x 64 pixels": lambda: studio.apply(
            None, studio.adapter("by LoRA or model", vae=flux2_vae, images=wide), model=flux2
        ),
        "the same scheme": lambda: studio.apply(who, studio.adapter(REID), model=seen),
        "not a choice for scheme": lambda: studio.adapter("Krea 3"),
        "carries no reference images": lambda: prompt(model=studio.model),
        "the input 'model' is empty": prompt,
        "cannot see images": lambda: prompt(model=seen),
        "of another system": lambda: studio.apply(who, adapter, options=Options(reference=object())),
    }
    for part, call in cases.items():
        assert part in sentence(call), part


def test_another_packs_way_of_giving_references_is_refused(studio):
    from comfy.patcher_extension import WrappersMP

    model = studio.model.clone()
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "krea2_edit", lambda executor, *a, **k: executor(*a, **k))
    assert "krea2edit" in sentence(studio.apply, person(), model=model)


def test_qwens_two_files_are_told_by_what_they_say(studio, recipes):
    """2511's buffer may be lost in a conversion, so that nothing is taken for 2509."""
    later = recipes.dit("QwenImage", {**recipes.QWEN_TINY, "default_ref_method": "index_timestep_zero"})
    either = recipes.dit("QwenImage", recipes.QWEN_TINY)
    _, report = studio.apply(person(), studio.adapter("by LoRA or model"), model=later)
    assert report.startswith("Qwen-Image-Edit 2511")
    assert "2509" in sentence(studio.apply, person(), studio.adapter("by LoRA or model"), model=either)
    _, report = studio.apply(person(), studio.adapter("Qwen-Image-Edit 2511"), model=either)
    assert "does not say that it is 2511" in report


def test_a_lora_tells_its_scheme_by_its_checksum(studio, tmp_path, monkeypatch):
    import hashlib

    from likeness.adapters.edit_models.schemes import KREA2_REID, LORAS
    from likeness.nodes import edit_models

    file = tmp_path / "some name.safetensors"
    file.write_bytes(b"x" * 999)
    monkeypatch.setattr(type(edit_models.LORA_FILES), "find_or_explain", lambda self, name: file)
    other = sentence(studio.adapter, "by LoRA or model", lora_name=file.name)
    assert "choose the scheme" in other
    monkeypatch.setitem(LORAS, 999, {hashlib.sha256(file.read_bytes()).hexdigest(): KREA2_REID})
    _, report = studio.apply(person(), studio.adapter("by LoRA or model", lora_name=file.name))
    assert report.startswith(REID)
    assert "was trained for the scheme 'Krea 2 ReID'" in sentence(studio.adapter, lora_name=file.name)
