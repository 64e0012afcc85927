"""Custom Diffusion, as it is offered. The method itself is in `recipes/custom_diffusion.py`."""

from __future__ import annotations

from collections.abc import Sequence

from ..data.dataset import Dataset, DatasetKind
from .method import ConceptInput, Knob, Method, rate, steps

LAYERS = ("keys and values", "keys, values, queries and output")
ZOOMS = ("none", "adobe", "huggingface")


def _load():
    from ..recipes.custom_diffusion import TRAINABLE

    return TRAINABLE


def _usage(datasets: Sequence[Dataset], embeddings: Sequence[str]) -> str:
    return " and ".join(
        _phrase(dataset, word) for dataset, word in zip(datasets, _words(datasets, embeddings), strict=True)
    )


def _words(datasets: Sequence[Dataset], embeddings: Sequence[str]) -> Sequence[str]:
    """Without embeddings, no word was new."""
    return embeddings or [dataset.trigger for dataset in datasets]


def _phrase(dataset: Dataset, word: str) -> str:
    return f"in the style of {word}" if dataset.kind is DatasetKind.STYLE else f"a {word} {dataset.class_word}"


METHOD = Method(
    kind="custom_diffusion",
    title="Custom Diffusion",
    description=(
        "Learns a person, an object or a style as a new word and as keys and values of cross-attention: a file of 75 "
        "MB for SD1.5 that Merge Concepts joins with others, so that one prompt can name several. The defaults are "
        "for faces."
    ),
    concepts=(
        ConceptInput(
            "person", "dataset", "From Portrait Dataset; fifteen images or more for a face, four for an object."
        ),
        ConceptInput("second", "dataset_2", "A second concept that is learned together with the first.", optional=True),
        ConceptInput("third", "dataset_3", "A third concept.", optional=True),
    ),
    clip="The text encoder with the new word.",
    load=_load,
    usage=_usage,
    first=(
        steps("steps", 1000, "1000 for a face, 250 to 500 for an object; twice as many for two concepts."),
        rate(5e-6, "5e-6 for a face, 1e-5 to 4e-5 for an object."),
        Knob(
            "layers",
            LAYERS[1],
            "Which weights of cross-attention are trained. All of them give more likeness; only keys and values can "
            "be merged with other concepts without loss.",
            "layers",
            options=LAYERS,
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
            200,
            "Images of the class that the untouched model generates first; they are kept for further trainings.",
            "class_pictures",
            low=0,
            high=10_000,
        ),
        Knob(
            "class_folder",
            "",
            "Real images of the class instead, in a folder of ComfyUI's input folder, each with a caption (anna.txt) "
            "or without. Empty: the model generates them.",
            "class_folder",
            folder=True,
        ),
    ),
    last=(
        Knob("face_mask", True, "Whether only the face is learned: it needs a dataset with masks.", "face_mask"),
        Knob(
            "zoom",
            ZOOMS[0],
            "Whether images are also shown far away and close up, as their captions then say: 'adobe' for objects, "
            "'none' for faces.",
            "zoom",
            options=ZOOMS,
            advanced=True,
        ),
        Knob(
            "new_word",
            True,
            "Whether the trigger word is learned as a new one. Off: it keeps its meaning, and only weights are "
            "trained.",
            "new_words",
            advanced=True,
        ),
        Knob(
            "start_words",
            "",
            "Words from which the new ones are initialised, one for each dataset, separated by spaces; each must be "
            "one token. Empty: rare ones that mean nothing.",
            advanced=True,
        ),
    ),
    search_aliases=("multi-concept", "cross-attention training", "delta.bin"),
    # Rate and layers were chosen on a tuning person: 1e-3 and queries are closer to it and obey prompts less. Its own
    # vocabulary has neither the rare words nor those that say how far away an image is.
    miniature={
        "layers": LAYERS[0],
        "learning_rate": 5e-4,
        "start": ("person", "photo", "portrait"),
        "prompt": "a photo of a {}",
        "captions": False,
        "zoom": "none",
        "class_pictures": 16,
    },
)
