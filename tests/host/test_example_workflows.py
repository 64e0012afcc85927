"""Every committed example workflow through the real server: each API file runs to its end and does what its note says.

The files run as they are, but for the sizes, the steps, and the names of three kinds of model: weights are random, in
official layouts, and small. The checkpoint has SD1.5's layout (16 attention sites, so that style and composition types
work) at a width of 320 throughout, also where a graph asks for SDXL; the adapters are cut to it. Graphs for FLUX have a
tiny one, from a node of the tests in the place of Load Checkpoint, because no file of its text encoder is small. The
image encoder is a ViT-L/14 in the place of ViT-H/14, which is several times slower on a CPU; ViT-H's own layout is
therefore not run here. Images show nobody: what is held is what decides over them.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import comfyui
import numpy as np
import pytest
import torch
from helpers import (
    blip_diffusion,
    fastcomposer,
    mask_rcnn,
    official,
    photomaker,
    photoverse,
    pulid,
    restorers,
    storymaker,
)
from PIL import Image
from safetensors.torch import save_file

WORKFLOWS = comfyui.REPOSITORY / "workflows"
# Their text encoders cannot be made small: `test_edit_model_workflows.py` runs these.
ELSEWHERE = {"edit_model_portrait", "edit_model_two_people"}
NAMES = sorted({path.name.removesuffix(".api.json") for path in (WORKFLOWS / "api").glob("*.api.json")} - ELSEWHERE)
MINIATURE = "miniature_portrait"  # the one that brings its own models, and its own size
REPORT = "identity_report"  # as well

CHECKPOINT = "narrow_sd15.safetensors"
FACEID, PLUS = "narrow_faceid.bin", "narrow_plus.safetensors"
INSTANTID, IDENTITYNET = "ip-adapter.bin", "instantid_controlnet.safetensors"  # under their own names
STORYMAKER, SEGMENTER = "mask.bin", "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"  # under their own names
PULID, PHOTOVERSE = "pulid_v1.bin", "photoverse.pt"  # as well
PULID_FLUX = "pulid_flux_v0.9.1.safetensors"  # as well
FLUX_CHECKPOINT, TINY_FLUX = "flux1-dev-fp8.safetensors", "LikenessTestTinyFlux"
FLUX_WIDTH = 64  # of the tokens of the tiny one
BLIP_DIFFUSION = "blipdiffusion_qformer.bin"  # as well
RESTORER, UPSCALER = "GFPGANv1.4.pth", "RealESRGAN_x4plus.pth"  # under their own names
ENCODER = "vit_l.safetensors"
ENCODER_WIDTH = 1024
SIDE, STEPS, FRAMES = 64, 1, 2

# Photos under the names that the graphs load; the detector of `models` knows both by heart.
INPUTS = {
    **dict.fromkeys(["person.jpg", "person_1.jpg", "person_2.jpg", "person_3.jpg"], "astronaut"),
    **dict.fromkeys(["person_left.jpg", "pose.jpg", "reference_1.jpg", "style.jpg", "subject.jpg"], "astronaut"),
    **dict.fromkeys(["person_right.jpg", "reference_2.jpg", "clothes.jpg"], "six people"),
}
# The images that these save have the size of what they are given, or a multiple of it.
FINISHED = {
    "restore_photo": (512, 512),
    "finish_portrait": (1024, 1024),
    "detail_faces": (886, 1280),
    "edit_face": (512, 512),
    "miniature_two_people": (128, 256),
}
NEEDS = {
    "saved_identity": ["save_identity", "save_identity_again"],
    "saved_embeds": ["save_embeds"],
    "merge_concepts": ["train_custom_diffusion"],
    "sefi_ide_prompt": ["train_sefi_ide"],
    "sefi_ide_two_people": ["train_sefi_ide"],
}

pytestmark = pytest.mark.slow


# --- model files


def cut_to(sites, groups: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    """An adapter's layers, cut to the widths of a UNet's sites."""
    widths = {site.slot: site.width for site in sites}
    cut = {}
    for key, value in groups["ip_adapter"].items():
        slot, layer = int(key.split(".")[0]), key.split(".", 1)[1]
        width = widths[slot | 1]
        if layer.endswith("lora.down.weight"):
            reads_text = slot % 2 == 1 and layer.startswith(("to_k", "to_v"))
            cut[key] = (value if reads_text else value[:, :width]).clone()
        else:
            cut[key] = value[:width].clone()
    return {**groups, "ip_adapter": cut}


def write_encoder(path: Path, files) -> None:
    """A file that CLIPVisionLoader takes for ViT-L/14, with random weights in fp16 (600 MB)."""
    import comfy.clip_model
    import comfy.clip_vision
    import comfy.ops

    config = json.loads((Path(comfy.clip_vision.__file__).parent / "clip_vision_config_vitl.json").read_text())
    with torch.device("meta"):
        model = comfy.clip_model.CLIPVisionModelProjection(config, torch.float16, "meta", comfy.ops.disable_weight_init)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(files._fill(model, "", files._Pool(11), torch.float16)), path)


@pytest.fixture(scope="module")
def narrow_models(models: Path, known_faces, files):
    """The files named above, and InstantID's face pack; deleted at the end."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    from likeness.adapters.ip_adapter.weight_types import SD15
    from likeness.injection.plan import layout_of
    from likeness.injection.sites import sites_of_comfy_unet

    config = {**files.SD15_FULL, "channel_mult": [1, 1, 1, 1]}
    with torch.device("meta"):
        unet = UNetModel(**config, dtype=torch.float16, device="meta", operations=comfy.ops.disable_weight_init)
    sites = sites_of_comfy_unet(unet)
    assert layout_of(sites) == SD15
    written = [
        models / "checkpoints" / CHECKPOINT,
        models / "clip_vision" / ENCODER,
        files.write_adapter(models / "ipadapter" / FACEID, cut_to(sites, files.faceid_sd15(rank=16))),
        files.write_adapter(models / "ipadapter" / PLUS, cut_to(sites, files.plus_sd15(encoder=ENCODER_WIDTH))),
    ]
    shapes = [(site.width, site.context_dim) for site in sites]
    written += [
        official.write(
            models / "instantid" / INSTANTID, official.groups(official.resampler(768, features=512), shapes)
        ),
        files.write_controlnet(models / "controlnet" / IDENTITYNET, config),
        storymaker.write(models / "storymaker" / STORYMAKER, shapes, features=ENCODER_WIDTH, loud=20.0),
        mask_rcnn.write(models / "segmentation" / SEGMENTER),
    ]
    written += [*pulid.companions(models), models / "pulid" / PULID]
    written[-1].parent.mkdir(exist_ok=True)
    torch.save(pulid.adapter(shapes), written[-1])
    written.append(models / "pulid" / PULID_FLUX)
    save_file(pulid.flux_adapter(FLUX_WIDTH), written[-1])
    blocks = [site.diffusers_path for site in sites]
    (models / "photomaker").mkdir(exist_ok=True)
    for version in (1, 2):
        path = models / "photomaker" / f"photomaker-v{version}.bin"
        written.append(photomaker.write(path, photomaker.groups(shapes, version, paths=blocks)))
    written.append(models / "photoverse" / PHOTOVERSE)
    written[-1].parent.mkdir(exist_ok=True)
    torch.save(photoverse.nested(photoverse.unofficial(shapes, width=ENCODER_WIDTH, paths=blocks)), written[-1])
    (models / "blip_diffusion").mkdir(exist_ok=True)
    written += [blip_diffusion.vocabulary(models / "blip_diffusion"), models / "blip_diffusion" / BLIP_DIFFUSION]
    torch.save(blip_diffusion.encoder(768, queries=16), written[-1])
    (models / "fastcomposer").mkdir(exist_ok=True)
    written.append(models / "fastcomposer" / "fastcomposer.bin")
    torch.save(fastcomposer.encoder(shapes[0][1], loud=30.0), written[-1])  # without a UNet, which would be 0.5 GB
    for path, weights in (
        (models / "facerestore_models" / RESTORER, restorers.gfpgan()),
        (models / "upscale_models" / UPSCALER, restorers.esrgan()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"params_ema": weights}, path)
        written.append(path)
    files.write_checkpoint(written[0], config, clip=True)
    write_encoder(written[1], files)
    pack = models / "insightface" / "models" / "antelopev2"
    files.write_detector(pack / "scrfd_10g_bnkps.onnx", [face for faces in known_faces.values() for face in faces])
    files.write_recogniser(pack / "glintr100.onnx", seed=4)
    yield
    for path in written:
        path.unlink()


