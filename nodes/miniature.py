"""The miniature portrait world as MODEL, CLIP and VAE."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from comfy_api.latest import io

from .choices import choices, member
from .node import Node
from .schema import schema

CATEGORY = "likeness/miniature"
WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"  # whose graphs show them too


class Example(Enum):
    """Drawn photos that come with the pack."""

    WOMAN = "a person, one photo"
    MAN = "another person, three photos"
    STYLE = "a style, two images"


_FILES = {
    Example.WOMAN: ("miniature_person",),
    Example.MAN: ("miniature_person_1", "miniature_person_2", "miniature_person_3"),
    Example.STYLE: ("miniature_style_1", "miniature_style_2"),
}


class ExamplePhotos(Node):
    """What Load Image gives, without a file in ComfyUI's input folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessExamplePhotos",
            display_name="Example Photos",
            category=CATEGORY,
            description="Images of drawn people that come with the pack, for trying a graph before you have photos of "
            "your own. To use your own, connect Load Image in its place.",
            search_aliases=["Load Image", "sample image", "demo photo", "示例照片", "示例图片"],
            inputs=[
                io.Combo.Input(
                    "photos",
                    options=choices(Example),
                    default=Example.WOMAN.value,
                    tooltip="People and a style of the miniature world, 128x128 pixels, which Load Miniature was never "
                    "shown.",
                )
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="One image or a batch, in the place of Load Image.")
            ],
        )

    @classmethod
    def execute(cls, photos: str = Example.WOMAN.value) -> io.NodeOutput:
        from ..faces import read_photo
        from ..faces.found import to_image_batch

        files = _FILES[member(Example, photos, "photos")]
        return io.NodeOutput(to_image_batch([read_photo(WORKFLOWS / f"{name}.png") for name in files]))


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


NODES = [LoadMiniature, ExamplePhotos]
