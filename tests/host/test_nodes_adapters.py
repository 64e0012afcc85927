"""The adapter and reference nodes in the real host, with tiny models and adapters written to fit them.

What a node promises is looked at in what the MODEL then samples, or in the sentence an artist reads.
"""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.errors import LikenessError
from likeness.faces import Identity

comfyui = sys.modules["likeness_comfyui"]
official = comfyui.load_module("likeness_official", comfyui.REPOSITORY / "tests" / "adapters" / "official.py")

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1280, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_channels": 3, "image_size": 32, "patch_size": 16, "projection_dim": 1024,
    "hidden_act": "gelu",
}  # fmt: skip


# Small world ----------------------------------------------------------------------------------------------------------


class World:
    """A tiny MODEL, adapters that fit it on disk, a CLIP vision model with ViT-H's widths, and the nodes."""

    def __init__(self, recipes: Any, folder: Path) -> None:
        from likeness.injection.comfy import sites_of
        from likeness.nodes import adapters, references

        self.recipes, self.folder = recipes, folder
        self.classes = {cls.GET_SCHEMA().node_id: cls for cls in [*adapters.NODES, *references.NODES]}
        self.model = recipes.tiny_sd15()
        self.sites = sites_of(self.model)
        self.shapes = [(site.width, site.context_dim) for site in self.sites]
        self.dim = self.shapes[0][1]
        self.text = [recipes.conditioning(self.dim, seed=1), recipes.conditioning(self.dim, seed=2)]
        self.clip_vision = self.clip(CLIP)

    def clip(self, config: dict[str, Any]) -> Any:
        from comfy.clip_vision import ClipVisionModel

        path = self.folder / f"clip_{config['hidden_size']}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(config))
        clip = ClipVisionModel(str(path))
        self.recipes.init_randomly(clip.model, seed=4)
        return clip

    def groups(self, kind: str, shapes: Any = None, seed: int = 0) -> dict:
        shapes = shapes or self.shapes
        dim = shapes[0][1]
        projection = {
            "faceid": lambda: official.identity(dim, seed=seed),
            "faceid-plus": lambda: official.identity_plus(dim, depth=1, seed=seed),
            "portrait": lambda: official.identity(dim, 16, seed=seed),
            "plus": lambda: official.resampler(dim, dim=64, depth=1, tokens=4, seed=seed),
            "base": lambda: official.pooled(dim, seed=seed),
        }[kind]()
        return official.groups(projection, shapes, with_lora=kind.startswith("faceid"), seed=seed)

    def file(self, kind: str, name: str | None = None, seed: int = 0) -> str:
        """Write an adapter into models/ipadapter; returns its name in the list."""
        name = name or f"{kind}_{seed}.safetensors"
        if not (self.folder / "ipadapter" / name).exists():
            official.write(self.folder / "ipadapter" / name, self.groups(kind, seed=seed))
        return name

    def adapter(self, kind: str, seed: int = 0) -> Any:
        return self.run("LikenessLoadIdentityAdapter", adapter_file=self.file(kind, seed=seed))

    def run(self, node_id: str, *, every: bool = False, **inputs: Any) -> Any:
        """A node with the defaults of its widgets, as a graph runs it; its first output, or all of them."""
        cls = self.classes[node_id]
        wanted = inspect.signature(cls.execute).parameters
        defaults = {i.id: i.default for i in cls.GET_SCHEMA().inputs if getattr(i, "default", None) is not None}
        with torch.inference_mode():
            output = cls.execute(**{k: v for k, v in defaults.items() if k in wanted} | inputs)
        return output.result if every else output.result[0]

    def options(self, **inputs: Any) -> Any:
        return self.run("LikenessIPAdapterOptions", **inputs)

    def apply(self, adapter: Any, identity: Any = None, **inputs: Any) -> tuple[Any, str]:
        given = {"model": self.model, "adapter": adapter, **inputs}
        if identity is not None:
            given["identity"] = identity
        return self.run("LikenessApplyIdentity", every=True, **given)

    def sample(self, model: Any, **options: Any) -> Tensor:
        return self.recipes.sample(model, *self.text, **{"steps": 2, "shape": (1, 4, 8, 8), **options})


@pytest.fixture(scope="module")
def world(recipes, tmp_path_factory) -> Any:
    import folder_paths

    from likeness.models_download import register_folders

    register_folders()
    folder = tmp_path_factory.mktemp("models")
    kinds = ("ipadapter", "likeness_embeds")
    before = {kind: folder_paths.folder_names_and_paths[kind] for kind in kinds}
    for kind in kinds:
        (folder / kind).mkdir()
        folder_paths.folder_names_and_paths[kind] = ([str(folder / kind)], before[kind][1])
    folder_paths.filename_list_cache.clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(
        1
    )  # the nets are tiny: on a busy machine, threads that wait for each other take ten times as long
    yield World(recipes, folder)
    torch.set_num_threads(threads)
    folder_paths.folder_names_and_paths.update(before)
    folder_paths.filename_list_cache.clear()


