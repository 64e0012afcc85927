"""A batch's run is judged by the manifest it wrote: docs/evaluation.md says which columns count."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.errors import LikenessError
from likeness.evaluation.judging import evaluate, open_study
from likeness.evaluation.pool import Pool
from likeness.evaluation.sources.manifest import is_run, survey_run
from likeness.evaluation.table import methods_of, read_csv

PEOPLE = {"ann": (255, 60, 60), "bob": (60, 255, 60)}
BLACK = (0, 0, 0)


def _put(path: Path, colour: tuple[int, ...]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.array(colour, np.uint8), (64, 64, 3)).copy()).save(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(run: Path, rows: list[dict[str, object]]) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with (run / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, object]]:
    """Two people x two strengths x two seeds, as a batch writes them; strength 0 paints nobody."""
    rows: list[dict[str, object]] = []
    for person, colour in PEOPLE.items():
        _put(tmp_path / "people" / person / "photo.png", colour)
        for strength in (0.0, 0.8):
            for seed in (1000, 1001):
                row_id = hashlib.sha256(f"{person}{strength}{seed}".encode()).hexdigest()[:32]
                file = f"images/{row_id[:2]}/{row_id}-9-0.png"
                sha = _put(tmp_path / "june" / file, colour if strength else BLACK)
                rows.append(
                    {
                        "idx": len(rows),
                        "row_id": row_id,
                        "state": "done",
                        "person": person,
                        "Load Identity.identity": f"likeness/{person}.safetensors",
                        "Apply Identity.strength": strength,
                        "Prompt.text": "'-1 % more, on a ferry, sea behind",
                        "Sampler.seed": seed,
                        "meta.note": f"row {len(rows)}",
                        "seed": seed,
                        "file": file,
                        "sha256": sha,
                        "width": 64,
                        "height": 64,
                        "seconds": 1.5,
                        "server": "http://127.0.0.1:8188",
                        "attempts": 1,
                        "cached_nodes": 3,
                        "error": "",
                        "id_sim": "",
                    }
                )
    return rows


@pytest.fixture
def run(tmp_path: Path, rows) -> Path:
    _write(tmp_path / "june", rows)
    return tmp_path / "june"


def test_a_manifest_is_read_as_methods_people_prompts_and_seeds(run, tmp_path):
    study = survey_run(run, tmp_path / "people")
    assert is_run(run) and not is_run(tmp_path)
    assert len(study.results) == 8 and not study.warnings
    assert {result.method for result in study.results} == {"Apply Identity.strength=0.0", "Apply Identity.strength=0.8"}
    assert {result.prompt for result in study.results} == {"-1 % more, on a ferry, sea behind"}
    assert {result.seed for result in study.results} == {1000, 1001}
    assert [study.name(path) for path in study.given["ann"]] == ["people/ann/photo.png"]


def test_a_run_is_judged_and_reported_with_its_times(run, tmp_path, judge):
    study = open_study(run, tmp_path / "people")
    path = evaluate(study, Pool(judge), run / "report", reference="Apply Identity.strength=0.0")
    records = read_csv(path.parent / "records.csv")
    assert methods_of(records) == ["Apply Identity.strength=0.0", "Apply Identity.strength=0.8"]
    assert [record.value("found") for record in records] == [0.0] * 4 + [1.0] * 4
    assert all(record.value("seconds") == 1.5 for record in records)
    assert all(record.value("face_ssim") == pytest.approx(1) for record in records[4:]), "the photo itself"
    assert "pasted" in path.read_text(encoding="utf-8")


def test_columns_can_be_named_that_tell_methods_apart(run, tmp_path):
    study = open_study(run, tmp_path / "people", by=["Sampler.seed"])
    assert {result.method for result in study.results} == {"Sampler.seed=1000", "Sampler.seed=1001"}
    with pytest.raises(LikenessError, match=r"no column 'Sampler\.cfg'"):
        open_study(run, tmp_path / "people", by=["Sampler.cfg"])


def test_a_column_called_method_tells_them_apart(run, rows, tmp_path):
    _write(run, [{**row, "meta.method": "faceid" if row["Apply Identity.strength"] else "base"} for row in rows])
    assert {result.method for result in survey_run(run, tmp_path / "people").results} == {"base", "faceid"}


def test_without_settings_a_run_is_one_method_called_by_its_folder(run, rows, tmp_path):
    _write(run, [row for row in rows if row["Apply Identity.strength"]])
    assert {result.method for result in survey_run(run, tmp_path / "people").results} == {"june"}


def test_the_least_that_a_manifest_must_say(run, rows, tmp_path):
    _write(run, [{"person": row["person"], "file": row["file"]} for row in rows[:1]])
    (result,) = survey_run(run, tmp_path / "people").results
    assert (result.prompt, result.seed, result.measures) == ("", 0, {})


def test_rows_without_a_picture_are_counted_not_judged(run, rows, tmp_path):
    rows[0] |= {"state": "failed", "file": ""}
    rows[1] |= {"state": "failed", "file": ""}
    rows[2] |= {"state": "todo", "file": ""}
    (run / str(rows[3]["file"])).unlink()
    _write(run, rows)
    study = survey_run(run, tmp_path / "people")
    assert len(study.results) == 4
    (warning,) = study.warnings
    assert warning.startswith("4 of 8 rows of the batch are not judged (1 done, but without an image")
    assert "2 failed" in warning and "1 todo" in warning


@pytest.mark.parametrize(
    "file", ["../secret.png", "images/../../secret.png", "/etc/secret.png", "C:\\secret.png", "images\\..\\..\\s.png"]
)
def test_a_file_outside_of_the_run_is_refused(run, rows, tmp_path, file):
    _put(tmp_path / "secret.png", BLACK)
    rows[5]["file"] = file
    _write(run, rows)
    with pytest.raises(LikenessError, match=r"Line 7 of manifest\.csv names .* not in the run's folder"):
        survey_run(run, tmp_path / "people")


def test_a_link_that_leads_out_of_the_run_is_refused(run, rows, tmp_path):
    _put(tmp_path / "secret.png", BLACK)
    try:
        (run / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    except OSError:
        pytest.skip("no symbolic links here")
    rows[0]["file"] = "images/link.png"
    _write(run, rows)
    with pytest.raises(LikenessError, match=r"Line 2 of .* not in the run's folder"):
        survey_run(run, tmp_path / "people")


def test_what_is_wrong_with_a_run_is_said_in_a_sentence(run, rows, tmp_path):
    with pytest.raises(LikenessError, match=r"no photos of ann, bob: put them into .*--people"):
        survey_run(run)
    _write(run, [{**row, "seed": "many"} for row in rows])
    with pytest.raises(LikenessError, match=r"Line 2 of .* has the seed 'many'"):
        survey_run(run, tmp_path / "people")
    _write(run, [{**row, "state": "todo"} for row in rows])
    with pytest.raises(LikenessError, match="is an image of a person: let the batch run first"):
        survey_run(run, tmp_path / "people")
    _write(run, [{"idx": 0, "file": "images/1.png"}])
    with pytest.raises(LikenessError, match="has no column 'person'"):
        survey_run(run, tmp_path / "people")
    (run / "manifest.csv").write_bytes(b"\xff\xfe\x00person,file")
    with pytest.raises(LikenessError, match="cannot be read"):
        survey_run(run, tmp_path / "people")
    (run / "manifest.csv").unlink()
    (run / "run.json").write_text("{}")
    with pytest.raises(LikenessError, match=r"has no manifest\.csv yet"):
        open_study(run)


def test_runs_and_folders_are_compared_in_one_report(run, rows, tmp_path, judge):
    july = tmp_path / "july"
    for row in rows:
        _put(july / str(row["file"]), (255, 60, 120))
    _write(july, rows)
    for person in PEOPLE:
        _put(tmp_path / "sketches" / "results" / "pencil" / person / "sea-1.png", (200, 200, 60))
    study = open_study(run, tmp_path / "people", [july, tmp_path / "sketches"])
    methods = {result.method for result in study.results}
    strengths = {f"{name}: Apply Identity.strength={value}" for name in ("june", "july") for value in (0.0, 0.8)}
    assert methods == {*strengths, "pencil"}
    path = evaluate(study, Pool(judge), tmp_path / "report")
    records = read_csv(path.parent / "records.csv")
    assert len({record.image for record in records}) == 18
    assert {record.image.split("/")[0] for record in records} == {"images", "july", "sketches"}


def test_a_folder_that_is_not_there_is_named(run, tmp_path):
    with pytest.raises(LikenessError, match=r"There is no folder .*august"):
        open_study(run, tmp_path / "people", [tmp_path / "august"])
