"""The miniature portrait world as MODEL, CLIP and VAE."""

from __future__ import annotations

from comfy_api.latest import io

from .node import Node
from .schema import schema

CATEGORY = "likeness/miniature"


class LoadMiniature(Node):
    """What Load Checkpoint gives, from the weights inside the pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessLoadMiniature",
            display_name="Load Miniature",
            category=CATEGORY,
            description=(
                "A whole portrait model of a few megabytes that comes with the pack: it generates drawn people, "
                "128x128 pixels, in seconds on any CPU. For trying every method before gigabytes are downloaded."
            ),
            search_aliases=["Load Checkpoint", "tiny model", "demo model", "test model"],
            inputs=[],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip="Of SD1.5's family, 128x128 pixels only; for Apply Identity, LoRA loaders and KSampler.",
                ),
                io.Clip.Output(
                    display_name="clip",
                    tooltip="Knows a few dozen words; a prompt with others is refused, and the message lists them.",
                ),
                io.Vae.Output(display_name="vae", tooltip="For VAE Decode and VAE Encode; 8 pixels per latent."),
            ],
        )

    @classmethod
    def execute(cls) -> io.NodeOutput:
        from ..miniature.models.comfy import load_clip, load_model, load_vae

        return io.NodeOutput(load_model(), load_clip(), load_vae())


NODES = [LoadMiniature]
