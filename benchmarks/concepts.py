"""Two people in one model: Custom Diffusion's closed form against adding what each has learned, in the miniature world.

    python benchmarks/concepts.py              a pair of tuning people, 300 steps each: about five minutes
    python benchmarks/concepts.py --pairs 8    for figures with narrow intervals

Each person is trained alone, keys and values and a word. Then both are put into one model, and prompts about one of
them are painted by it: likeness to that person by the judge, and to the other one.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping
from functools import partial
from itertools import product

import torch
from torch import Tensor

from likeness.evaluation.identity import score_sight, see
from likeness.miniature.models.base_model import base_of
from likeness.miniature.models.world import World, load_world
from likeness.miniature.study.measuring import PROMPTS, TUNING_PEOPLE, StudySubject, subjects
from likeness.miniature.study.tuned import Tuned, learn, lesson_of, phrase_of
from likeness.training.base.model import BaseModel
from likeness.training.base.vocabulary import NewToken, Vocabulary
from likeness.training.methods.custom_diffusion import LAYERS, METHOD
from likeness.weights.concept_merging import Constraints, Merger, merge_concepts
from likeness.weights.concept_prompts import constraint_prompts
from likeness.weights.concepts import Concept, Layout
from likeness.weights.embedding_files import TokenEmbedding

WORDS = ("<anna>", "<bob>")
WAYS = ("trained alone", "merged in closed form", "merged softly", "differences added")
SOFT = 0.01
CAPTIONS = [
    f"a {style} of a {mood}person wearing a {colour} {clothes} {where}"
    for style, mood, (colour, clothes), where in product(
        ("photo", "portrait", "night photo"),
        ("", "smiling "),
        (("red", "shirt"), ("blue", "sweater"), ("black", "suit"), ("green", "shirt")),
        ("in the snow", "on the beach", "in the forest", "in the city", "in the desert"),
    )
]


def concept_of(tuned: Tuned, word: str) -> Concept:
    """What a training has changed."""
    weights = {
        k: v for k, v in tuned.base.unet.state_dict().items() if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
    rows = tuned.base.text[0].encoder.get_input_embeddings().rows.detach()
    return Concept(word, (Layout.DELTA,), weights, {word: TokenEmbedding({tuned.base.text[0].kind: rows})})


def with_words(world: World, concepts: list[Concept]) -> BaseModel:
    """A copy of the world's model that knows the words."""
    base = base_of(copy.deepcopy(world.unet), copy.deepcopy(world.text_encoder), world.codec)
    tokens = [NewToken(word, 1, token) for concept in concepts for word, token in concept.tokens.items()]
    Vocabulary(base, tokens)
    return base


@torch.no_grad()
def features(base: BaseModel, text: str, prefix: str = "") -> Tensor:
    """(tokens, width): the states of a text's tokens behind a prefix, and of its end."""

    def count(said: str) -> int:
        return len(base.text[0].tokenizer(base.spell(said), add_special_tokens=False).input_ids)

    return base.encode([text]).states[0, 1 + (count(prefix) if prefix else 0) : count(text) + 2]


def painters(world: World, pair: list[StudySubject], steps: int) -> Mapping[str, tuple[Tuned, Tuned]]:
    """Of each way, what paints the first person and what the second."""
    # Started from one token, both words would stay the same to the text encoder, and no weights could tell them apart.
    chosen = [{"layers": LAYERS[0], "start": (start,), "text_learning_rate": 1e-2} for start in ("person", "photo")]
    alone = [
        learn(lesson_of(METHOD, world, each.given, steps, **options), world, phrase_of(METHOD))
        for each, options in zip(pair, chosen, strict=True)
    ]
    concepts = [concept_of(tuned, word) for tuned, word in zip(alone, WORDS, strict=True)]
    own = {name: value for name, value in world.unet.state_dict().items() if name in concepts[0].weights}
    base = with_words(world, concepts)
    rows = [
        torch.cat([features(base, *prompt) for prompt in constraint_prompts(f"{word} person", style=False)])
        for word in WORDS
    ]
    captions = torch.cat([features(base, caption) for caption in CAPTIONS])
    merged = {}
    for way, softness in ((WAYS[1], 0.0), (WAYS[2], SOFT)):
        found = merge_concepts(concepts, own, Merger.of(captions, Constraints.of(rows), softness))
        print(f"{way}: residual {found.residual:.1e}, growth {found.growth:.1f}", flush=True)
        merged[way] = found.concept.weights
    added = {name: value + sum(c.weights[name] - value for c in concepts) for name, value in own.items()}
    ways = {WAYS[0]: (alone[0], alone[1])}
    for way, weights in (*merged.items(), (WAYS[3], added)):
        both = with_words(world, concepts)
        both.unet.load_state_dict(weights, strict=False)
        ways[way] = tuple(Tuned(both, f"{word} person", world, 0, 0) for word in WORDS)
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first pair")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    world = load_world()
    found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for number in range(options.first, options.first + options.pairs):
        pair = subjects(world, TUNING_PEOPLE[2 * number : 2 * number + 2])
        for way, tuned in painters(world, pair, options.steps).items():
            for mine, other, painter in zip(pair, reversed(pair), tuned, strict=True):
                sight = see(painter.portraits(PROMPTS[:6], range(6)), world.judge)
                likeness = partial(score_sight, sight)
                found[way].append(tuple(float(likeness(who.judged).cosines.mean()) for who in (mine, other)))  # type: ignore[arg-type]
                print(f"{way}, {mine.name}: {found[way][-1][0]:.3f}, {other.name} {found[way][-1][1]:.3f}", flush=True)
    print("| | likeness | to the other person | least of both, mean over pairs |\n| --- | --- | --- | --- |")
    for way, values in found.items():
        mine, others = torch.tensor(values).T
        print(f"| {way} | {mine.mean():.3f} | {others.mean():.3f} | {mine.view(-1, 2).amin(1).mean():.3f} |")


if __name__ == "__main__":
    main()
