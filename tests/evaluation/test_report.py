from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.errors import LikenessError
from likeness.evaluation.plots import BAD, PALETTE, Cell, curves, labelled_sheet, strip_plot, thumbnail, to_tensor
from likeness.evaluation.report import Setting, headline, reason, report
from likeness.evaluation.statistics import Interval
from likeness.evaluation.table import Record, read_csv

FAST = 300


def _records(people: int = 8, gain: float = 50.0, noise: float = 2.0) -> list[Record]:
    random = np.random.default_rng(0)
    records = []
    for person in range(people):
        level = random.normal(0, 5)
        for prompt in ("hat", "sea"):
            for method, shift in (("base", 0.0), ("faceid", gain)):
                found = not (method == "faceid" and person == 1 and prompt == "sea")
                percent = max(0.0, 10 + shift + level + noise * random.standard_normal()) * found
                measures = {"found": float(found), "percent": percent, "id": percent / 150, "attributes": 0.5}
                name = f"{method}/p{person}/{prompt}.png"
                records.append(Record(method, f"p{person}", prompt, 1, name, measures, "" if found else "no face"))
    return records


class Noise:
    """Images that follow from their names."""

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.rand(40, 30, 3, generator=torch.Generator().manual_seed(len(name) * 7 + ord(name[-5])))


def _setting(records, **changes) -> Setting:
    photos = {record.person: [f"people/{record.person}/a.png"] for record in records}
    setting = Setting(judge="sface", licence="Apache-2.0", reference="base", photos=photos, resamples=FAST)
    return replace(setting, **changes)


# --- words


def test_the_headline_says_how_much_and_how_sure():
    text = headline(_records(), "base", FAST)
    numbers = re.match(
        r"With faceid the images have (\d+) % \(95 % interval (\d+) to (\d+)\) of real photos' likeness, "
        r"(\d+) points more than base \((\d+) to (\d+)\)\. 16 images of 8 people, no face in 1\.$",
        text,
    )
    assert numbers, text
    mean, low, high, gain, least, most = map(int, numbers.groups())
    assert low < mean < high and least < gain < most


def test_the_headline_claims_nothing_that_may_be_chance():
    assert "may be due to chance" in headline(_records(gain=0.5, noise=20), "base", FAST)
    few = headline(_records(people=2), "base", FAST)
    assert "too few people for an interval" in few and "interval " not in few.replace("an interval", "")
    assert re.search(r"[+-]\d+ points against base", few)


def test_the_headline_ranks_methods_only_where_the_pairs_allow_it():
    records = _records()
    twin = [replace(record, method="twin") for record in records if record.method == "faceid"]
    assert "cannot be told" in headline([*records, *twin], "base", FAST)
    weak = [
        replace(r, method="weak", measures={**r.measures, "percent": r.value("percent") / 2})
        for r in records
        if r.method == "faceid"
    ]
    assert re.search(r"That is \d+ points ahead of weak", headline([*records, *weak], "base", FAST))


def test_one_picture_of_one_method_has_a_headline():
    one = [Record("m", "p", "q", 1, "x.png", {"percent": 40.0, "found": 1.0})]
    assert headline(one).startswith("With m the images have 40 % of real photos' likeness. 1 image of 1 person")
    with pytest.raises(LikenessError, match="no records"):
        headline([])


@pytest.mark.parametrize(
    ("measures", "note", "words"),
    [
        ({}, "no face", "no face"),
        ({"rank": 5.0, "gallery": 12.0}, "", "another person is nearer (place 5 of 12)"),
        ({"rank": 1.0, "copy": 0.95}, "", "a copy of the photo"),
        ({"face_ssim": 0.8, "copy": 0.95}, "", "the face is pasted"),
        ({"rank": 1.0, "percent": 12.0}, "", "little likeness"),
        ({"rank": 1.0, "percent": 80.0}, "", "the least of these"),
    ],
)
def test_failures_have_reasons(measures, note, words):
    assert words in reason(Record("m", "p", "q", 1, "", measures, note))


# --- the folder