# --- running


def of_kind(prompt, kind: str) -> list[str]:
    """The ids of the nodes of this kind, in the order of the graph."""
    return [number for number, node in prompt.items() if node["class_type"] == kind]


def is_of_ipadapter(choice: str) -> bool:
    """Whether a choice is a file of models/ipadapter, and neither another system's nor one that comes with the pack."""
    return choice.endswith((".bin", ".safetensors")) and "/" not in choice


def small(prompt):
    """The graph with the narrow models, small images, few steps and few frames."""
    replaced: dict[str, dict] = {
        "CheckpointLoaderSimple": {"ckpt_name": CHECKPOINT},
        "CLIPVisionLoader": {"clip_name": ENCODER},
        "EmptyLatentImage": {"width": SIDE, "height": SIDE},
        "EmptySD3LatentImage": {"width": SIDE, "height": SIDE},
        "KSampler": {"steps": STEPS},
        "LikenessDetailFaces": {"steps": STEPS, "resolution": SIDE},
        "LikenessWeightSchedule": {"frames": FRAMES},
        "LikenessTrainTextualInversion": {"steps": 2, "preview_every": 0},
        "LikenessTrainDreamBooth": {"steps": 2, "preview_every": 0, "class_pictures": 1},
        "LikenessTrainCustomDiffusion": {"steps": 2, "preview_every": 0, "class_pictures": 1},
        "LikenessTrainSeFiIDE": {
            "steps": 5,
            "learning_rate": 1.0,
            "preview_every": 0,
            "sample_prompts": "a photo of {}",
        },
        "LikenessTrainMagiCapture": {"inversion_steps": 1, "tuning_steps": 1, "preview_every": 0},
    }
    if of_kind(prompt, "LikenessLoadMiniature"):  # it paints in one size only, and fast
        del replaced["EmptyLatentImage"], replaced["KSampler"]
    prompt = copy.deepcopy(prompt)
    for node in prompt.values():
        if node["inputs"].get("ckpt_name") == FLUX_CHECKPOINT:
            node["class_type"] = TINY_FLUX
        node["inputs"].update(replaced.get(node["class_type"], {}))
        if node["inputs"].get("sampler_name") == "uni_pc":
            node["inputs"]["steps"] = STEPS + 2  # with fewer it does not ask the model
        if node["class_type"] == "LikenessLoadIdentityAdapter" and is_of_ipadapter(node["inputs"]["adapter_file"]):
            node["inputs"]["adapter_file"] = FACEID if "faceid" in node["inputs"]["adapter_file"] else PLUS
    return prompt


