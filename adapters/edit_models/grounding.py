"""What a text encoder with eyes is given: the prompt, and the people's photos in front of it.

Krea 2 and Qwen-Image-Edit were trained on texts that show the images to the encoder as well, in the order of the
reference latents. Identity Edit puts them in a row without names, so that "image 2" in its prompt means nothing; the
others number them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .sizes import Size, seen_by_qwen, seen_small, seen_whole

VISION = "<|vision_start|><|image_pad|><|vision_end|>"
KREA2_SYSTEM = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:"
)
QWEN_SYSTEM = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate."
)
KREA2_CELL, QWEN_CELL = 32, 28  # pixels on a side of a token of the encoder


@dataclass(frozen=True)
class TextForm:
    """How a base was trained to read text and images.

    system: the sentence before the user's turn. labelled: images have numbers ("Picture 1: "). seen: size of an
    image for the encoder, of the photo's size and the longest side a user allows. cell: see `KREA2_CELL`. encoder:
    what ComfyUI calls the text encoder.
    """

    system: str
    labelled: bool
    seen: Callable[[Size, int], Size]
    cell: int
    encoder: str

    @property
    def template(self) -> str:
        """The whole text, with {} where the user's turn goes."""
        system = self.system.replace("{", "{{").replace("}", "}}")
        return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n"

    def turn(self, prompt: str, pictures: int) -> str:
        """The user's turn: the images, then the prompt."""
        labels = [f"Picture {number}: " if self.labelled else "" for number in range(1, pictures + 1)]
        return "".join(label + VISION for label in labels) + prompt

    def tokens_of(self, photo: Size, longest: int) -> int:
        """How many tokens an image becomes."""
        h, w = self.seen(photo, longest)
        return max(1, round(h / self.cell)) * max(1, round(w / self.cell))


KREA2_ENCODER, QWEN_ENCODER = "qwen3vl_4b", "qwen25_7b"
IDENTITY_EDIT = TextForm(KREA2_SYSTEM, False, seen_whole, KREA2_CELL, KREA2_ENCODER)
KREA2_LABELS = TextForm(KREA2_SYSTEM, True, seen_small, KREA2_CELL, KREA2_ENCODER)
QWEN_LABELS = TextForm(QWEN_SYSTEM, True, seen_by_qwen, QWEN_CELL, QWEN_ENCODER)

_TURN, _USER, _NEWLINE = 151644, 872, 198  # "<|im_start|>", "user", "\n" of Qwen's tokenizer


def template_length(tokens: list[int]) -> int:
    """How many tokens of a whole text the encoder cuts off: all before the user's turn, and its opening."""
    second = [place for place, token in enumerate(tokens) if token == _TURN][1]
    return second + 3 if tokens[second + 1 : second + 3] == [_USER, _NEWLINE] else second