@pytest.fixture(scope="module")
def plain(world) -> Tensor:
    return world.sample(world.model)


def person(photos: int = 2, recogniser: str | None = "buffalo_l", seed: int = 0) -> Identity:
    generator = torch.Generator().manual_seed(seed)

    def crops(side: int) -> Tensor:
        return torch.randint(0, 256, (photos, side, side, 3), generator=generator, dtype=torch.uint8)

    return Identity(
        name="Ada", recogniser=recogniser,
        embeddings=torch.randn(photos, 512 if recogniser else 0, generator=generator) * 20,
        weights=torch.ones(photos), aligned=crops(224), portraits=crops(512), heads=crops(512),
        keypoints=torch.zeros(photos, 5, 2), boxes=torch.zeros(photos, 4),
        photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip


def pictures(count: int = 1, seed: int = 1, channels: int = 3) -> Tensor:
    return torch.rand(count, 40, 40, channels, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding; the tiny models' latents are in the hundreds."""
    return bool((a - b).abs().max() <= 3e-5 * b.abs().max())


def sentence(call: Any, *arguments: Any, **inputs: Any) -> str:
    """What an artist reads: a single line that ends."""
    with pytest.raises(LikenessError) as error:
        call(*arguments, **inputs)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# Loading --------------------------------------------------------------------------------------------------------------


def test_the_list_shows_what_lies_in_the_folder(world):
    world.file("faceid")
    world.file("plus", "sub/plus.bin")
    [combo] = [i for i in world.classes["LikenessLoadIdentityAdapter"].define_schema().inputs if i.id == "adapter_file"]
    assert {"faceid_0.safetensors", "sub/plus.bin"} <= set(combo.options)
    assert world.run("LikenessLoadIdentityAdapter", adapter_file="sub/plus.bin").name == "plus.bin"


def test_an_empty_folder_is_explained(world, monkeypatch, tmp_path):
    import folder_paths

    from likeness.nodes.adapters import MINIATURE, NO_FILES

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", ([str(tmp_path)], {".bin"}))
    monkeypatch.setattr(folder_paths, "models_dir", str(tmp_path / "models"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    [combo] = [i for i in world.classes["LikenessLoadIdentityAdapter"].define_schema().inputs if i.id == "adapter_file"]
    assert combo.options == [NO_FILES, MINIATURE]
    text = sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file=NO_FILES)
    assert "models/ipadapter" in text and "likeness models get" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.bin", "gone.bin"),
        ("../secret.bin", "leaves the models folder"),
        ("/etc/passwd", "leaves the models folder"),
    ],
)
def test_a_missing_file_and_one_outside_are_explained(world, name, expected):
    with pytest.raises(LikenessError, match=expected):
        world.run("LikenessLoadIdentityAdapter", adapter_file=name)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "LFS pointer"),
        (b"<html>", "web page"),
        (b"", "damaged"),
        (b"\x20\0\0\0\0\0\0\0{\"a\":{}", "damaged"),
    ],
)  # fmt: skip
def test_a_corrupt_file_is_explained(world, data, expected):
    (world.folder / "ipadapter" / "corrupt.bin").write_bytes(data)
    try:
        assert expected in sentence(world.run, "LikenessLoadIdentityAdapter", adapter_file="corrupt.bin")
    finally:
        (world.folder / "ipadapter" / "corrupt.bin").unlink()


def test_the_version_widget_overrules_the_name_and_knows_its_words(world):
    world.file("faceid-plus")
    for word, variant in (("by file name", "FACEID_PLUS"), ("1", "FACEID_PLUS"), ("2", "FACEID_PLUS_V2")):
        loaded = world.run("LikenessLoadIdentityAdapter", adapter_file="faceid-plus_0.safetensors", plus_version=word)
        assert loaded.adapter.variant.name == variant
    text = sentence(
        world.run, "LikenessLoadIdentityAdapter", adapter_file="faceid-plus_0.safetensors", plus_version="3"
    )
    assert "'3'" in text


def test_a_replaced_file_is_read_again_and_an_unchanged_one_is_not(world):
    node = world.classes["LikenessLoadIdentityAdapter"]
    name = world.file("base", "changing.safetensors")
    first = node.fingerprint_inputs(adapter_file=name)
    assert node.fingerprint_inputs(adapter_file=name) == first
    official.write(world.folder / "ipadapter" / name, world.groups("plus"))
    assert node.fingerprint_inputs(adapter_file=name) != first
    assert node.fingerprint_inputs(adapter_file="gone.bin")


