"""A batch of portraits judged for the user who made them: which keep the person, best first, on one image."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import LikenessError
from ..faces import Face, FaceAnalysis, Identity, cosine_similarity, mean_direction, to_photos
from ..faces.select import face_regions, is_inside
from ..faces.similarity import ARCFACE_SAME, on_scale_of
from .copying import mean_copy
from .identity import (
    LEAST_SCORE,
    Calibration,
    References,
    check_judge,
    percent,
    recogniser_of,
    references_of,
    score_sight,
    see,
)
from .people import NOBODY, MultiId, Wanted, match, multi_id, wanted
from .plots import CELL, Cell, labelled_sheet
from .table import NOTHING, Record

if TYPE_CHECKING:
    from PIL.Image import Image

COLUMNS, MOST_SHOWN, ENDS_SHOWN = 8, 64, 16
PHOTOS_SHOWN = COLUMNS
GOOD = 60.0  # percent
DISAGREE = 40.0  # points between two judges from which a person should look
SAME_PHOTO = 0.95  # cosine of a photo to one that was given, from which it is that one again
MOST_NAMED = 8
WITH, WITHOUT = "the identity", "no identity"  # as methods in words: "with the identity ... more than no identity"


@dataclass(frozen=True, eq=False)
class Verdict:
    """Likeness of n images; where several people are expected, that of the least well kept one."""

    people: tuple[str, ...]
    percents: tuple[float, ...]  # of real photos' likeness, 0..120, 0 without a face
    cosines: tuple[float, ...]
    reasons: tuple[str, ...]  # why a face is missing, empty where none is
    judge: str
    licence: str
    warnings: tuple[str, ...] = ()
    by_judge: tuple[Verdict, ...] = ()  # of each, where several judged the same images
    multi: tuple[MultiId, ...] = ()  # of each image, where it has several people or they have photos not given
    crowds: tuple[Wanted, ...] = ()  # of each image of several people
    copies: tuple[float, ...] = ()  # `copying.mean_copy` of each image of one person who has photos not given

    @property
    def mean(self) -> float:
        """Mean percent; 0 for no images."""
        return float(np.mean(self.percents)) if self.percents else 0.0

    @property
    def order(self) -> list[int]:
        """Indices of the images, best first; equal ones keep their order."""
        return sorted(range(len(self.percents)), key=lambda number: -self.percents[number])

    def best(self, count: int = 0, threshold: float = 0.0) -> list[int]:
        """The `count` best images (0: any number) of those with `threshold` percent or more, best first."""
        passed = [number for number in self.order if self.passes(number, threshold)]
        return passed[:count] if count else passed

    def passes(self, number: int, threshold: float) -> bool:
        """Whether an image has this percentage, by every judge."""
        return all(verdict.percents[number] >= threshold for verdict in self.by_judge or (self,))


def joint_verdict(verdicts: Sequence[Verdict]) -> Verdict:
    """Several judges' verdicts on the same images as one: the mean of their percentages, and theirs beside it.

    An image passes a threshold when it does with every judge. The cosines are the first one's.
    """
    first, *others = verdicts
    if not others:
        return first
    warnings = [warning for verdict in verdicts for warning in verdict.warnings]
    percents = list(zip(*(verdict.percents for verdict in verdicts), strict=True))
    split = [number for number, row in enumerate(percents) if max(row) - min(row) > DISAGREE]
    if split:
        named = ", ".join(map(str, split[:MOST_NAMED])) + (", …" if len(split) > MOST_NAMED else "")
        warnings.append(f"the judges disagree by more than {DISAGREE:.0f} points on {named}: look at them yourself")
    return replace(
        first,
        percents=tuple(float(np.mean(row)) for row in percents),
        reasons=tuple(next(filter(None, row), "") for row in zip(*(v.reasons for v in verdicts), strict=True)),
        judge=" and ".join(verdict.judge for verdict in verdicts),
        licence="; ".join(dict.fromkeys(verdict.licence for verdict in verdicts)),
        warnings=tuple(dict.fromkeys(warnings)),
        by_judge=tuple(verdicts),
    )


def judge_pictures(
    images: torch.Tensor,
    identities: Sequence[Identity],
    judge: FaceAnalysis,
    *,
    allow_same_recogniser: bool = False,
    regions: torch.Tensor | None = None,
    calibration: Calibration | None = None,
    after_each: Callable[[], object] = lambda: None,
    held_out: torch.Tensor | None = None,
) -> Verdict:
    """How much images (n, H, W, 3) RGB 0..1 show the person, or all of the people; see `identity.score`.

    `calibration`, of the judge, says what is usual where there are few photos. `held_out`, photos of the people that
    were not given to the method, tell likeness from copying. `after_each` is called after every image and photo, for
    progress and cancelling.
    """
    if not identities:
        raise LikenessError("There is no identity to compare with: connect one.")
    if not len(images):
        raise LikenessError("There is no image to judge: connect at least one.")
    regions = None if regions is None else face_regions(regions, len(images))
    warnings = check_judge(judge, [identity.recogniser for identity in identities], allow_same_recogniser)
    people = [references_of(identity, judge) for identity in identities]
    others = None if held_out is None else _other_photos(held_out, judge, identities, people, after_each)
    means = torch.stack([person.mean for person in people])
    copies: list[float] = []
    if len(people) == 1:
        sight = see(images, judge, regions=regions, after_each=after_each)
        scores = score_sight(sight, people[0], calibration=calibration)
        percents, cosines, reasons = scores.percents.tolist(), scores.cosines.tolist(), scores.sight.reasons
        faces = [sight.embeddings[n : n + 1] if face is not None else means[:0] for n, face in enumerate(sight.faces)]
        if others is not None:
            copies = mean_copy(scores.sight.embeddings, others[0], people[0].embeddings).tolist()
    else:
        levels = [person.level(calibration) for person in people]
        faces, found = [], []
        for number, image in enumerate(images):
            faces.append(_rows_of(_all_faces(image, number, judge, regions), means))
            found.append(_least(faces[-1], means, levels))
            after_each()
        percents, cosines, reasons = ([row[place] for row in found] for place in range(3))
    return Verdict(
        people=tuple(identity.name for identity in identities),
        percents=tuple(float(value) for value in percents),  # type: ignore[arg-type]
        cosines=tuple(float(value) for value in cosines),  # type: ignore[arg-type]
        reasons=tuple(str(value) for value in reasons),
        judge=recogniser_of(judge).name,
        licence=judge.licence,
        warnings=warnings,
        multi=tuple(_as_benchmarks_count(faces, means, others)),
        crowds=tuple(wanted(seen, means) for seen in faces) if len(people) > 1 else (),
        copies=tuple(copies),
    )


def _other_photos(
    photos: torch.Tensor,
    judge: FaceAnalysis,
    identities: Sequence[Identity],
    people: Sequence[References],
    after_each: Callable[[], object],
) -> list[torch.Tensor]:
    """Everybody's faces (t, D) in photos that were not given; a face that looks like nobody takes no part.

    LikenessError when somebody is in none of them, or a photo is one that was given.
    """
    means, least = torch.stack([person.mean for person in people]), on_scale_of(recogniser_of(judge).name, ARCFACE_SAME)
    rows: list[list[torch.Tensor]] = [[] for _ in people]
    for number, photo in enumerate(photos):
        faces = _rows_of(_all_faces(photo, number, judge, None), means)
        matching = match(faces, means)
        for own, face, cosine in zip(rows, matching.face_of, matching.cosines, strict=True):
            if face != NOBODY and cosine >= least:
                own.append(faces[face])
        after_each()
    if lacking := [repr(who.name) for who, own in zip(identities, rows, strict=True) if not own]:
        raise LikenessError(
            f"The judge {judge.name} finds nobody on 'held_out' who looks like {' or '.join(lacking)}: connect other "
            "photos of every person, or disconnect it."
        )
    found = [torch.stack(own) for own in rows]
    for who, own, person in zip(identities, found, people, strict=True):
        if (alike := float(cosine_similarity(own, person.embeddings).max())) >= SAME_PHOTO:
            raise LikenessError(
                f"A photo on 'held_out' shows the same as one that {who.name!r} was made of (cosine {alike:.2f}): "
                "connect photos that were not given, or disconnect it."
            )
    return found


def _as_benchmarks_count(
    faces: Sequence[torch.Tensor], means: torch.Tensor, others: Sequence[torch.Tensor] | None
) -> list[MultiId]:
    """Each image's figures; without other photos only what can be said of several people, from the given ones."""
    if others is not None:
        targets = torch.stack([mean_direction(rows) for rows in others])
        return [multi_id(seen, targets, means) for seen in faces]
    if len(means) == 1:
        return []
    return [replace(multi_id(seen, means, means), sim_gt=math.nan, copy_paste=math.nan) for seen in faces]


