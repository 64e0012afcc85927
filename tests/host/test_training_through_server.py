"""Training in the real server: graphs that are cancelled, resumed and whose results are used by the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.datasets import SIDE, dataset, reading
from helpers.server import RunInterrupted
from PIL import Image
from safetensors.torch import load_file


def shown_from(folder: Path) -> dict:
    """Three photos with masks in a new folder of the host's input, as the node that reads them."""
    folder.mkdir()
    for number, sample in enumerate(dataset(count=3).pictures):
        Image.fromarray(sample.pixels).save(folder / f"{number}.png")
        Image.fromarray(sample.mask).save(folder / f"{number}.mask.png")  # type: ignore[arg-type]
    return {"class_type": "LikenessPortraitDataset", "inputs": reading(folder.name)}


def painting(tuned: str, vae: list, prompt: str) -> dict:
    """Nodes 4 to 9: an image by node `tuned`, whose first outputs are MODEL and CLIP."""
    return {
        "4": {
            "class_type": "CLIPTextEncode",
            "inputs": {"clip": [tuned, 1], "text": prompt},
        },
        "5": {"class_type": "CLIPTextEncode", "inputs": {"clip": [tuned, 1], "text": ""}},
        "6": {"class_type": "EmptyLatentImage", "inputs": {"width": SIDE, "height": SIDE, "batch_size": 1}},
        "7": {
            "class_type": "KSampler",
            "inputs": {
                "model": [tuned, 0],
                "positive": ["4", 0],
                "negative": ["5", 0],
                "latent_image": ["6", 0],
                "seed": 1,
                "steps": 2,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["7", 0], "vae": vae}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "trained"}},
    }


@pytest.mark.slow
def test_training_cancelling_resuming_and_using_the_result(server, client, small_checkpoint):
    shown, steps = shown_from(server.base / "input" / "train_and_use"), 8

    def graph(name):
        return {
            "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": small_checkpoint}},
            "2": shown,
            "3": {
                "class_type": "LikenessTrainTextualInversion",
                "inputs": {
                    "dataset": ["2", 0],
                    "model": ["1", 0],
                    "clip": ["1", 1],
                    "vae": ["1", 2],
                    "name": name,
                    "steps": steps,
                    "learning_rate": 0.01,
                    "vectors": 1,
                    "start_words": "",
                    "seed": 3,
                    "sample_prompts": "",
                    "preview_every": 4,
                    "batch_size": 1,
                    "precision": "auto",
                    "gradient_checkpointing": False,
                    "save_every": 1000,
                    "tether": "norm",
                    "mask": "none",
                },
            },
            **painting("3", ["1", 2], f"a photo of a embedding:{name} person"),
            "10": {"class_type": "PreviewImage", "inputs": {"images": ["3", 3]}},
            "11": {"class_type": "PreviewImage", "inputs": {"images": ["3", 4]}},
        }

    def cancel(kind, data):
        if kind == "progress" and data["node"] == "3" and data["max"] == steps and data["value"] >= 2:
            client.interrupt()

    with pytest.raises(RunInterrupted):
        client.run(graph("cut"), on_event=cancel, timeout=500)
    runs = server.base / "output" / "likeness" / "runs"
    stopped = torch.load(runs / "cut" / "1-inversion" / "state.pt", weights_only=True)["step"]
    assert 2 <= stopped < steps
    words = server.base / "models" / "embeddings"
    assert not (words / "cut.safetensors").exists()

    resumed = client.run(graph("cut"), timeout=500)
    values = [value for node, value, maximum in resumed.progress if node == "3" and maximum == steps]
    assert min(values) == stopped + 1 and max(values) == steps
    assert resumed.previews
    assert "in prompts: embedding:cut" in resumed.outputs["3"]["text"][0]
    for number in ("9", "10", "11"):
        assert all(picture.std() > 3 for picture in client.images(resumed, number))
    [portrait] = client.images(resumed, "9")

    runs.rename(runs.with_name("forgotten"))  # or it would be the same training under another name
    whole = client.run(graph("whole"), timeout=500)
    assert max(value for node, value, maximum in whole.progress if node == "3" and maximum == steps) == steps
    cut, uncut = (load_file(words / f"{name}.safetensors") for name in ("cut", "whole"))
    assert cut.keys() == uncut.keys() and all(torch.equal(cut[key], uncut[key]) for key in cut)
    assert np.array_equal(client.images(whole, "9")[0], portrait)
    assert "3" in client.run(graph("whole")).cached
    assert Path(runs / "whole" / "losses.png").is_file()


@pytest.mark.slow
def test_a_checkpoint_of_all_weights_paints_in_load_checkpoint_as_it_was_trained(server, client, small_checkpoint):
    prompt = "a photo of a ohwx person"
    loaded = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": small_checkpoint}}
    untrained = client.run({"1": loaded, **painting("1", ["1", 2], prompt)}, timeout=500)
    training = {
        "1": loaded,
        "2": shown_from(server.base / "input" / "all_weights"),
        "3": {
            "class_type": "LikenessTrainDreamBooth",
            "inputs": {
                "dataset": ["2", 0],
                "model": ["1", 0],
                "clip": ["1", 1],
                "vae": ["1", 2],
                "name": "whole",
                "steps": 2,
                "learning_rate": 3e-4,
                "rank": 4,
                "layers": "attention",
                "train_text_encoder": True,
                "prior_weight": 0.0,
                "class_pictures": 1,
                "seed": 3,
                "sample_prompts": "",
                "preview_every": 0,
                "batch_size": 1,
                "precision": "auto",
                "gradient_checkpointing": False,
                "save_every": 1000,
                "mask": "none",
                "tuned": "all weights (checkpoint)",
            },
        },
        **painting("3", ["1", 2], prompt),
    }
    trained = client.run(training, timeout=500)
    assert "checkpoint: whole.safetensors" in trained.outputs["3"]["text"][0]
    saved = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "whole.safetensors"}}
    again = client.run({"1": saved, **painting("1", ["1", 2], prompt)}, timeout=500)
    before, tuned, reloaded = (client.images(run, "9")[0].astype(float) for run in (untrained, trained, again))
    assert np.abs(tuned - reloaded).mean() < 0.05 * np.abs(tuned - before).mean()