# Applying -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["faceid", "faceid-plus", "portrait", "plus", "base"])
def test_every_kind_of_adapter_changes_the_picture(world, plain, kind):
    pooled = {"options": world.options(image=pictures())} if kind == "base" else {}
    clip = {} if kind in ("faceid", "portrait") else {"clip_vision": world.clip_vision}
    model, report = world.apply(world.adapter(kind), person(), **clip, **pooled)
    heard = world.sample(model)
    assert heard.isfinite().all() and not same(heard, plain)
    assert f"{len(world.sites)} of {len(world.sites)} sites" in report and f"{kind}_0.safetensors" in report
    assert torch.equal(world.sample(world.model), plain), "the given MODEL stays as it is"


def test_the_full_layout_of_sd15_hears_a_faceid_adapter_at_all_16_sites(world, recipes):
    from likeness.injection.comfy import sites_of

    model = recipes.unet(recipes.SD15_SITES)
    shapes = [(site.width, site.context_dim) for site in sites_of(model)]
    official.write(world.folder / "ipadapter" / "full.bin", world.groups("faceid", shapes))
    adapter = world.run("LikenessLoadIdentityAdapter", adapter_file="full.bin")
    applied, report = world.apply(adapter, person(), model=model)
    assert report == (
        "IP-Adapter FaceID (full.bin): 'Ada' as 4 tokens at 16 of 16 sites, from 0 to 1 of the sampling, "
        "LoRA 0.6 on 128 weights."
    )
    shape = (1, 4, 16, 16)
    assert not same(world.sample(applied, shape=shape), world.sample(model, shape=shape))


def test_another_person_gives_another_picture_and_the_same_one_the_same(world):
    adapter = world.adapter("faceid")
    ada, bob = (world.sample(world.apply(adapter, person(seed=seed))[0]) for seed in (0, 1))
    assert not same(ada, bob)
    assert torch.equal(ada, world.sample(world.apply(adapter, person(seed=0))[0]))


@pytest.mark.parametrize(
    ("inputs", "why"),
    [
        ({"weight": 0.0}, "the strength is 0"),
        ({"start_at": 0.5, "end_at": 0.5}, "start 0.5 is not before end 0.5"),
        ({"start_at": 0.8, "end_at": 0.2}, "start 0.8 is not before end 0.2"),
        ({"attn_mask": torch.zeros(1, 64, 64)}, "the mask is empty"),
    ],
)
def test_what_has_no_effect_changes_not_a_bit_and_says_why(world, plain, inputs, why):
    """The LoRA of a FaceID file included."""
    model, report = world.apply(world.adapter("faceid"), person(), **inputs)
    assert torch.equal(world.sample(model), plain)
    assert "has no effect" in report and why in report


@pytest.mark.parametrize("weight", [-1.0, -0.2, 3.0])
def test_strengths_of_either_sign_are_heard(world, plain, weight):
    model, _ = world.apply(world.adapter("portrait"), person(), weight=weight)
    heard = world.sample(model)
    assert heard.isfinite().all() and not same(heard, plain)


@pytest.mark.parametrize("name", ["weight", "start_at", "end_at", "lora_strength"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_no_numbers_are_refused(world, name, value):
    text = sentence(world.apply, world.adapter("faceid"), person(), **{name: value})
    assert "no number" in text and ("strength" if name == "weight" else name) in text


def test_the_window_is_kept(world, plain):
    late, _ = world.apply(world.adapter("portrait"), person(), start_at=0.5)
    steps: list[Tensor] = []
    world.sample(late, steps=4, callback=lambda *a: steps.append(a[1].clone()))
    without: list[Tensor] = []
    world.sample(world.model, steps=4, callback=lambda *a: without.append(a[1].clone()))
    equal = [torch.equal(a, b) for a, b in zip(steps, without, strict=True)]
    assert equal[0] and not equal[-1]


@pytest.mark.parametrize(
    "mask", [torch.rand(64, 64), torch.rand(1, 7, 90), torch.rand(3, 1, 16, 16), torch.rand(5, 8, 8)]
)
def test_masks_of_any_size_and_batch_are_understood(world, mask):
    model, _ = world.apply(world.adapter("portrait"), person(), attn_mask=mask)
    assert world.sample(model, shape=(2, 4, 8, 12), steps=1).isfinite().all()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (torch.full((1, 8, 8), torch.nan), "NaN"),
        (torch.zeros(0, 8, 8), "empty"),
        (torch.zeros(1, 8, 8, 3), "connect a MASK"),
    ],
)
def test_masks_that_are_none_are_refused(world, mask, expected):
    assert expected in sentence(world.apply, world.adapter("portrait"), person(), attn_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["faceid", "portrait"])