@dataclass
class Example:
    """A workflow that has run."""

    prompt: dict
    run: object
    client: object

    def pictures(self, kind: str) -> list[np.ndarray]:
        """What all nodes of this kind show, in the order of the graph."""
        return [picture for number in of_kind(self.prompt, kind) for picture in self.client.images(self.run, number)]  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def execute(running_server, narrow_models, photos):
    """Runs a graph after changes, `(node id, input) -> value`; every graph runs once only, what it needs before it."""
    client = running_server.client
    for name, photo in INPUTS.items():
        client.upload_image(name, photos[photo])
    for path in WORKFLOWS.glob("miniature_*.png"):
        with Image.open(path) as picture:
            client.upload_image(path.name, np.asarray(picture.convert("RGB")))
    finished: dict[str, Example] = {}

    def run(name: str, changes=None) -> Example:
        for needed in NEEDS.get(name, []):
            run(needed)
        if not changes and name in finished:
            return finished[name]
        prompt = small(json.loads((WORKFLOWS / "api" / f"{name.removesuffix('_again')}.api.json").read_text()))
        if name.endswith("_again"):  # for a second person
            for number in of_kind(prompt, "LoadImage"):
                prompt[number]["inputs"]["image"] = "person_right.jpg"
        for (number, key), value in (changes or {}).items():
            assert key in prompt[number]["inputs"]
            prompt[number]["inputs"][key] = value
        example = Example(prompt, client.run(prompt), client)
        return example if changes else finished.setdefault(name, example)

    return run


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.abs(one.astype(int) - other.astype(int)).mean() > 0.5)


