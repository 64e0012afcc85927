"""Textual Inversion, as it is offered. The method itself is in `recipes/textual_inversion.py`."""

from __future__ import annotations

from .method import MASK, ConceptInput, Knob, Method, rate, steps

TETHERS = ("none", "norm", "deviation")


def _load():
    from ..recipes.textual_inversion import TRAINABLE

    return TRAINABLE


METHOD = Method(
    kind="textual_inversion",
    title="Textual Inversion",
    description=(
        "Learns one new word for a person or a style and changes nothing else: a file of a few kilobytes that prompts "
        "name as embedding:<file>."
    ),
    concepts=(ConceptInput("person", "dataset", "From Portrait Dataset; four to ten images."),),
    clip="The same text encoder: the new word is in the embeddings folder.",
    load=_load,
    usage=lambda datasets, embeddings: embeddings[0],
    first=(
        steps("steps", 3000, "Training steps of one batch each: 1500 to 5000."),
        rate(5e-4, "5e-4 is usual; five times more for few steps."),
        Knob(
            "vectors",
            1,
            "How many tokens of a prompt it uses: more hold more detail and follow prompts less.",
            "vectors",
            low=1,
            high=16,
        ),
        Knob(
            "start_words",
            "",
            "Words from which it is initialised; more words than vectors are averaged. Empty: the dataset's "
            "class word.",
        ),
    ),
    last=(
        Knob(
            "tether",
            TETHERS[1],
            "What keeps the new word as strong as others, so that it leaves room for the rest of a prompt: 'norm' "
            "keeps its norm, 'deviation' its standard deviation.",
            "tether",
            options=TETHERS,
            advanced=True,
        ),
        MASK,
    ),
    search_aliases=("embedding training", "TI"),
    # Words deviate twice as much there as SD1.5's do, and so do the rates at which they are learned.
    miniature={
        "learning_rate": 1e-3,
        "templates": ("a photo of a {} person", "a portrait of a {} person", "the face of a {} person"),
        "captions": False,
        "flip": 0.0,
    },
)
