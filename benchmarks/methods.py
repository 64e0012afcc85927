"""The table of methods in the miniature world: one row per method, for people nobody was trained on.

    python benchmarks/methods.py            50 people, 8 prompts, 2 seeds: 800 pictures a row, into docs/methods.md
    python benchmarks/methods.py --quick    6 people, 4 prompts, 1 seed, printed only

The same people, prompts and starting noise for every method, so that differences are taken picture by picture.
`records.csv` has a line for every picture; every figure can be computed again from it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from likeness.evaluation.table import Facts, Record, agreement, methods_of, methods_table, of_method, write_csv
from likeness.miniature.people import SPLITS
from likeness.miniature.study import PROMPTS, TABLE_PEOPLE, Sitter, measure, sitters
from likeness.miniature.weights import ADAPTER_FILE
from likeness.miniature.world import World, load_world, photos_of

DOCUMENT = Path(__file__).parents[1] / "docs" / "methods.md"
BASE = "no adapter"
Make = Callable[[World, Sitter, Sequence[str], Sequence[int]], Tensor]


@dataclass(frozen=True)
class Method:
    """A row: how its pictures are made, and what is known of it."""

    make: Make
    facts: Facts = field(default_factory=Facts)
    people: int | None = None  # of those of the table; a trained method costs minutes for each


def _pictures(photos: np.ndarray) -> Tensor:
    return torch.from_numpy(photos).float() / 255


def real_photo(world: World, sitter: Sitter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """The ceiling: other photos of the person, which no prompt has asked for."""
    return _pictures(photos_of(_seed_of(sitter), len(prompts), first=20))


def stranger(world: World, sitter: Sitter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """The floor: photos of somebody else."""
    return _pictures(photos_of(_seed_of(sitter) + 3000, len(prompts), first=20))


def pasted(world: World, sitter: Sitter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """What copying looks like: a photo that was given, as the result."""
    return _pictures(np.stack([sitter.given[row % len(sitter.given)] for row in range(len(prompts))]))


def no_adapter(world: World, sitter: Sitter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """The prompt alone."""
    return world.portraits(prompts, seeds)


def faceid(photos: int, strength: float = 1.0) -> Make:
    """The FaceID adapter on that many photos."""

    def make(world: World, sitter: Sitter, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        few = Sitter(sitter.name, sitter.given[:photos], sitter.held_out, world)
        return world.portraits(prompts, seeds, few.identity.mean_embedding()[None], strength)

    return make


def _seed_of(sitter: Sitter) -> int:
    return SPLITS["test"][int(sitter.name.removeprefix("person-"))]


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def methods() -> dict[str, Method]:
    """All rows; the anchors, which generate nothing, come first."""
    adapter = _megabytes(ADAPTER_FILE)
    return {
        "real photo": Method(real_photo, Facts("–")),
        "stranger": Method(stranger, Facts("–")),
        "pasted photo": Method(pasted, Facts("4 photos")),
        BASE: Method(no_adapter, Facts("prompt")),
        "FaceID, 1 photo": Method(faceid(1), Facts("1 photo", adapter)),
        "FaceID, 4 photos": Method(faceid(4), Facts("4 photos", adapter)),
    }


def run(people: int, prompts: Sequence[str], seeds: int, world: World, wanted: dict[str, Method]) -> list[Record]:
    """Every method for every person: the same prompts, and noise of its own for every person and seed."""
    everybody = sitters(world, TABLE_PEOPLE[:people])
    records = []
    with tqdm(total=len(wanted) * people, unit="person") as bar:
        for row, sitter in enumerate(everybody):
            others = [other for other in everybody if other is not sitter]
            asked = [prompt for prompt in prompts for _ in range(seeds)]
            noise = [10_000 * row + number for number in range(len(asked))]
            # Another order for every person, so that a machine that grows warm favours no method.
            for name in np.random.default_rng(row).permutation(list(wanted)):
                method = wanted[name]
                bar.update()
                if method.people is not None and row >= method.people:
                    continue
                began = time.monotonic()
                pictures = method.make(world, sitter, asked, noise)
                seconds = (time.monotonic() - began) / len(asked)
                generated = name not in ("real photo", "stranger", "pasted photo")
                seconds = seconds if generated else float("nan")
                records += measure(world, str(name), sitter, pictures, asked, noise, others, seconds)
    order = list(wanted)
    return sorted(records, key=lambda record: order.index(record.method))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--records", type=Path, default=DOCUMENT.with_name("methods.csv"))
    options = parser.parse_args()
    world = load_world()
    began = time.monotonic()
    records = (
        run(6, PROMPTS[::2], 1, world, methods())
        if options.quick
        else run(options.people, PROMPTS, 2, world, methods())
    )
    facts = {name: method.facts for name, method in methods().items()}
    table = methods_table(records, BASE, facts)
    print(table)
    if options.quick:
        return
    write_csv(records, options.records)
    minutes = (time.monotonic() - began) / 60
    agreements = [
        f"{method} {agreement(of_method(records, method)):.2f}"
        for method in methods_of(records)
        if method.startswith("FaceID")
    ]
    DOCUMENT.write_text(
        "# Methods in the miniature world\n\n"
        "One row per method, for drawn people whom no network was ever trained on. The same prompts and the same "
        "starting noise for every method; means over people with 95 % intervals; differences are taken picture by "
        "picture and are bold where they hold after Holm's correction. Likeness is judged by a recogniser that "
        "conditions nothing, on photos that no method has seen; a picture without a face counts 0.\n\n"
        f"{table}\n"
        "Correlation between the judge's and the conditioner's cosine, picture by picture: "
        f"{', '.join(agreements)}.\n\n"
        f"Made by `python benchmarks/methods.py` in {minutes:.0f} minutes on two cores; one line per picture in "
        f"[{options.records.name}]({options.records.name}).\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
