"""The command line `likeness`. Importing this module is cheap: typer is loaded when a command runs."""

# No `from __future__ import annotations` here: typer reads the annotations, and they name a module that is imported
# inside the function.

import dataclasses
import importlib.metadata
import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from .errors import LikenessError
from .models_download import (
    Health,
    ModelFile,
    Outcome,
    check,
    download,
    download_root,
    find_file,
    find_insightface_pack,
    installed,
    list_insightface_packs,
    locate,
    progress_bar,
    registry,
    select,
)

if TYPE_CHECKING:
    import typer

    from .faces import FaceAnalysis


def main() -> None:
    """Entry point of the script. Exit codes: 0 all is well, 1 something needs attention, 2 wrong usage."""
    try:
        build()()
    except LikenessError as error:
        print(f"likeness: {error}", file=sys.stderr)
        sys.exit(1)


def build() -> "typer.Typer":
    """The command tree."""
    import typer

    app = typer.Typer(
        help="Identity-preserving portraits: what the ComfyUI pack needs around it.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
    )
    app.add_typer(_models_commands(), name="models", help="Model files: what is here, what is missing, get it.")

    _add_identity_command(app)
    _add_evaluate_command(app)
    _add_train_command(app)

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"likeness {importlib.metadata.version('likeness')}")
            raise typer.Exit

    @app.callback()
    def likeness(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        pass

    return app


def _add_identity_command(app: "typer.Typer") -> None:
    import typer

    @app.command("identity")
    def identity(
        photos: Annotated[list[Path] | None, typer.Argument(help="Photos of one person, or folders of them.")] = None,
        out: Annotated[Path, typer.Option("--out", help="Folder for the identity file and the contact sheet.")] = Path(
            "demo"
        ),
        name: Annotated[str, typer.Option("--name", help="What to call the person.")] = "person",
        faces: Annotated[str, typer.Option("--faces", help="A face pack such as buffalo_l, or mtcnn.")] = "auto",
        sample: Annotated[bool, typer.Option("--sample", help="Use the pictures that come with insightface.")] = False,
    ) -> None:
        """Find the person in photos, save the identity, and show what was seen on a contact sheet."""
        from .faces.found import IfNone, Rule, find_faces, identity_of
        from .faces.photo_list import photos_among
        from .faces.select import Choice
        from .faces.sheet import contact_sheet, read_photos, sample_photos
        from .storage import check_folder, check_name, write_new

        check_name(name, "--name")
        check_folder(out, "--out")
        if not photos and not sample:
            raise LikenessError("There are no photos: name some files or folders, or use --sample.")
        if photos:
            named = photos_among(photos)
            photos = list(named.photos)
            for sentence in named.not_used:
                print(f"not used: {sentence}")
        pictures = read_photos(photos) if photos else sample_photos()
        found = find_faces(_open_faces(faces), pictures, Rule(Choice.LARGEST, if_none=IfNone.SKIP))
        identity, remarks = identity_of(found, name)
        picture = contact_sheet(found, identity)
        try:
            sheet = write_new(out, name, ".png", lambda part: picture.save(part, format="png"))
            path = write_new(out, name, ".safetensors", identity.write)
        except OSError as error:
            raise LikenessError(
                f"'{out}' cannot be written to ({error.strerror or error}): free some space."
            ) from error
        for remark in (*remarks, *identity.outliers):
            print(remark)
        if photos and (remarks or identity.outliers):
            print("The photos: " + ", ".join(f"{number} {file.name}" for number, file in enumerate(photos, 1)))
        print(f"{len(identity)} photo(s) seen by {found.analysis_name}, {found.count} faces in all.")
        print(
            f"contact sheet: {sheet}\nidentity file: {path} (biometric data: share it only with the person's consent)"
        )


def _add_train_command(app: "typer.Typer") -> None:
    import typer

    @app.command("train")
    def train(config: Annotated[Path, typer.Argument(help="A TOML file; see docs/training.md.")]) -> None:
        """Train a word, a LoRA or a whole model on photos. Stopped with Ctrl-C, the same command goes on."""
        from .miniature.base_model import base_model
        from .training.base_files import load_base
        from .training.command import Openers, read_configuration, run

        openers = Openers(lambda name: base_model() if name == "miniature" else load_base(Path(name)), _open_faces)
        for path in run(read_configuration(config), openers):
            print(path)


def _add_evaluate_command(app: "typer.Typer") -> None:
    import typer

    @app.command("evaluate")
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
                "--judge", help="Face analysis that judges: sface, miniature-judge, or a pack such as antelopev2."
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
                "--conditioner", help="A recogniser that entered the pictures, such as buffalo_l; repeatable."
            ),
        ] = None,
        allow_same: Annotated[
            bool, typer.Option("--allow-same-recogniser", help="Let a recogniser judge its own work, with a warning.")
        ] = False,
        calibration: Annotated[
            Path | None,
            typer.Option(
                "--calibration",
                help="JSON file with the judge's own measured quality, from `likeness calibrate`; the miniature's "
                "judge brings its own.",
            ),
        ] = None,
        workers: Annotated[
            int | None,
            typer.Option(
                "--workers", help="Processes; default: one for each core but one, if there are pictures enough."
            ),
        ] = None,
        clip: Annotated[
            Path | None,
            typer.Option(
                "--clip", help="Folder of a CLIP in transformers' layout: also measures how well prompts are obeyed."
            ),
        ] = None,
        word: Annotated[
            str, typer.Option("--word", help="The person's word in the prompts, which CLIP is to read as --noun.")
        ] = "",
        noun: Annotated[str, typer.Option("--noun", help="What CLIP reads for --word.")] = "person",
        title: Annotated[str, typer.Option("--title", help="Title of the report.")] = "Likeness report",
    ) -> None:
        """Judge pictures of people against their photos, and write a report. A second run looks at new files only."""
        from tqdm import tqdm

        from .evaluation.clip import FolderClip
        from .evaluation.crew import Crew
        from .evaluation.identity import Calibration
        from .evaluation.judging import Asked, evaluate, open_study
        from .evaluation.report import headline
        from .evaluation.table import read_csv
        from .miniature.calibration import calibration_of

        study = open_study(folder, people, compare or (), by or ())
        eyes = _open_faces(judge)
        measured = Calibration.load(calibration) if calibration else calibration_of(eyes)
        asked = Asked(FolderClip(clip), word, noun) if clip else None
        with (
            Crew(eyes, partial(_open_faces, judge), workers) as crew,
            tqdm(total=len(study.files), desc="judged", unit="picture", leave=False) as bar,
        ):
            path = evaluate(
                study,
                crew,
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
                ),
                after_each=bar.update,
                asked=asked,
            )
        print(f"{headline(read_csv(path.parent / 'records.csv'), baseline)}\nreport: {path}")

    @app.command("calibrate")
    def calibrate_judge(
        people: Annotated[
            str, typer.Argument(help="Holds a folder of photos for each person; or `miniature`, for drawn people.")
        ],
        out: Annotated[Path, typer.Option("--out", help="The JSON file to write.")],
        judge: Annotated[str, typer.Option("--judge", help="The face analysis to measure.")] = "sface",
    ) -> None:
        """Measure a judge on photos of known people: what is usual for one person, and what passes for another."""
        from .evaluation.identity import calibrate
        from .evaluation.journal import read_picture
        from .evaluation.study import folders, listed, not_used, pictures
        from .storage import check_folder

        if out.exists():
            raise LikenessError(f"The file '{out}' exists already: choose another name for --out.")
        check_folder(out.parent, "--out's folder")
        if people == "miniature":
            from .miniature import calibration

            photos = calibration.people()
            weights = calibration.judge_weights() if judge == "miniature-judge" else ""
        else:
            places = folders(Path(people))
            for sentence in [sentence for place in places for sentence in not_used(listed(place), place.name)]:
                print(sentence)
            photos = {place.name: map(read_picture, pictures(place)) for place in places}
            weights = ""
        measured = dataclasses.replace(calibrate(_open_faces(judge), photos), weights=weights)
        print(f"{measured.recogniser}: {measured.in_words}\ncalibration: {measured.save(out)}")


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
    return shlex.join(words)


