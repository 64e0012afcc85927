from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from likeness import cli
from likeness.cli import opening
from likeness.errors import LikenessError


@pytest.fixture
def likeness(monkeypatch, judge):
    """Runs the command line in this process; every name of a judge opens the judge of colours."""
    opened = []
    monkeypatch.setattr(opening, "open_faces", lambda name: opened.append(name) or judge)
    run = lambda *arguments: CliRunner().invoke(cli.command_tree(), [str(argument) for argument in arguments])  # noqa: E731
    run.opened = opened  # type: ignore[attr-defined]
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in (("ann", (255, 60, 60)), ("bob", (60, 255, 60))):
        pixels = np.broadcast_to(np.array(colour, np.uint8), (64, 64, 3)).copy()
        for path in (f"people/{name}/refs/1.png", f"results/faceid/{name}/hat-1.png", f"results/base/{name}/hat-1.png"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / path)
    return tmp_path


def test_a_folder_becomes_a_report(likeness, folder):
    result = likeness("evaluate", folder, "--judge", "antelopev2", "--baseline", "base", "--title", "Two people")
    assert result.exit_code == 0, result.output
    assert "With faceid the images have" in result.output and likeness.opened == ["antelopev2"]
    text = (folder / "report" / "report.md").read_text()
    assert text.startswith("# Two people") and f"likeness evaluate {folder} --judge antelopev2 --baseline base" in text


def test_a_judge_of_its_own_work_is_refused_and_can_be_allowed(likeness, folder, tmp_path):
    refused = likeness("evaluate", folder, "--conditioner", "by colour")
    assert isinstance(refused.exception, LikenessError) and not (folder / "report").exists()
    allowed = likeness(
        "evaluate", folder, "--conditioner", "by colour", "--allow-same-recogniser", "--out", tmp_path / "x"
    )
    assert allowed.exit_code == 0, allowed.output
    assert "Warning: judge equals conditioner" in (tmp_path / "x" / "report.md").read_text()


def test_the_report_says_how_to_repeat_it(likeness, folder, tmp_path):
    again = folder / "again"
    result = likeness(
        "evaluate", folder, "--compare", folder, "--conditioner", "by colour", "--allow-same-recogniser", "--out", again
    )
    assert result.exit_code == 0, result.output
    command = next(line for line in (again / "report.md").read_text().splitlines() if line.startswith("likeness "))
    assert command == (
        f"likeness evaluate {folder} --judge sface --compare {folder} --conditioner 'by colour' "
        f"--allow-same-recogniser --out {again}"
    )


def test_columns_are_for_batches(likeness, folder):
    result = likeness("evaluate", folder, "--by", "Sampler.cfg")
    assert isinstance(result.exception, LikenessError) and "leave --by out" in str(result.exception)


def test_the_default_judge_needs_its_files_by_name(folder, monkeypatch, tmp_path, without_face_packages):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(cli.command_tree(), ["evaluate", str(folder)])
    if result.exit_code:
        assert isinstance(result.exception, LikenessError) and "face_detection_yunet" in str(result.exception)


def test_a_second_judge_stands_beside_the_first(folder, monkeypatch, judge):
    from colour_judge import ByColour

    from likeness.evaluation.table import read_csv
    from likeness.faces import FaceAnalysis

    judges = {"sface": judge, "dlib": FaceAnalysis("second", ByColour(), ByColour("second"), licence="CC0-1.0")}
    monkeypatch.setattr(opening, "open_faces", judges.__getitem__)

    def run(*more: str):
        return CliRunner().invoke(cli.command_tree(), ["evaluate", str(folder), *more])

    assert run("--second-judge", "dlib").exit_code == 0
    (first, *_) = read_csv(folder / "report" / "records.csv")
    assert first.measures["id_second"] == pytest.approx(first.measures["id"])
    text = (folder / "report" / "report.md").read_text()
    assert "likeness, second judge" in text and "Judge: by colour and second" in text and "CC0-1.0" in text
    assert run("--out", str(folder / "one")).exit_code == 0, "auto adds nobody beside a judge that is not free"
    assert "second judge" not in (folder / "one" / "report.md").read_text()
    same = run("--second-judge", "sface")
    assert isinstance(same.exception, LikenessError) and "The second judge is by colour, as the first" in str(
        same.exception
    )
    own = run("--second-judge", "dlib", "--conditioner", "second")
    assert isinstance(own.exception, LikenessError) and "would judge its own work" in str(own.exception)
