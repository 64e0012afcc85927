"""What BLIP-Diffusion is shown, and what its prompt is about."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..adapters.blip_diffusion import Background, BlipDiffusionOptions
from ..adapters.blip_diffusion.subject import OPTIONS_NODE, REPEATS
from ..adapters.image_prep import Crop
from ..errors import LikenessError
from .adapters import CATEGORY
from .choices import choices, finite, member, readable
from .node import Node
from .references import Options
from .schema import OptionsSocket, advanced, schema

MOST_IMAGES = 4  # inputs; each may be a batch


class BlipDiffusionOptionsNode(Node):
    """The options of `adapters.blip_diffusion`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessBlipDiffusionOptions",
            display_name=OPTIONS_NODE,
            category=CATEGORY,
            description="Images of any subject for BLIP-Diffusion, the words for it, and how it is repeated in the "
            "prompt. Plugs into the options of Identity Prompt.",
            search_aliases=["BLIP-Diffusion", "subject driven", "reference image", "subject interpolation"],
            inputs=[
                io.String.Input(
                    "category",
                    default="",
                    tooltip="One English word for what the images show, such as dog. For images of different things "
                    "one word each, separated by commas. Empty: person, for an identity.",
                ),
                io.String.Input(
                    "target",
                    default="",
                    tooltip="What the prompt is about, if it is not the category: a dog's image can make a tiger. "
                    "Empty: the category. Not used where the prompt has a trigger word.",
                ),
                io.Int.Input(
                    "repeats",
                    default=REPEATS,
                    min=1,
                    max=100,
                    tooltip="How often the prompt is repeated until the text is full: the official way to make it "
                    "count. 1: once. Not used where the prompt has a trigger word.",
                ),
                advanced(
                    io.Float.Input(
                        "prompt_strength",
                        default=1.0,
                        min=0.0,
                        max=10.0,
                        step=0.05,
                        tooltip="The official factor on the number of repeats.",
                    )
                ),
                io.String.Input(
                    "ratios",
                    default="",
                    tooltip="How much each image counts, such as 0.7, 0.3; scaled so that they add up to 1. Without "
                    "images: each identity. Empty: all alike.",
                ),
                io.Combo.Input(
                    "background",
                    options=choices(Background),
                    default=Background.WHITE.value,
                    tooltip="What replaces everything outside the mask, or the transparent part. A plain background "
                    "or noise is what BLIP-Diffusion was trained on.",
                ),
                advanced(
                    io.Combo.Input(
                        "crop",
                        options=choices(Crop),
                        default=Crop.CENTRE.value,
                        tooltip="How images become squares. 'center': as LAVIS; 'squash': as diffusers, which loses "
                        "the aspect ratio.",
                    )
                ),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The subject, large in the image. Used in place of the first identity, which is not "
                    "needed then. Several images of one subject are averaged.",
                ),
                *(
                    io.Image.Input(
                        f"images_{number}", optional=True, tooltip="More images, which may be of another size."
                    )
                    for number in range(2, MOST_IMAGES + 1)
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Where the subject is, in white: one mask for all images, or one for each. Load Image's "
                    "mask of a transparent image is the opposite; put Invert Mask between.",
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For Identity Prompt.")],
        )

    @classmethod
    def execute(
        cls,
        category: str,
        target: str,
        repeats: int,
        prompt_strength: float,
        ratios: str,
        background: str,
        crop: str,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        **more: Any,
    ) -> io.NodeOutput:
        """Collect the options."""
        readable(category=category, target=target, ratios=ratios)
        finite(prompt_strength=prompt_strength)
        given = [images, *(more.get(f"images_{number}") for number in range(2, MOST_IMAGES + 1))]
        return io.NodeOutput(
            Options(
                BlipDiffusionOptions(
                    category=category,
                    target=target,
                    repeats=repeats,
                    prompt_strength=prompt_strength,
                    crop=member(Crop, crop, "crop"),
                    ratios=_ratios(ratios),
                    images=tuple(batch for batch in given if batch is not None),
                    mask=mask,
                    background=member(Background, background, "background"),
                )
            )
        )


def _ratios(text: str) -> tuple[float, ...]:
    parts = text.replace(",", " ").split()
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = [math.nan]
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise LikenessError(f"The ratios are {text[:60]!r}: write a number from 0 up for each image, such as 0.7, 0.3.")
    return tuple(numbers)


NODES = [BlipDiffusionOptionsNode]