def test_models_in_half_precision_work(world, recipes, dtype, kind):
    base = recipes.unet(recipes.SD15_TINY, dtype=dtype)
    model, _ = world.apply(world.adapter(kind), person(), model=base)
    low = world.sample(model)
    assert low.isfinite().all()
    exact = world.sample(world.apply(world.adapter(kind), person())[0])
    assert (low - exact).abs().mean() < 0.25 * exact.abs().mean()


# Wrong together -------------------------------------------------------------------------------------------------------


def test_an_sdxl_adapter_on_another_model_is_named(world, recipes):
    official.write(world.folder / "ipadapter" / "sdxl.safetensors", world.groups("base", official.SDXL))
    sdxl = world.run("LikenessLoadIdentityAdapter", adapter_file="sdxl.safetensors")
    for model in (world.model, recipes.unet(recipes.SD15_SITES)):
        text = sentence(world.apply, sdxl, model=model)
        assert "'sdxl.safetensors' was made for SDXL (70 cross-attention layers" in text
        assert "MODEL is SD15" in text
    text = sentence(world.apply, sdxl, model=recipes.tiny_flux())
    assert "works with SD1.5 and SDXL models" in text and "Flux" in text


def test_a_pruned_model_is_refused_in_words(world, recipes):
    pruned = recipes.tiny_sd15(transformer_depth=[0, 1], transformer_depth_output=[0, 0, 1, 1])
    text = sentence(world.apply, world.adapter("faceid"), person(), model=pruned)
    assert "7 cross-attention layers" in text and "4 cross-attention layers" in text


def test_what_is_missing_is_asked_for(world):
    assert "Identity from Photos or Load Identity" in sentence(world.apply, world.adapter("faceid"))
    assert "connect ViT-H/14 to clip_vision" in sentence(world.apply, world.adapter("plus"), person())
    assert "reference image" in sentence(world.apply, world.adapter("base"), clip_vision=world.clip_vision)
    assert "has none" in sentence(world.apply, world.adapter("faceid"), person(recogniser=None))


def test_another_recogniser_is_refused_unless_allowed(world):
    stranger = person(recogniser="antelopev2")
    assert "made with antelopev2" in sentence(world.apply, world.adapter("faceid"), stranger)
    model, _ = world.apply(world.adapter("faceid"), stranger, options=world.options(any_recogniser=True))
    assert world.sample(model).isfinite().all()


def test_the_wrong_encoder_is_named(world):
    small = world.clip({**CLIP, "hidden_size": 768, "projection_dim": 512})
    for kind in ("plus", "base"):
        text = sentence(world.apply, world.adapter(kind), person(), clip_vision=small)
        assert "needs ViT-H/14" in text


@pytest.mark.parametrize("channels", [1, 4], ids=["grey", "with alpha"])
def test_grey_references_and_ones_with_alpha_work(world, channels):
    options = world.options(image=pictures(channels=channels))
    model, _ = world.apply(world.adapter("plus"), clip_vision=world.clip_vision, options=options)
    assert world.sample(model).isfinite().all()


@pytest.mark.parametrize("name", ["image", "image_negative", "image_composition"])
@pytest.mark.parametrize("bad", [torch.zeros(0, 8, 8, 3), torch.full((1, 8, 8, 3), torch.nan)], ids=["empty", "NaN"])
def test_pictures_that_are_none_are_refused_by_name(world, name, bad):
    assert f" {name} " in sentence(world.options, **{name: bad})


@pytest.mark.parametrize(
    "name", ["weight_type", "combine_embeds", "embeds_scaling", "crop", "unconditional", "mask_resize"]
)
def test_words_that_are_no_choice_are_refused(world, name):
    """The host does not check what a workflow file puts into a combo."""
    text = sentence(world.options, **{name: "strongest"})
    assert "'strongest'" in text and name in text


@pytest.mark.parametrize("value", ["1.0, x", "nan", "1;;"])
def test_weights_per_picture_that_are_none_are_refused(world, value):
    sentence(world.options, picture_weights=value)


@pytest.mark.parametrize(
    "name", ["weight_faceidv2", "weight_composition", "precise_boost", "sharpening", "detail_share"]
)
def test_options_that_are_no_numbers_are_refused(world, name):
    assert "no number" in sentence(world.options, **{name: float("nan")})


# Options --------------------------------------------------------------------------------------------------------------


