"""`likeness evaluate`: images of people, judged against their photos."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LikenessError, one_line
from . import opening

if TYPE_CHECKING:
    from ..evaluation.identity import Calibration
    from ..faces import FaceAnalysis


def evaluate_folder(
    folder: Annotated[
        Path,
        typer.Argument(
            help="A batch's run, or a folder with people/<name>/refs, people/<name>/held_out and "
            "results/<method>/<name>/..."
        ),
    ],
    judge: Annotated[
        str,
        typer.Option(
            "--judge", help="Face analysis that judges: sface, dlib, miniature-judge, or a pack such as antelopev2."
        ),
    ] = "sface",
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the report; default: FOLDER/report.")] = None,
    people: Annotated[
        Path | None,
        typer.Option("--people", help="Holds a folder of photos for each person; default: FOLDER/people."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="The method without identity, among the results.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", help="One more folder or run in the same report; repeatable.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", help="A column of a batch's manifest that tells methods apart; repeatable."),
    ] = None,
    conditioner: Annotated[
        list[str] | None,
        typer.Option(
            "--conditioner", help="A recogniser that was used to make the images, such as buffalo_l; repeatable."
        ),
    ] = None,
    allow_same: Annotated[
        bool, typer.Option("--allow-same-recogniser", help="Let a recogniser judge its own work, with a warning.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            help="JSON file with the judge's measured quality, from `likeness calibrate`; the miniature's judge has "
            "its own.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            max=1000,
            help="Processes; default: one for each core but one, if there are enough images.",
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            "--clip", help="Folder of a CLIP in transformers' layout: also measures how well prompts are followed."
        ),
    ] = None,
    word: Annotated[
        str, typer.Option("--word", help="The person's word in the prompts, which CLIP is to read as --noun.")
    ] = "",
    noun: Annotated[str, typer.Option("--noun", help="What CLIP reads for --word.")] = "person",
    title: Annotated[str, typer.Option("--title", help="Title of the report.")] = "Likeness report",
    second_judge: Annotated[
        str,
        typer.Option(
            "--second-judge",
            help="A second judge. auto: dlib beside sface, sface beside dlib, if it is installed and was not used to "
            "make the images; none.",
        ),
    ] = "auto",
) -> None:
    """Judge images of people against their photos, and write a report. A second run looks at new files only."""
    from tqdm import tqdm

    from ..evaluation.clip import FolderClip
    from ..evaluation.identity import Calibration
    from ..evaluation.judging import Asked, SecondJudge, evaluate, open_study
    from ..evaluation.pool import Pool
    from ..evaluation.report import headline
    from ..evaluation.table import read_csv

    study = open_study(folder, people, compare or (), by or ())
    given = Calibration.load(calibration) if calibration else None
    eyes = opening.open_faces(judge)
    measured = given or _measured(eyes)
    other = _second(second_judge, eyes, {*(conditioner or ()), *study.conditioners})
    asked = Asked(FolderClip(clip), word, noun) if clip else None
    with (
        ExitStack() as stack,
        Pool(eyes, partial(opening.open_faces, judge), workers) as pool,
        tqdm(total=len(study.files) * (2 if other else 1), desc="judged", unit="image", leave=False) as bar,
    ):
        second = None
        if other:
            more = Pool(other[1], partial(opening.open_faces, other[0]), workers)
            second = SecondJudge(stack.enter_context(more), _measured(other[1]))
        path = evaluate(
            study,
            pool,
            out or folder / "report",
            reference=baseline,
            conditioners=conditioner or [],
            allow_same_recogniser=allow_same,
            calibration=measured,
            title=title,
            repeat=_again(
                "evaluate",
                folder,
                judge=judge,
                people=people,
                baseline=baseline,
                compare=compare,
                by=by,
                conditioner=conditioner,
                allow_same_recogniser=allow_same,
                calibration=calibration,
                clip=clip,
                word=word or None,
                noun=noun if noun != "person" else None,
                out=out,
                title=title if title != "Likeness report" else None,
                second_judge=second_judge if second_judge != "auto" else None,
            ),
            after_each=bar.update,
            asked=asked,
            second=second,
        )
    print(f"{headline(read_csv(path.parent / 'records.csv'), baseline)}\nreport: {one_line(path)}")


def _measured(judge: FaceAnalysis) -> Calibration | None:
    """What comes with the pack about this judge's quality."""
    from ..evaluation.identity import calibration_of
    from ..miniature.study.calibration import miniature_calibration_of

    return miniature_calibration_of(judge) or calibration_of(judge)


_FREE = {"sface": "dlib", "dlib": "sface"}  # recogniser -> the other free one


def _second(name: str, first: FaceAnalysis, made_by: set[str]) -> tuple[str, FaceAnalysis] | None:
    """Name and analysis of the second judge; None for none, and where auto finds no independent one."""
    from ..evaluation.identity import recogniser_of

    if name == "none":
        return None
    if name != "auto":
        return name, opening.open_faces(name)
    other = _FREE.get(recogniser_of(first).name)
    if other is None or other in made_by:
        return None
    try:
        return other, opening.open_faces(other)
    except LikenessError:
        return None


def _again(command: str, place: Path, **options: Path | str | bool | Sequence[Path] | Sequence[str] | None) -> str:
    """The command line to type again."""
    words = ["likeness", command, str(place)]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] * value
        else:
            values = [value] if isinstance(value, (str, Path)) else value or []
            words += [word for one in values for word in (flag, str(one))]
    return one_line(shlex.join(words))
