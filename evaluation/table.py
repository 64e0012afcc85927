"""One record per image, their CSV file, and the table of methods. Every figure of a table can be computed again from
the CSV file alone."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import LikenessError
from ..storage import write_whole
from .copying import pose_copy, relative_spread
from .statistics import RESAMPLES, Difference, Interval, bootstrap, holm, paired, share

KEYS = ("method", "person", "prompt", "seed", "image", "note")
POSE = ("yaw", "pitch", "roll")
GIVEN_POSE = ("given_yaw", "given_pitch", "given_roll")
EXPRESSION = ("mouth_width", "mouth_drop")
HEADLINE = ("id", "attributes", "copy")  # differences of these are corrected for the number of methods
SIGNIFICANT = 0.05
NOTHING = "–"
PASTE = 0.6  # structural similarity of a pasted face

# What a record may hold. 0/1 measures are shares when averaged.
MEASURES: dict[str, str] = {
    "found": "1 when the judge found a face",
    "id": "cosine to the mean of the person's photos, 0 without a face",
    "id_ref": "cosine to the photos that were given",
    "id_other": "cosine to other photos of the person",
    "margin": "cosine to the person minus the mean cosine to all others",
    "rank": "place of the person among all people, 1 is nearest",
    "gallery": "how many people the rank counts among",
    "rank1": "1 when the person is the nearest",
    "accept": "1 above the judge's threshold at a false-match rate of 1 in 1000",
    "percent": "percent of real photos' likeness",
    "id_second": "id by the second judge",
    "percent_second": "percent of real photos' likeness by the second judge",
    "copy_second": "copy by the second judge",
    "id_conditioner": "id by the recogniser that conditioned or trained the method",
    "clip_t": "cosine of image and prompt by CLIP",
    "attributes": "share of the prompt's attributes that were recognised",
    "obeys_pose": "1 when pose or expression is the one asked for",
    "keep_base": "likeness to the image without identity, face left out",
    "copy": "1: the photo that was given, 0: as near to another photo of the person",
    "copy_paste": "copy as multi-identity benchmarks count it: between the means of the given and the other photos",
    "face_ssim": "structural similarity to the nearest photo that was given; above 0.6 is a paste",
    "yaw": "degrees to the image's right",
    "pitch": "degrees up",
    "roll": "degrees clockwise",
    "given_yaw": "degrees to the image's right in the photos that were given, on average",
    "given_pitch": "degrees up in the photos that were given",
    "given_roll": "degrees clockwise in the photos that were given",
    "mouth_width": "width of the mouth in distances between the eyes",
    "mouth_drop": "distance of the mouth from the nose in distances between the eyes",
    "diversity": "mean distance to the person's other images of the method",
    "style_gain": "likeness to the style asked for minus that to other styles",
    "faces": "how many faces the image shows",
    "id_min": "id of the least similar person of several",
    "confusion": "how much nearer the wrong person is, over faces",
    "blending": "cosine of an image's faces to the people they are not, as multi-identity benchmarks count it",
    "id_sim": "cosine of each of several people to the face most like them, on average",
    "id_conf": "how far that face is ahead of the second, as a share: larger is less mixing",
    "matching_reward": "mean cosine of faces to their people minus that to others, over all pairs (UMO)",
    "people_found": "how many of several people have a face",
    "faces_extra": "faces beyond the people that were asked for",
    "leak": "change outside of a person's region over the change inside",
    "sharpness": "sharpness of the face",
    "sane": "1 when the file is a valid image",
    "seconds": "time to make the image",
    "strength": "the method's strength setting",
}


@dataclass(frozen=True)
class Record:
    """One image and what was measured on it; a measure that is not defined is missing or NaN."""

    method: str
    person: str
    prompt: str
    seed: int
    image: str  # path below the folder of the report's images
    measures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""  # why there is no face, say

    @property
    def cell(self) -> tuple[str, str, int]:
        """What images of two methods must share to be a pair."""
        return self.person, self.prompt, self.seed

    def value(self, measure: str) -> float:
        """The measure, NaN when it was not taken."""
        return float(self.measures.get(measure, math.nan))


# --- CSV


def write_records(records: Iterable[Record], path: Path) -> Path:
    """Write the records, whole or not at all; the same records give the same bytes. What is not defined is empty."""
    records = list(records)
    names = sorted({name for record in records for name in record.measures})

    def write(part: Path) -> None:
        with part.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow([*KEYS, *names])
            for record in records:
                values = [record.value(name) for name in names]
                keys = [getattr(record, key) for key in KEYS]
                writer.writerow([*keys, *("" if math.isnan(value) else repr(value) for value in values)])

    write_whole(path, write)
    return path


def read_csv(path: Path) -> list[Record]:
    """Read what `write_records` wrote, every number exactly; LikenessError for any other file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            names = [name for name in reader.fieldnames or [] if name not in KEYS]
            return [
                Record(
                    **{key: row[key] for key in KEYS if key != "seed"},
                    seed=int(row["seed"]),
                    measures={name: _number(row[name]) for name in names if row[name]},
                )
                for row in reader
            ]
    except (OSError, KeyError, TypeError, ValueError, csv.Error) as error:
        raise LikenessError(
            f"The records {path.name} cannot be read ({error}): choose a records.csv that a report wrote."
        ) from None


