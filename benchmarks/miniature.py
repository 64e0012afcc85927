"""What the miniature world can do, on people never drawn for training: the figures of its model card.

    python benchmarks/miniature.py                      the shipped weights
    python benchmarks/miniature.py --weights FOLDER     those of a training of one's own

Writes every figure as JSON. On two cores it takes about a quarter of an hour; `--people 12` is a quick look.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from likeness.evaluation.identity import score_sight, see
from likeness.miniature.drawing.captions import caption
from likeness.miniature.drawing.people import SPLITS
from likeness.miniature.drawing.shots import Style, draw_shots
from likeness.miniature.models.networks import JUDGE_CROP, RECOGNISER_CROP
from likeness.miniature.models.weights import FOLDER, load_judge, load_observer, load_recogniser
from likeness.miniature.models.world import ATTRIBUTES, World, load_world, photos_of, wanted
from likeness.miniature.study.measuring import GIVEN, HELD_OUT, TABLE_PEOPLE, StudySubject, subjects
from likeness.miniature.train.corpus import Order, draw_corpus
from likeness.miniature.train.observer import accuracy
from likeness.miniature.train.recogniser import embed_corpus, verification

PROMPTS = (  # photographs: recognisers are brittle on drawings
    "a photo of a person wearing a red shirt in the forest",
    "a photo of a person wearing a blue sweater on the beach",
    "a photo of a smiling person wearing a black suit in the city",
    "a photo of a person wearing a yellow shirt in a room",
)


def recogniser_figures(folder: Path, cache: Path, people: int) -> dict:
    """Verification of both recognisers over all styles together and in each."""
    corpus = draw_corpus(Order("test", people, 12), cache)
    figures = {}
    nets = (("recogniser", load_recogniser(folder), RECOGNISER_CROP), ("judge", load_judge(folder), JUDGE_CROP))
    for name, net, crop in nets:
        embeddings = embed_corpus(net, crop, corpus, jitter=0.5)  # type: ignore[arg-type]
        rows = {"all": np.ones(len(corpus), bool)} | {s.name.lower(): corpus.shots.style == s for s in Style}
        figures[name] = {
            key: dict(zip(("accuracy", "accepted"), verification(embeddings[row], corpus.person[row]), strict=True))
            for key, row in rows.items()
        }
    return figures | {"observer": accuracy(load_observer(folder), corpus)}


def base_figures(world: World, count: int, guidance: float) -> dict:
    """The share of what a random caption asks for that is in the image, per attribute."""
    shots = draw_shots(range(77_000, 77_000 + count))
    prompts = [caption(shots.describe(row)) for row in range(count)]
    pictures = world.portraits(prompts, range(count), guidance=guidance)
    return fidelity(world, pictures, prompts)


def fidelity(world: World, pictures: torch.Tensor, prompts: Sequence[str]) -> dict:
    """Share of right answers per attribute over the images whose prompt asks for it, and their mean."""
    seen, asked = world.read(pictures), [wanted(prompt) for prompt in prompts]

    def share(name: str) -> float:
        pairs = [(a[name], s[name]) for a, s in zip(asked, seen, strict=True) if name in a]
        return float(np.mean([a == s for a, s in pairs])) if pairs else float("nan")

    shares = {name: share(name) for name in (*ATTRIBUTES, "clothing", "expression")}
    return shares | {"mean": float(np.nanmean([shares[name] for name in ATTRIBUTES]))}


def adapter_figures(world: World, people: int, guidance: float, strength: float) -> dict:
    """Similarity to the right person and to the others, rank among all, by both recognisers; fidelity beside it."""
    everybody = subjects(world, TABLE_PEOPLE[:people])
    embeddings = torch.stack([subject.identity.mean_embedding() for subject in everybody])
    embeddings = embeddings.repeat_interleave(len(PROMPTS), 0)
    prompts = list(PROMPTS) * people
    noise = list(range(len(prompts)))
    seeds = [SPLITS["test"][number] for number in TABLE_PEOPLE[:people]]
    photos = torch.from_numpy(np.concatenate([photos_of(seed, 1, first=GIVEN + HELD_OUT) for seed in seeds]))
    without = world.portraits(prompts, noise, guidance=guidance)
    with_adapter = world.portraits(prompts, noise, embeddings, strength, guidance=guidance)
    return {
        "real photo": likeness(world, everybody, photos.float() / 255),
        "no adapter": fidelity(world, without, prompts) | likeness(world, everybody, without),
        "FaceID": fidelity(world, with_adapter, prompts) | likeness(world, everybody, with_adapter),
    }


def likeness(world: World, everybody: Sequence[StudySubject], pictures: torch.Tensor) -> dict:
    """By each recogniser: mean cosine to the right person and to the others, their gap, how often the right one is the
    nearest. pictures: as many of every person, one person after the other."""
    figures = {}
    for name, eye, known in (
        ("recogniser", world.analysis, [subject.conditioned for subject in everybody]),
        ("judge", world.judge, [subject.judged for subject in everybody]),
    ):
        scores = [
            score_sight(see(mine, eye), known[row], [other.mean for other in known if other is not known[row]])
            for row, mine in enumerate(pictures.chunk(len(everybody)))
        ]
        right, gap = (torch.cat([getattr(s, what) for s in scores]).mean().item() for what in ("cosines", "margins"))
        nearest = torch.cat([s.ranks for s in scores]) == 1
        figures[name] = {"right": right, "others": right - gap, "gap": gap, "rank1": nearest.float().mean().item()}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=FOLDER)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--samples", type=int, default=200, help="images for the base model's fidelity")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--strength", type=float, default=1.0)
    parser.add_argument("--cache", type=Path, default=Path("miniature-run/corpus"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    world = load_world(options.weights)
    figures = recogniser_figures(options.weights, options.cache, 2 * options.people)
    print(json.dumps(figures, indent=1), file=sys.stderr)
    figures["base"] = base_figures(world, options.samples, options.guidance)
    print(json.dumps(figures["base"], indent=1), file=sys.stderr)
    figures["adapter"] = adapter_figures(world, options.people, options.guidance, options.strength)
    figures["seconds"] = round(time.monotonic() - began)
    text = json.dumps(figures, indent=2)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