def _open_faces(name: str) -> "FaceAnalysis":
    """The named pack, or OpenCV's networks as `sface`; auto takes a pack that is here, else MTCNN, whose weights come
    with a package."""
    from .faces import load_mtcnn, load_opencv, load_pack

    if name in ("miniature", "miniature-judge"):
        from .miniature.backend import miniature_analysis, miniature_judge

        return miniature_analysis() if name == "miniature" else miniature_judge()
    here = list_insightface_packs()
    if name == "auto":
        name = here[0] if here else "mtcnn"
    if name == "sface":
        detector, recogniser = "face_detection_yunet_2023mar.onnx", "face_recognition_sface_2021dec.onnx"
        return load_opencv(find_file("opencv_zoo", detector), find_file("opencv_zoo", recogniser))
    return load_mtcnn() if name == "mtcnn" else load_pack(find_insightface_pack(name))


def _models_commands() -> "typer.Typer":
    import typer

    app = typer.Typer(no_args_is_help=True)

    @app.command("list")
    def list_models(
        system: Annotated[str | None, typer.Option(help="Only files of this system, e.g. instantid.")] = None,
        missing: Annotated[bool, typer.Option("--missing", help="Only files that are not here.")] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, with the path of each file.")] = False,
    ) -> None:
        """Show the known model files: here or missing, size, licence, place."""
        systems = sorted({model.system for model in registry()})
        if system is not None and system not in systems:
            raise typer.BadParameter(f"{system!r} is none of {', '.join(systems)}.", param_hint="--system")
        of_system = [(model, locate(model)) for model in registry() if system in (None, model.system)]
        found = [(model, path) for model, path in of_system if path is None or not missing]
        if as_json:
            print(json.dumps([_as_record(model, path) for model, path in found], indent=2, ensure_ascii=False))
        else:
            _print_table(found)

    @app.command("get")
    def get_models(
        names: Annotated[
            list[str],
            typer.Argument(help="Names, file names, groups (buffalo_l, instantid) or wildcards from the list."),
        ],
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Say what would be done; write and fetch nothing.")
        ] = False,
        models_dir: Annotated[
            Path | None, typer.Option(help="A ComfyUI models folder; default: the one found.")
        ] = None,
        accept_licence: Annotated[
            bool, typer.Option("--accept-licence", help="Accept non-commercial licences.")
        ] = False,
    ) -> None:
        """Download model files into the folders ComfyUI reads them from. Interrupted downloads are resumed."""
        models = list(dict.fromkeys(model for name in names for model in select(name)))
        root = models_dir or download_root()
        problems = [problem for model in models if (problem := _get(model, root, dry_run, accept_licence))]
        raise typer.Exit(1 if problems else 0)

    @app.command("verify")
    def verify_models(
        everything: Annotated[bool, typer.Option("--all", help="Hash unknown files too: finds renamed ones.")] = False,
    ) -> None:
        """Hash the model files that are here and compare them with the published checksums."""
        checks = []
        for path, model in installed(everything).items():
            with progress_bar(path.name) as progress:
                result = check(path, model, progress)
            alias = ", ".join(known.name for known in result.recognised) if result.health is not Health.OK else ""
            print(f"{path}: {result.in_words}{f' ({alias})' if alias else ''}")
            checks.append(result)
        problems = sum(result.health.is_problem for result in checks)
        print(f"{len(checks)} files checked, {problems} with a problem.")
        raise typer.Exit(1 if problems else 0)

    return app


