"""The table of methods in the miniature world: one row per method, for people nobody was trained on.

    python benchmarks/methods.py                 50 people, 8 prompts, 2 seeds: 800 images a row, into docs/methods.md
    python benchmarks/methods.py MagiCapture     these rows again, the others as they are in docs/methods.csv
    python benchmarks/methods.py --quick         6 people, 4 prompts, 1 seed, no trained method, printed only

The same people, prompts and starting noise for every method, so that differences are taken image by image. The CSV
has a line for every image; every figure can be computed again from it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from likeness.evaluation.identity import score_sight, see
from likeness.evaluation.people import leak_pixels, rms_change
from likeness.evaluation.table import (
    MethodFacts,
    Record,
    agreement,
    difference,
    markdown_table,
    methods_of,
    methods_table,
    number,
    of_method,
    read_csv,
    summary,
    write_records,
)
from likeness.miniature.drawing.people import SPLITS
from likeness.miniature.models.backend import observe
from likeness.miniature.models.weights import ADAPTER_FILE, FOLDER
from likeness.miniature.models.world import World, load_world, photos_of
from likeness.miniature.models.world import wanted as place_of
from likeness.miniature.study.measuring import PROMPTS, TABLE_PEOPLE, StudySubject, measure_subject, subjects
from likeness.miniature.study.tuned import (
    BATCH,
    REFERENCE_STYLE,
    SUBJECT,
    Tuned,
    attention_outside,
    in_style,
    learn,
    lesson_of,
    phrase_of,
    portraits_of,
)
from likeness.training.data.dataset import DatasetKind
from likeness.training.methods import METHODS

DOCUMENT = Path(__file__).parents[1] / "docs" / "methods.md"
BASE = "no adapter"
ABLATION = "ablation"
TRAINED_PEOPLE, ABLATED_PEOPLE = 8, 8  # a trained method costs minutes for each
TRAINED = {f"{method.title}{method.variant}": method for method in METHODS}  # by the names of their rows
STEPS = 600  # of every trained method; MagiCapture's phases share them
Paint = Callable[[Sequence[str], Sequence[int]], Tensor]
Prepare = Callable[[World, StudySubject], Paint | Tuned]


@dataclass(frozen=True)
class Method:
    """A row: what is done once for a person, which gives what paints them and what that took; and what is known of
    the method."""

    prepare: Prepare
    facts: MethodFacts = field(default_factory=MethodFacts)
    people: int | None = None  # of those of the table
    generates: bool = True


def _pictures(photos: np.ndarray) -> Tensor:
    return torch.from_numpy(photos).float() / 255


def real_photo(world: World, subject: StudySubject) -> Paint:
    """The ceiling: other photos of the person, which no prompt has asked for."""
    return lambda prompts, seeds: _pictures(photos_of(_seed_of(subject), len(prompts), first=20))


def stranger(world: World, subject: StudySubject) -> Paint:
    """The floor: photos of somebody else."""
    return lambda prompts, seeds: _pictures(photos_of(_seed_of(subject) + 3000, len(prompts), first=20))


def pasted(world: World, subject: StudySubject) -> Paint:
    """What copying looks like: a photo that was given, as the result."""
    return lambda prompts, seeds: _pictures(
        np.stack([subject.given[i % len(subject.given)] for i in range(len(prompts))])
    )


def no_adapter(world: World, subject: StudySubject) -> Paint:
    """The prompt alone."""
    return world.portraits


def faceid(photos: int, strength: float = 1.0) -> Prepare:
    """The FaceID adapter on that many photos."""

    def prepare(world: World, subject: StudySubject) -> Paint:
        few = StudySubject(subject.name, subject.given[:photos], subject.held_out, world)
        embedding = few.identity.mean_embedding()[None]
        return lambda prompts, seeds: world.portraits(prompts, seeds, embedding, strength)

    return prepare


@cache
def taught(name: str, world: World, subject: StudySubject, **changes: Any) -> Tuned:
    """What a method has learned from a person's given photos: once, for the table and for the ablation."""
    method = TRAINED[name]
    return learn(lesson_of(method, world, subject.given, STEPS, **changes), world, phrase_of(method))


def _seed_of(subject: StudySubject) -> int:
    return SPLITS["test"][int(subject.name.removeprefix("person-"))]


def _megabytes(path: Path) -> float:
    return path.stat().st_size / 1e6


