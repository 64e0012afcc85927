"""What can be set about PhotoVerse beyond its strength."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..adapters.photoverse import MOST, OPTIONS_NODE, FaceMask, PhotoVerseOptions, Unconditioned
from ..adapters.photoverse.face import SCALE
from ..checks import as_mask, require_painted
from ..errors import LikenessError
from ..faces.identity import HEAD_FACTOR
from .adapters import CATEGORY
from .choices import choices, member, readable
from .node import Node
from .references import Options
from .schema import OptionsSocket, advanced, region_input, schema

PUBLISHED = 0  # of `words`: what the file was made for
MOST_WORDS = 75


def _branch_input(name: str, tooltip: str) -> Any:
    return io.Float.Input(name, default=1.0, min=0.0, max=MOST, step=0.05, tooltip=tooltip)


class PhotoVerseOptionsNode(Node):
    """The options of `adapters.photoverse`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="LikenessPhotoVerseOptions",
            display_name=OPTIONS_NODE,
            category=CATEGORY,
            description="Options of PhotoVerse and ELITE, for Identity Prompt. With its defaults it changes nothing.",
            search_aliases=["PhotoVerse", "ELITE", "dual branch", "gamma", "sigma"],
            inputs=[
                _branch_input(
                    "gamma",
                    "Strength of the text's attention, in the conditioned half. More of it follows the prompt, less of "
                    "it the photo.",
                ),
                _branch_input(
                    "sigma",
                    "Strength of the attention to the face's image. 0 leaves the person to the words of the prompt.",
                ),
                io.Combo.Input(
                    "mask",
                    options=choices(FaceMask),
                    default=FaceMask.PUBLISHED.value,
                    tooltip="What CLIP sees of the photo. Face and hair, all else black: what PhotoVerse was trained "
                    "on; it needs a face parsing network (models/facexlib). All of the crop needs none.",
                ),
                advanced(
                    io.Int.Input(
                        "words",
                        default=PUBLISHED,
                        min=PUBLISHED,
                        max=MOST_WORDS,
                        tooltip="How many words of the prompt each person becomes, one for each layer of CLIP that is "
                        "read. 0: as the file was made, 1 for PhotoVerse and all for ELITE.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "crop",
                        default=SCALE,
                        min=1.0,
                        max=HEAD_FACTOR,
                        step=0.05,
                        tooltip="Side of the square that CLIP sees, in sides of the face box. 1.3 is the paper's.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "unconditioned",
                        options=choices(Unconditioned),
                        default=Unconditioned.NOTHING.value,
                        tooltip="What the negative half of guidance attends to. An empty image: as the unofficial "
                        "code, for its weights.",
                    )
                ),
                advanced(
                    io.String.Input(
                        "class_word",
                        default="person",
                        tooltip="What the prompt says where nobody is meant: outside of the window, and at a strength "
                        "below 1.",
                    )
                ),
                region_input("Where in the image the face's image may act; the words act everywhere."),
            ],
            outputs=[OptionsSocket.Output(display_name="options", tooltip="For Identity Prompt.")],
        )

    @classmethod
    def execute(
        cls,
        gamma: float = 1.0,
        sigma: float = 1.0,
        mask: str = FaceMask.PUBLISHED.value,
        words: int = PUBLISHED,
        crop: float = SCALE,
        unconditioned: str = Unconditioned.NOTHING.value,
        class_word: str = "person",
        region: Any = None,
    ) -> io.NodeOutput:
        """Turn words into choices."""
        readable(class_word=class_word)
        if not class_word.strip():
            raise LikenessError("The class_word is empty: enter one such as person.")
        if isinstance(words, bool) or not isinstance(words, int) or not PUBLISHED <= words <= MOST_WORDS:
            raise LikenessError(f"The words {words!r} are not a whole number from 0 to {MOST_WORDS}: enter one.")
        if region is not None:
            region = as_mask(region, "The region")
            require_painted(region, "The region")
        options = PhotoVerseOptions(
            gamma=gamma,
            sigma=sigma,
            words=None if words == PUBLISHED else words,
            mask=member(FaceMask, mask, "mask"),
            crop=crop,
            unconditioned=member(Unconditioned, unconditioned, "unconditioned"),
            class_word=class_word.strip(),
            region=region,
        )
        return io.NodeOutput(Options(reference=options))


NODES = [PhotoVerseOptionsNode]
