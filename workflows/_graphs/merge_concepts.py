"""Two concepts that were trained apart, merged in closed form and named in one prompt."""

from __future__ import annotations

from itertools import product

from _graph import Graph
from _pieces import MINIATURE, prompt, sample_and_save
from _pieces_miniature import load_miniature

_CAPTIONS = "\n".join(
    f"a {style} of a {mood}person wearing a {colour} {clothes} {where}"
    for style, mood, (colour, clothes), where in product(
        ("photo", "portrait"),
        ("", "smiling "),
        (("red", "shirt"), ("blue", "sweater"), ("black", "suit")),
        ("in the snow", "on the beach", "in the forest", "in the city"),
    )
)


def describe(graph: Graph) -> None:
    world = load_miniature(graph, first_group=1)
    with graph.group("2. Concepts"):
        person = graph.node("LikenessLoadConcept", title="Load Concept: person", file="drawn_person.safetensors")
        style = graph.node("LikenessLoadConcept", title="Load Concept: style", file="drawn_style.safetensors")
    with graph.group("3. Merge"):
        merged = graph.node(
            "LikenessMergeConcepts",
            model=world["model"],
            clip=world["clip"],
            concept_1=person["concept"],
            concept_2=style["concept"],
            phrase_2="<mystyle> picture",
            captions=_CAPTIONS,
        )
        graph.next_column()
        graph.node("PreviewAny", title="How exactly each is reproduced", source=merged["report"], extra_height=120)
        both = graph.node("LikenessApplyConcept", model=world["model"], clip=world["clip"], concept=merged["concept"])
        small = graph.node("LikenessCompressConcept", model=world["model"], concept=merged["concept"])
        graph.node("LikenessSaveConcept", concept=small["concept"], filename="drawn_person_and_style")
    text = "a <mystyle> picture of a <ohwx> person"
    start = prompt(graph, 4, MINIATURE, both["clip"], text)
    sample_and_save(graph, "5. Portrait", MINIATURE, world["vae"], both["model"], start)
    graph.note(
        "# 1. Run train_custom_diffusion\n\n"
        "Nothing has to be downloaded. It writes `drawn_person.safetensors` and "
        "`drawn_style.safetensors` to `models/custom_diffusion`.\n\n# 2. Press Run\n\n"
        "For concepts of your own put **Load Checkpoint** "
        "in the place of **Load Miniature**, and leave `captions` of **Merge Concepts** empty: the miniature knows "
        "few words, a real text encoder can encode the 200 built-in captions. The phrase of a concept is what "
        "prompts call it; files trained with this pack contain it.",
    )