def _all_faces(image: torch.Tensor, number: int, judge: FaceAnalysis, regions: torch.Tensor | None) -> list[Face]:
    if not bool(torch.isfinite(image).all()):
        return []
    (photo,) = to_photos(image[None])
    region = None if regions is None else regions[min(number, len(regions) - 1)]
    return [
        face
        for face in judge.find(photo, number)
        if face.score >= LEAST_SCORE
        and face.embedding is not None
        and (region is None or is_inside(face, region, photo.shape[:2]))
    ]


def _rows_of(faces: Sequence[Face], means: torch.Tensor) -> torch.Tensor:
    """The faces' embeddings (n, D), as wide as the people's."""
    vectors = [torch.from_numpy(np.asarray(face.embedding, np.float32)) for face in faces]
    return torch.stack(vectors) if vectors else means[:0]


def _least(faces: torch.Tensor, means: torch.Tensor, levels: Sequence[float]) -> tuple[float, float, str]:
    """Percent and cosine of the person who is kept least, and what is missing."""
    matching = match(faces, means)
    percents = [float(percent(torch.tensor(c), level)) for c, level in zip(matching.cosines, levels, strict=True)]
    worst = int(np.argmin(percents))
    missing = "" if len(faces) >= len(means) else f"{len(faces)} of {len(means)} faces"
    return percents[worst], matching.cosines[worst], missing


