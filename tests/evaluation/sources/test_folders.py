from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.errors import LikenessError
from likeness.evaluation import judging
from likeness.evaluation.cache import SightCache, picture_or_nan
from likeness.evaluation.identity import calibrate
from likeness.evaluation.judging import measure
from likeness.evaluation.pool import Pool
from likeness.evaluation.sources.folders import survey
from likeness.evaluation.table import read_csv, write_records

RED, GREEN, BLUE, PINK, BLACK = (255, 60, 60), (60, 255, 60), (60, 60, 255), (255, 60, 120), (0, 0, 0)
PEOPLE = {"ann": RED, "bob": GREEN, "小明": BLUE}


def _put(path: Path, colour: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.broadcast_to(np.array(colour, np.uint8), (64, 64, 3)).copy()).save(path)


def evaluate(folder: Path, judge, out: Path, **options) -> Path:
    return judging.evaluate(survey(folder), Pool(judge), out, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three people; `good` paints them but once, `base` paints a pink person always."""
    for number, (name, colour) in enumerate(PEOPLE.items()):
        _put(tmp_path / "people" / name / "refs" / "1.png", colour)
        _put(tmp_path / "people" / name / "held_out" / "2.png", tuple(min(255, c + 30) for c in colour))
        for prompt in ("hat", "sea"):
            for seed in (1, 2):
                lost = (number, prompt, seed) == (1, "sea", 2)
                _put(tmp_path / f"results/good/{name}/{prompt}-{seed}.png", BLACK if lost else colour)
                _put(tmp_path / f"results/base/{name}/{prompt}/{seed:04d}.png", PINK)
    return tmp_path


def test_folders_are_read_as_people_methods_prompts_and_seeds(folder):
    study = survey(folder)
    assert set(study.given) == set(PEOPLE) and len(study.results) == 24 and len(study.files) == 30
    cells = {(result.method, result.prompt, result.seed) for result in study.results}
    assert cells == {
        (method, prompt, seed) for method in ("good", "base") for prompt in ("hat", "sea") for seed in (1, 2)
    }


def test_pictures_of_every_form_are_judged_and_those_that_are_not_are_named(folder, judge, tmp_path):
    plain = survey(folder)
    assert plain.warnings == ()
    for name in ("people/ann/refs/2.tif", "people/ann/held_out/3.gif", "results/good/ann/hat-7.tiff"):
        _put(folder / name, RED)
    Image.open(folder / "people/ann/refs/1.png").save(folder / "results/good/ann/hat-8.jfif", "JPEG")
    for name in ("people/ann/refs/raw.nef", "results/good/bob/film.mp4", "results/base/bob/hat/x.psd"):
        (folder / name).touch()
    for name in ("people/bob/stray.png", "results/good/stray.png", "results/stray.png", "results/good/ann/a.mask.png"):
        _put(folder / name, RED)
    study = survey(folder)
    assert len(study.given["ann"]) == 2 and len(study.held_out["ann"]) == 2
    assert {result.seed for result in study.results if result.person == "ann" and result.prompt == "hat"} == {
        1,
        2,
        7,
        8,
    }
    text = evaluate(folder, judge, tmp_path / "report", reference="base").read_text(encoding="utf-8")
    for sentence in (
        "not used in people/ann/refs: raw.nef: raw files of cameras",
        "not used in people/bob: stray.png, because the photos in refs are what was given",
        "not used in results/good/bob: film.mp4: videos are not read",
        "not used in results/base/bob: hat/x.psd: files of drawing programs",
        "not used in results/good/ann: a.mask.png: these are named like masks",
        "not used: results/stray.png, because results lie in results/<method>/<person>",
        "not used: results/good/stray.png, because",
    ):
        assert sentence in " ".join(study.warnings) and sentence in text


def test_a_study_is_judged_and_reported(folder, judge, tmp_path):
    path = evaluate(folder, judge, tmp_path / "report", reference="base", repeat="likeness evaluate x")
    text = path.read_text(encoding="utf-8")
    assert "With good the images have" in text and "no face in 1" in text and "小明" in text
    records = read_csv(path.parent / "records.csv")
    assert len(records) == 24
    by_name = {record.image: record for record in records}
    good = by_name["results/good/ann/hat-1.png"]
    assert good.value("id") == pytest.approx(1, abs=1e-3) and good.value("rank") == 1 and good.value("gallery") == 3
    assert good.value("copy") == pytest.approx(1, abs=1e-2), "exactly the photo that was given"
    lost = by_name["results/good/bob/sea-2.png"]
    assert (lost.value("found"), lost.value("id"), lost.value("rank"), lost.note) == (0, 0, 3, "no face")
    assert np.isnan(lost.value("copy")) and np.isnan(lost.value("yaw"))
    assert by_name["results/base/bob/hat/0001.png"].value("rank1") == 0


def test_a_second_run_looks_at_nothing_again_and_writes_the_same_bytes(folder, judge, tmp_path):
    out = tmp_path / "report"
    before = {p.name: p.read_bytes() for p in evaluate(folder, judge, out, reference="base").parent.iterdir()}
    (cache,) = out.glob("seen-*.jsonl")
    again = SightCache(cache, Pool(judge))
    records = measure(survey(folder), again)
    assert again.looked == 0 and len(records) == 24
    evaluate(folder, judge, out, reference="base")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_an_interrupted_run_goes_on_where_it_stopped(folder, judge, tmp_path):
    path, seen = tmp_path / "seen.jsonl", []

    def stop():
        seen.append(1)
        if len(seen) == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(survey(folder), SightCache(path, Pool(judge)), after_each=stop)
    path.write_text(path.read_text()[:-40])  # a crash in the middle of a line
    second = SightCache(path, Pool(judge))
    records = measure(survey(folder), second)
    fresh = SightCache(tmp_path / "fresh.jsonl", Pool(judge))
    whole = measure(survey(folder), fresh)
    files = [write_records(rows, tmp_path / name) for rows, name in ((records, "1.csv"), (whole, "2.csv"))]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert 0 < second.looked < fresh.looked
    third = SightCache(path, Pool(judge))
    measure(survey(folder), third)
    assert third.looked == 0, "what was looked at after the crash can be read"


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[:-30],
        lambda line: line.replace(b'"reader": 2', b'"reader": 1'),
        lambda line: b"\xff\xfe\0" + line,
        lambda line: b"[" * 50_000,
        lambda line: b"3",
        lambda line: line.replace(b'"keypoints": [', b'"keypoints": [NaN, '),
        lambda line: re.sub(rb'"embedding": "[^"]*"', b'"embedding": "AADAfwAAwH8AAMB/"', line),  # three NaN
    ],
)
def test_a_changed_line_of_the_cache_is_looked_at_again_and_stops_nothing(folder, judge, tmp_path, damage):
    path = tmp_path / "seen.jsonl"
    measure(survey(folder), SightCache(path, Pool(judge)))
    files = [write_records(measure(survey(folder), SightCache(path, Pool(judge))), tmp_path / "1.csv")]
    lines = path.read_bytes().splitlines()
    number = next(number for number, line in enumerate(lines) if b'"embedding"' in line)
    path.write_bytes(b"\n".join([*lines[:number], damage(lines[number]), *lines[number + 1 :]]) + b"\n")
    again = SightCache(path, Pool(judge))
    files.append(write_records(measure(survey(folder), again), tmp_path / "2.csv"))
    assert again.looked == 1 and files[0].read_bytes() == files[1].read_bytes()


def test_what_was_seen_on_a_full_disk_is_told_in_one_sentence(folder, judge, tmp_path, monkeypatch):
    opened = Path.open

    def full(self: Path, mode: str = "r", *rest, **how):
        if mode == "a":
            raise OSError(28, "No space left on device")
        return opened(self, mode, *rest, **how)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(LikenessError, match=r"cannot be written to .*No space left.*those made so far are kept"):
        evaluate(folder, judge, tmp_path / "report")


def test_a_report_that_cannot_be_written_is_told_before_anything_is_looked_at(folder, judge, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LikenessError, match=r"The report's folder .*choose another folder"):
        evaluate(folder, judge, tmp_path / "file")


def test_a_report_replaces_an_older_one_whole_or_not_at_all(folder, judge, tmp_path, monkeypatch):
    path = evaluate(folder, judge, tmp_path / "report")
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    whole = Path.write_text

    def full(self: Path, text: str, **how) -> int:
        whole(self, text[:20], **how)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(LikenessError, match=r"report could not be written.*No space left"):
        evaluate(folder, judge, tmp_path / "report", title="Another title")
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_photos_of_people_that_cannot_be_used_are_named_with_the_reason(folder, judge, tmp_path):
    (folder / "people/ann/refs/2.jpg").write_bytes(b"not an image")
    _put(folder / "people/bob/refs/2.png", BLACK)
    text = evaluate(folder, judge, tmp_path / "report").read_text(encoding="utf-8")
    assert "2 of 8 photos of people are not compared with: people/ann/refs/2.jpg (not an image" in text
    assert "people/bob/refs/2.png (no face)" in text


@pytest.mark.parametrize("value", ["many", None, [1], -3, float("inf"), {}])
def test_facts_that_are_no_numbers_are_named(folder, value):
    (folder / "results/good/method.json").write_text(json.dumps({"extra_mb": value}))
    with pytest.raises(LikenessError, match=r"method\.json gives extra_mb as .*write a number"):
        survey(folder)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff\xff", b""])
def test_a_description_of_garbage_is_refused(folder, content):
    (folder / "results/good/method.json").write_bytes(content)
    with pytest.raises(LikenessError, match=r"method\.json is not what describes a method"):
        survey(folder)


def test_a_method_names_its_conditioner_and_facts(folder, judge, tmp_path):
    description = {"conditioner": "by colour", "inputs": "1 photo", "extra_mb": 22}
    (folder / "results/good/method.json").write_text(json.dumps(description))
    with pytest.raises(LikenessError, match="would judge its own work"):
        evaluate(folder, judge, tmp_path / "report")
    text = evaluate(folder, judge, tmp_path / "report", allow_same_recogniser=True).read_text()
    assert "**Warning: judge equals conditioner" in text and "| 1 photo |" in text and "| 22 |" in text
    (folder / "results/good/method.json").write_text("[]")
    with pytest.raises(LikenessError, match=r"method\.json is not what describes a method"):
        survey(folder)


def test_a_calibration_gives_the_share_that_is_accepted(folder, judge, tmp_path, colours):
    one = calibrate(judge, {"a": colours.of((1, 0.2, 0.2), (1, 0.2, 0.4)), "b": colours.of((0.2, 1, 0.2))})
    text = evaluate(folder, judge, tmp_path / "report", reference="base", calibration=one).read_text()
    assert "accepted at 1e-3" in text
    from dataclasses import replace

    with pytest.raises(LikenessError, match="measured on sface, and the judge is by colour"):
        evaluate(folder, judge, tmp_path / "report", calibration=replace(one, recogniser="sface"))


def test_a_damaged_picture_is_a_result_without_a_face(folder, judge, tmp_path):
    (folder / "results/good/ann/hat-1.png").write_bytes(b"not an image")
    records = read_csv(evaluate(folder, judge, tmp_path / "report").parent / "records.csv")
    (bad,) = [record for record in records if record.image == "results/good/ann/hat-1.png"]
    assert bad.value("found") == 0 and bad.note.startswith("not an image: 'ann/hat-1.png'")


def test_hidden_colours_are_not_judged(folder, judge, tmp_path):
    file = folder / "results/good/ann/hat-1.png"
    with Image.open(file) as picture:
        hidden = picture.convert("RGBA")
    hidden.putalpha(0)
    hidden.save(file)
    records = read_csv(evaluate(folder, judge, tmp_path / "report").parent / "records.csv")
    found = {record.image: record.value("found") for record in records}
    assert found["results/good/ann/hat-1.png"] == 0 and found["results/good/ann/hat-2.png"] == 1


@pytest.mark.parametrize("suffix", [".tif", ".avif", ".gif"])
def test_results_of_every_form_are_judged(folder, suffix):
    for file in (folder / "results/good/ann").glob("*.png"):
        file.rename(file.with_suffix(suffix))
    assert {result.path.suffix for result in survey(folder).results if result.method == "good"} >= {suffix}


def test_a_picture_too_large_to_open_safely_is_not_opened(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert picture_or_nan(folder / "results/good/ann/hat-1.png").isnan().all()


def test_a_picture_is_turned_as_the_camera_was_held(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (20, 10)).save(tmp_path / "1.jpg", exif=exif)
    assert picture_or_nan(tmp_path / "1.jpg").shape == (20, 10, 3)


@pytest.mark.parametrize(
    ("remove", "words"),
    [
        ("results", "no images below"),
        ("people", "There are no photos of ann, bob"),
        ("", "finds no face in the photos of ann"),
    ],
)
def test_what_is_missing_is_named(folder, judge, tmp_path, remove, words):
    import shutil

    if remove:
        shutil.rmtree(folder / remove)
    else:
        _put(folder / "people/ann/refs/1.png", BLACK)
    with pytest.raises(LikenessError, match=words):
        evaluate(folder, judge, tmp_path / "report")
    if not remove:
        with pytest.raises(LikenessError, match="choose one of base, good"):
            evaluate(folder, judge, tmp_path / "report", reference="none")
