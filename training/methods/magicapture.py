"""MagiCapture, as it is offered. The method itself is in `recipes/magicapture.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.captions import composed, parse_templates
from ..data.dataset import Dataset, DatasetKind
from .method import ConceptInput, Knob, Method, steps


def _load():
    from ..recipes.magicapture import TRAINABLE

    return TRAINABLE


def templates(dataset: Dataset, text: str) -> tuple[str, ...]:
    """The user's, else the built-in ones."""
    return parse_templates(text) or dataset.kind.templates(dataset.class_word)


def _sample(datasets: Sequence[Dataset], values: Mapping[str, Any]) -> str:
    person, style = datasets
    return composed(templates(person, values["person_templates"])[0], style.trigger)


def _usage(datasets: Sequence[Dataset], embeddings: Sequence[str]) -> str:
    return f"a photo of a {embeddings[0]} {datasets[0].class_word} in the style of {embeddings[1]}"


def _templates_knob(what: str) -> Knob:
    tooltip = f"Sentences about the {what}, one per line, {{}} for its word. Empty: built-in ones."
    return Knob(f"{what}_templates", "", tooltip, lines=True, advanced=True)


METHOD = Method(
    kind="magicapture",
    title="MagiCapture",
    description=(
        "Learns a person and a portrait style together, each from a few images, so that one prompt generates that "
        "person in that style: two words and a LoRA. Masks keep the person to the face and the style to the rest; a "
        "face recogniser checks the likeness during training."
    ),
    concepts=(
        ConceptInput(
            "person",
            "person",
            "A Portrait Dataset of the kind person, with masks.",
            DatasetKind.PERSON,
            needs_masks=True,
        ),
        ConceptInput(
            "style",
            "style",
            "A Portrait Dataset of the kind style, with masks, of one size.",
            DatasetKind.STYLE,
            needs_masks=True,
        ),
    ),
    clip="The text encoder with its LoRA.",
    load=_load,
    usage=_usage,
    sample=_sample,
    first=(
        steps("inversion_steps", 1200, "Steps of the first phase, which learns the two words."),
        steps("tuning_steps", 1500, "Steps of the second phase, which trains the LoRA."),
        Knob("rank", 4, "Size of the LoRA: 4 to 32.", low=1, high=256),
        Knob(
            "identity_weight",
            0.25,
            "Weight of the identity loss: 0.1 to 0.5. 0 needs no face analysis.",
            "lambda_id",
            low=0.0,
            high=5.0,
            step=0.05,
        ),
        Knob(
            "attention_weight",
            2.5,
            "How strictly the attention of the person's word is confined to the face and that of the style's word to "
            "the rest.",
            "lambda_attention",
            low=0.0,
            high=50.0,
            step=0.1,
        ),
    ),
    last=(_templates_knob("person"), _templates_knob("style")),
    continues_lora=True,
    identity_knob="identity_weight",
    search_aliases=("style and person", "portrait style"),
    is_experimental=True,  # proven on the miniature; nobody has published a model of it to compare with
    # The codec decodes little images as a whole, and the attention maps are those of the 8x8 sites. The LoRAs' rates
    # were chosen on the tuning people, out of two to four.
    miniature={
        "inversion_rate": 5e-3,
        "unet_rate": 2e-4,
        "text_rate": 2e-5,
        "map_division": 2,
        "decode_whole": True,
        "flip": 0.0,
        "person_templates": ("a photo of a {} person", "a portrait of a {} person", "the face of a {} person"),
        "style_templates": ("a {} picture of a person",),
    },
)