# --- in words


def sentence(verdict: Verdict, threshold: float = GOOD, baseline: Verdict | None = None) -> str:
    """The result in words."""
    count = len(verdict.percents)
    names = " and ".join(verdict.people)
    spread = f" (from {min(verdict.percents):.0f} to {max(verdict.percents):.0f})" if count > 1 else ""
    text = f"{names}: {verdict.mean:.0f} % of real photos' likeness{spread}"
    if baseline is not None:
        text += f", {verdict.mean - baseline.mean:+.0f} points against the images without identity"
    if verdict.by_judge:
        text += " (" + ", ".join(f"{one.mean:.0f} % by {one.judge}" for one in verdict.by_judge) + ")"
    passed = len(verdict.best(threshold=threshold))
    text += f"; {passed} of {count} images reach {threshold:.0f} %{' with both judges' * bool(verdict.by_judge)}"
    missing = sum(bool(reason) for reason in verdict.reasons)
    return f"{text}, {missing} without a face." if missing else f"{text}."


# What multi-identity benchmarks call their figures, and what MultiId calls them.
_BENCHMARK = {"Sim(GT)": "sim_gt", "Sim(Ref)": "sim_ref", "copy-paste": "copy_paste", "blending": "blending"}


def _mean(values: Sequence[float]) -> float:
    """The mean of what is known; NaN where nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _figures(verdict: Verdict) -> dict[str, list[float]]:
    """The benchmark's figures that are known of any image, and our own measure of copying."""
    columns = {head: [getattr(one, name) for one in verdict.multi] for head, name in _BENCHMARK.items()}
    if verdict.copies:
        columns["copy"] = list(verdict.copies)
    return {head: values for head, values in columns.items() if not math.isnan(_mean(values))}


def benchmark_line(verdict: Verdict) -> str:
    """The means of what multi-identity benchmarks count, by each judge; empty where nothing is."""
    said = []
    for one in verdict.by_judge or (verdict,):
        if figures := _figures(one):
            means = ", ".join(f"{head} {_mean(values):.2f}" for head, values in figures.items())
            said.append(f"{one.judge}: {means}")
    return f"As multi-identity benchmarks count it, by {'; by '.join(said)}." if said else ""


def crowd_lines(verdict: Verdict) -> list[str]:
    """Several people: whether everybody is there, and a table of who looks like whom, by each judge."""
    lines: list[str] = []
    for one in verdict.by_judge or (verdict,):
        if not one.crowds:
            continue
        people, count = len(one.people), len(one.crowds)
        found = sum(crowd.found for crowd in one.crowds)
        extra = sum(max(0, crowd.extra) for crowd in one.crowds)
        similar = _mean([value for crowd in one.crowds for value in crowd.id_sim])
        ahead = _mean([value for crowd in one.crowds for value in crowd.id_conf])
        reward = _mean([crowd.reward for crowd in one.crowds])
        kept_apart = NOTHING if math.isnan(ahead) else f"{ahead:.2f}"
        lines += [
            f"By {one.judge}: {found} of {people * count} people have a face, {extra} faces are nobody's. id_sim "
            f"{similar:.2f}, id_conf {kept_apart} (how far the best face of each person is ahead of the second; larger "
            f"is less mixing, 1 at most), matching reward {reward:.2f} (larger is better).",
            "",
            f"| cosine to | {' | '.join(f'the face of {name}' for name in one.people)} |",
            f"| --- |{' --- |' * people}",
        ]
        for row, name in enumerate(one.people):
            cells = [_mean([crowd.crossed[row][column] for crowd in one.crowds]) for column in range(people)]
            said = [NOTHING if math.isnan(cell) else f"{cell:.2f}" for cell in cells]
            lines.append(f"| {name} | {' | '.join(said)} |")
        lines.append("")
    return lines


