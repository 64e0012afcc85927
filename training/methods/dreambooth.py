"""DreamBooth, as it is offered. The method itself is in `recipes/dreambooth.py`."""

from __future__ import annotations

from .method import MASK, ConceptInput, Knob, Method, rate, steps

LAYERS = ("cross-attention", "attention", "attention and GEGLU", "transformer", "transformer and convolutions")
TUNED = ("LoRA", "all weights (checkpoint)")


def _load():
    from ..recipes.dreambooth import TRAINABLE

    return TRAINABLE


METHOD = Method(
    kind="dreambooth",
    title="DreamBooth",
    description=(
        "Teaches the model a person by a LoRA that any LoRA loader reads, or by a checkpoint of its own: the trigger "
        "word before the class word then means that person. To keep other people as they were, the model first "
        "generates a few images of the class."
    ),
    concepts=(ConceptInput("person", "dataset", "From Portrait Dataset; four to ten images."),),
    clip="The text encoder, with what it learned if it was trained.",
    load=_load,
    usage=lambda datasets, embeddings: f"{datasets[0].trigger} {datasets[0].class_word}",
    first=(
        steps("steps", 500, "About 100 per image."),
        rate(1e-4, "1e-4 is usual for a LoRA."),
        Knob("rank", 4, "Size of the LoRA: 4 to 32.", "lora.rank", low=1, high=256),
        Knob(
            "layers",
            LAYERS[1],
            "Which layers the LoRA changes: more layers learn faster and forget faster.",
            "lora.reach",
            options=LAYERS,
        ),
        Knob(
            "train_text_encoder",
            False,
            "Also trains a LoRA in the text encoder: more likeness, and earlier overfitting.",
            "text_encoder",
        ),
        Knob(
            "prior_weight",
            1.0,
            "How much the class must stay as it was; 0 needs no class images.",
            "prior_weight",
            low=0.0,
            high=10.0,
            step=0.05,
        ),
        Knob(
            "class_pictures",
            50,
            "Images of the class that the untouched model generates first; they are kept with the run.",
            "class_pictures",
            low=1,
            high=10_000,
        ),
    ),
    last=(
        MASK,
        Knob(
            "tuned",
            TUNED[0],
            "What is trained. All weights: closest to the person, saved as a checkpoint of 2 to 7 GB; rank and layers "
            "have no effect, learning_rate is about 5e-6, and 24 GB of GPU memory or more is needed.",
            options=TUNED,
            advanced=True,
            optional=True,
        ),
    ),
    learns_words=False,
    continues_lora=True,
    search_aliases=("LoRA training", "Train LoRA", "personalise a model"),
    variant="-LoRA",
    # The rates were chosen on the tuning people, out of two to four.
    miniature={
        "learning_rate": 4e-4,
        "text_encoder": True,
        "text_learning_rate": 4e-5,
        "captions": False,
        "class_prompt": "a photo of a person",
        "class_pictures": 16,
    },
)
