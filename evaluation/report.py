"""A report that a layman reads in a minute: one sentence, a sheet, the table, where it fails, how it was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from ..errors import LikenessError
from ..storage import write_whole
from .plots import Cell, curves, labelled_sheet, save_png, strip_plot
from .statistics import RESAMPLES, Interval, person_means
from .table import (
    MEASURES,
    PASTE,
    MethodFacts,
    Record,
    agreement,
    difference,
    methods_of,
    methods_table,
    of_method,
    summary,
    write_records,
)

SHEET_ROWS, SHEET_METHODS, REFERENCES_SHOWN = 10, 6, 2
WORST, COPIES = 10, 8
LITTLE = 40  # percent


class PictureSource(Protocol):
    """Images by the name in their record: a dictionary, or a folder that reads them when they are asked for."""

    def __getitem__(self, name: str, /) -> torch.Tensor: ...


@dataclass(frozen=True)
class Setting:
    """What a report says besides the records."""

    title: str = "Likeness report"
    judge: str = ""  # name of the recogniser
    licence: str = ""  # of the judge
    quality: str = ""  # of the judge, as measured on known people
    reference: str | None = None  # the method without identity
    photos: Mapping[str, Sequence[str]] = field(default_factory=dict)  # person -> names of the photos that were given
    facts: Mapping[str, MethodFacts] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    repeat: str = ""  # the command that makes this report again
    resamples: int = RESAMPLES


# --- in words


def headline(records: Sequence[Record], reference: str | None = None, resamples: int = RESAMPLES) -> str:
    """The result in one or two sentences; what the intervals do not support is not claimed."""
    methods = [method for method in methods_of(records) if method != reference] or methods_of(records)
    if not methods:
        raise LikenessError("There are no records to report on: measure at least one image.")
    means = {method: summary(of_method(records, method), "percent", resamples) for method in methods}
    best, *rest = sorted(methods, key=lambda method: -_or(means[method].mean, -math.inf))
    sentence = f"With {best} the images have {_percent(means[best])} of real photos' likeness"
    if reference is not None and best != reference:
        change = difference(records, "percent", best, reference, resamples)
        if not change.is_known:
            sentence += f", {change.mean:+.0f} points against {reference}"
        elif change.excludes_zero:
            more = "more" if change.mean > 0 else "less"
            low, high = sorted((abs(change.low), abs(change.high)))
            sentence += f", {abs(change.mean):.0f} points {more} than {reference} ({low:.0f} to {high:.0f})"
        else:
            sentence += f"; the difference to {reference}, {change.mean:+.0f} points, may be due to chance"
    return f"{sentence}. {_ahead(records, best, rest, resamples)}{_seen(of_method(records, best))}"


def _percent(interval: Interval) -> str:
    if math.isnan(interval.mean):
        return "an unknown share"
    limits = f" (95 % interval {interval.low:.0f} to {interval.high:.0f})" if interval.is_known else ""
    return f"{interval.mean:.0f} %{limits}"


def _ahead(records: Sequence[Record], best: str, rest: Sequence[str], resamples: int) -> str:
    if not rest:
        return ""
    lead = difference(records, "percent", best, rest[0], resamples)
    if lead.excludes_zero:
        return f"That is {lead.mean:.0f} points ahead of {rest[0]} ({lead.low:.0f} to {lead.high:.0f}). "
    return f"Whether it is ahead of {rest[0]} cannot be told from these images. "


def _seen(records: Sequence[Record]) -> str:
    people = len({record.person for record in records})
    found = [record.value("found") for record in records if not math.isnan(record.value("found"))]
    missing = sum(value == 0 for value in found)
    faces = f", no face in {missing}" if missing else ""
    few = "; too few people for an interval" if people < 6 else ""
    return f"{_count(len(records), 'image')} of {_count(people, 'person', 'people')}{faces}{few}."


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value


def reason(record: Record) -> str:
    """Why an image is among the worst."""
    if record.note:
        return record.note
    rank, gallery = record.value("rank"), record.value("gallery")
    reasons = []
    if rank > 1:
        reasons.append(f"another person is nearer (place {rank:.0f} of {gallery:.0f})")
    if record.value("face_ssim") > PASTE:
        reasons.append("the face is pasted")
    elif record.value("copy") > 0.9:
        reasons.append("a copy of the photo that was given")
    return ", ".join(reasons) or ("little likeness" if record.value("percent") < LITTLE else "the least of these")


# --- the report


def report(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting | None = None) -> Path:
    """Write `report.md`, `records.csv` and images into the folder `out`; returns the path of `report.md`.

    The same input gives the same bytes, whatever was there before from an earlier run of the same report. Each file is
    whole or not there. LikenessError when the folder cannot be written to.
    """
    setting = setting or Setting()
    place = {method: number for number, method in enumerate(methods_of(records))}
    records = sorted(records, key=lambda record: (place[record.method], record.cell, record.image))
    path = out / "report.md"
    try:
        out.mkdir(parents=True, exist_ok=True)
        sections = [section(records, images, out, setting) for section in _SECTIONS]
        text = "\n\n".join([f"# {setting.title}", *(part for part in sections if part)]) + "\n"
        write_records(records, out / "records.csv")
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline="\n"))
    except OSError as error:
        raise LikenessError(
            f"The report could not be written to {str(out)!r} ({error.strerror or error}): free some space, or choose "
            "another folder."
        ) from error
    return path


Section = Callable[[Sequence[Record], PictureSource, Path, Setting], str]


def _summary_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    lines = [headline(records, setting.reference, setting.resamples)]
    return "\n\n".join([*lines, *(f"**Warning: {warning}.**" for warning in setting.warnings)])


def _sheet_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    methods = methods_of(records)[:SHEET_METHODS]
    by_cell = {(record.method, record.cell): record for record in records}
    references = min(REFERENCES_SHOWN, max((len(names) for names in setting.photos.values()), default=0))
    rows = []
    for cell in _shared_cells(records, methods):
        names = list(setting.photos.get(cell[0], ()))[:references]
        photos = [Cell(images[name], cell[0]) for name in names] + [Cell()] * (references - len(names))
        rows.append(photos + [picture_cell(by_cell.get((method, cell)), images) for method in methods])
    save_png(labelled_sheet(rows, ["photo"] * references + methods), out / "sheet.png")
    return (
        "![The photos of each person, then one image of each method](sheet.png)\n\n"
        "Below each image: percent of real photos' likeness. Red: no face was found, which counts as 0."
    )


def _shared_cells(records: Sequence[Record], methods: Sequence[str]) -> list[tuple[str, str, int]]:
    """Which (person, prompt, seed) to show: those that most methods have, another prompt for each person."""
    counts: dict[tuple[str, str, int], int] = {}
    for record in records:
        if record.method in methods:
            counts[record.cell] = counts.get(record.cell, 0) + 1
    of_person: dict[str, list[tuple[str, str, int]]] = {}
    for cell in sorted(counts, key=lambda cell: (-counts[cell], cell)):
        of_person.setdefault(cell[0], []).append(cell)
    people = sorted(of_person)
    rounds = max((len(cells) for cells in of_person.values()), default=0)
    chosen = [
        of_person[person][(turn + place) % len(of_person[person])]
        for turn in range(rounds)
        for place, person in enumerate(people)
        if turn < len(of_person[person])
    ]
    return sorted(chosen[:SHEET_ROWS], key=lambda cell: cell[0])


def picture_cell(record: Record | None, images: PictureSource) -> Cell:
    """A result with its likeness below, framed where no face was found."""
    if record is None:
        return Cell(None, "–")
    if record.value("found") == 0:
        return Cell(images[record.image], record.note or "no face", bad=True)
    percent = record.value("percent")
    return Cell(images[record.image], "–" if math.isnan(percent) else f"{percent:.0f} %")


def _table_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    reference = setting.reference or methods_of(records)[0]
    table = methods_table(records, reference, setting.facts, setting.resamples)
    taken = sorted({name for record in records for name in record.measures} & set(MEASURES))
    legend = "\n".join(f"- `{name}`: {MEASURES[name]}" for name in taken)
    return (
        f"## The table\n\n{table}\nMeans over people [95 % interval]; differences to *{reference}*, image by image,"
        " bold where they hold after correction for the number of methods. Compare methods by these, not by whether "
        f"their intervals overlap.\n\nWhat was measured on each image, in [records.csv](records.csv):\n\n{legend}"
    )


def _people_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    groups = {}
    for method in methods_of(records):
        own = of_method(records, method)
        dots = person_means([record.value("percent") for record in own], [record.person for record in own])
        groups[method] = (dots, summary(own, "percent", setting.resamples))
    save_png(strip_plot(groups, "percent of real photos' likeness"), out / "people.png")
    return (
        "## Person by person\n\n![A dot for each person's mean, and the mean with its interval](people.png)\n\n"
        "A dot is a person, the upright bar the mean over people, the line above the dots its 95 % interval."
    )


def _curve_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    """Identity is comparable at equal freedom only: likeness against fidelity, over strengths where there are some."""
    measure = next((name for name in ("attributes", "clip_t") if _is_taken(records, name)), None)
    if measure is None:
        return ""
    lines = {}
    for method in methods_of(records):
        own = of_method(records, method)
        strengths = sorted({_or(record.value("strength"), 0.0) for record in own})
        groups = [[r for r in own if _or(r.value("strength"), 0.0) == strength] for strength in strengths]
        lines[method] = [tuple(_mean_of(group, name) for name in (measure, "percent")) for group in groups]
    label = {"attributes": "share of the prompt's attributes", "clip_t": "CLIP-T"}[measure]
    save_png(
        curves(lines, f"{label}: right is better", "percent of real photos' likeness: up is better"), out / "curve.png"
    )
    return "## Likeness against the prompt\n\n![Each method's likeness against how well it obeys the prompt](curve.png)"


def _is_taken(records: Sequence[Record], measure: str) -> bool:
    return any(not math.isnan(record.value(measure)) for record in records)


def _mean_of(records: Sequence[Record], measure: str) -> float:
    means = person_means([record.value(measure) for record in records], [record.person for record in records])
    return float(means.mean()) if len(means) else math.nan


def _copy_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    measure = next((name for name in ("copy", "face_ssim") if _is_taken(records, name)), None)
    shown = [r for r in records if r.method != setting.reference and setting.photos.get(r.person)]
    if measure is None or not shown:
        return ""
    nearest = sorted(shown, key=lambda r: (-_or(r.value(measure), -math.inf), r.image))[:COPIES]
    rows = [
        [Cell(images[setting.photos[r.person][0]], r.person) for r in nearest],
        [Cell(images[r.image], f"{r.method} {r.value(measure):.2f}") for r in nearest],
    ]
    save_png(labelled_sheet(rows), out / "copies.png")
    return (
        "## Is it a copy?\n\n![Photos that were given above the images nearest to them](copies.png)\n\n"
        f"Above: the photo that was given; below: the images nearest to it. `{measure}`: {MEASURES[measure]}."
    )


def _worst_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    judged = [r for r in records if r.method != setting.reference and not math.isnan(r.value("percent"))]
    if not judged:
        return ""
    worst = sorted(judged, key=lambda record: (record.value("percent"), record.image))[:WORST]
    half = (len(worst) + 1) // 2
    cells = [picture_cell(record, images) for record in worst]
    save_png(labelled_sheet([part for part in (cells[:half], cells[half:]) if part]), out / "worst.png")
    lines = [
        f"{place}. {record.method}, {record.person}, {record.prompt}, seed {record.seed}: "
        f"{record.value('percent'):.0f} %, {reason(record)}"
        for place, record in enumerate(worst, 1)
    ]
    return "## The worst\n\n![The images with the least likeness](worst.png)\n\n" + "\n".join(lines)


def _method_section(records: Sequence[Record], images: PictureSource, out: Path, setting: Setting) -> str:
    found = [record.value("found") for record in records if not math.isnan(record.value("found"))]
    played = agreement(records)
    facts = {
        "People": len({record.person for record in records}),
        "Images": len(records),
        "Without a face": f"{sum(value == 0 for value in found)} (they count as 0)" if found else "",
        "Prompts": len({record.prompt for record in records}),
        "Seeds": len({record.seed for record in records}),
        "Judge": setting.judge,
        "Licence of the judge": setting.licence,
        "The judge's own quality": setting.quality,
        "Agreement of judge and conditioner": "" if math.isnan(played) else f"{played:.2f} (correlation over images)",
        "Intervals": f"95 %, from {setting.resamples} resamples of people, none below 6 people",
    }
    lines = [f"- {name}: {value}" for name, value in facts.items() if value != ""]
    again = f"\n\nTo repeat:\n\n```\n{setting.repeat}\n```" if setting.repeat else ""
    return "## How it was measured\n\n" + "\n".join(lines) + again


_SECTIONS: tuple[Section, ...] = (
    _summary_section,
    _sheet_section,
    _table_section,
    _people_section,
    _curve_section,
    _copy_section,
    _worst_section,
    _method_section,
)
