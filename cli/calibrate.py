"""`likeness calibrate`: how good a judge is, on photos of known people."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..errors import one_line
from . import opening
from .edge import check_new_file


def calibrate_judge(
    people: Annotated[
        str, typer.Argument(help="Holds a folder of photos for each person; or `miniature`, for drawn people.")
    ],
    out: Annotated[Path, typer.Option("--out", help="The JSON file to write.")],
    judge: Annotated[str, typer.Option("--judge", help="The face analysis to measure.")] = "sface",
) -> None:
    """Measure a judge on photos of known people: what is usual for one person, and what passes for another."""
    from ..evaluation.cache import picture_or_nan
    from ..evaluation.identity import calibrate
    from ..evaluation.sources.study import folders_in, names_in, not_used, pictures

    if people == "miniature":
        from ..miniature.study import calibration

        photos = calibration.people()
        weights = calibration.judge_weights() if judge == "miniature-judge" else ""
    else:
        places = folders_in(Path(people))
        for sentence in [sentence for place in places for sentence in not_used(names_in(place), place.name)]:
            print(one_line(sentence))
        photos = {place.name: map(picture_or_nan, pictures(place)) for place in places}
        weights = ""
    check_new_file(out, "--out")
    measured = dataclasses.replace(calibrate(opening.open_faces(judge), photos), weights=weights)
    print(f"{measured.recogniser}: {measured.in_words}\ncalibration: {one_line(measured.save(out))}")
