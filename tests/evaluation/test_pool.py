"""One process or several: the same numbers, and a stopped run resumes."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from likeness.errors import LikenessError
from likeness.evaluation.cache import SightCache, findings_of
from likeness.evaluation.judging import evaluate, open_study
from likeness.evaluation.pool import WORTH_A_WORKER, Pool
from likeness.miniature.drawing.people import SPLITS
from likeness.miniature.models.backend import miniature_judge
from likeness.miniature.models.world import photos_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two drawn people with two photos each, and two images of each by one method; one file is not an image."""
    folder = tmp_path_factory.mktemp("study")
    for number in (6100, 6101):
        photos = photos_of(SPLITS["test"][number], 4)
        places = (
            "people/{}/refs/1.png",
            "people/{}/held_out/2.png",
            "results/other/{}/sea-1.png",
            "results/other/{}/sea-2.png",
        )
        for place, photo in zip(places, photos, strict=True):
            path = folder / place.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(photo).save(path)
    (folder / "results/other/6100/sea-3.png").write_bytes(b"no image")
    return folder


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_as_one_process_even_the_cache(folder, tmp_path):
    study, judge = open_study(folder), miniature_judge()
    with Pool(judge, miniature_judge, workers=2) as pool:
        evaluate(study, pool, tmp_path / "two")
        assert pool._executor is not None, "the work was shared"
    with Pool(judge, miniature_judge, workers=1) as pool:
        evaluate(study, pool, tmp_path / "one")
        assert pool._executor is None
    assert _bytes(tmp_path / "two") == _bytes(tmp_path / "one")


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_a_sentence(folder, judge, tmp_path):
    with Pool(judge, functools.partial(os._exit, 1), workers=2) as pool, pytest.raises(LikenessError, match=" died,"):
        SightCache(tmp_path / "seen.jsonl", pool).look(open_study(folder).files)


def test_the_number_of_threads_comes_back(judge):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inside = list(Pool(judge).map(lambda judge, task: torch.get_num_threads(), [1, 2]))
        assert inside == [1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_few_pictures_are_not_worth_a_process(judge, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    wanted = Pool(judge, miniature_judge, workers=None)._wanted
    assert [wanted(tasks) for tasks in (0, 1, WORTH_A_WORKER, WORTH_A_WORKER + 1, 10**6)] == [1, 1, 1, 2, 7]
    assert Pool(judge, miniature_judge, workers=3)._wanted(2) == 2, "never more than tasks"
    assert Pool(judge, workers=3)._shared(100) is None, "nothing to open a judge with"
    with pytest.raises(LikenessError, match="0 workers"):
        Pool(judge, miniature_judge, workers=0)


def test_a_cache_of_an_older_version_is_looked_at_again(folder, judge, tmp_path):
    path = tmp_path / "seen.jsonl"
    files = open_study(folder).files
    first = SightCache(path, Pool(judge))
    first.look(files)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in line.items() if k != "sane"}) + "\n" for line in lines))
    second = SightCache(path, Pool(judge))
    second.look(files)
    assert second.looked == first.looked == len(files)


def test_what_is_written_down_is_plain_json(folder, judge):
    for path in open_study(folder).files:
        record = findings_of(judge, path)
        assert json.loads(json.dumps(record)) == record