def test_untouched_options_change_nothing(world):
    without, _ = world.apply(world.adapter("plus"), person(), clip_vision=world.clip_vision)
    with_options, _ = world.apply(
        world.adapter("plus"), person(), clip_vision=world.clip_vision, options=world.options()
    )
    assert torch.equal(world.sample(without), world.sample(with_options))


@pytest.mark.parametrize(
    "inputs",
    [
        {"weight_type": "ease in"}, {"weight_type": "weak middle"}, {"layer_weights": "0:1.0, middle:2"},
        {"embeds_scaling": "K+V w/ C penalty"}, {"combine_embeds": "average"}, {"unconditional": "black image"},
        {"picture_weights": "0.3"}, {"detail_tiles": 2}, {"tiled": True, "image": pictures()},
        {"image_negative": pictures(seed=5)}, {"image": pictures(2)}, {"crop": "pad", "image": pictures()[:, :20]},
        {"unfold_batch": True}, {"sharpening": 0.8}, {"image": pictures(), "reference_mask": torch.eye(40)[None]},
    ],
    ids=lambda inputs: ", ".join(f"{k}" for k in inputs),
)  # fmt: skip
def test_every_option_is_heard(world, inputs):
    adapter = world.adapter("plus")
    reference = {"image": inputs["image"]} if set(inputs) & {"crop", "reference_mask", "tiled"} else {}
    base, _ = world.apply(adapter, person(), clip_vision=world.clip_vision, options=world.options(**reference))
    model, _ = world.apply(adapter, person(), clip_vision=world.clip_vision, options=world.options(**inputs))
    heard = world.sample(model, shape=(2, 4, 8, 8))
    assert heard.isfinite().all()
    assert not same(heard, world.sample(base, shape=(2, 4, 8, 8)))


def test_style_and_composition_need_a_known_layout(world):
    text = sentence(
        world.apply, world.adapter("plus"), person(), clip_vision=world.clip_vision,
        options=world.options(weight_type="style transfer"),
    )  # fmt: skip
    assert "SD1.5 and SDXL only" in text


def test_options_about_pictures_do_faceid_no_harm_and_the_report_says_so(world):
    options = world.options(image_negative=pictures(), tiled=True, image_composition=pictures())
    model, report = world.apply(world.adapter("faceid"), person(), options=options)
    expected, _ = world.apply(world.adapter("faceid"), person())
    assert torch.equal(world.sample(model), world.sample(expected))
    assert "image_negative, image_composition, tiled" in report


def test_structure_matters_to_version_2_alone(world):
    outputs = {}
    for version in ("1", "2"):
        adapter = world.run("LikenessLoadIdentityAdapter", adapter_file=world.file("faceid-plus"), plus_version=version)
        outputs[version] = [
            world.sample(
                world.apply(
                    adapter, person(1), clip_vision=world.clip_vision, options=world.options(weight_faceidv2=s)
                )[0]
            )
            for s in (0.2, 1.0)
        ]
    assert torch.equal(*outputs["1"]) and not same(*outputs["2"])


# Several people -------------------------------------------------------------------------------------------------------


def test_two_people_with_masks_chain_and_share_the_lora(world):
    adapter, left, right = world.adapter("faceid"), torch.zeros(1, 8, 8), torch.zeros(1, 8, 8)
    left[..., :4], right[..., 4:] = 1, 1
    ada, bob = person(seed=0), person(seed=1)
    one, _ = world.apply(adapter, ada, attn_mask=left)
    both, report = world.apply(adapter, bob, attn_mask=right, model=one)
    other_way, _ = world.apply(adapter, ada, attn_mask=left, model=world.apply(adapter, bob, attn_mask=right)[0])
    assert same(world.sample(both), world.sample(other_way))
    assert not same(world.sample(both), world.sample(one))
    assert all(len(patches) == 1 for patches in both.patches.values()), "the LoRA is there once"
    assert "sites" in report


def test_the_second_person_can_raise_the_lora_but_not_lower_it(world):
    adapter = world.adapter("faceid")
    one, _ = world.apply(adapter, person(), lora_strength=0.4)

    def total(model: Any) -> float:
        return sum(patch[0] for patch in next(iter(model.patches.values())))

    assert total(world.apply(adapter, person(), model=one, lora_strength=1.0)[0]) == pytest.approx(1.0)
    assert total(world.apply(adapter, person(), model=one, lora_strength=0.1)[0]) == pytest.approx(0.4)
    assert total(one) == pytest.approx(0.4), "the branch before is left as it was"