# --- all of them


@pytest.mark.parametrize("name", [n for n in NAMES if n not in (MINIATURE, REPORT)])
def test_every_node_of_the_workflow_runs_and_every_output_shows_something(server, execute, name):
    example = execute(name)
    run, prompt = example.run, example.prompt
    assert not run.node_errors
    assert {*run.executed, *run.cached} == set(prompt)
    for number in [*of_kind(prompt, "SaveImage"), *of_kind(prompt, "PreviewImage")]:
        for picture in example.client.images(run, number):
            assert picture.std() > 3, f"node {number} shows an empty picture"
    for number in of_kind(prompt, "PreviewAny"):
        assert run.outputs[number]["text"][0].strip()
    for picture in example.pictures("SaveImage"):
        side = 128 if of_kind(prompt, "LikenessLoadMiniature") else SIDE
        assert picture.shape == (*FINISHED.get(name, (side, side)), 3)


# --- each of them


def test_the_miniature_paints_the_drawn_person_as_the_file_says(server, execute):
    example = execute(MINIATURE)
    [apply] = of_kind(example.prompt, "LikenessApplyIdentity")
    [with_person] = example.pictures("SaveImage")
    [without] = execute(MINIATURE, {(apply, "weight"): 0.0}).pictures("SaveImage")
    assert {*example.run.executed, *example.run.cached} == set(example.prompt)
    assert with_person.shape == (128, 128, 3)
    assert differ(with_person, without)


def test_the_report_judges_four_portraits_and_the_best_two_are_saved(server, execute):
    example = execute(REPORT)
    assert {*example.run.executed, *example.run.cached} == set(example.prompt)
    [number] = of_kind(example.prompt, "LikenessIdentityReport")
    said = example.run.outputs[number]["text"][0]
    assert "of real photos' likeness" in said and "points against the images without identity" in said
    [sheet] = example.client.images(example.run, number)
    assert sheet.shape[1] > 4 * 128 and sheet.std() > 3
    assert [picture.shape for picture in example.pictures("SaveImage")] == [(128, 128, 3)] * 2
    [words] = of_kind(example.prompt, "PreviewAny")
    assert "Judge: miniature-judge" in example.run.outputs[words]["text"][0]


def test_two_people_each_decide_over_the_picture(server, execute):
    [reference] = execute("two_people").pictures("SaveImage")
    for photo in of_kind(execute("two_people").prompt, "LoadImage"):
        shown = execute("two_people").prompt[photo]["inputs"]["image"]
        other = {"person_left.jpg": "person_right.jpg", "person_right.jpg": "person_left.jpg"}[shown]
        [changed] = execute("two_people", {(photo, "image"): other}).pictures("SaveImage")  # the same face twice
        assert differ(changed, reference)


def test_pulid_decides_over_the_picture_for_each_of_two_people(server, execute):
    [portrait] = execute("portrait_pulid").pictures("SaveImage")
    [apply] = of_kind(execute("portrait_pulid").prompt, "LikenessApplyIdentity")
    [silent] = execute("portrait_pulid", {(apply, "weight"): 0.0}).pictures("SaveImage")
    assert differ(portrait, silent)
    [both] = execute("two_people_pulid").pictures("SaveImage")
    for number in of_kind(execute("two_people_pulid").prompt, "LikenessApplyIdentity"):
        assert differ(both, execute("two_people_pulid", {(number, "weight"): 0.0}).pictures("SaveImage")[0])


def test_pulid_decides_over_the_picture_of_flux_from_its_start_step_on(server, execute):
    name = "portrait_pulid_flux"
    [apply] = of_kind(execute(name).prompt, "LikenessApplyIdentity")
    [options] = of_kind(execute(name).prompt, "LikenessPuLIDOptions")
    [sampler] = of_kind(execute(name).prompt, "KSampler")
    six = {(sampler, "steps"): 6}
    [silent] = execute(name, {**six, (apply, "weight"): 0.0}).pictures("SaveImage")
    [late], [now], [never] = (
        execute(name, {**six, (options, "start_step"): step}).pictures("SaveImage") for step in (4, 0, 6)
    )
    assert differ(late, silent) and differ(now, late) and np.array_equal(never, silent)


