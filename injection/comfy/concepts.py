"""A concept of Custom Diffusion in a MODEL and a CLIP: weight patches and words."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...adapters.effects import WeightDelta
from ...adapters.text_encoder import encode_tokens
from ...errors import LikenessError
from ...weights.checkpoint_layout import with_text_model
from ...weights.concept_merging import Constraints, Merger
from ...weights.concept_prompts import constraint_prompts, ordinary_captions
from ...weights.concepts import Concept, changes_of, is_other_base, left_alone
from .apply import apply_effects, sites_of
from .encoders import ComfyTextEncoder
from .weights import base_weights
from .words import with_words


class AppliedConcept(NamedTuple):
    """changed: how many weights. alone: keys and values that the file has nothing for. size: ‖W − W0‖ / ‖W0‖ of those
    that it changes. foreign: whether the file says that it was trained on another base."""

    model: Any
    clip: Any
    changed: int
    alone: list[str]
    size: float
    foreign: bool


def concept_base(model: Any, *concepts: Concept) -> dict[str, Tensor]:
    """The MODEL's own weights that concepts speak of, and all its keys and values, without any patch."""
    if not sites_of(model):
        raise LikenessError("The MODEL has no cross-attention: Custom Diffusion works with SD1.5, SD2 and SDXL models.")
    asked = {name for concept in concepts for name in concept.weights}
    return base_weights(model, lambda name: name in asked or name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")))


@torch.no_grad()
def apply_concept(model: Any, clip: Any, concept: Concept, strength: float = 1.0) -> AppliedConcept:
    """Clones of MODEL and CLIP that know the concept. Strength 1 on the base it was trained on gives the trained
    weights; the words are there at any strength. clip None: the weights alone."""
    base = concept_base(model, concept) if concept.weights else {}
    changes = changes_of(concept, base) if concept.weights else {}
    delta = WeightDelta(concept.name, f"custom diffusion {concept.id}", changes, strength)
    applied = apply_effects(model, [delta])
    whole = [(path, change) for path, change in changes.items() if isinstance(change, Tensor)]
    square = sum(float(change.square().sum()) for _, change in whole)
    before = sum(float(base[path if path in base else f"{path}.weight"].square().sum()) for path, _ in whole)
    return AppliedConcept(
        applied.model,
        None if clip is None else _told(clip, concept, strength),
        applied.changed,
        left_alone(concept, base),
        (square / before) ** 0.5 if before else 0.0,
        bool(base) and is_other_base(concept.metadata.get("ss_base_weights", ""), base),
    )


def _told(clip: Any, concept: Concept, strength: float) -> Any:
    """The CLIP with the words, and with the text encoder that a few files bring."""
    twin, patches = with_words(clip, concept.tokens), {}
    own = twin.patcher.get_key_patches() if concept.text else {}
    for kind, state in concept.text.items():
        for name, value in state.items():
            key = f"{kind}.transformer.{with_text_model(name)}"
            if key not in own:
                raise LikenessError(
                    f"{concept.name!r} holds a text encoder of another kind ({key}): connect the CLIP of the base "
                    "model it was trained on."
                )
            weight, convert = own[key][0]
            before = convert(weight.to("cpu"), inplace=False).float()
            patches[key] = (value[: len(before)].float() - before,)  # the table has rows more, which are the words
    if patches and strength:
        twin.patcher.add_patches(patches, strength)
    return twin


@torch.no_grad()
def merger_of(
    clip: Any, concepts: list[tuple[Concept, list[str], bool]], captions: list[str], softness: float = 0.0
) -> Merger:
    """The closed form for concepts with what prompts call them, as in '<new1> cat', and whether they are styles.

    captions: ordinary ones; empty: built-in ones. softness: see `Merger.of`. Features are those that the MODEL reads
    from this CLIP.
    """
    for concept, _, _ in concepts:
        clip = with_words(clip, concept.tokens)
    encoder = ComfyTextEncoder(clip)
    ordinary = torch.cat([features(encoder, caption) for caption in captions or ordinary_captions()])
    rows = [
        torch.cat([features(encoder, *prompt) for phrase in phrases for prompt in constraint_prompts(phrase, style)])
        for _, phrases, style in concepts
    ]
    return Merger.of(ordinary, Constraints.of(rows), softness)


def features(encoder: ComfyTextEncoder, text: str, prefix: str = "") -> Tensor:
    """(tokens, width): the states of a text's tokens behind a prefix, and of its end."""
    tokens = encoder.tokenize(text)
    first, skipped = encoder.towers[0], encoder.tokenize(prefix) if prefix else {}
    start = 1 + len(skipped.get(first.name, ()))
    end = min(len(tokens[first.name]) + 2, first.length)
    return encode_tokens(encoder, tokens).states[0, start:end].float().cpu()
