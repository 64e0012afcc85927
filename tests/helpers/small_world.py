"""A tiny MODEL, adapters that fit it on disk, a person and images: what the tests of this folder share."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import official
from likeness.errors import LikenessError
from likeness.faces import Identity

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1280, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_channels": 3, "image_size": 32, "patch_size": 16, "projection_dim": 1024,
    "hidden_act": "gelu",
}  # fmt: skip


class World:
    """A tiny MODEL, adapters that fit it on disk, a CLIP vision model with ViT-H's widths, and the nodes.

    base: of the MODEL, as contract cases name it. channels: of its latents. others: recipes of MODELs that its adapters
    do not fit. kin: what a model of another size is called in sentences.
    """

    base, channels, others, kin = "sd15", 4, ("tiny_flux", "tiny_sdxl"), "SDXL"

    def __init__(self, recipes: Any, folder: Path) -> None:
        from likeness.injection.comfy import sites_of
        from likeness.nodes import (
            adapters,
            blip_diffusion,
            concepts,
            control,
            prompts,
            references,
            sefi_ide,
            storymaker,
        )

        self.recipes, self.folder = recipes, folder
        rooms = (adapters, blip_diffusion, concepts, control, prompts, references, sefi_ide, storymaker)
        self.classes = {cls.GET_SCHEMA().node_id: cls for room in rooms for cls in room.NODES}
        self.model = self.new_model()
        self.sites = sites_of(self.model)
        self.shapes = self.shapes_of_sites()
        self.dim = self.shapes[0][1]
        self.text = [self.conditioning(seed=1), self.conditioning(seed=2)]
        self.clip_vision = self.clip(CLIP)
        self.text_clip = recipes.tiny_clip()

    def new_model(self) -> Any:
        """The MODEL; always the same one."""
        return self.recipes.tiny_sd15()

    def shapes_of_sites(self) -> list[tuple[int, int]]:
        """(width, width of the text) of every place that an adapter reads."""
        return [(site.width, site.context_dim) for site in self.sites]

    def conditioning(self, seed: int, **extra: Any) -> Any:
        """A prompt for the MODEL."""
        return self.recipes.conditioning(self.dim, seed=seed, **extra)

    def controlnet(self, seed: int) -> Any:
        """A ControlNet for the MODEL."""
        return self.recipes.controlnet(self.recipes.SD15_TINY, seed=seed)

    def latents(self, *shape: int) -> tuple[int, int, int, int]:
        """(batch, height, width) with the channels between."""
        return shape[0], self.channels, shape[1], shape[2]

    def sigmas(self, *of_sd15: float) -> Tensor:
        """The MODEL's own noise levels for those of SD1.5."""
        return torch.tensor(of_sd15)

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
            "instantid": lambda: official.resampler(dim, features=512, dim=64, depth=1, seed=seed),
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

    def prompt(self, adapter: Any, identity: Any = None, **inputs: Any) -> tuple[Any, Any, str]:
        """Identity Prompt: MODEL, conditioning and report."""
        given = {"clip": self.text_clip, "model": self.model, "adapter": adapter, **inputs}
        if identity is not None:
            given["identity"] = identity
        conditioning, model, report, _ = self.run("LikenessIdentityPrompt", every=True, **given)
        return model, conditioning, report

    def encoded(self, text: str) -> list[Any]:
        """CLIP Text Encode: the text as the positive, nothing as the negative."""
        return [self.text_clip.encode_from_tokens_scheduled(self.text_clip.tokenize(words)) for words in (text, "")]

    def sample(self, model: Any, **options: Any) -> Tensor:
        return self.recipes.sample(model, *self.text, **{"steps": 2, "shape": self.latents(1, 8, 8), **options})


class FluxWorld(World):
    """The same of a tiny FLUX, which has no cross-attention: an adapter reads the width of its tokens."""

    base, channels, others, kin = "flux", 16, ("tiny_sd15", "tiny_sdxl"), "FLUX"

    def new_model(self) -> Any:
        return self.recipes.tiny_flux(depth=3, depth_single_blocks=6)

    def shapes_of_sites(self) -> list[tuple[int, int]]:
        settings = self.recipes.FLUX_TINY
        return [(settings["hidden_size"], settings["context_in_dim"])]

    def conditioning(self, seed: int, **extra: Any) -> Any:
        pooled = self.recipes.FLUX_TINY["vec_in_dim"]
        return self.recipes.conditioning(self.dim, pooled=pooled, tokens=7, seed=seed, guidance=3.5, **extra)

    def controlnet(self, seed: int) -> Any:
        return self.recipes.flux_controlnet(seed=seed)

    def sigmas(self, *of_sd15: float) -> Tensor:
        noise = torch.tensor(of_sd15)
        return noise / (1 + noise)  # its images are mixed with the noise, not added to it


def person(photos: int = 2, recogniser: str | None = "buffalo_l", seed: int = 0) -> Identity:
    """Seen by the recogniser; by antelopev2 as well, where that is buffalo_l."""
    generator = torch.Generator().manual_seed(seed)

    def crops(side: int) -> Tensor:
        return torch.randint(0, 256, (photos, side, side, 3), generator=generator, dtype=torch.uint8)

    return Identity(
        name="Ada", recogniser=recogniser,
        embeddings=torch.randn(photos, 512 if recogniser else 0, generator=generator) * 20,
        weights=torch.ones(photos), aligned=crops(224), portraits=crops(512), heads=crops(512),
        keypoints=torch.zeros(photos, 5, 2), boxes=torch.zeros(photos, 4),
        photo_sizes=torch.full((photos, 2), 512),
        also={"antelopev2": torch.randn(photos, 512, generator=generator) * 20} if recogniser == "buffalo_l" else {},
    )  # fmt: skip


def pictures(count: int = 1, seed: int = 1, channels: int = 3) -> Tensor:
    return torch.rand(count, 40, 40, channels, generator=torch.Generator().manual_seed(seed))


def same(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding; the tiny models' latents are in the hundreds."""
    return bool((a - b).abs().max() <= 3e-5 * b.abs().max())


def sentence(call: Any, *arguments: Any, **inputs: Any) -> str:
    """What a user reads: a single line that ends."""
    with pytest.raises(LikenessError) as error:
        call(*arguments, **inputs)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def encoded(world: Any, kind: str = "plus", seed: int = 1, **inputs: Any) -> Any:
    return world.run(
        "LikenessEncodeReference", adapter=world.adapter(kind), clip_vision=world.clip_vision,
        image=pictures(seed=seed), **inputs,
    )  # fmt: skip