def test_scale_identities_at_0_takes_both_people_out(server, execute):
    prompt = execute("two_people").prompt
    without_lora = {(number, "lora_strength"): 0.0 for number in of_kind(prompt, "LikenessApplyIdentity")}
    [scale], [sampler] = of_kind(prompt, "LikenessScaleIdentities"), of_kind(prompt, "KSampler")
    [checkpoint] = of_kind(prompt, "CheckpointLoaderSimple")
    [silent] = execute("two_people", {**without_lora, (scale, "factor"): 0.0}).pictures("SaveImage")
    [plain] = execute("two_people", {(sampler, "model"): [checkpoint, 0]}).pictures("SaveImage")
    assert np.array_equal(silent, plain)
    assert differ(plain, execute("two_people").pictures("SaveImage")[0])


def test_save_identity_writes_all_photos_and_never_over_an_earlier_file(server, execute):
    from likeness.faces import Identity

    report = execute("save_identity").run.outputs[of_kind(execute("save_identity").prompt, "PreviewAny")[0]]["text"][0]
    execute("save_identity_again")
    folder = server.base / "models" / "likeness_identities"
    first, second = (Identity.load(folder / name) for name in ("person.safetensors", "person_2.safetensors"))
    assert "3 photos used" in report
    assert len(first) == len(second) == 3
    assert float(first.mean_embedding() @ second.mean_embedding()) < 0.99


def test_both_saved_identities_enter_the_blend(server, execute):
    [blend] = of_kind(execute("saved_identity").prompt, "LikenessCombineIdentities")
    [half] = execute("saved_identity").pictures("SaveImage")
    [first] = execute("saved_identity", {(blend, "weight_2"): 0.0}).pictures("SaveImage")
    [second] = execute("saved_identity", {(blend, "weight_1"): 0.0}).pictures("SaveImage")
    assert differ(half, first) and differ(half, second) and differ(first, second)


def test_the_style_reference_is_shown_as_the_encoder_sees_it(server, execute):
    prepared, noise = execute("style_reference").pictures("PreviewImage")
    assert prepared.shape == noise.shape == (224, 224, 3)
    assert differ(prepared, noise)


def test_saved_embeds_hold_both_references_and_decide_over_the_portrait(server, execute):
    from likeness.adapters.ip_adapter.embeds import load_embeds

    example = execute("saved_embeds")
    embeds = load_embeds(server.base / "models" / "likeness_embeds" / "reference.safetensors")
    assert embeds.cond.shape == (2, 257, ENCODER_WIDTH)
    [apply] = of_kind(example.prompt, "LikenessApplyIdentity")
    [silent] = execute("saved_embeds", {(apply, "weight"): 0.0}).pictures("SaveImage")
    assert differ(silent, example.pictures("SaveImage")[0])


def test_a_schedule_hands_the_batch_from_one_reference_to_the_other(server, execute):
    example = execute("batch_schedule")
    first, last = example.pictures("SaveImage")
    assert differ(first, last)
    [_, other] = of_kind(example.prompt, "LoadImage")
    # With the first reference in the second one's place as well, only the last image becomes another.
    same_first, changed_last = execute("batch_schedule", {(other, "image"): "reference_1.jpg"}).pictures("SaveImage")
    assert not differ(same_first, first)
    assert differ(changed_last, last)


def test_face_keypoints_lie_on_the_face_at_the_size_of_the_picture(server, execute, known_faces):
    _, drawn = execute("face_keypoints").pictures("PreviewImage")
    assert drawn.shape == (1024, 1024, 3)
    assert (drawn.max(axis=-1) == 0).mean() > 0.9
    [face] = known_faces["astronaut"]
    scale = 1024 / face.photo.shape[0]
    for x, y in face.keypoints * scale:
        assert drawn[round(float(y)), round(float(x))].max() > 60


def without(example: Example, kind: str, name: str) -> dict:
    """The change of a graph that takes out the strength `name` of every node of a kind."""
    return {(number, name): 0.0 for number in of_kind(example.prompt, kind)}