def _number(text: str) -> float:
    """A measure; what is not defined is not written."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a measure")
    return value


# --- aggregation


def of_method(records: Iterable[Record], method: str) -> list[Record]:
    """The records of one method."""
    return [record for record in records if record.method == method]


def methods_of(records: Iterable[Record]) -> list[str]:
    """All methods in order of appearance."""
    return list(dict.fromkeys(record.method for record in records))


def summary(records: Sequence[Record], measure: str, resamples: int = RESAMPLES) -> Interval:
    """Mean over people of one measure, with its interval; a share for 0/1 measures."""
    values, people = [record.value(measure) for record in records], [record.person for record in records]
    estimate = share if measure in _SHARES else bootstrap
    return estimate(values, people, resamples)


_SHARES = ("found", "rank1", "accept", "obeys_pose", "sane")


def difference(
    records: Sequence[Record], measure: str, method: str, reference: str, resamples: int = RESAMPLES
) -> Difference:
    """Mean difference of a method to the reference, image by image, over the images that both have."""
    ours = {record.cell: record.value(measure) for record in of_method(records, method)}
    theirs = {record.cell: record.value(measure) for record in of_method(records, reference)}
    cells = [cell for cell in ours if cell in theirs]
    return paired(
        [ours[cell] for cell in cells], [theirs[cell] for cell in cells], [cell[0] for cell in cells], resamples
    )


def differences(
    records: Sequence[Record], measure: str, reference: str, resamples: int = RESAMPLES
) -> dict[str, tuple[Difference, bool]]:
    """For every other method its difference to the reference, and whether it holds after Holm's correction."""
    methods = [method for method in methods_of(records) if method != reference]
    found = [difference(records, measure, method, reference, resamples) for method in methods]
    corrected = holm([one.p for one in found])
    return {
        method: (one, bool(one.excludes_zero and p < SIGNIFICANT))
        for method, one, p in zip(methods, found, corrected, strict=True)
    }


def pose_spread(records: Sequence[Record], method: str, reference: str) -> float:
    """Mean over people of the spread of head poses relative to the reference method; 1: as free, 0: frozen."""
    return _spread(records, method, reference, POSE)


def expr_spread(records: Sequence[Record], method: str, reference: str) -> float:
    """Like `pose_spread`, of expressions."""
    return _spread(records, method, reference, EXPRESSION)


def _spread(records: Sequence[Record], method: str, reference: str, measures: Sequence[str]) -> float:
    ratios = []
    for person in sorted({record.person for record in of_method(records, method)}):
        ours, theirs = (
            _columns([record for record in of_method(records, name) if record.person == person], measures)
            for name in (method, reference)
        )
        ratios.append(relative_spread(ours, theirs) if len(theirs) else math.nan)
    defined = [ratio for ratio in ratios if not math.isnan(ratio)]
    return float(np.mean(defined)) if defined else math.nan


def _columns(records: Sequence[Record], measures: Sequence[str]) -> np.ndarray:
    """(n, k) values."""
    return np.array([[record.value(measure) for measure in measures] for record in records]).reshape(-1, len(measures))