def test_loras_of_two_adapters_of_one_name_are_both_applied(world):
    official.write(world.folder / "ipadapter" / "a" / "adapter.bin", world.groups("faceid", seed=1))
    official.write(world.folder / "ipadapter" / "b" / "adapter.bin", world.groups("faceid", seed=2))
    first, second = (world.run("LikenessLoadIdentityAdapter", adapter_file=f"{folder}/adapter.bin") for folder in "ab")
    both, _ = world.apply(second, person(), model=world.apply(first, person())[0])
    assert all(len(patches) == 2 for patches in both.patches.values())


# LoRA -----------------------------------------------------------------------------------------------------------------


def loaded_weights(model: Any) -> dict[str, Tensor]:
    """The denoiser's weights as they are while this MODEL is loaded."""
    import comfy.model_management as mm

    mm.load_models_gpu([model], force_patch_weights=True)
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def lora_targets(world: Any, adapter: Any) -> dict[str, Any]:
    """weight name -> its pair."""
    places = {}
    for pair in adapter.adapter.lora_pairs():
        site = world.sites[pair.slot // 2]
        places[f"diffusion_model.{site.comfy_path}.attn{pair.slot % 2 + 1}.{pair.layer}.weight"] = pair
    return places


def test_the_lora_changes_the_weights_and_is_gone_after_unloading(world):
    adapter = world.adapter("faceid")
    before = loaded_weights(world.model)
    model, report = world.apply(adapter, person(), lora_strength=0.7)
    targets = lora_targets(world, adapter)
    assert f"LoRA 0.7 on {len(targets)} weights" in report
    after = loaded_weights(model)
    for name, value in after.items():
        expected = before[name]
        if name in targets:
            expected = expected + 0.7 * targets[name].up @ targets[name].down
            assert not torch.allclose(value, before[name], atol=1e-4)
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5)
    model.detach()
    restored = {name: value.clone() for name, value in world.model.model.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in restored.items())


def test_a_lora_of_strength_zero_is_no_patch(world):
    model, report = world.apply(world.adapter("faceid"), person(), lora_strength=0.0)
    assert not model.patches and "LoRA" not in report


def test_a_lora_loaded_by_another_node_is_not_added_again(world):
    """The companion file holds the same matrices; the leading pack's loader has often put it on the MODEL already."""
    import comfy.lora

    adapter = world.adapter("faceid")
    targets = lora_targets(world, adapter)
    companion = {}
    for number, pair in enumerate(targets.values()):
        companion[f"{number}.lora_up.weight"], companion[f"{number}.lora_down.weight"] = pair.up, pair.down
    base = world.model.clone()
    base.add_patches(comfy.lora.load_lora(companion, {str(n): name for n, name in enumerate(targets)}), 0.8)
    model, report = world.apply(adapter, person(), model=base)
    assert all(len(patches) == 1 for patches in model.patches.values())
    assert "from another node" in report


# Scale Identities -----------------------------------------------------------------------------------------------------


def test_scaling_multiplies_every_identity(world, plain):
    adapter = world.adapter("portrait")
    full, half = (world.apply(adapter, person(), weight=w)[0] for w in (1.0, 0.5))
    assert same(world.sample(world.run("LikenessScaleIdentities", model=full, factor=0.5)), world.sample(half))
    assert torch.equal(world.sample(world.run("LikenessScaleIdentities", model=full, factor=0.0)), plain)
    assert "connect it after Apply Identity" in sentence(
        world.run, "LikenessScaleIdentities", model=world.model, factor=1.0
    )
    assert "no number" in sentence(world.run, "LikenessScaleIdentities", model=full, factor=float("nan"))


# The leading pack's socket --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "unified"])
def test_adapters_of_the_leading_pack_s_loaders_fit_the_socket(world, form):
    groups = world.groups("faceid")
    raw = {**groups, "faceidplusv2": False, "portraitunnorm": False}
    value = raw if form == "raw" else {
        "clipvision": {"file": None, "model": None},
        "ipadapter": {"file": "faceid.bin", "model": raw},
        "insightface": {"provider": None, "model": None},
    }  # fmt: skip
    model, report = world.apply(value, person())
    assert same(world.sample(model), world.sample(world.apply(world.adapter("faceid"), person())[0]))
    assert "adapter from another pack" in report


@pytest.mark.parametrize(("flag", "structured"), [(True, True), (False, False)])
def test_the_leading_pack_s_word_on_the_version_is_taken(world, flag, structured):
    raw = {**world.groups("faceid-plus"), "faceidplusv2": flag}
    low, high = (
        world.sample(
            world.apply(raw, person(1), clip_vision=world.clip_vision, options=world.options(weight_faceidv2=s))[0]
        )
        for s in (0.1, 1.0)
    )
    assert same(low, high) is not structured


