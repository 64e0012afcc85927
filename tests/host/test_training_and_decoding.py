"""One server, one VAE: trainings copy it, VAE Decode goes on using it, and neither notices the other."""

from __future__ import annotations

import comfyui
import numpy as np
import pytest
from helpers.datasets import reading
from PIL import Image

REPOSITORY = comfyui.REPOSITORY
SIDE = 128


def _painted(model: list, clip: list, first: int, prompt: str) -> dict:
    """Nodes from number `first` on: an image by Load Miniature's VAE, which is node 1."""
    n = [str(first + number) for number in range(6)]
    return {
        n[0]: {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": prompt}},
        n[1]: {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        n[2]: {"class_type": "EmptyLatentImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1}},
        n[3]: {
            "class_type": "KSampler",
            "inputs": {
                "model": model,
                "positive": [n[0], 0],
                "negative": [n[1], 0],
                "latent_image": [n[2], 0],
                "seed": 1,
                "steps": 2,
                "cfg": 2.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        n[4]: {"class_type": "VAEDecode", "inputs": {"samples": [n[3], 0], "vae": ["1", 2]}},
        n[5]: {"class_type": "SaveImage", "inputs": {"images": [n[4], 0], "filename_prefix": f"decoded_{first}"}},
    }


@pytest.mark.slow
def test_training_then_vae_decode_then_training_again(server, client):
    folder = server.base / "input" / "miniature_person"
    folder.mkdir()
    for number in (1, 2):
        photo = Image.open(REPOSITORY / "workflows" / f"miniature_person_{number}.png")
        photo.save(folder / f"{number}.png")
        Image.new("L", photo.size, 255).save(folder / f"{number}.mask.png")
    dataset = reading(folder.name, SIDE)
    from_miniature = {"dataset": ["2", 0], "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "sample_prompts": ""}
    settings = {"seed": 3, "preview_every": 0, "batch_size": 1, "precision": "auto", "gradient_checkpointing": False}
    trained = {
        "1": {"class_type": "LikenessLoadMiniature", "inputs": {}},
        "2": {"class_type": "LikenessPortraitDataset", "inputs": dataset},
        "3": {
            "class_type": "LikenessTrainDreamBooth",
            "inputs": {
                **from_miniature,
                **settings,
                "steps": 2,
                "learning_rate": 3e-4,
                "rank": 2,
                "layers": "attention",
                "train_text_encoder": False,
                "prior_weight": 0.0,
                "class_pictures": 1,
                "save_every": 1000,
                "mask": "none",
                "tuned": "LoRA",
            },
        },
    }
    portrait = _painted(["3", 0], ["3", 1], 10, "a photo of a person")
    pictures = []
    for name in ("first", "second"):
        trained["3"]["inputs"]["name"] = name
        plain = _painted(["1", 0], ["1", 1], 20, "a photo of a person" + (" smiling" if name == "second" else ""))
        done = client.run({**trained, **portrait, **plain}, timeout=300)
        assert "3" in done.executed and "24" in done.executed
        pictures.append(client.images(done, "15")[0])
        plain = _painted(["1", 0], ["1", 1], 30 if name == "first" else 40, "a person")
        pictures.append(client.images(client.run({"1": trained["1"], **plain}), "35" if name == "first" else "45")[0])
    assert np.array_equal(pictures[0], pictures[2])  # the same training under another name
    assert np.array_equal(pictures[1], pictures[3]) and pictures[1].std() > 3  # decoded between and after the trainings
