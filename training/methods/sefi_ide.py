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
        "Learns a person or a thing from one photo as tokens of its own for every stage of denoising, and changes "
        "nothing else: a file of 30 KB. A loss on attention keeps the other words of a prompt at work, so that "
        "expression, age and clothes can still be asked for."
    ),
    concepts=(ConceptInput("person", "dataset", "From Portrait Dataset; one picture is enough."),),
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
            "How strictly every word is looked for where it would be for the class word: less copies the photo and "
            "obeys prompts less, 0.01 and more forgets the subject.",
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
            "Into how many equal parts denoising is cut, each with tokens of its own.",
            "stages",
            low=1,
            high=50,
            advanced=True,
        ),
        Knob(
            "layers",
            LAYERS[0],
            "Which layers the attention is compared in; all of them take more memory with SD1.5.",
            "layers",
            options=LAYERS,
            advanced=True,
        ),
        Knob(
            "start_word",
            "",
            "A word, one token, whose meaning the tokens start from. Empty: the dataset's class word, which must be "
            "one token too.",
            "start",
            advanced=True,
        ),
        Knob(
            "templates",
            "",
            "Sentences about the subject, one a line, {} for its word. Empty: built-in ones about a face.",
            lines=True,
            advanced=True,
        ),
        MASK,
        Knob(
            "plain_embedding",
            False,
            "Also write an ordinary embedding, one vector for all stages, that any prompt reads: likeness is lost.",
            "plain_embedding",
            advanced=True,
        ),
    ),
    search_aliases=("semantic-fidelity", "one photo training", "ProSpect"),
    miniature={
        "tokens": TOKENS[1],
        "learning_rate": 1e-2,
        "templates": ("a photo of {}", "a portrait of {}", "the face of {}"),
    },
)