@pytest.mark.parametrize(
    "value",
    [{}, {"ipadapter": None}, {"ipadapter": {"file": None, "model": None}}, {"image_proj": {}}, "text", None, 7],
    ids=str,
)
def test_a_socket_without_an_adapter_is_explained(world, value):
    assert "Load Identity Adapter" in sentence(world.apply, value, person())


# Encodings ------------------------------------------------------------------------------------------------------------


def encoded(world: Any, kind: str = "plus", seed: int = 1, **inputs: Any) -> Any:
    return world.run(
        "LikenessEncodeReference", adapter=world.adapter(kind), clip_vision=world.clip_vision,
        image=pictures(seed=seed), **inputs,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["plus", "base"])
def test_an_encoded_reference_does_what_the_picture_does_without_the_encoder(world, kind):
    adapter = world.adapter(kind)
    options = world.options(embeds=encoded(world, kind))
    from_embeds, _ = world.apply(adapter, options=options)
    from_picture, _ = world.apply(adapter, clip_vision=world.clip_vision, options=world.options(image=pictures()))
    assert same(world.sample(from_embeds), world.sample(from_picture))


def test_embeds_survive_saving_and_loading(world):
    embeds = encoded(world)
    names = [world.run("LikenessSaveEmbeds", embeds=embeds, filename="my/reference") for _ in range(2)]
    assert names == ["my/reference.safetensors", "my/reference_2.safetensors"], "nothing is overwritten"
    again = world.run("LikenessLoadEmbeds", file=names[0])
    assert torch.equal(again.cond, embeds.cond) and torch.equal(again.uncond, embeds.uncond)
    assert (again.adapter, again.encoder) == (embeds.adapter, embeds.encoder)
    [combo] = world.classes["LikenessLoadEmbeds"].define_schema().inputs
    assert set(names) <= set(combo.options)


@pytest.mark.parametrize("name", ["", "  ", "../outside", "/etc/x", "a/../../b", "c:x", "x\0y"])
def test_names_that_lead_out_of_the_folder_are_refused(world, name):
    text = sentence(world.run, "LikenessSaveEmbeds", embeds=encoded(world), filename=name)
    assert "does not name a file inside models/likeness_embeds" in text


def test_embeds_that_are_not_there_or_damaged_are_explained(world):
    from likeness.nodes.references import NO_EMBEDS

    assert "no saved embeds yet" in sentence(world.run, "LikenessLoadEmbeds", file=NO_EMBEDS)
    with pytest.raises(LikenessError, match="gone"):
        world.run("LikenessLoadEmbeds", file="gone.safetensors")
    (world.folder / "likeness_embeds" / "bad.ipadpt").write_bytes(b"nonsense")
    assert "save the embeddings again" in sentence(world.run, "LikenessLoadEmbeds", file="bad.ipadpt")


def test_the_leading_pack_s_embeds_are_read(world):
    torch.save(torch.rand(1, 5, 1280), world.folder / "likeness_embeds" / "theirs.ipadpt")
    embeds = world.run("LikenessLoadEmbeds", file="theirs.ipadpt")
    assert embeds.uncond is None and embeds.adapter is None
    model, _ = world.apply(world.adapter("plus"), clip_vision=world.clip_vision, options=world.options(embeds=embeds))
    assert world.sample(model).isfinite().all()


def test_embeds_of_another_adapter_are_refused(world):
    text = sentence(world.apply, world.adapter("base"), options=world.options(embeds=encoded(world, "plus")))
    assert "IP-Adapter Plus" in text and "encode the pictures again" in text
    text = sentence(
        world.run, "LikenessCombineEmbeds", embeds_1=encoded(world), method="concat", embeds_2=encoded(world, "base")
    )
    assert "different adapters or encoders" in text


@pytest.mark.parametrize(
    ("method", "rows"),
    [("concat", 2), ("add", 1), ("subtract", 1), ("average", 1), ("norm average", 1), ("max", 1), ("min", 1)],
)
def test_embeds_combine(world, method, rows):
    one, two = encoded(world, seed=1), encoded(world, seed=2)
    both = world.run("LikenessCombineEmbeds", embeds_1=one, method=method, embeds_2=two)
    assert both.cond.shape == (rows, *one.cond.shape[1:]) and len(both.uncond) == 1
    model, _ = world.apply(world.adapter("plus"), options=world.options(embeds=both))
    assert world.sample(model).isfinite().all()
    alone = world.run("LikenessCombineEmbeds", embeds_1=one, method=method)
    assert torch.equal(alone.cond, one.cond)


def test_combining_and_encoding_check_their_words(world):
    assert "'most'" in sentence(world.run, "LikenessCombineEmbeds", embeds_1=encoded(world), method="most")
    assert "'round'" in sentence(encoded, world, crop="round")
    assert "no number" in sentence(encoded, world, weight=float("nan"))