def methods() -> dict[str, Method]:
    """All rows; the anchors, which generate nothing, come first."""
    adapter = _megabytes(ADAPTER_FILE)
    return {
        "real photo": Method(real_photo, MethodFacts("–"), generates=False),
        "stranger": Method(stranger, MethodFacts("–"), generates=False),
        "pasted photo": Method(pasted, MethodFacts("4 photos"), generates=False),
        BASE: Method(no_adapter, MethodFacts("prompt")),
        "FaceID, 1 photo": Method(faceid(1), MethodFacts("1 photo", adapter)),
        "FaceID, 4 photos": Method(faceid(4), MethodFacts("4 photos", adapter)),
        **{name: Method(partial(taught, name), MethodFacts("trained on 4"), people=TRAINED_PEOPLE) for name in TRAINED},
    }


def run(
    everybody: Sequence[StudySubject], prompts: Sequence[str], seeds: int, world: World, wanted: dict[str, Method]
) -> list[Record]:
    """Every method for every person: the same prompts, and noise of its own for every person and seed."""
    records = []
    with tqdm(total=len(wanted) * len(everybody), unit="person") as bar:
        for row, subject in enumerate(everybody):
            others = [other for other in everybody if other is not subject]
            asked = [prompt for prompt in prompts for _ in range(seeds)]
            noise = [10_000 * row + number for number in range(len(asked))]
            # Another order for every person, so that a machine that grows warm favours no method.
            for name in np.random.default_rng(row).permutation(list(wanted)):
                method = wanted[name]
                bar.update()
                if method.people is not None and row >= method.people:
                    continue
                prepared = method.prepare(world, subject)
                paint = prepared.portraits if isinstance(prepared, Tuned) else prepared
                began = time.monotonic()
                pictures = paint(asked, noise)
                seconds = (time.monotonic() - began) / len(asked) if method.generates else float("nan")
                found = measure_subject(world, str(name), subject, pictures, asked, noise, others, seconds)
                records += [replace(record, measures={**record.measures, **cost_of(prepared)}) for record in found]
    return records


def cost_of(prepared: Paint | Tuned) -> dict[str, float]:
    """What a person's training took, for the records; nothing where nothing was trained."""
    if not isinstance(prepared, Tuned):
        return {}
    return {"training_seconds": prepared.seconds, "megabytes": prepared.megabytes}


# --- what MagiCapture's losses are for


@dataclass(frozen=True)
class Variant:
    """MagiCapture with other settings. against: the variant that differences are taken to; empty: none are."""

    changes: dict[str, float] = field(default_factory=dict)
    against: str = ""


PUBLISHED = {"unet_rate": 4e-4, "text_rate": 4e-5}  # twice the rates of the table
ABLATIONS = {
    "MagiCapture": Variant(),
    "without the identity loss": Variant({"lambda_id": 0.0}, "MagiCapture"),
    "without attention refocusing": Variant({"lambda_attention": 0.0}, "MagiCapture"),
    "published rates": Variant(PUBLISHED),
    "published rates, without attention refocusing": Variant(PUBLISHED | {"lambda_attention": 0.0}, "published rates"),
}
COMPOSED = (  # in the style of the reference watercolours; every one names a place, so that another one is a leak
    "a photo of a person in the forest",
    "a photo of a person on the beach",
    "a photo of a person in the city",
    "a photo of a person in the desert",
)
# These name no place, so that the person's word could fill it.
OPEN = ("a photo of a person", in_style("a photo of a person"))
ABLATION_COLUMNS = {
    "id": "likeness to the person by the judge",
    "style": "share in the style of the reference images",
    "place": "share with the place that the prompt names",
    "attention": "share of the person's word's attention that lies outside the face, in new photos",
    "leak": "change outside the face over change inside it, against the base model's image",
    "leak of the word": "the same, against the tuned model's image of the prompt without the person's word",
    "outside": "what the person's word changes outside the face where the prompt names no place: RMS, 0 to 1",
    "place moved": "share of these images that the word puts in another place",
}


