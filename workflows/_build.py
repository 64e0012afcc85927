"""Writes the example workflows: `python workflows/_build.py` (needs the real ComfyUI, see `make comfyui`).

Each function below describes one graph; `GRAPHS` lists them.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from _graph import Graph, ModelFile, ObjectInfo, write

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
HOST_VERSION = "0.3.64"  # the version the files are made with; they open on any supported one


def portrait_faceid(graph: Graph) -> None:
    """One photo, one FaceID adapter, SD1.5: the smallest portrait."""
    checkpoint_file, adapter_file = files("sd15"), files("ip-adapter-faceid_sd15")
    pack_files = files("buffalo_l")
    with graph.group("1. The person"):
        photo = graph.node("LoadImage", title="A photo of the person", image="person.jpg", extra_height=330)
        analysis = graph.node("LikenessLoadFaceAnalysis", model="buffalo_l", provider="auto", models=pack_files)
        graph.next_column()
        faces = graph.node("LikenessFindFaces", face_analysis=analysis[0], image=photo["IMAGE"])
        identity = graph.node("LikenessIdentityFromPhotos", faces=faces["faces"])
        graph.node("PreviewImage", title="Which face was taken", images=faces["preview"], extra_height=330)
    with graph.group("2. Model and method"):
        checkpoint = graph.node("CheckpointLoaderSimple", ckpt_name=checkpoint_file[0].name, models=checkpoint_file)
        adapter = graph.node("LikenessLoadIdentityAdapter", adapter_file=adapter_file[0].name, models=adapter_file)
        model = graph.node(
            "LikenessApplyIdentity",
            model=checkpoint["MODEL"],
            adapter=adapter["adapter"],
            identity=identity["identity"],
        )
    with graph.group("3. Prompt"):
        positive = prompt(graph, "Positive prompt", checkpoint["CLIP"], "portrait photo of a person, sharp, soft light")
        negative = prompt(
            graph, "Negative prompt", checkpoint["CLIP"], "monochrome, lowres, bad anatomy, worst quality"
        )
        latent = graph.node("EmptyLatentImage", width=512, height=512, batch_size=1)
    with graph.group("4. Portrait"):
        sampler = graph.node(
            "KSampler",
            model=model["model"],
            seed=1,
            steps=30,
            cfg=7.5,
            sampler_name="ddim",
            scheduler="ddim_uniform",
            positive=positive[0],
            negative=negative[0],
            latent_image=latent[0],
            denoise=1.0,
        )
        decoded = graph.node("VAEDecode", samples=sampler[0], vae=checkpoint["VAE"])
        graph.next_column()
        graph.node("SaveImage", images=decoded[0], filename_prefix="likeness/portrait", width=400, extra_height=410)
    graph.note(files_note(*checkpoint_file, *adapter_file, *pack_files), width=440, height=420)


GRAPHS: list[Callable[[Graph], None]] = [portrait_faceid]


def prompt(graph: Graph, title: str, clip, text: str):
    """A text box on a CLIP."""
    return graph.node("CLIPTextEncode", title=title, text=text, clip=clip, width=360)


def files(pattern: str) -> tuple[ModelFile, ...]:
    """The registry's entries for a name or a group; of a face pack only the files that are read."""
    records = import_module("likeness.models_download").select(pattern)
    read = [record for record in records if len(records) == 1 or "required" in record.notes]
    return tuple(ModelFile(record.filename, record.url, record.folder) for record in read)


def files_note(*needed: ModelFile) -> str:
    """What to download and where it goes."""
    lines = ["## Files this workflow needs", "", "| file | folder below `models/` |", "| --- | --- |"]
    lines += [f"| [{file.name}]({file.url}) | `{file.directory}` |" for file in needed]
    return "\n".join(lines)


def describe(graph_function: Callable[[Graph], None], info: ObjectInfo) -> Graph:
    """Run one of the descriptions above."""
    [version] = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    graph = Graph(info, version=version, host_version=HOST_VERSION)
    graph_function(graph)
    return graph


def write_all(info: ObjectInfo, folder: Path) -> list[Path]:
    """Write every graph into `folder`; returns the paths."""
    return [path for function in GRAPHS for path in write(describe(function, info), info, folder, function.__name__)]


def main() -> None:
    sys.path.append(str(REPOSITORY / "tests"))
    comfyui = import_module("comfyui")
    host = comfyui.find()
    if host is None:
        sys.exit(f"workflows/_build.py {comfyui.HOW_TO_GET_IT}")
    with tempfile.TemporaryDirectory() as base:
        nodes = comfyui.import_into_this_process(host, Path(base))
        ours = asyncio.run(import_module("likeness.nodes").LikenessExtension().get_node_list())
        for path in write_all(comfyui.object_info(nodes, ours), HERE):
            print(path.relative_to(REPOSITORY))


if __name__ == "__main__":
    main()