def verdict_markdown(
    title: str, verdict: Verdict, threshold: float = GOOD, baseline: Verdict | None = None, remarks: Sequence[str] = ()
) -> str:
    """The sentence, the warnings, and a line for every image, best first; counted from 0 as the host does."""
    lines = [f"# {title}", "", sentence(verdict, threshold, baseline), ""]
    lines += [line for warning in verdict.warnings for line in (f"**Warning: {warning}.**", "")]
    lines += [line for remark in (benchmark_line(verdict), *remarks) if remark for line in (remark, "")]
    lines += crowd_lines(verdict)
    judges = verdict.by_judge or (verdict,)
    figures = _figures(judges[0])
    heads = [f"{one.judge}, cosine" for one in verdict.by_judge] or ["cosine"]
    heads += figures
    lines += [f"| image | likeness | {' | '.join(heads)} | remark |", f"| --- | --- |{' --- |' * len(heads)} --- |"]
    for n in verdict.order:
        cosines = [f"{one.percents[n]:.0f} %, " * bool(verdict.by_judge) + f"{one.cosines[n]:.2f}" for one in judges]
        known = [NOTHING if math.isnan(values[n]) else f"{values[n]:.2f}" for values in figures.values()]
        lines.append(f"| {n} | {verdict.percents[n]:.0f} % | {' | '.join([*cosines, *known])} | {verdict.reasons[n]} |")
    named = "Judges" if verdict.by_judge else "Judge"
    lines += ["", f"{named}: {verdict.judge}. Licence of the judge: {verdict.licence}."]
    return "\n".join(lines) + "\n"


# --- on one image


def portrait_sheet(
    images: torch.Tensor,
    verdict: Verdict,
    identities: Sequence[Identity],
    title: str = "",
    threshold: float = GOOD,
    baseline: torch.Tensor | None = None,
    baseline_verdict: Verdict | None = None,
) -> Image:
    """Photos of the people, the images without identity, the images best first; red below the threshold.

    Of more than 64 images the best and the worst 16 are shown.
    """
    photos = [picture for identity in identities for picture in identity_photos(identity)][:PHOTOS_SHOWN]
    cells = [[Cell(picture, "photo") for picture in photos]]
    if baseline is not None and baseline_verdict is not None:
        cells += _rows(baseline, baseline_verdict, list(range(len(baseline)))[:ENDS_SHOWN], -math.inf, "without ")
    shown = verdict.order
    if len(shown) > MOST_SHOWN:
        shown = shown[:ENDS_SHOWN] + shown[-ENDS_SHOWN:]
    cells += _rows(images, verdict, shown, threshold, "")
    return labelled_sheet([row for row in cells if row], title=title, side=CELL)


def identity_photos(identity: Identity) -> list[torch.Tensor]:
    """The photos that an identity carries, as images (512, 512, 3) 0..1."""
    pictures = identity.portraits if len(identity.portraits) else identity.heads
    return [picture.float() / 255 for picture in pictures]


def _rows(
    images: torch.Tensor, verdict: Verdict, numbers: Sequence[int], threshold: float, prefix: str
) -> list[list[Cell]]:
    cells = []
    for number in numbers:
        value, why = verdict.percents[number], verdict.reasons[number]
        each = " / ".join(f"{one.percents[number]:.0f}" for one in verdict.by_judge) or f"{value:.0f}"
        bad = bool(why) or not verdict.passes(number, threshold)
        cells.append(Cell(images[number], f"{prefix}{number}: {why or f'{each} %'}", bad))
    return [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]


# --- as records


def to_records(
    verdict: Verdict, method: str, prompts: Sequence[str] = (), clip: Sequence[float] | None = None
) -> list[Record]:
    """A record for each image, for `report.report`; images are named `<method>/<number>`."""
    person = " and ".join(verdict.people)
    records = []
    for number, (value, cosine, why) in enumerate(zip(verdict.percents, verdict.cosines, verdict.reasons, strict=True)):
        measures = {"found": float(not why), "id": cosine, "percent": value}
        if verdict.by_judge:
            first, second = verdict.by_judge[:2]
            measures |= {"percent": first.percents[number], "percent_second": second.percents[number]}
            measures["id_second"] = second.cosines[number]
            if second.copies:
                measures["copy_second"] = second.copies[number]
        if verdict.multi:
            seen = verdict.multi[number]
            measures |= {"id_ref": seen.sim_ref, "id_other": seen.sim_gt, "copy_paste": seen.copy_paste}
            measures["blending"] = seen.blending
        if verdict.crowds:
            crowd = verdict.crowds[number]
            measures |= {"id_sim": _mean(crowd.id_sim), "id_conf": _mean(crowd.id_conf)}
            measures |= {"matching_reward": crowd.reward, "people_found": crowd.found, "faces_extra": crowd.extra}
        if verdict.copies:
            measures["copy"] = verdict.copies[number]
        text = prompts[number] if number < len(prompts) else ""
        record = Record(method, person, text, number, f"{method}/{number}", measures, why)
        if clip is not None:
            record = replace(record, measures=measures | {"clip_t": float(clip[number])})
        records.append(record)
    return records
