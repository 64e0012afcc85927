"""SeFi-IDE, as it is offered. The method itself is in `recipes/sefi_ide.py`."""

from __future__ import annotations

from .method import MASK, ConceptInput, Knob, Method, placeholder, rate, steps

TOKENS = ("generator", "table")
LAYERS = ("half resolution and coarser", "all")


def _load():
    from ..recipes.sefi_ide import TRAINABLE

    return TRAINABLE


METHOD = Method(
    kind="sefi_ide",
    title="SeFi-IDE",
    description=(
        "Learns a person or an object from one photo as separate tokens for every stage of denoising, and changes "
        "nothing else: a file of 30 KB. An attention loss keeps the other words of a prompt effective, so that "
        "expression, age and clothes can still be prompted."
    ),
    concepts=(ConceptInput("person", "dataset", "From Portrait Dataset; one image is enough."),),
    clip="The same text encoder: the tokens are in the models/sefi_ide folder.",
    load=_load,
    usage=lambda datasets, embeddings: f"a photo of {placeholder(datasets[0].trigger)}",
    sample=lambda datasets, values: f"a photo of {datasets[0].trigger}",
    first=(
        steps("steps", 800, "About 160 for each stage."),
        rate(1e-4, "1e-4 for the generator, 5e-3 for the table."),
        Knob(
            "attention_weight",
            0.003,
            "How closely the attention of every word must match that with the class word: lower values copy the photo "
            "and follow prompts less, 0.01 and above forgets the subject.",
            "lambda_attention",
            low=0.0,
            high=1.0,
            step=0.0001,
        ),
        Knob(
            "tokens",
            TOKENS[0],
            "What is trained: a small network that makes the tokens, or the tokens themselves, which is faster.",
            "tokens",
            options=TOKENS,
        ),
    ),
    last=(
        Knob(
            "stages",
            5,
            "Number of equal parts into which denoising is split, each with its own tokens.",
            "stages",
            low=1,
            high=50,
            advanced=True,
        ),
        Knob(
            "layers",
            LAYERS[0],
            "In which layers the attention is compared; all of them need more memory with SD1.5.",
            "layers",
            options=LAYERS,
            advanced=True,
        ),
        Knob(
            "start_word",
            "",
            "A word of one token from which the tokens are initialised. Empty: the dataset's class word, which must be "
            "one token too.",
            "start",
            advanced=True,
        ),
        Knob(
            "templates",
            "",
            "Sentences about the subject, one per line, {} for its word. Empty: built-in ones about a face.",
            lines=True,
            advanced=True,
        ),
        MASK,
        Knob(
            "plain_embedding",
            False,
            "Also write an ordinary embedding, one vector for all stages, that works in any prompt, with less "
            "likeness.",
            "plain_embedding",
            advanced=True,
        ),
    ),
    with_class_word=False,
    search_aliases=("semantic-fidelity", "one photo training", "ProSpect"),
    miniature={
        "tokens": TOKENS[1],
        "learning_rate": 1e-2,
        "templates": ("a photo of {}", "a portrait of {}", "the face of {}"),
    },
)