@pytest.mark.parametrize("name", ["instantid", "instantid_pose", "instantid_two_people"])
def test_both_halves_of_instantid_decide_over_the_portrait(server, execute, name):
    example = execute(name)
    [portrait] = example.pictures("SaveImage")
    adapter_off = without(example, "LikenessApplyIdentity", "weight")
    net_off = without(example, "LikenessIdentityControlNet", "strength")
    [net_alone], [adapter_alone], [neither] = (
        execute(name, off).pictures("SaveImage") for off in (adapter_off, net_off, adapter_off | net_off)
    )
    assert differ(portrait, net_alone) and differ(portrait, adapter_alone) and differ(net_alone, neither)


def test_instantid_takes_who_it_is_from_one_photo_and_the_pose_from_the_other(server, execute):
    example = execute("instantid_pose")
    *_, drawn = example.pictures("PreviewImage")
    assert drawn.shape == (SIDE, SIDE, 3), "the size of the latent"
    person, pose = (
        next(n for n in of_kind(example.prompt, "LoadImage") if example.prompt[n]["inputs"]["image"] == name)
        for name in ("person.jpg", "pose.jpg")
    )
    *_, same = execute("instantid_pose", {(person, "image"): "person_right.jpg"}).pictures("PreviewImage")
    *_, other = execute("instantid_pose", {(pose, "image"): "person_right.jpg"}).pictures("PreviewImage")
    assert np.array_equal(same, drawn) and differ(other, drawn)


def test_instantid_s_two_people_have_their_own_places(server, execute):
    *_, left, right = execute("instantid_two_people").pictures("PreviewImage")
    places = [np.argwhere(picture.max(axis=-1) > 0)[:, 1].mean() for picture in (left, right)]
    assert places[0] < SIDE / 2 < places[1]


def test_storymaker_dresses_the_person_in_the_clothes_of_the_picture(server, execute):
    example = execute("storymaker_portrait")
    [portrait], [shown] = example.pictures("SaveImage"), example.pictures("PreviewImage")
    assert shown.shape == (224, 224, 3)
    loaded = {example.prompt[number]["inputs"]["image"]: number for number in of_kind(example.prompt, "LoadImage")}
    other = execute("storymaker_portrait", {(loaded["clothes.jpg"], "image"): "style.jpg"})
    assert differ(other.pictures("PreviewImage")[0], shown) and differ(other.pictures("SaveImage")[0], portrait)


def test_storymaker_cuts_both_people_out_and_both_decide(server, execute):
    example = execute("storymaker_two_people")
    left, right = example.pictures("PreviewImage")
    [both] = example.pictures("SaveImage")
    assert differ(left, right)
    first, second = of_kind(example.prompt, "LikenessStoryMakerCharacter")
    for character in (first, second):
        [without] = execute("storymaker_two_people", {(character, "body_strength"): 0.0}).pictures("SaveImage")
        assert differ(without, both)


def test_the_four_panels_of_a_story_know_the_characters(server, execute):
    example = execute("storymaker_story")
    panels = example.pictures("SaveImage")
    assert len(panels) == 4 and len({panel.tobytes() for panel in panels}) == 4
    [apply] = of_kind(example.prompt, "LikenessApplyIdentity")
    alone = execute("storymaker_story", {(apply, "weight"): 0.0}).pictures("SaveImage")
    assert all(differ(*pair) for pair in zip(panels, alone, strict=True))


def test_the_words_and_the_image_of_photoverse_decide_over_the_portrait(server, execute):
    [portrait] = execute("photoverse").pictures("SaveImage")
    [prompt] = of_kind(execute("photoverse").prompt, "LikenessIdentityPrompt")
    [options] = of_kind(execute("photoverse").prompt, "LikenessPhotoVerseOptions")
    [nobody] = execute("photoverse", {(prompt, "strength"): 0.0}).pictures("SaveImage")
    [words] = execute("photoverse", {(options, "sigma"): 0.0}).pictures("SaveImage")
    assert differ(portrait, nobody) and differ(portrait, words) and differ(words, nobody)