def test_encoding_masks_weighs_and_refuses(world):
    assert torch.equal(encoded(world, weight=0.5).cond, encoded(world).cond * 0.5)
    hidden = encoded(world, mask=torch.zeros(1, 8, 8))
    torch.testing.assert_close(hidden.cond, hidden.uncond)
    assert "3 reference masks" in sentence(encoded, world, mask=torch.ones(3, 8, 8))
    assert "save the identity instead" in sentence(encoded, world, "faceid")
    small = world.clip({**CLIP, "hidden_size": 768, "projection_dim": 512})
    text = sentence(
        world.run, "LikenessEncodeReference", adapter=world.adapter("plus"), clip_vision=small, image=pictures()
    )
    assert "needs ViT-H/14" in text


# Schedules and pictures -----------------------------------------------------------------------------------------------


def schedule(world: Any, **inputs: Any) -> tuple:
    return world.run("LikenessWeightSchedule", every=True, **inputs)


def test_a_schedule_feeds_the_options(world):
    weights, inverted, frames, first, second = schedule(world, weights="1.0, 0.0", frames=3, image=pictures(2))
    assert (weights, inverted, frames) == ("1, 0.5, 0", "0, 0.5, 1", 3)
    assert first.shape == (3, 40, 40, 3) and second is None
    options = world.options(picture_weights=weights)
    model, _ = world.apply(world.adapter("portrait"), person(), options=options)
    three = world.sample(model, shape=(3, 4, 8, 8))
    without = world.sample(world.model, shape=(3, 4, 8, 8))
    assert same(three[2], without[2]) and not same(three[0], without[0])


@pytest.mark.parametrize("timing", ["linear", "ease_in", "ease_out", "ease_in_out", "random"])
def test_a_schedule_survives_a_single_frame(world, timing):
    weights, _, frames, *_ = schedule(world, timing=timing, frames=1)
    assert frames == 1 and 0 <= float(weights) <= 1


@pytest.mark.parametrize("method", ["shift batches", "alternate batches"])
def test_pictures_share_the_frames(world, method):
    _, _, frames, first, second = schedule(world, frames=4, method=method, image=pictures(3))
    assert len(first) == len(second) == frames == 8


def test_a_schedule_refuses_what_it_cannot_read(world):
    for weights in ("", "1, x", "nan", "1,,inf"):
        sentence(schedule, world, weights=weights)
    assert "'soon'" in sentence(schedule, world, timing="soon")
    assert "'all'" in sentence(schedule, world, method="all")
    assert "frames" in sentence(schedule, world, frames=0)


def test_random_timing_follows_the_seed(world):
    first, again, other = (schedule(world, timing="random", seed=s)[0] for s in (2**64 - 1, 2**64 - 1, 3))
    assert first == again != other


@pytest.mark.parametrize("crop", ["center", "top", "bottom", "left", "right", "pad", "squash"])
def test_a_reference_is_made_square(world, crop):
    square = world.run("LikenessPrepareReference", image=pictures()[:, :30], crop=crop, sharpening=0.5, size=64)
    assert square.shape == (1, 64, 64, 3) and square.min() >= 0 and square.max() <= 1


@pytest.mark.parametrize("kind", ["fade", "dissolve", "gaussian", "shuffle"])
def test_noise_follows_the_seed_and_leaves_the_global_one_alone(world, kind):
    state = torch.random.get_rng_state()
    first, again, other = (
        world.run("LikenessReferenceNoise", image=pictures(channels=4), kind=kind, seed=seed, blur=2)
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    still = world.run("LikenessReferenceNoise", image=pictures(), kind=kind, strength=0.0)
    torch.testing.assert_close(still, pictures())


def test_helpers_refuse_pictures_and_words_that_are_none(world):
    for node, word in (("LikenessPrepareReference", "crop"), ("LikenessReferenceNoise", "kind")):
        assert "empty" in sentence(world.run, node, image=torch.zeros(0, 8, 8, 3))
        assert "'odd'" in sentence(world.run, node, image=pictures(), **{word: "odd"})
    assert "'odd'" in sentence(world.run, "LikenessPrepareReference", image=pictures(), interpolation="odd")
    assert "no number" in sentence(world.run, "LikenessReferenceNoise", image=pictures(), strength=float("nan"))


def test_an_identity_s_weights_reach_the_picture(world):
    adapter, ada = world.adapter("faceid"), person(2)
    only_first = replace(ada, weights=torch.tensor([1.0, 0.0]))
    one, other = world.sample(world.apply(adapter, only_first)[0]), world.sample(world.apply(adapter, ada.take([0]))[0])
    assert same(one, other)