def ablate(everybody: Sequence[StudySubject], world: World, variants: dict[str, Variant]) -> list[Record]:
    """Every variant for every person: composed prompts, two seeds each, and prompts that leave the place open."""
    records = []
    composed = [prompt for prompt in COMPOSED for _ in range(2)]
    unplaced = [prompt for prompt in OPEN for _ in range(8)]
    for row, subject in enumerate(tqdm(everybody, desc="ablation", unit="person")):
        seeds = [10_000 * row + 500 + number for number in range(len(composed))]
        unplaced_seeds = [10_000 * row + 600 + number for number in range(len(unplaced))]
        plain = world.portraits(composed, seeds)
        shown = portraits_of(world, subject.held_out, DatasetKind.PERSON, SUBJECT)
        for name, variant in variants.items():
            tuned = taught("MagiCapture", world, subject, **variant.changes)
            attention = {"attention": attention_outside(tuned, shown)}
            found = [measures | attention for measures in composed_measures(tuned, subject, composed, seeds, plain)]
            found += open_measures(tuned, unplaced, unplaced_seeds)
            pictures = zip([*composed, *unplaced], [*seeds, *unplaced_seeds], found, strict=True)
            for i, (prompt, seed, measures) in enumerate(pictures):
                records.append(Record(name, subject.name, prompt, seed, f"{name}/{subject.name}-{i + 1}.png", measures))
    return records


def composed_measures(
    tuned: Tuned, subject: StudySubject, prompts: Sequence[str], seeds: Sequence[int], plain: Tensor
) -> list[dict[str, float]]:
    """Of each image in the reference style: likeness, style, the place that the prompt names, and both leaks.

    plain: the base model's images of the same prompts and seeds.
    """
    world, styled = tuned.world, [in_style(prompt) for prompt in prompts]
    pictures, anyone = tuned.portraits(styled, seeds), tuned.portraits(styled, seeds, named=False)
    likeness = score_sight(see(pictures, world.judge), subject.judged).cosines
    leaks, of_word = (
        leak_pixels(pictures, without, face_regions(world, without, pictures)) for without in (plain, anyone)
    )
    return [
        {
            "id": float(likeness[i]),
            "style": float(seen["style"] == REFERENCE_STYLE.name.lower()),
            "place": float(seen["scene"] == place_of(prompts[i])["scene"]),
            "leak": float(leaks[i]),
            "leak of the word": float(of_word[i]),
        }
        for i, seen in enumerate(world.read(pictures))
    ]


def open_measures(tuned: Tuned, prompts: Sequence[str], seeds: Sequence[int]) -> list[dict[str, float]]:
    """Of each image: what the person's word changes outside the face, and whether it changes the place."""
    pictures, anyone = tuned.portraits(prompts, seeds), tuned.portraits(prompts, seeds, named=False)
    _, outside = rms_change(pictures, anyone, face_regions(tuned.world, pictures, anyone))
    places = [[seen["scene"] for seen in tuned.world.read(series)] for series in (pictures, anyone)]
    return [
        {"outside": float(value), "place moved": float(named != without)}
        for value, named, without in zip(outside, *places, strict=True)
    ]


def face_regions(world: World, *series: Tensor) -> Tensor:
    """(n, H, W): 1 where the face is in any of these series of images (n, H, W, 3), widened to hold the hair."""
    regions = torch.zeros(series[0].shape[:3])
    for pictures in series:
        boxes = observe(world.observer, pictures.permute(0, 3, 1, 2)).boxes
        for region, (left, top, right, bottom) in zip(regions, boxes.tolist(), strict=True):
            margin = 0.25 * (bottom - top)
            top, left = max(0, round(top - margin)), max(0, round(left - margin))
            region[top : round(bottom + margin), left : round(right + margin)] = 1
    return regions


def ablation_table(records: Sequence[Record]) -> str:
    """Means over people of every variant, and the paired differences to the one that it is held against."""
    lines = [["variant", *ABLATION_COLUMNS]]
    for name in methods_of(records):
        cells = []
        for column in ABLATION_COLUMNS:
            cell = number(summary(of_method(records, name), column))
            if whole := ABLATIONS[name].against:
                cell += f"; Δ {number(difference(records, column, name, whole), signed=True)}"
            cells.append(cell)
        lines.append([name, *cells])
    return markdown_table(lines)


# --- into the document


def facts_of(records: Sequence[Record]) -> dict[str, MethodFacts]:
    """What is known of every method, with what its trainings took."""
    facts = {}
    for name, method in methods().items():
        facts[name] = method.facts
        mine = of_method(records, name)
        if any("training_seconds" in record.measures for record in mine):
            seconds, megabytes = (
                float(np.median([r.value(what) for r in mine])) for what in ("training_seconds", "megabytes")
            )
            facts[name] = replace(method.facts, training_seconds=seconds, extra_mb=megabytes)
    return facts