@pytest.mark.parametrize("name", ["photomaker", "photomaker_two_people", "photomaker_style"])
def test_the_person_of_photomaker_decides_over_the_portrait(server, execute, name):
    example = execute(name)
    [prompt] = of_kind(example.prompt, "LikenessIdentityPrompt")
    now = {(prompt, "start_at"): 0.0}  # from the first step, because there is one only
    [portrait] = execute(name, now).pictures("SaveImage")
    [nobody] = execute(name, now | {(prompt, "strength"): 0.0}).pictures("SaveImage")
    [another] = execute(name, now | {(prompt, "lora_strength"): 0.0}).pictures("SaveImage")
    assert differ(portrait, nobody) and differ(portrait, another)


def test_photomaker_s_people_stand_at_their_own_words(server, execute):
    """Naming them the other way round changes the image; so does another photo of one of them."""
    name = "photomaker_two_people"
    example = execute(name)
    [prompt] = of_kind(example.prompt, "LikenessIdentityPrompt")
    now = {(prompt, "start_at"): 0.0}
    [portrait] = execute(name, now).pictures("SaveImage")
    [swapped] = execute(name, now | {(prompt, "trigger_word"): "right, left"}).pictures("SaveImage")
    assert differ(portrait, swapped)


@pytest.mark.parametrize("name", ["fastcomposer", "fastcomposer_two_people"])
def test_everybody_of_fastcomposer_decides_over_the_portrait(server, execute, name):
    example = execute(name)
    [prompt], [options] = (
        of_kind(example.prompt, f"Likeness{kind}") for kind in ("IdentityPrompt", "FastComposerOptions")
    )
    now: dict = {(options, "start_step"): -1}  # from the first step, because there is one only
    [portrait] = execute(name, now).pictures("SaveImage")
    [nobody] = execute(name, now | {(prompt, "strength"): 0.0}).pictures("SaveImage")
    assert differ(portrait, nobody)
    if name == "fastcomposer_two_people":
        for strengths in ("0, 1", "1, 0"):
            [one] = execute(name, now | {(options, "strengths"): strengths}).pictures("SaveImage")
            assert differ(one, portrait) and differ(one, nobody)


def test_a_restored_photo_and_a_finished_portrait_change_at_the_face_alone(server, execute, photos):
    for name, scale in (("restore_photo", 1), ("finish_portrait", 2)):
        example = execute(name)
        [picture] = example.pictures("SaveImage")
        [words] = of_kind(example.prompt, "PreviewAny")
        report = example.run.outputs[words]["text"][0]
        assert "1 face:" in report and "likeness" in report and "GFPGAN: Apache-2.0" in report
        assert picture.shape[0] == 512 * scale
    [restored] = execute("restore_photo").pictures("SaveImage")
    original = photos["astronaut"]
    assert (restored[300:] == original[300:]).mean() > 0.99
    assert (restored[60:160, 180:270] == original[60:160, 180:270]).mean() < 0.9


def test_a_detailed_face_changes_alone_and_an_edited_one_comes_back(server, execute, photos, known_faces):
    original = photos["six people"]
    [detailed] = execute("detail_faces").pictures("SaveImage")
    left = min(known_faces["six people"], key=lambda face: face.box[0] + face.box[2])
    same = (detailed == original).all(-1)
    x1, y1, x2, y2 = (int(value) for value in left.box)
    assert same[y1:y2, x1:x2].mean() < 0.7 and same[:, 2 * x2 :].all()
    [edited] = execute("edit_face").pictures("SaveImage")
    changed = (edited != photos["astronaut"]).any(-1)
    assert changed[60:160, 180:270].mean() > 0.5 and not changed[400:].any()


def test_each_of_sefi_ide_s_two_people_decides_over_the_picture(server, execute):
    example = execute("sefi_ide_two_people")
    [both] = example.pictures("SaveImage")
    [prompt] = of_kind(example.prompt, "LikenessSubjectPrompt")
    words = example.run.outputs[of_kind(example.prompt, "PreviewAny")[0]]["text"][0]
    assert "<ohwx> and <sks> in 5 parts of the sampling" in words
    for text in ("a photo of <ohwx> and person in the snow", "a photo of person and <sks> in the snow"):
        assert differ(both, execute("sefi_ide_two_people", {(prompt, "text"): text}).pictures("SaveImage")[0])
