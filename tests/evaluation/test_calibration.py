"""What was measured of a judge comes with it, and is used by the command and by the nodes alike."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from likeness import cli
from likeness.cli import opening
from likeness.errors import LikenessError
from likeness.evaluation.identity import Calibration, calibrate
from likeness.evaluation.judging import evaluate, open_study
from likeness.evaluation.pool import Pool
from likeness.evaluation.portraits import judge_pictures
from likeness.evaluation.table import read_csv
from likeness.miniature.models.backend import miniature_judge
from likeness.miniature.models.weights import FOLDER
from likeness.miniature.study import calibration, measuring

RED, GREEN, PINK, ROSE = (1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (1.0, 0.2, 0.4), (1.0, 0.3, 0.6)


def _save(path: Path, picture) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().byte().numpy()).save(path)


@pytest.fixture
def folder(tmp_path, colours) -> Path:
    shades = {"ann": (RED, PINK, ROSE), "bob": (GREEN, GREEN, GREEN)}
    for name, (given, other, result) in shades.items():
        _save(tmp_path / "people" / name / "refs" / "1.png", colours.of(given)[0])
        _save(tmp_path / "people" / name / "held_out" / "2.png", colours.of(other)[0])
        _save(tmp_path / "results" / "faceid" / name / "hat-1.png", colours.of(result)[0])
    return tmp_path


def test_the_shipped_calibration_is_that_of_the_shipped_judge():
    measured = Calibration.load(FOLDER / calibration.FILE)
    assert measured.weights == calibration.judge_weights(), "`likeness calibrate miniature` makes it again"
    assert calibration.miniature_calibration_of(miniature_judge()) == measured
    assert (measured.people, measured.photos) == (len(calibration.PEOPLE), len(calibration.PEOPLE) * calibration.PHOTOS)
    assert measured.threshold(1e-1) < measured.threshold(1e-2) < measured.threshold(1e-3) < 1
    assert measured.auc > 0.95 and measured.genuine > measured.threshold(1e-2)


@pytest.mark.parametrize(
    "change",
    [
        {"genuine": float("nan")},
        {"genuine": float("inf")},
        {"genuine": "0.4"},
        {"thresholds": {"0.001": float("nan")}},
        {"thresholds": {"nan": 0.4}},
        {"thresholds": {"0.001": 7}},
        {"thresholds": []},
        {"eer": -0.1},
        {"auc": float("nan")},
        {"people": -1},
        {"photos": float("inf")},
        {"people": 10**18},
        {"recogniser": None},
        {"weights": ["x"]},
        {"stranger": 1},
    ],
)
def test_a_calibration_of_impossible_values_is_refused(tmp_path, change):
    record = json.loads((FOLDER / calibration.FILE).read_text())
    file = tmp_path / "judge.json"
    file.write_text(json.dumps(record))
    assert Calibration.load(file).people > 0
    file.write_text(json.dumps(record | change))
    with pytest.raises(LikenessError, match=r"'judge\.json' cannot be read"):
        Calibration.load(file)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"[" * 100_000, b"null", b'"x"', b"{}"])
def test_a_calibration_of_garbage_is_refused(tmp_path, content):
    (tmp_path / "judge.json").write_bytes(content)
    with pytest.raises(LikenessError, match=r"'judge\.json' cannot be read"):
        Calibration.load(tmp_path / "judge.json")


def test_a_calibration_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    measured = Calibration.load(FOLDER / calibration.FILE)
    measured.save(tmp_path / "judge.json")
    with pytest.raises(LikenessError, match="exists already"):
        measured.save(tmp_path / "judge.json")
    whole = Path.write_text

    def full(self: Path, text: str, **how) -> int:
        whole(self, text[:20], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LikenessError, match="No space left"):
        measured.save(tmp_path / "other.json")
    assert [file.name for file in tmp_path.iterdir()] == ["judge.json"]


def test_a_place_that_is_taken_is_told_before_anything_is_measured(tmp_path):
    (tmp_path / "judge.json").write_text("{}")
    result = CliRunner().invoke(cli.command_tree(), ["calibrate", "miniature", "--out", str(tmp_path / "judge.json")])
    assert isinstance(result.exception, LikenessError) and "exists already" in str(result.exception)


def test_nobody_of_the_calibration_is_in_a_study():
    studied = {*measuring.TABLE_PEOPLE, *measuring.TUNING_PEOPLE, *measuring.DEMO_PEOPLE}
    assert not studied & set(calibration.PEOPLE)


def test_other_judges_and_other_weights_have_no_calibration_of_ours(judge, tmp_path):
    assert calibration.miniature_calibration_of(judge) is None
    shutil.copy(FOLDER / calibration.FILE, tmp_path)
    (tmp_path / "judge.safetensors").write_bytes(b"retrained")
    assert calibration.miniature_calibration_of(miniature_judge(), tmp_path) is None


def test_the_people_are_drawn_when_they_are_asked_for():
    people = calibration.people()
    assert len(people) == len(calibration.PEOPLE)
    photo = next(people["person-6000"])
    assert photo.ndim == 3 and photo.shape[-1] == 3 and 0 <= photo.min() < photo.max() <= 1


def test_a_judge_is_measured_by_a_command_and_the_file_is_used(folder, judge, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", lambda name: judge)
    file = folder / "mine.json"
    measured = CliRunner().invoke(cli.command_tree(), ["calibrate", str(folder / "people"), "--out", str(file)])
    assert measured.exit_code == 0, measured.output
    assert "4 photos of 2 people" in measured.output and Calibration.load(file).recogniser == "by colour"
    judged = CliRunner().invoke(cli.command_tree(), ["evaluate", str(folder), "--calibration", str(file)])
    assert judged.exit_code == 0, judged.output
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "accepted at 1e-3" in text and "The judge's own quality: equal error rate" in text


def test_a_judge_that_brings_its_calibration_needs_no_file(folder, judge, colours, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", lambda name: judge)
    own = calibrate(judge, {"a": colours.of(RED, PINK), "b": colours.of(GREEN)})
    monkeypatch.setattr(calibration, "miniature_calibration_of", lambda judge: own)
    assert CliRunner().invoke(cli.command_tree(), ["evaluate", str(folder)]).exit_code == 0
    assert "accepted at 1e-3" in (folder / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("genuine", [None, 0.9])
def test_nodes_and_command_give_the_same_percent(folder, judge, colours, identify, genuine):
    measured = calibrate(judge, {"a": colours.of(RED, PINK), "b": colours.of(GREEN)})
    measured = None if genuine is None else replace(measured, genuine=genuine)
    path = evaluate(open_study(folder), Pool(judge), folder / "report", calibration=measured)
    (record,) = (one for one in read_csv(path.parent / "records.csv") if one.person == "ann")
    verdict = judge_pictures(colours.of(ROSE), [identify("ann", RED)], judge, calibration=measured)
    assert record.value("percent") == pytest.approx(verdict.percents[0], abs=0.5)
    assert record.value("percent") == pytest.approx(100 * record.value("id") / (genuine or 0.46), abs=0.1) or (
        record.value("percent") == 120
    )
