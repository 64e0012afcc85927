"""Detail Faces in the host: a square of the face is sampled with model and prompt, everything else stays."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.by_colour import BLACK, BY_COLOUR, coloured

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis
from likeness.injection.comfy.resampling import CropWindow, prompt_in

SIDE = 64


@pytest.fixture(scope="module")
def world(recipes):
    """A small model, prompt and VAE."""
    clip = recipes.tiny_clip()
    text = clip.encode_from_tokens_scheduled(clip.tokenize("a face"))
    return {"model": recipes.tiny_sd15(), "positive": text, "negative": text, "vae": recipes.tiny_vae()}


@pytest.fixture(scope="module")
def node(host_nodes):
    from likeness.nodes import detail

    return detail.DetailFaces


@pytest.fixture
def detail(node, world):
    def run(image, **others):
        inputs = {**world, "image": image, "face_analysis": BY_COLOUR, "steps": 1, "resolution": SIDE, "denoise": 1.0}
        return node.execute(**{**inputs, **others}).result

    return run


def test_the_face_changes_and_what_is_around_it_does_not(detail, photo):
    finished, comparison, preview, mask, report = detail(photo)
    assert finished.shape == photo.shape and comparison.shape == (1, SIDE, 2 * SIDE, 3) and preview.shape == photo.shape
    outside = mask[0] == 0
    assert outside.any() and torch.equal(finished[0][outside], photo[0][outside])
    assert (finished[0][mask[0] > 0.9] - photo[0][mask[0] > 0.9]).abs().mean() > 0.02
    assert "1 face: 1 restored" in report


def test_seed_model_prompt_and_denoise_decide_over_the_face(detail, photo, recipes):
    first = detail(photo, seed=1)[0]
    assert torch.equal(detail(photo, seed=1)[0], first)
    assert not torch.equal(detail(photo, seed=2)[0], first)
    assert not torch.equal(detail(photo, seed=1, model=recipes.tiny_sd15(seed=5))[0], first)
    assert not torch.equal(detail(photo, seed=1, resolution=SIDE * 2)[0], first)


def test_two_faces_of_a_batch_get_noise_of_their_own(detail, photo):
    finished, *_, report = detail(torch.cat([photo, photo]), seed=1)
    assert not torch.equal(finished[0], finished[1]) and "2 faces" in report


def test_a_cancel_between_two_faces_ends_the_run(detail, photo, world, monkeypatch):
    import comfy.model_management as host

    decoded = []

    def decode(latent, plain=world["vae"].decode):
        decoded.append(1)
        host.interrupt_current_processing(True)
        return plain(latent)

    monkeypatch.setattr(world["vae"], "decode", decode)
    with pytest.raises(host.InterruptProcessingException):
        detail(photo.repeat(3, 1, 1, 1))
    assert len(decoded) == 1 and not host.processing_interrupted()


def test_a_batch_without_faces_passes_and_transparency_stays(detail, photo):
    black = coloured(BLACK)
    finished, *_, report = detail(black)
    assert torch.equal(finished, black) and "no face found" in report
    image = torch.cat([photo, torch.rand(1, 64, 60, 1)], -1)
    assert torch.equal(detail(image)[0][..., 3], image[..., 3])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_not_changed_comes_out_to_the_bit(detail, channels):
    image = torch.rand(1, 64, 60, channels) * 2 - 0.5
    image[:, 32, 30] = 0.5  # where the analysis looks for a face
    kept, *_, report = detail(image, strength=0.0)
    assert torch.equal(kept, image) and "the strength is 0" in report
    finished, _, _, mask, _ = detail(image)
    assert torch.equal(finished[mask == 0], image[mask == 0]) and not torch.equal(finished, image)


def test_an_applied_identity_composes(detail, photo, recipes, places):
    """The model of Apply Identity is sampled as any other."""
    from helpers import small_world as small

    world = small.World(recipes, places.models)
    applied, _ = world.apply(world.adapter("plus"), small.person(1), clip_vision=world.clip_vision)
    prompt = {"positive": world.text[0], "negative": world.text[0]}
    plain, person = (detail(photo, model=model, **prompt)[0] for model in (world.model, applied))
    assert not torch.equal(plain, person)


def test_the_guard_holds_back_only_with_an_identity(detail, photo, run):
    image = photo.clone()
    image[:, :1, :1] = torch.tensor([0.9, 0.1, 0.1])
    found = run("FindFaces", face_analysis=BY_COLOUR, image=image)[0]
    ann = run("IdentityFromPhotos", faces=found, name="Ann")[0]
    free, *_, measured = detail(image, identity_guard=1.0)
    assert "1 restored" in measured and "likeness" in measured
    held, *_, report = detail(image, identity_guard=1.0, identity=ann)
    assert "reduced" in report or "left as it was" in report
    assert (held - image).abs().mean() < (free - image).abs().mean()


def test_faces_without_keypoints_are_detailed_in_their_box(detail, photo):
    class Boxes(type(BY_COLOUR.detector)):
        def detect(self, image_bgr, size=None):
            return [found._replace(keypoints=None) for found in super().detect(image_bgr, size)]

    finished, *_, report = detail(photo, face_analysis=FaceAnalysis("boxes", Boxes()))
    assert not torch.equal(finished, photo) and "1 restored" in report and "identity guard was off" in report


def test_parts_that_do_not_belong_together_are_said(detail, photo, recipes):
    class Wide:
        latent_channels = 16
        encode = decode = None

    with pytest.raises(LikenessError, match="latents have 16 channels and the model reads 4"):
        detail(photo, vae=Wide())
    for value in ("x", recipes.tiny_clip()):
        with pytest.raises(LikenessError, match=r"input vae holds a (str|CLIP)"):
            detail(photo, vae=value)
    with pytest.raises(LikenessError, match="'fast' is not a choice for sampler_name"):
        detail(photo, sampler_name="fast")


class Vae16:
    """A VAE of 16 channels, as FLUX has it: colours and their squares, eight times smaller."""

    latent_channels = 16

    def encode(self, pixels):
        small = torch.nn.functional.avg_pool2d(pixels.permute(0, 3, 1, 2), 8)
        return torch.cat([small, small**2, small.repeat(1, 4, 1, 1)[:, :10]], 1)

    def decode(self, latent):
        return torch.nn.functional.interpolate(latent[:, :3], scale_factor=8).permute(0, 2, 3, 1).clamp(0, 1)


@pytest.fixture
def family(recipes):
    """name -> MODEL, VAE and what a prompt for it holds."""

    def make(name):
        if name == "sd15":
            return recipes.tiny_sd15(), recipes.tiny_vae(), {"width": 64}
        if name == "sdxl":
            return recipes.tiny_sdxl(), recipes.tiny_vae(), {"width": 128, "pooled": recipes.SDXL_POOLED}
        return recipes.tiny_flux(), Vae16(), {"width": 48, "pooled": 32, "guidance": 3.5}

    return make


@pytest.mark.parametrize("name", ["sd15", "sdxl", "flux"])
def test_nothing_of_the_graph_is_touched(detail, photo, recipes, family, name):
    """Image, MODEL, VAE, prompts and all that hangs on them, for every family of models and with everything at once."""
    model, vae, kind = family(name)
    width = kind.pop("width")
    mask, beside = torch.rand(1, 30, 30), torch.rand(1, 16 if name == "flux" else 4, 8, 8)
    area = ("percentage", 1.0, 1.0, 0.0, 0.0)
    extra = {"mask": mask, "mask_strength": 1.0, "reference_latents": [beside], **kind}
    if name == "sd15":
        net = recipes.controlnet(recipes.SD15_TINY)
        net.set_cond_hint(torch.rand(1, 3, 64, 60), 1.0, (0.0, 1.0))
        extra |= {"control": net, "control_apply_to_uncond": True}
    positive = recipes.conditioning(width, seed=1, **extra) + recipes.conditioning(width, seed=2, area=area, **kind)
    negative = recipes.conditioning(width, seed=3, **kind)
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    options, patches, wrappers = repr(model.model_options), dict(model.patches), repr(model.wrappers)
    prompts = [[(pair[0], pair[0].clone(), dict(pair[1])) for pair in prompt] for prompt in (positive, negative)]
    image, region = photo.clone(), torch.ones(1, 64, 60)
    finished, *_, report = detail(
        image, model=model, vae=vae, positive=positive, negative=negative, region=region, denoise=0.5, steps=2
    )
    assert "1 restored" in report and not torch.equal(finished, photo) and finished.isfinite().all()
    assert torch.equal(image, photo) and bool((region == 1).all())
    assert all(torch.equal(value, before[key]) for key, value in model.model.state_dict().items())
    assert (repr(model.model_options), model.patches, repr(model.wrappers)) == (options, patches, wrappers)
    for prompt, was in zip((positive, negative), prompts, strict=True):
        for (text, values), (same, content, given) in zip(prompt, was, strict=True):
            assert text is same and torch.equal(text, content) and values.keys() == given.keys()
            assert all(values[key] is given[key] for key in values)
    if name == "sd15":
        assert net.cond_hint_original.shape == (1, 3, 64, 60) and net.cond_hint is None


# --- the prompt in a window

QUARTER = CropWindow(0.5, 0.0, 1.0, 0.5)  # at the top right


def test_masks_are_cut_and_areas_are_kept_where_the_face_is():
    text, latent = torch.zeros(1, 77, 8), torch.zeros(1, 4, 8, 8)
    mask = torch.zeros(1, 40, 40)
    mask[:, :20, 20:] = 1
    [[_, values]] = prompt_in(QUARTER, [[text, {"mask": mask, "strength": 0.5}]], latent, 32)
    assert values["mask"].shape == (1, 32, 32) and values["mask"][:, 2:-2, 2:-2].min() == 1
    assert values["strength"] == 0.5
    right, left = (["percentage", 1.0, 0.5, 0.0, x] for x in (0.5, 0.0))
    kept = prompt_in(QUARTER, [[text, {"area": right, "strength": 2.0}], [text + 1, {"area": left}]], latent, 32)
    assert len(kept) == 1 and torch.equal(kept[0][0], text) and "area" not in kept[0][1]
    assert len(prompt_in(QUARTER, [[text, {"area": left}]], latent, 32)) == 1, (
        "nothing reaches it: better than no prompt"
    )


def test_an_edit_model_works_on_the_window_and_keeps_its_other_references():
    latent, whole, other = (torch.full((1, 4, 8, 8), float(n)) for n in range(3))
    given = [[torch.zeros(1, 77, 8), {"reference_latents": [whole, other]}]]
    [[_, values]] = prompt_in(QUARTER, given, latent, 64)
    assert values["reference_latents"][0] is latent and values["reference_latents"][1] is other
    assert given[0][1]["reference_latents"][0] is whole


def test_hints_of_a_chain_of_controlnets_show_the_window(recipes):
    net, before = recipes.controlnet(recipes.SD15_TINY), recipes.controlnet(recipes.SD15_TINY)
    hint = torch.zeros(1, 3, 80, 80)
    hint[..., :40, 40:] = 1
    for one in (net, before):
        one.cond_hint_original = hint
    net.set_previous_controlnet(before)
    [[_, values]] = prompt_in(QUARTER, [[torch.zeros(1, 77, 8), {"control": net}]], torch.zeros(1, 4, 8, 8), 32)
    for one in (values["control"], values["control"].previous_controlnet):
        assert one.cond_hint_original.shape == (1, 3, 32, 32) and one.cond_hint_original[..., 2:-2, 2:-2].min() == 1
    assert net.cond_hint_original is hint and before.cond_hint_original is hint


def test_prompts_that_share_a_net_share_its_copy(recipes):
    """The host samples them as one batch only then."""
    net, nets, latent = recipes.controlnet(recipes.SD15_TINY), {}, torch.zeros(1, 4, 8, 8)
    net.cond_hint_original = torch.zeros(1, 3, 80, 80)
    given = [[torch.zeros(1, 77, 8), {"control": net}]]
    [[_, positive]], [[_, negative]] = (prompt_in(QUARTER, given, latent, 32, nets) for _ in range(2))
    assert positive["control"] is negative["control"] and positive["control"] is not net
    [[_, alone]] = prompt_in(QUARTER, given, latent, 32)
    assert alone["control"] is not positive["control"]


def test_a_window_is_the_jobs_square():
    import numpy as np

    from likeness.faces import Face
    from likeness.restoration.restore import FaceJob
    from likeness.restoration.windows import shares, upright

    ys, xs = torch.meshgrid(torch.arange(100.0), torch.arange(200.0), indexing="ij")
    picture = torch.stack([xs, ys, xs * 0], -1) / 200
    face = Face(np.array([150, 10, 180, 50], np.float32), 1.0)
    job = upright(64, 2.0)(picture, 0, 0, face)
    assert isinstance(job, FaceJob)
    window = CropWindow(*shares(job, (100, 200)))
    assert 0 <= window.left < window.right <= 1 and 0 <= window.top < window.bottom <= 1
    cut = window.cut(picture.permute(2, 0, 1)[None], 64)[0]
    assert (cut - job.crop).abs()[:, 2:-2, 2:-2].max() < 0.01
    small = upright(64, 2.0)(picture[:40, :60], 0, 0, replace(face, box=np.array([10, 0, 50, 40], np.float32)))
    assert isinstance(small, FaceJob) and small.crop.isfinite().all()  # larger than the image: its edge is repeated


# --- what else is laid over the image


def test_prompts_whose_mask_leaves_out_the_face_are_left_out():
    text, latent = torch.zeros(1, 77, 8), torch.zeros(1, 4, 8, 8)
    there, elsewhere = torch.zeros(2, 1, 40, 40)
    there[:, :20, 20:] = elsewhere[:, 25:, :15] = 1
    given = [[text, {"mask": elsewhere, "mask_strength": 1.0}], [text + 1, {"mask": there, "mask_strength": 1.0}]]
    [[kept, _]] = prompt_in(QUARTER, given, latent, 32)
    assert torch.equal(kept, text + 1)
    [[_, values]] = prompt_in(QUARTER, given[:1], latent, 32)
    assert "mask" not in values and "mask_strength" not in values  # nothing reaches it: better than no prompt


def test_of_a_batch_with_a_row_for_each_picture_its_own_counts():
    latent, window = torch.zeros(1, 4, 8, 8), replace(QUARTER, image=1, images=3)
    text, mask = torch.arange(3.0).reshape(3, 1, 1).expand(3, 77, 8), torch.zeros(3, 40, 40)
    mask[1] = 1
    given = [[text, {"mask": mask, "pooled_output": torch.arange(3.0)[:, None]}]]
    [[row, values]] = prompt_in(window, given, latent, 32)
    assert row.shape == (1, 77, 8) and row.unique().tolist() == [1.0]
    assert values["mask"].shape == (1, 32, 32) and values["mask"].min() == 1 and values["pooled_output"].item() == 1


def test_areas_of_films_are_read_as_those_of_pictures_and_boxes_of_gligen_left_out():
    text, latent = torch.zeros(1, 77, 8), torch.zeros(1, 4, 8, 8)
    film = ["percentage", 1.0, 1.0, 0.5, 0.0, 0.0, 0.5]  # lengths and starts in time, height, width
    kept = prompt_in(QUARTER, [[text, {"area": film}], [text, {"area": [*film[:6], 0.0]}]], latent, 32)
    assert len(kept) == 1
    [[_, values]] = prompt_in(QUARTER, [[text, {"gligen": ("position", None, [])}]], latent, 32)
    assert values == {}


def test_what_inpainting_models_read_beside_their_latent_is_cut():
    latent = torch.zeros(1, 4, 8, 8)
    beside = torch.zeros(1, 16, 20, 20)
    beside[..., :10, 10:] = 1
    given = [[torch.zeros(1, 77, 8), {"concat_latent_image": beside, "concat_mask": beside[:, :1].clone()}]]
    [[_, values]] = prompt_in(QUARTER, given, latent, 64)
    assert values["concat_latent_image"].shape == (1, 16, 8, 8) and values["concat_mask"].shape == (1, 1, 64, 64)
    assert values["concat_latent_image"].mean() > 0.9 and given[0][1]["concat_latent_image"] is beside


def test_an_identity_within_a_mask_acts_on_the_faces_that_lie_in_it(detail, photo, recipes, places):
    """Two people of a group image, each within a mask of the whole image."""
    from helpers import small_world as small

    world = small.World(recipes, places.models)
    adapter = world.adapter("plus")

    def within(mask):
        return world.apply(adapter, small.person(1), clip_vision=world.clip_vision, attn_mask=mask)[0]

    prompt = {"positive": world.text[0], "negative": world.text[0], "crop_factor": 1.0}
    image = torch.nn.functional.pad(photo, (0, 0, 0, 180), value=0.5)  # the face lies in the left quarter
    left, right = torch.zeros(2, 1, 64, 240)
    left[..., :60], right[..., 60:] = 1, 1
    everywhere, nowhere = (detail(image, model=model, **prompt)[0] for model in (within(None), world.model))
    assert not torch.equal(everywhere, nowhere)
    assert torch.equal(detail(image, model=within(left), **prompt)[0], everywhere)
    assert torch.equal(detail(image, model=within(right), **prompt)[0], nowhere)


def test_a_mask_for_each_picture_of_a_batch_is_that_pictures(detail, photo, recipes, places):
    from helpers import small_world as small

    world = small.World(recipes, places.models)
    model = world.apply(
        world.adapter("plus"),
        small.person(1),
        clip_vision=world.clip_vision,
        attn_mask=torch.stack([torch.zeros(64, 60), torch.ones(64, 60)]),
    )[0]
    options = dict(model.model_options)
    prompt = {"positive": world.text[0], "negative": world.text[0]}
    batch = torch.cat([photo, photo])
    with_masks, plain = (detail(batch, model=one, **prompt)[0] for one in (model, world.model))
    assert torch.equal(with_masks[0], plain[0]) and not torch.equal(with_masks[1], plain[1])
    assert model.model_options == options


def test_a_net_that_reads_the_face_sees_its_hint_in_the_window(recipes):
    from likeness.adapters.effects import Scope
    from likeness.injection.comfy.control import IdentityControl

    net = recipes.controlnet(recipes.SD15_TINY)
    hint = torch.zeros(1, 3, 80, 80)
    hint[..., :40, 40:] = 1
    net.cond_hint_original, net.extra_concat_orig = hint, [hint[:, :1]]
    scope = Scope(mask=hint[:, 0])
    control = IdentityControl(net, "tokens", scope)
    [[_, values]] = prompt_in(QUARTER, [[torch.zeros(1, 77, 8), {"control": control}]], torch.zeros(1, 4, 8, 8), 32)
    cut = values["control"]
    for shown in (cut.net.cond_hint_original, cut.net.extra_concat_orig[0], cut.scope.mask):
        assert shown.shape[-2:] == (32, 32) and shown[..., 2:-2, 2:-2].min() == 1
    assert net.cond_hint_original is hint and control.scope is scope and control.net is net


@pytest.mark.parametrize("name", ["positive", "negative"])
@pytest.mark.parametrize("value", ["x", [], None, [[1, 2]], torch.zeros(1, 77, 8)], ids=str)
def test_what_is_no_prompt_is_said(detail, photo, name, value):
    with pytest.raises(LikenessError, match=f"input {name} is a .*, not a prompt"):
        detail(photo, **{name: value})


def test_a_prompt_of_another_models_clip_is_said(detail, photo, recipes):
    wide = recipes.conditioning(96, seed=0)
    with pytest.raises(LikenessError, match="Prompt and MODEL do not belong together: the prompt has width 96"):
        detail(photo, positive=wide)
