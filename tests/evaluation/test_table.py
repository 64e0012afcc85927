from __future__ import annotations

import csv
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from likeness.errors import LikenessError
from likeness.evaluation.table import (
    MEASURES,
    MethodFacts,
    Record,
    agreement,
    cost_ratio,
    difference,
    differences,
    expr_spread,
    methods_table,
    number,
    pose_copied,
    pose_spread,
    read_csv,
    summary,
    table_rows,
    write_records,
)

RESAMPLES = 500


def _records(people: int = 8, prompts: int = 3, seeds: int = 2) -> list[Record]:
    """No adapter, one that keeps the person and one that loses faces; person means differ, pairs do not."""
    random = np.random.default_rng(0)
    level = random.normal(0, 0.1, people)
    records = []
    for method, likeness in (("base", 0.05), ("faithful", 0.6), ("careless", 0.2)):
        for person in range(people):
            for prompt in range(prompts):
                for seed in range(seeds):
                    found = method != "careless" or (prompt + seed) % 3 > 0
                    value = (likeness + level[person] + 0.02 * random.standard_normal()) * found
                    yaw, pitch, roll = random.normal(0, 1, 3) * (1 if method == "faithful" else 10)
                    measures = {
                        "found": float(found),
                        "id": value,
                        "percent": 100 * max(0.0, value) / 0.7,
                        "rank1": float(value > 0.4),
                        "attributes": 0.8 if method == "base" else 0.7,
                        "copy": math.nan if method == "base" else 0.3,
                        "seconds": 2.0 if method == "base" else 3.0,
                        "yaw": yaw if found else math.nan,
                        "pitch": pitch if found else math.nan,
                        "roll": roll if found else math.nan,
                    }
                    name = f"{method}/{person}/{prompt}-{seed}.png"
                    note = "" if found else "no face"
                    records.append(Record(method, f"p{person}", f"prompt {prompt}", seed, name, measures, note))
    return records


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return _records()


def test_records_come_back_from_their_file_exactly(records, tmp_path):
    strange = [
        *records,
        Record("base", 'a "quoted", person', "two\nlines", -3, "x.png", {"id": 1 / 3, "copy": math.nan}, "n, o"),
    ]
    back = read_csv(write_records(strange, tmp_path / "records.csv"))
    assert len(back) == len(strange)
    for one, other in zip(strange, back, strict=True):
        defined = {name: value for name, value in one.measures.items() if not math.isnan(value)}
        assert replace(one, measures=defined) == other


