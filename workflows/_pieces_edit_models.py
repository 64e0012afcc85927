"""What the graphs of edit models share: the model in its parts, its references, the prompt that shows them."""

from __future__ import annotations

from dataclasses import dataclass

from _graph import Graph, ModelFile, Node, Output
from _pieces import Base, Start

_REPOSITORY = "https://huggingface.co/Comfy-Org/{}/resolve/main/split_files/{}/{}"
QWEN_EDIT = Base(None, 20, 2.5, "euler", "simple", 1024, negative="")


def _file(repository: str, folder: str, name: str) -> ModelFile:
    return ModelFile(name, _REPOSITORY.format(repository, folder, name), folder)


DENOISER = _file("Qwen-Image-Edit_ComfyUI", "diffusion_models", "qwen_image_edit_2509_fp8_e4m3fn.safetensors")
ENCODER = _file("Qwen-Image_ComfyUI", "text_encoders", "qwen_2.5_vl_7b_fp8_scaled.safetensors")
VAE = _file("Qwen-Image_ComfyUI", "vae", "qwen_image_vae.safetensors")


@dataclass(frozen=True)
class Parts:
    """An edit model as its loaders give it, and the adapter of its references."""

    model: Output
    clip: Output
    vae: Output
    adapter: Node


def load_qwen_edit(graph: Graph) -> Parts:
    """Qwen-Image-Edit 2509, which every supported ComfyUI can load."""
    denoiser = graph.node("UNETLoader", unet_name=DENOISER.name, weight_dtype="default", models=(DENOISER,))
    clip = graph.node("CLIPLoader", clip_name=ENCODER.name, type="qwen_image", models=(ENCODER,))
    vae = graph.node("VAELoader", vae_name=VAE.name, models=(VAE,))
    shifted = graph.node("ModelSamplingAuraFlow", model=denoiser[0], shift=3.0)
    graph.next_column()
    adapter = graph.node("LikenessReferenceAdapter", vae=vae[0], scheme="Qwen-Image-Edit 2509", most_photos=1)
    return Parts(shifted[0], clip[0], vae[0], adapter)


def shown_prompt(graph: Graph, number: int, parts: Parts, model: Output, text: str, size: tuple[int, int]) -> Start:
    """The group before the sampling: a prompt that the text encoder reads together with the photos, its empty twin, and
    the latent."""
    width, height = size
    with graph.group(f"{number}. Prompt"):
        shown = graph.node(
            "LikenessIdentityPrompt",
            clip=parts.clip,
            adapter=parts.adapter["adapter"],
            text=text,
            model=model,
            room=360,
        )
        latent = graph.node("EmptySD3LatentImage", width=width, height=height, batch_size=1)
    return Start(shown, shown, latent)
