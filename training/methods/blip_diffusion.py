"""Few-shot tuning of BLIP-Diffusion, as it is offered. The method itself is in `recipes/blip_diffusion.py`."""

from __future__ import annotations

from .method import MASK, ConceptInput, Knob, Method, placeholder, steps

TUNED = ("vectors and LoRA", "vectors", "vectors and UNet")
LAYERS = ("attention", "cross-attention")


def _load():
    from ..recipes.blip_diffusion import TRAINABLE

    return TRAINABLE


METHOD = Method(
    kind="blip_diffusion",
    title="BLIP-Diffusion",
    description=(
        "Learns one subject from a few images in about a minute on a GPU: BLIP-Diffusion's subject encoder gives 16 "
        "vectors to start from, which are tuned with a LoRA in the UNet, alone, or with the whole UNet. For SD1.5."
    ),
    concepts=(ConceptInput("person", "dataset", "From Portrait Dataset; one image is enough, 3 to 5 are better."),),
    clip="The text encoder that knows the subject's word.",
    load=_load,
    usage=lambda datasets, embeddings: (
        f"a {placeholder(datasets[0].trigger)} {datasets[0].class_word} with these outputs, or the file in Load "
        "Identity Adapter and Identity Prompt"
    ),
    sample=lambda datasets, values: f"a {datasets[0].trigger} {datasets[0].class_word}",
    first=(
        steps("steps", 40, "40 to 120 with the whole UNet, in batches of 3; a few hundred for vectors or a LoRA."),
        Knob(
            "tuned",
            TUNED[0],
            "What is trained beside the vectors. A LoRA makes a file of a few MB; vectors alone one of 50 KB, with "
            "less likeness; the whole UNet is official, makes one of 1.7 GB, and needs 24 GB of GPU memory.",
            "tuned",
            options=TUNED,
        ),
        Knob("rank", 8, "Size of the LoRA: 4 to 32.", "lora.rank", low=1, high=256),
        Knob("layers", LAYERS[0], "Which layers the LoRA changes.", "lora.reach", options=LAYERS),
    ),
    last=(
        Knob(
            "learning_rate",
            0.0,
            "Of the LoRA or UNet. 0: 1e-4 for a LoRA, 5e-6 for the whole UNet.",
            low=0.0,
            high=1.0,
            step=1e-6,
            advanced=True,
        ),
        Knob(
            "vector_learning_rate",
            0.0,
            "Of the vectors. 0: 1e-3, with the whole UNet 5e-6.",
            low=0.0,
            high=1.0,
            step=1e-6,
            advanced=True,
        ),
        Knob(
            "padded",
            False,
            "Reads the training prompt with its padding, as samplers do; the official code reads it without.",
            "padded",
            advanced=True,
        ),
        MASK,
    ),
    reads_adapter=True,
    search_aliases=("subject driven", "few-shot", "one image training"),
    miniature={"tuned": TUNED[0], "learning_rate": 1e-3, "vector_learning_rate": 5e-3},
)