def _as_record(model: ModelFile, path: Path | None) -> dict[str, object]:
    return {**dataclasses.asdict(model), "target": model.target, "path": None if path is None else str(path)}


def _print_table(found: list[tuple[ModelFile, Path | None]]) -> None:
    rows = [
        ("here" if path else "missing", model.name, model.variant, model.size, model.commercial_use, model.target)
        for model, path in found
    ]
    header = ("", "name", "variant", "size", "commercial", "in models/")
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{sum(path is not None for _, path in found)} of {len(found)} files are here.")


def _get(model: ModelFile, root: Path, dry_run: bool, accepted: bool) -> bool:
    """Fetch one file and tell the user about it. Returns whether there was a problem."""
    print(f"{model.name}: {model.size}, licence {model.licence}, commercial use: {model.commercial_use}")
    if model.notes:
        print(f"  {model.notes}")

    def confirm(_: ModelFile) -> bool:
        if accepted or not sys.stdin.isatty():
            return accepted
        return input("  This licence excludes commercial use. Type yes to accept it: ").strip().lower() == "yes"

    try:
        with progress_bar(model.filename) as progress:
            outcome, path = download(model, root, progress=progress, dry_run=dry_run, confirm_licence=confirm)
    except LikenessError as error:
        print(f"  {error}", file=sys.stderr)
        return True
    print(f"  {outcome.value}: {path}" + (f" (from {model.url})" if outcome is Outcome.WOULD_DOWNLOAD else ""))
    return False


if __name__ == "__main__":
    main()