def test_the_same_records_give_the_same_bytes(records, tmp_path):
    first, second = (write_records(records, tmp_path / name) for name in ("1.csv", "2.csv"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "method,person,prompt,seed,image,note,id\nm,p,q,x,i,,0.1\n"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "records.csv").write_text(text)
    if not text:
        assert read_csv(tmp_path / "records.csv") == []
        return
    with pytest.raises(LikenessError, match="cannot be read"):
        read_csv(tmp_path / "records.csv")
    with pytest.raises(LikenessError, match=r"none.csv cannot be read"):
        read_csv(tmp_path / "none.csv")


def test_every_figure_of_the_table_can_be_computed_again_from_the_file(records, tmp_path):
    path = write_records(records, tmp_path / "records.csv")
    table = methods_table(read_csv(path), "base", resamples=RESAMPLES)
    assert table == methods_table(records, "base", resamples=RESAMPLES)
    with path.open() as file:
        lines = list(csv.DictReader(file))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    title = {name: index for index, name in enumerate(cells[0])}
    for row in cells[2:]:
        own = [line for line in lines if line["method"] == row[title["method"]]]

        def mean(measure: str, lines: list = own) -> float:
            people = sorted({line["person"] for line in lines})
            of = [[float(x[measure]) for x in lines if x["person"] == p and x[measure]] for p in people]
            return float(np.mean([np.mean(values) for values in of])) if any(of) else math.nan

        def shown(name: str, row: list = row) -> float:
            return float(re.sub(r"[*%+]", "", row[title[name]].split("[")[0]).strip())

        assert shown("people") == 8 and shown("images") == 48
        assert shown("id") == pytest.approx(mean("id"), abs=0.0051)
        assert shown("likeness") == pytest.approx(mean("percent"), abs=0.51)
        for name, measure in (("rank-1", "rank1"), ("detected", "found"), ("attributes", "attributes")):
            assert shown(name) == pytest.approx(100 * mean(measure), abs=0.51)
        if row[title["method"]] != "base":
            base = [line for line in lines if line["method"] == "base"]
            assert shown("Δ id") == pytest.approx(mean("id") - mean("id", base), abs=0.0051)
            assert shown("Δ attributes (points)") == pytest.approx(-10, abs=0.51)
            assert shown("copy") == pytest.approx(0.3)
            assert shown("s/image ratio") == pytest.approx(1.5)


def test_what_nobody_measured_has_no_column_and_what_one_lacks_has_a_dash(records):
    rows = table_rows(records, "base", {"faithful": MethodFacts("1 photo", 12.4)}, RESAMPLES)
    assert "leak" not in rows[0] and "training s" not in rows[0]
    assert [row["inputs"] for row in rows] == ["–", "1 photo", "–"]
    assert [row["extra MB"] for row in rows] == ["–", "12", "–"]
    assert rows[0]["copy"] == "–" and rows[0]["Δ id"] == "–"


def test_only_differences_that_hold_are_bold(records):
    rows = {row["method"]: row for row in table_rows(records, "base", resamples=RESAMPLES)}
    assert rows["faithful"]["Δ id"].startswith("**+0.5")
    same = [replace(record, method="same") for record in records if record.method == "base"]
    rows = {row["method"]: row for row in table_rows([*records, *same], "base", resamples=RESAMPLES)}
    assert rows["same"]["Δ id"] == "+0.00 [+0.00, +0.00]"


def test_holm_takes_back_what_many_questions_find_by_chance(records):
    random = np.random.default_rng(6)
    base = [record for record in records if record.method == "base"]
    chance = [
        replace(record, method=f"m{n}", measures={"id": record.value("id") + 0.1 * shift + 0.05 * random.normal()})
        for n in range(30)
        for shifts in [dict(zip([f"p{i}" for i in range(8)], random.normal(size=8), strict=True))]
        for record in base
        for shift in [shifts[record.person]]
    ]
    found = differences([*base, *chance], "id", "base", RESAMPLES)
    assert any(one.excludes_zero for one, _ in found.values()) and not any(holds for _, holds in found.values())


def test_a_method_with_fewer_people_is_compared_on_its_own_people(records):
    fewer = [record for record in records if record.method == "base" or record.person in ("p0", "p1")]
    change = difference(fewer, "id", "faithful", "base", RESAMPLES)
    assert change.people == 2 and not change.is_known
    shifted = [
        replace(record, measures={"id": record.value("id") + 1}) if record.method == "base" else record
        for record in fewer
        if record.method != "base" or record.person in ("p0", "p1")
    ]
    assert difference(shifted, "id", "faithful", "base").mean == pytest.approx(change.mean - 1)


def test_missing_faces_pull_the_mean_down(records):
    careless = [record for record in records if record.method == "careless"]
    found = [record for record in careless if record.value("found")]
    assert summary(careless, "id", RESAMPLES).mean < summary(found, "id", RESAMPLES).mean - 0.03


def test_a_frozen_head_shows_in_the_pose_spread(records):
    assert pose_spread(records, "faithful", "base") < 0.2
    assert 0.7 < pose_spread(records, "careless", "base") < 1.3
    assert math.isnan(pose_spread([replace(record, measures={}) for record in records], "faithful", "base"))


def test_costs_are_ratios_of_pairs(records):
    assert cost_ratio(records, "faithful", "base") == (1.5, 1.5, 1.5)
    untimed = [replace(record, measures={}) for record in records]
    assert math.isnan(cost_ratio(untimed, "faithful", "base")[0])


def test_numbers_are_written_with_their_limits():
    from likeness.evaluation.statistics import Interval

    assert number(Interval(0.423, 0.38, 0.461, 9, 9)) == "0.42 [0.38, 0.46]"
    assert number(Interval(0.62, 0.55, 0.69, 9, 9), 100, 0, " %") == "62 % [55, 69]"
    assert number(Interval(0.1, math.nan, math.nan, 3, 3), signed=True) == "+0.10"
    assert number(Interval(math.nan, math.nan, math.nan, 0, 0)) == "–"


@pytest.mark.parametrize(("records", "reference", "words"), [([], None, "no records"), (None, "x", "method 'x'")])
def test_tables_of_nothing_are_explained(records, reference, words):
    with pytest.raises(LikenessError, match=words):
        methods_table(_records(2, 1, 1) if records is None else records, reference)


def test_a_method_that_plays_to_its_recogniser_is_visible():
    random = np.random.default_rng(0)
    values = random.random((50, 2))
    playing = [Record("m", "p", "q", n, "", {"id": a, "id_conditioner": b}) for n, (a, b) in enumerate(values)]
    honest = [Record("m", "p", "q", n, "", {"id": a, "id_conditioner": 2 * a}) for n, (a, _) in enumerate(values)]
    assert abs(agreement(playing)) < 0.3 and agreement(honest) == pytest.approx(1)
    assert math.isnan(agreement([replace(record, measures={"id": 1.0}) for record in playing]))


def test_a_bar_in_a_name_does_not_break_the_table():
    table = methods_table([Record("a|b", "p", "q", 1, "", {"id": 0.5})])
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_every_measure_that_is_printed_is_explained(records):
    assert {name for record in records for name in record.measures} <= set(MEASURES)


def _record(method: str, person: str, seed: int, **measures: float) -> Record:
    return Record(method, person, "sea", seed, f"{method}/{person}-{seed}.png", measures)


def test_poses_that_follow_the_photos_show_in_the_table():
    photos = {"ann": -20.0, "bob": 0.0, "cem": 25.0}
    records = []
    for person, yaw in photos.items():
        for seed, free in enumerate((-8.0, 5.0, 9.0)):
            common = {"pitch": 0.0, "roll": 0.0, "given_yaw": yaw, "given_pitch": 0.0, "given_roll": 0.0}
            records.append(_record("base", person, seed, yaw=free, **common))
            records.append(_record("copies", person, seed, yaw=yaw + free / 100, **common))
            records.append(_record("free", person, seed, yaw=free + 1, **common))
    assert pose_copied(records, "copies", "base") == pytest.approx(1, abs=0.01)
    assert pose_copied(records, "free", "base") == pytest.approx(0, abs=0.01)
    rows = {row["method"]: row for row in table_rows(records, "base", resamples=RESAMPLES)}
    assert (rows["copies"]["pose copied"], rows["free"]["pose copied"]) == ("1.00", "0.00")


def test_a_frozen_mouth_shows_in_the_expression_spread():
    records = []
    for person in ("ann", "bob"):
        for seed, width in enumerate((0.5, 0.7, 0.9)):
            records.append(_record("base", person, seed, mouth_width=width, mouth_drop=0.4 + width / 9))
            records.append(_record("frozen", person, seed, mouth_width=0.6, mouth_drop=0.5))
            records.append(_record("half", person, seed, mouth_width=width / 2, mouth_drop=width / 18))
    assert expr_spread(records, "frozen", "base") == pytest.approx(0, abs=1e-9)
    assert expr_spread(records, "half", "base") == pytest.approx(0.5)
    assert math.isnan(expr_spread(records[:1], "base", "base"))


def test_likeness_of_found_faces_is_told_apart_where_faces_are_missing():
    shown = [_record("a", "ann", 1, found=1.0, id=0.8, face_ssim=0.9), _record("a", "ann", 2, found=0.0, id=0.0)]
    whole = [_record("b", "ann", seed, found=1.0, id=0.5, face_ssim=0.2) for seed in (1, 2)]
    a, b = table_rows([*shown, *whole], "b", resamples=RESAMPLES)
    assert (a["id"], a["id, faces found"], a["pasted faces"]) == ("0.40", "0.80", "100 %")
    assert (b["id"], b["id, faces found"], b["pasted faces"]) == ("0.50", "0.50", "0 %")
    assert "id, faces found" not in table_rows(whole, "b", resamples=RESAMPLES)[0]
