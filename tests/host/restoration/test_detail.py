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


def test_a_batch_without_faces_passes_and_transparency_stays(detail, photo):
    black = coloured(BLACK)
    finished, *_, report = detail(black)
    assert torch.equal(finished, black) and "no face found" in report
    image = torch.cat([photo, torch.rand(1, 64, 60, 1)], -1)
    assert torch.equal(detail(image)[0][..., 3], image[..., 3])


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


def test_parts_that_do_not_belong_together_are_said(detail, photo, world):
    class Wide:
        latent_channels = 16
        encode = decode = None

    with pytest.raises(LikenessError, match="latents have 16 channels and the model reads 4"):
        detail(photo, vae=Wide())
    with pytest.raises(LikenessError, match="input vae holds a str"):
        detail(photo, vae="x")
    with pytest.raises(LikenessError, match="'fast' is not a choice for sampler_name"):
        detail(photo, sampler_name="fast")


def test_the_models_of_the_graph_are_not_touched(detail, photo, world):
    before = {key: value.clone() for key, value in world["model"].model.state_dict().items()}
    text = world["positive"][0][0].clone()
    options = dict(world["model"].model_options)
    detail(photo)
    assert all(torch.equal(value, before[key]) for key, value in world["model"].model.state_dict().items())
    assert torch.equal(world["positive"][0][0], text) and world["model"].model_options == options


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
    assert isinstance(small, FaceJob) and small.crop.isfinite().all()  # larger than the picture: its edge is repeated