def test_a_report_is_a_page_with_pictures_and_its_records(tmp_path):
    records = _records()
    setting = _setting(records, warnings=["judge equals conditioner"], repeat="likeness evaluate x", title="Ann & Bob")
    path = report(records, Noise(), tmp_path / "report", setting)
    text = path.read_text()
    assert text.startswith("# Ann & Bob\n\nWith faceid")
    for part in ("**Warning: judge equals conditioner.**", "## The table", "- Judge: sface", "likeness evaluate x"):
        assert part in text
    linked = re.findall(r"\]\(([^)]+)\)", text)
    assert set(linked) == {"sheet.png", "people.png", "curve.png", "worst.png", "records.csv"}
    assert all((path.parent / name).is_file() for name in linked)
    assert "1. faceid, p1, sea, seed 1: 0 %, no face" in text
    assert sum(file.stat().st_size for file in path.parent.iterdir()) < 2_000_000
    assert len(read_csv(path.parent / "records.csv")) == len(records)


def test_the_same_input_gives_the_same_bytes_in_any_order(tmp_path):
    records = _records()
    first = report(records, Noise(), tmp_path / "a", _setting(records)).parent
    second = report(list(records), Noise(), tmp_path / "b", _setting(records)).parent
    report(records, Noise(), second, _setting(records))  # once more over the first
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name


def test_a_report_of_fifty_people_stays_small(tmp_path):
    records = _records(people=50)
    out = report(records, Noise(), tmp_path, _setting(records)).parent
    assert sum(file.stat().st_size for file in out.iterdir()) < 2_000_000


def test_the_copy_panel_shows_what_is_nearest_to_the_photo(tmp_path):
    records = [
        replace(record, measures={**record.measures, "copy": 0.95 if "p3" in record.image else 0.1})
        for record in _records()
    ]
    text = report(records, Noise(), tmp_path, _setting(records)).read_text()
    assert "## Is it a copy?" in text and (tmp_path / "copies.png").is_file()


def test_one_picture_without_photos_or_reference_is_a_report(tmp_path):
    one = [Record("m", "p", "q", 1, "x.png", {"percent": 0.0, "found": 0.0, "id": 0.0}, "no face")]
    text = report(one, Noise(), tmp_path, Setting(resamples=FAST)).read_text()
    assert "no face" in text and "curve.png" not in text


# --- images


def test_a_missing_face_is_framed_and_others_are_not():
    grey = torch.full((64, 64, 3), 0.5)
    picture = np.asarray(labelled_sheet([[Cell(grey, "62 %"), Cell(grey, "no face", bad=True)]], ["a", "b"]))
    red = (picture == BAD).all(-1)
    assert red[:, picture.shape[1] // 2 :].sum() > 1000 and red[:, : picture.shape[1] // 2].sum() == 0


def test_pictures_of_any_shape_fit_their_cell():
    for shape in ((1, 1, 3), (500, 3, 3), (7, 900, 3), (20, 20, 1), (20, 20, 4)):
        assert thumbnail(torch.rand(*shape)).size == (128, 128)
    assert np.asarray(thumbnail(torch.full((8, 8, 3), torch.nan))).max() == 0


def test_a_long_name_is_cut_and_stays_in_its_place():
    wide = np.asarray(labelled_sheet([[Cell(None, "a very long label indeed, longer than its cell"), Cell(None, "")]]))
    assert (wide[:, wide.shape[1] // 2 + 3 :] == 255).all()


def test_strips_show_dots_mean_and_interval_where_they_belong():
    groups = {
        "low": (np.array([10.0, 12.0]), Interval(11, 9, 13, 8, 8)),
        "high": (np.array([90.0]), Interval(90, np.nan, np.nan, 1, 1)),
    }
    picture = np.asarray(strip_plot(groups, "percent"))
    columns = [np.flatnonzero((picture[:, 200:] == colour).all(-1).any(0)) for colour in PALETTE[:2]]
    assert columns[0].max() < columns[1].min(), "greater values lie to the right"
    assert np.ptp(columns[0]) > 10 > np.ptp(columns[1]), "the first has an interval, the second a mean alone"


def test_plots_of_equal_or_missing_values_are_drawn():
    same = Interval(5, 5, 5, 6, 6)
    nothing = Interval(np.nan, np.nan, np.nan, 0, 0)
    assert strip_plot({"a": (np.full(6, 5.0), same), "b": (np.zeros(0), nothing)}, "x").width > 100
    assert curves({"a": [(0.5, 0.5)], "b": [], "c": [(np.nan, 1.0)]}, "x", "y").width > 100


def test_a_drawing_becomes_the_hosts_image():
    image = to_tensor(Image.new("RGB", (5, 3), (255, 0, 0)))
    assert image.shape == (1, 3, 5, 3) and image[0, 0, 0].tolist() == [1, 0, 0]
