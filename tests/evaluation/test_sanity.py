"""What must hold before any figure is believed: drawn people and the miniature's judge, few people, wide margins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.evaluation.judging import evaluate, open_study
from likeness.evaluation.pool import Pool
from likeness.evaluation.table import Record, of_method, pose_copied, read_csv
from likeness.miniature.drawing.people import SPLITS
from likeness.miniature.models.backend import miniature_judge
from likeness.miniature.models.world import photos_of

PEOPLE, STRANGERS = range(6300, 6306), range(6400, 6406)


def _save(path: Path, photo: np.ndarray, side: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(photo)
    (picture.resize((side, side), Image.Resampling.BICUBIC) if side else picture).save(path)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    """Other photos of the person, photos of somebody else, and the photo that was given, also at twice its size."""
    folder = tmp_path_factory.mktemp("anchors")
    for person, stranger in zip(PEOPLE, STRANGERS, strict=True):
        given, held_out, *real = photos_of(SPLITS["test"][person], 4)
        strange = photos_of(SPLITS["test"][stranger], 2)
        _save(folder / f"people/{person}/refs/1.png", given)
        _save(folder / f"people/{person}/held_out/2.png", held_out)
        for seed in (0, 1):
            _save(folder / f"results/real/{person}/photo-{seed}.png", real[seed])
            _save(folder / f"results/stranger/{person}/photo-{seed}.png", strange[seed])
            _save(folder / f"results/pasted/{person}/photo-{seed}.png", given, (0, 2 * len(given))[seed])
    path = evaluate(open_study(folder), Pool(miniature_judge()), folder / "report", reference="stranger")
    return read_csv(path.parent / "records.csv")


def mean(records: list[Record], method: str, measure: str) -> float:
    return float(np.mean([record.value(measure) for record in of_method(records, method)]))


def test_a_real_photo_is_the_person_and_a_stranger_is_not(records):
    assert mean(records, "real", "id") > 0.4 and mean(records, "real", "rank1") > 0.8
    assert mean(records, "real", "id_other") > mean(records, "stranger", "id_other") + 0.3
    assert abs(mean(records, "stranger", "margin")) < 0.2


def test_a_real_photo_is_no_copy_and_a_pasted_one_is(records):
    assert abs(mean(records, "real", "copy")) < 0.4
    pasted = of_method(records, "pasted")
    exact = [record for record in pasted if record.seed == 0]
    for measure in ("copy", "id_ref", "face_ssim"):
        assert min(record.value(measure) for record in exact) > 0.95
    assert min(record.value("copy") for record in pasted) > 0.6, "resampling costs a little"
    assert min(record.value("id_ref") for record in pasted) > 0.9
    assert min(record.value("face_ssim") for record in pasted) > 0.8
    assert max(record.value("face_ssim") for record in of_method(records, "real")) < 0.8


def test_a_pasted_photo_has_the_pose_of_the_photo(records):
    assert pose_copied(records, "pasted", "stranger") > 0.6 > pose_copied(records, "real", "stranger")


def test_every_face_is_found_and_counted_and_sharp_enough_to_measure(records):
    for name in ("found", "faces", "sane"):
        assert {record.value(name) for record in records} == {1.0}
    assert all(record.value("sharpness") > 0 for record in records)