def pose_copied(records: Sequence[Record], method: str, reference: str) -> float:
    """`copying.pose_copy` of a method over the images that the reference method has as well."""
    theirs = {record.cell: record for record in of_method(records, reference)}
    ours = [record for record in of_method(records, method) if record.cell in theirs]
    plain = [theirs[record.cell] for record in ours]
    return pose_copy(_columns(ours, POSE), _columns(ours, GIVEN_POSE), _columns(plain, POSE))


def cost_ratio(records: Sequence[Record], method: str, reference: str) -> tuple[float, float, float]:
    """Median and quartiles of seconds per image over the reference's, in pairs; NaN where none was timed."""
    theirs = {record.cell: record.value("seconds") for record in of_method(records, reference)}
    ratios = [
        record.value("seconds") / theirs[record.cell]
        for record in of_method(records, method)
        if theirs.get(record.cell, 0) > 0 and not math.isnan(record.value("seconds"))
    ]
    if not ratios:
        return math.nan, math.nan, math.nan
    low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


# --- the table of methods


@dataclass(frozen=True)
class MethodFacts:
    """What is known of a method without looking at its images."""

    inputs: str = ""  # "1 photo", "4 photos", "trained"
    extra_mb: float = math.nan
    training_seconds: float = math.nan


@dataclass(frozen=True)
class _Row:
    """What a cell is computed from."""

    method: str
    records: Sequence[Record]  # of all methods
    reference: str
    facts: MethodFacts
    changes: Mapping[str, Mapping[str, tuple[Difference, bool]]]  # measure -> method -> difference and whether it holds
    resamples: int

    @property
    def own(self) -> list[Record]:
        return of_method(self.records, self.method)

    def mean(self, measure: str) -> Interval:
        return summary(self.own, measure, self.resamples)


