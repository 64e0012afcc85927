"""A node for the tests' server that stands for Load Checkpoint with FLUX: the real one's text encoder has 4.7 billion
parameters. A file of `custom_nodes`, which imports nothing of the tests but the recipes, by their path."""

import importlib.util
from pathlib import Path

RECIPES = Path(__file__).resolve().with_name("recipes.py")  # the file itself, also where it is a link


class TinyFlux:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"ckpt_name": ("STRING", {"default": ""})}}

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "tests"

    def load(self, ckpt_name):
        spec = importlib.util.spec_from_file_location("tiny_flux_recipes", RECIPES)
        assert spec and spec.loader
        recipes = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(recipes)
        clip = recipes.tiny_clip()
        model = recipes.tiny_flux(depth=3, depth_single_blocks=6, context_in_dim=64, vec_in_dim=64)
        return model, clip, recipes.tiny_vae(channels=16)


NODE_CLASS_MAPPINGS = {"LikenessTestTinyFlux": TinyFlux}