def merged(file: Path, fresh: Sequence[Record], order: Sequence[str]) -> list[Record]:
    """The records of a file with those of some methods made anew, in the order of the methods; written back."""
    kept = [r for r in (read_csv(file) if file.exists() else []) if r.method not in methods_of(fresh)]
    records = sorted([*kept, *map(rounded, fresh)], key=lambda record: order.index(record.method))
    write_records(records, file)
    return records


def rounded(record: Record) -> Record:
    """Four digits after the point: what the file keeps, and what all figures are computed from."""
    return replace(record, measures={name: round(value, 4) for name, value in record.measures.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", help="methods, variants, or 'ablation': all variants; default: everything")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--weights", type=Path, default=FOLDER, help="those of a training of one's own")
    options = parser.parse_args()
    world, known = load_world(options.weights), methods()
    if unknown := set(options.rows) - {*known, *ABLATIONS, ABLATION}:
        there = dict.fromkeys([*known, *ABLATIONS, ABLATION])
        parser.error(f"no such rows: {', '.join(sorted(unknown))}; there are {', '.join(there)}")
    if options.quick:
        untrained = {name: method for name, method in known.items() if method.people is None}
        records = run(subjects(world, TABLE_PEOPLE[:6]), PROMPTS[::2], 1, world, untrained)
        print(methods_table(records, BASE, facts_of(records)))
        return
    rows = options.rows or [*known, ABLATION]
    everybody = subjects(world, TABLE_PEOPLE[: options.people])
    fresh = run(everybody, PROMPTS, 2, world, {name: known[name] for name in rows if name in known})
    variants = {name: variant for name, variant in ABLATIONS.items() if name in rows or ABLATION in rows}
    ablation = ablate(everybody[:ABLATED_PEOPLE], world, variants) if variants else []
    records = merged(options.out.with_suffix(".csv"), fresh, list(known))
    ablation = merged(options.out.with_name(f"{options.out.stem}_{ABLATION}.csv"), ablation, list(ABLATIONS))
    options.out.write_text(document(records, ablation, facts_of(records)), encoding="utf-8")


def people_with(records: Sequence[Record], measure: str) -> int:
    """How many people have been measured so."""
    return len({record.person for record in records if not np.isnan(record.value(measure))})


def document(records: Sequence[Record], ablation: Sequence[Record], facts: dict[str, MethodFacts]) -> str:
    """docs/methods.md."""
    agreements = [
        f"{method} {agreement(of_method(records, method)):.2f}"
        for method in methods_of(records)
        if method not in ("real photo", "stranger", "pasted photo", BASE)
    ]
    reference = BASE if BASE in methods_of(records) else None
    few = [record for record in records if int(record.person.removeprefix("person-")) in TABLE_PEOPLE[:TRAINED_PEOPLE]]
    return (
        "# Methods in the miniature world\n\n"
        "One row per method, for drawn people whom no network was ever trained on. The same prompts and the same "
        "starting noise for every method; means over people with 95 % intervals; differences are taken image by "
        "image and are bold where they hold after Holm's correction. Likeness is judged by a recogniser that "
        "conditions nothing, on photos that no method has seen; an image without a face counts 0.\n\n"
        f"{methods_table(records, reference, facts)}\n"
        f"Trained methods, {STEPS} steps of {BATCH} images, on the same {TRAINED_PEOPLE} people as the rows beside "
        "them:\n\n"
        f"{methods_table(few, reference, facts)}\n"
        "Correlation between the judge's and the conditioner's cosine, image by image: "
        f"{', '.join(agreements)}.\n\n"
        "## What MagiCapture's two further losses are for\n\n"
        f"{len({record.person for record in ablation})} people, prompts in the style of four reference watercolours; "
        "Δ is the paired difference to the whole method; below, to that at the published rates, twice those of the "
        "table.\n\n"
        f"{ablation_table(ablation)}\n"
        + "".join(
            f"- **{name}**: {meaning} ({people_with(ablation, name)} people).\n"
            for name, meaning in ABLATION_COLUMNS.items()
        )
        + "\nTimes were measured beside other work on the same two cores. Made by `python benchmarks/methods.py`; one "
        "line per image in [methods.csv](methods.csv) and [methods_ablation.csv](methods_ablation.csv).\n"
    )


if __name__ == "__main__":
    main()