def number(interval: Interval, scale: float = 1.0, digits: int = 2, unit: str = "", signed: bool = False) -> str:
    """`0.42 [0.38, 0.46]`, `62 % [55, 69]`; without limits the mean alone, and a dash when nothing was measured."""
    if math.isnan(interval.mean):
        return NOTHING
    form = f"{'+' if signed else ''}.{digits}f"
    mean, low, high = (f"{scale * value:{form}}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean}{unit} [{low}, {high}]" if interval.is_known else f"{mean}{unit}"


def _plain(value: float, digits: int = 2, unit: str = "") -> str:
    return NOTHING if math.isnan(value) else f"{value:.{digits}f}{unit}"


def _change(row: _Row, measure: str, scale: float = 1.0, digits: int = 2) -> str:
    change, holds = row.changes[measure].get(row.method, (None, False))
    if change is None:
        return NOTHING
    text = number(change, scale, digits, signed=True)
    return f"**{text}**" if holds else text


def _share(measure: str) -> Callable[[_Row], str]:
    return lambda row: number(row.mean(measure), 100, 0, " %")


def _mean(measure: str, digits: int = 2) -> Callable[[_Row], str]:
    return lambda row: number(row.mean(measure), digits=digits)


def _ratio(measure: str) -> Callable[[_Row], str]:
    """Mean of the method over mean of the reference."""

    def cell(row: _Row) -> str:
        base = summary(of_method(row.records, row.reference), measure, row.resamples).mean
        return _plain(row.mean(measure).mean / base) if base > 0 else NOTHING

    return cell


def _cost(row: _Row) -> str:
    middle, low, high = cost_ratio(row.records, row.method, row.reference)
    return NOTHING if math.isnan(middle) else f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def _found(row: _Row) -> str:
    """`id` over the images with a face; only where some method has one without."""
    if not any(record.value("found") == 0 for record in row.records):
        return NOTHING
    return number(summary([record for record in row.own if record.value("found") == 1], "id", row.resamples))


def _pasted(row: _Row) -> str:
    """Share of the faces that are as good as pasted."""
    alike = [value for record in row.own if not math.isnan(value := record.value("face_ssim"))]
    return f"{100 * sum(value > PASTE for value in alike) / len(alike):.0f} %" if alike else NOTHING


# Title -> cell. A column in which no row has anything is not printed.
_COLUMNS: dict[str, Callable[[_Row], str]] = {
    "method": lambda row: row.method,
    "inputs": lambda row: row.facts.inputs or NOTHING,
    "people": lambda row: str(len({record.person for record in row.own})),
    "images": lambda row: str(len(row.own)),
    "id": _mean("id"),
    "Δ id": lambda row: _change(row, "id"),
    "id, faces found": _found,
    "id, other photos": _mean("id_other"),
    "id, given photos": _mean("id_ref"),
    "likeness": lambda row: number(row.mean("percent"), 1, 0, " %"),
    "id, second judge": _mean("id_second"),
    "likeness, second judge": lambda row: number(row.mean("percent_second"), 1, 0, " %"),
    "rank-1": _share("rank1"),
    "margin": _mean("margin"),
    "accepted at 1e-3": _share("accept"),
    "detected": _share("found"),
    "attributes": _share("attributes"),
    "Δ attributes (points)": lambda row: _change(row, "attributes", 100, 0),
    "CLIP-T": _mean("clip_t", 3),
    "pose/expression obeyed": _share("obeys_pose"),
    "keep base": _mean("keep_base"),
    "copy": _mean("copy"),
    "Δ copy": lambda row: _change(row, "copy"),
    "copy, second judge": _mean("copy_second"),
    "copy-paste": _mean("copy_paste"),
    "pasted faces": _pasted,
    "pose spread": lambda row: _plain(pose_spread(row.records, row.method, row.reference)),
    "expression spread": lambda row: _plain(expr_spread(row.records, row.method, row.reference)),
    "pose copied": lambda row: _plain(pose_copied(row.records, row.method, row.reference)),
    "diversity": _ratio("diversity"),
    "style Δ": _mean("style_gain", 3),
    "id_min": _mean("id_min"),
    "confusion": _mean("confusion"),
    "leak": _mean("leak"),
    "sharpness": _ratio("sharpness"),
    "s/image ratio": _cost,
    "extra MB": lambda row: _plain(row.facts.extra_mb, 0),
    "training s": lambda row: _plain(row.facts.training_seconds, 0),
}


def table_rows(
    records: Sequence[Record],
    reference: str | None = None,
    facts: Mapping[str, MethodFacts] | None = None,
    resamples: int = RESAMPLES,
) -> list[dict[str, str]]:
    """The cells of the table, one dictionary (title -> text) for each method in order of appearance.

    `reference` is the method that differences and ratios refer to (no adapter, or a peer), by default the first. It is
    compared with each method over the images that both have.
    """
    methods = methods_of(records)
    if not methods:
        raise LikenessError("There are no records to make a table of: measure at least one image.")
    reference = reference or methods[0]
    if reference not in methods:
        raise LikenessError(f"No image was made by the method '{reference}': choose one of {', '.join(methods)}.")
    row = _Row(
        method=reference,
        records=records,
        reference=reference,
        facts=MethodFacts(),
        changes={measure: differences(records, measure, reference, resamples) for measure in HEADLINE},
        resamples=resamples,
    )
    of_rows = [replace(row, method=method, facts=(facts or {}).get(method, MethodFacts())) for method in methods]
    cells = {title: [cell(one) for one in of_rows] for title, cell in _COLUMNS.items()}
    filled = {title: column for title, column in cells.items() if set(column) != {NOTHING}}
    return [{title: column[index] for title, column in filled.items()} for index in range(len(methods))]


def methods_table(
    records: Sequence[Record],
    reference: str | None = None,
    facts: Mapping[str, MethodFacts] | None = None,
    resamples: int = RESAMPLES,
) -> str:
    """The table of methods as Markdown: means over people [95 % interval]. See `table_rows`."""
    rows = table_rows(records, reference, facts, resamples)
    return markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first line is its head."""
    ruled = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in ruled) + "\n"


# --- does a method please the judge or its own recogniser?


def agreement(records: Sequence[Record]) -> float:
    """Correlation over images between the judge's and the conditioner's cosine; NaN where one of them is missing.

    A method with a high `id_conditioner` and a low `id` plays to its recogniser.
    """
    pairs = np.array([(record.value("id"), record.value("id_conditioner")) for record in records]).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    if len(pairs) < 3 or pairs.std(0).min() < 1e-9:
        return math.nan
    return float(np.corrcoef(pairs.T)[0, 1])
