"""The demonstration's images from the real ComfyUI: its server, and the API workflow that the pack ships."""

from __future__ import annotations

import copy
import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..errors import LikenessError
from ..faces import read_photo
from .comfyui_server import HOW_TO_GET_IT, PACK, all_comfyui, named_places, started, usual_places

WORKFLOW = PACK / "workflows" / "api" / "miniature_portrait.api.json"
_PATIENCE = 180.0  # seconds for a start, and for an image
Graph = dict[str, dict[str, Any]]


def find_comfyui() -> Path:
    """The first of `COMFYUI_PATH`, `.comfyui/` in this checkout, and comfy-cli's folder. LikenessError for none."""
    found = all_comfyui(named_places() + usual_places())
    if not found:
        raise LikenessError(f"ComfyUI was not found: {HOW_TO_GET_IT}.")
    return found[0]


def paint_in_comfyui(photos: Sequence[np.ndarray], prompts: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Images (prompts, H, W, 3) RGB 0..1 without and with the person of the photos (H, W, 3) uint8."""
    from PIL import Image

    from .demo import WITH, WITHOUT

    template: Graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    with TemporaryDirectory(prefix="likeness-comfyui-") as folder, _server(find_comfyui(), Path(folder)) as address:
        names = [f"photo-{number}.png" for number in range(len(photos))]
        for name, photo in zip(names, photos, strict=True):
            Image.fromarray(photo).save(Path(folder) / "input" / name)
        made = {}
        for method, strength in ((WITHOUT, 0.0), (WITH, 1.0)):
            pictures = []
            for number, prompt in enumerate(tqdm(prompts, desc=f"ComfyUI {method}", unit="picture")):
                graph = filled_graph(template, names, prompt, seed + number, strength)
                pictures.append(_picture(address, Path(folder) / "output", graph))
            made[method] = torch.from_numpy(np.stack(pictures)).float() / 255
        return made


def filled_graph(template: Graph, photos: Sequence[str], prompt: str, seed: int, strength: float) -> Graph:
    """The shipped graph for these input files, prompt and seed; strength 0 is the image without the person."""
    graph = copy.deepcopy(template)
    first = _only(graph, "LoadImage")
    graph[first]["inputs"]["image"] = photos[0]
    batch: list[Any] = [first, 0]
    for number, name in enumerate(photos[1:]):
        graph[f"photo-{number}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
        both = {"image1": batch, "image2": [f"photo-{number}", 0]}
        graph[f"batch-{number}"] = {"class_type": "ImageBatch", "inputs": both}
        batch = [f"batch-{number}", 0]
    graph[_only(graph, "LikenessFindFaces")]["inputs"]["image"] = batch
    sampler = graph[_only(graph, "KSampler")]["inputs"]
    sampler["seed"] = seed
    graph[sampler["positive"][0]]["inputs"]["text"] = prompt
    graph[_only(graph, "LikenessApplyIdentity")]["inputs"] |= {"weight": strength, "lora_strength": strength}
    return graph


def _only(graph: Graph, kind: str) -> str:
    return next(number for number, node in graph.items() if node["class_type"] == kind)


@contextmanager
def _server(comfyui: Path, base: Path) -> Iterator[str]:
    """A ComfyUI of its own, with this pack as its only custom node; its address."""
    with started(comfyui, base) as server:
        with tqdm(desc="starting ComfyUI", bar_format="{desc} {elapsed}") as bar:
            ready = server.wait_until_ready(_PATIENCE, bar.update)
        if not ready:
            last = " ".join(server.log().strip().splitlines()[-1:])
            raise LikenessError(f"ComfyUI did not start ({last}): start it by hand once to see what it lacks.")
        yield server.address


def _picture(address: str, output: Path, graph: Graph) -> np.ndarray:
    """Queue one graph and read the image it saves, (H, W, 3) uint8. LikenessError with the node's own sentence."""

    request = urllib.request.Request(
        f"{address}/prompt", json.dumps({"prompt": graph}).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            number = json.load(answer)["prompt_id"]
    except urllib.error.HTTPError as error:
        raise LikenessError(f"ComfyUI refused the graph: {error.read().decode(errors='replace')[:400]}") from error
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        with urllib.request.urlopen(f"{address}/history/{number}", timeout=30) as answer:
            history = json.load(answer).get(number)
        if history is not None:
            break
        time.sleep(0.1)
    else:
        raise LikenessError(f"ComfyUI made no image within {_PATIENCE:.0f} seconds.")
    failed = [data for kind, data in history["status"].get("messages", []) if kind == "execution_error"]
    if failed:
        raise LikenessError(failed[0]["exception_message"].strip())
    saved = history["outputs"][_only(graph, "SaveImage")]["images"][0]
    return read_photo(output / saved["subfolder"] / saved["filename"])
