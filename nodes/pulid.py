"""What can be set about PuLID beyond its strength."""

from __future__ import annotations

from enum import Enum

from comfy_api.latest import io

from ..adapters.pulid import (
    FIDELITY,
    NEUTRAL,
    STYLE,
    VERSION_1_1,
    Background,
    Mode,
    Projection,
    PuLIDOptions,
    TokenPooling,
)
from ..errors import LikenessError
from .adapters import CATEGORY
from .choices import choices, member
from .node import Node
from .references import Options
from .schema import OptionsSocket, advanced, any_recogniser_input, schema

MOST_ZEROS, MOST_STEPS = 80, 1000


class Preset(Enum):
    """How the person's attention joins the text's; the value is the name a user chooses."""

    PUBLISHED = "as published"
    FIDELITY = "fidelity"
    STYLE = "style"
    NEUTRAL = "neutral"
    VERSION_1_1 = "v1.1"
    CUSTOM = "custom"


_MODES = {
    Preset.PUBLISHED: None,
    Preset.FIDELITY: FIDELITY,
    Preset.STYLE: STYLE,
    Preset.NEUTRAL: NEUTRAL,
    Preset.VERSION_1_1: VERSION_1_1,
}


class PuLIDOptionsNode(Node):
    """The options of `adapters.pulid`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPuLIDOptions",
            display_name="PuLID Options",
            category=CATEGORY,
            description="Options of PuLID, for Apply Identity. With its defaults it changes nothing.",
            search_aliases=["PuLID", "PuLID Flux", "Apply PuLID Advanced", "ortho_v2", "num_zero", "start_step"],
            inputs=[
                io.Combo.Input(
                    "method",
                    options=choices(Preset),
                    default=Preset.PUBLISHED.value,
                    tooltip="fidelity keeps more of the person, style more of the prompt; neutral adds the person "
                    "without orthogonal projection. As published: fidelity for v1, its own for v1.1. custom reads the "
                    "two widgets below. SDXL only: on FLUX it has no effect.",
                ),
                io.Int.Input(
                    "num_zero",
                    default=8,
                    min=0,
                    max=MOST_ZEROS,
                    tooltip="Method custom: zero tokens that image positions can attend to instead of the person; "
                    "more of them leave more to the prompt.",
                ),
                io.Combo.Input(
                    "ortho",
                    options=choices(Projection),
                    default=Projection.ORTHO_V2.value,
                    tooltip="Method custom: what happens to the component of the person's attention that is parallel "
                    "to the text's. ortho removes it, ortho_v2 only outside the face, off keeps it.",
                ),
                io.Combo.Input(
                    "photos",
                    options=choices(TokenPooling),
                    default=TokenPooling.OFFICIAL.value,
                    tooltip="How several photos are combined. As published: v1 reads the first photo whole and the "
                    "faces of the others, v1.1 and FLUX all at once. Every token: v1's ID mix.",
                ),
                advanced(
                    io.Combo.Input(
                        "background",
                        options=choices(Background),
                        default=Background.WHITE.value,
                        tooltip="Background around face and hair in the image shown to EVA02-CLIP. White is official "
                        "and needs a face parsing network; as in the photo needs none.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "antialias",
                        default=True,
                        tooltip="Antialiasing when that image is downscaled: on as in current torchvision, off as in "
                        "the version that PuLID v1 was published with.",
                    )
                ),
                any_recogniser_input("a recogniser other than antelopev2"),
                io.Int.Input(
                    "start_step",
                    default=0,
                    min=0,
                    max=MOST_STEPS,
                    optional=True,
                    tooltip="First sampling step in which the person acts, in place of start_at; 0 leaves it to "
                    "start_at. On FLUX 4 of 20 to 28 steps suits photos, 0 or 1 other styles.",
                ),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For Apply Identity.")],
        )

    @classmethod
    def execute(
        cls,
        method: str = Preset.PUBLISHED.value,
        num_zero: int = 8,
        ortho: str = Projection.ORTHO_V2.value,
        photos: str = TokenPooling.OFFICIAL.value,
        background: str = Background.WHITE.value,
        antialias: bool = True,
        any_recogniser: bool = False,
        start_step: int = 0,
    ) -> io.NodeOutput:
        """Turn words into choices."""
        chosen = member(Preset, method, "method")
        _check_whole("num_zero", num_zero, MOST_ZEROS)
        _check_whole("start_step", start_step, MOST_STEPS)
        custom = Mode(num_zero, member(Projection, ortho, "ortho"))
        options = PuLIDOptions(
            mode=custom if chosen is Preset.CUSTOM else _MODES[chosen],
            photos=member(TokenPooling, photos, "photos"),
            background=member(Background, background, "background"),
            antialias=bool(antialias),
            any_recogniser=bool(any_recogniser),
            start_step=start_step,
        )
        return io.NodeOutput(Options(reference=options))


def _check_whole(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise LikenessError(f"The {name} {value!r} is not a whole number from 0 to {most}: enter one.")


NODES = [PuLIDOptionsNode]
