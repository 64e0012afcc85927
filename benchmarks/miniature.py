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

from likeness.faces.similarity import unit
from likeness.miniature.captions import caption
from likeness.miniature.corpus import Order, draw_corpus
from likeness.miniature.networks import JUDGE_CROP, RECOGNISER_CROP
from likeness.miniature.people import SPLITS
from likeness.miniature.shots import Style, draw_shots
from likeness.miniature.train.observer import accuracy
from likeness.miniature.train.recogniser import embed_corpus, verification
from likeness.miniature.weights import FOLDER, load_judge, load_observer, load_recogniser
from likeness.miniature.world import ATTRIBUTES, World, load_world, photos_of, wanted

REFERENCES, GALLERY = 4, 4  # photos per person: to condition on, and others to compare with
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
    """The share of what a random caption asks for that is in the picture, per attribute."""
    shots = draw_shots(range(77_000, 77_000 + count))
    prompts = [caption(shots.describe(row)) for row in range(count)]
    pictures = world.portraits(prompts, range(count), guidance=guidance)
    return fidelity(world, pictures, prompts)


def fidelity(world: World, pictures: torch.Tensor, prompts: Sequence[str]) -> dict:
    """Share of right answers per attribute over the pictures whose prompt asks for it, and their mean."""
    seen, asked = world.read(pictures), [wanted(prompt) for prompt in prompts]

    def share(name: str) -> float:
        pairs = [(a[name], s[name]) for a, s in zip(asked, seen, strict=True) if name in a]
        return float(np.mean([a == s for a, s in pairs])) if pairs else float("nan")

    shares = {name: share(name) for name in (*ATTRIBUTES, "clothing", "expression")}
    return shares | {"mean": float(np.nanmean([shares[name] for name in ATTRIBUTES]))}


def adapter_figures(world: World, people: int, guidance: float, strength: float) -> dict:
    """Similarity to the right person and to the others, rank among all, by both recognisers; fidelity beside it."""
    seeds = list(SPLITS["test"][1000 : 1000 + people])
    conditions, galleries = [], {"recogniser": [], "judge": []}
    for seed in seeds:
        photos = photos_of(seed, REFERENCES + GALLERY)
        conditions.append(mean_embedding(world.analysis, photos[:REFERENCES]))
        for name, eye in (("recogniser", world.analysis), ("judge", world.judge)):
            galleries[name].append(mean_embedding(eye, photos[REFERENCES:]))
    embeddings = torch.stack(conditions).repeat_interleave(len(PROMPTS), 0)
    prompts = list(PROMPTS) * people
    noise = list(range(len(prompts)))
    truth = np.repeat(np.arange(people), len(PROMPTS))
    results = {}
    real = torch.from_numpy(np.concatenate([photos_of(seed, 1, first=REFERENCES + GALLERY) for seed in seeds])) / 255
    for row, pictures, who in (
        ("real photo", real, np.arange(people)),
        ("no adapter", world.portraits(prompts, noise, guidance=guidance), truth),
        ("FaceID", world.portraits(prompts, noise, embeddings, strength, guidance=guidance), truth),
    ):
        results[row] = {} if row == "real photo" else fidelity(world, pictures, prompts)
        for name, eye in (("recogniser", world.analysis), ("judge", world.judge)):
            results[row][name] = similarity(eye, pictures, torch.stack(galleries[name]), who)
    return results


def mean_embedding(eye, photos: np.ndarray) -> torch.Tensor:
    """The unit mean (D,) of the faces that are found."""
    found = [eye.find(photo) for photo in photos]
    return unit(torch.stack([unit(torch.from_numpy(faces[0].embedding)) for faces in found if faces]).mean(0))


def similarity(eye, pictures: torch.Tensor, gallery: torch.Tensor, who: np.ndarray) -> dict:
    """Mean cosine to the right person and to the others, their gap, and how often the right one is the nearest."""
    cosines = torch.zeros(len(pictures), len(gallery))
    for row, picture in enumerate((pictures * 255 + 0.5).byte().numpy()):
        faces = eye.find(picture)
        if faces:
            cosines[row] = unit(torch.from_numpy(faces[0].embedding)) @ gallery.T
    right = cosines[torch.arange(len(who)), torch.from_numpy(who)]
    others = (cosines.sum(1) - right) / (len(gallery) - 1)
    nearest = (cosines.argmax(1).numpy() == who).mean()
    return {
        "right": float(right.mean()),
        "others": float(others.mean()),
        "gap": float((right - others).mean()),
        "rank1": float(nearest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=FOLDER)
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--samples", type=int, default=200, help="pictures for the base model's fidelity")
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
