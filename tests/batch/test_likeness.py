"""Likeness in the stream: who is measured, what is repeated and kept, and identities made once."""

from __future__ import annotations

import asyncio

import pytest
from batch_fake import Fake, graph, serving
from colour_judge import colour_judge, picture

from likeness.batch.journal import Journal
from likeness.batch.judge import judge_of
from likeness.batch.plan import Judging, PlannedPeople, Seeds
from likeness.batch.work import End
from likeness.errors import LikenessError
from likeness.faces import found

from .test_engine import manifest

ANN, BOB = (255, 60, 60), (60, 255, 60)
RED = 0xFF3C3C  # Ann's colour, as rows have it
STRIDE = 1_000_003  # between a row's takes


def run(coroutine):
    return asyncio.run(coroutine)


@pytest.fixture
def people(desk):
    """Ann and Bob, two photos each, for a node that loads an identity."""
    for name, (red, green, blue) in (("ann", ANN), ("bob", BOB)):
        for number in (1, 2):
            picture(desk.folder / f"people/{name}/{number}.png", (red - number, green, blue))
    made = graph()
    made["3"] = {"class_type": "LikenessLoadIdentity", "inputs": {"file": "somebody.safetensors"}}
    desk.write_graph(made)
    return PlannedPeople(str(desk.folder / "people/*/*.png"), ("LikenessLoadIdentity.file",), faces="conditioner")


def faces(name):
    return colour_judge(name)


def judged(desk, people, fakes, judging, seeds, **options):
    for fake in fakes:
        fake.side = 64  # smaller faces are none
    plan = desk.plan(people=people, judging=judging, seeds=seeds)
    return desk.run(fakes, plan, open_faces=faces, judge=lambda made: judge_of(made, faces), **options)


def test_an_identity_is_computed_once_per_person_and_sent_once_to_each_server(desk, people, monkeypatch):
    desk.table("Paint.color", *map(str, range(10)))
    looked_at, find_faces = [], found.find_faces

    def counted(faces, photos, rule):
        looked_at.extend(photos)
        return find_faces(faces, photos, rule)

    monkeypatch.setattr(found, "find_faces", counted)

    async def go():
        async with serving(Fake(), Fake("0.33.0")) as fakes:
            end, run_made = await desk.run(fakes, desk.plan(people=people), open_faces=faces)
            assert end is End.DONE and len(manifest(run_made)) == 20
            assert len(looked_at) == 4, "one look at each photo, however many rows and servers"
            for fake in fakes:
                assert len(fake.uploaded) == len(set(fake.uploaded)) <= 2
                sent = {said["prompt"]["3"]["inputs"]["file"] for said in fake.posted}
                assert sent <= {f"batch/{name}" for name in fake.uploaded}
            checked = await desk.check(fakes, desk.plan(people=people), open_faces=faces)
            assert not checked.problems and len(looked_at) == 4, "nor again for the same photos"

    run(go())


def test_a_row_below_the_threshold_gets_another_seed_and_the_best_take_counts(desk, people):
    desk.table("person", "ann")

    async def go():
        async with serving(Fake()) as fakes:
            seeds = Seeds(("Paint.color",), 1, RED - STRIDE)
            end, made = await judged(desk, people, fakes, Judging("judge", below=60.0, most=2), seeds)
            assert end is End.DONE and sorted(fakes[0].made) == [RED - STRIDE, RED]
            [row] = manifest(made)
            assert [told["take"] for told in desk.told("take")] == [1]
            assert row["take"] == "1" and float(row["percent"]) > 99 and row["detected"] == "1"

    run(go())


def test_repetitions_are_bounded(desk, people):
    desk.table("person", "bob")

    async def go():
        async with serving(Fake()) as fakes:
            seeds = Seeds(("Paint.color",), 1, RED - 9 * STRIDE)
            end, made = await judged(desk, people, fakes, Judging("judge", below=119.0, most=2), seeds)
            assert end is End.DONE and len(manifest(made)) == 1
            assert sorted(fakes[0].made) == [RED - n * STRIDE for n in (9, 8, 7)]

    run(go())


def test_the_best_of_those_that_differ_in_the_seed_alone_are_marked(desk, people):
    desk.table("Paint.text", "a hat", "snow")

    async def go():
        async with serving(Fake()) as fakes:
            seeds = Seeds(("Paint.color",), 4, RED - 100)
            fakes[0].faults = {RED - 98: ["type error"] * 4}
            end, made = await judged(desk, people, fakes, Judging("judge", keep=2), seeds)
            assert end is End.SOME_FAILED
            rows = manifest(made)
            assert len(rows) == 16
            for person in ("ann", "bob"):
                for text in ("a hat", "snow"):
                    group = [row for row in rows if (row["person"], row["Paint.text"]) == (person, text)]
                    best = sorted((row for row in group if row["percent"]), key=lambda row: -float(row["percent"]))
                    assert {row["seed"] for row in group if row["kept"] == "1"} == {row["seed"] for row in best[:2]}
                    assert all(row["kept"] == "0" for row in group if row["state"] != "done")

    run(go())


def test_a_kill_between_judging_and_writing_down_loses_no_repetition_and_makes_none_twice(desk, people, monkeypatch):
    desk.table("person", "ann")
    measure = Journal.measure

    def killed(self, seq, metrics):
        raise KeyError("killed")

    async def go():
        async with serving(Fake()) as fakes:
            seeds, judging = Seeds(("Paint.color",), 1, RED - STRIDE), Judging("judge", below=60.0, most=2)
            monkeypatch.setattr(Journal, "measure", killed)
            with pytest.raises(KeyError):
                await judged(desk, people, fakes, judging, seeds)
            monkeypatch.setattr(Journal, "measure", measure)
            end, made = await judged(desk, people, fakes, judging, seeds)
            assert end is End.DONE and manifest(made)[0]["take"] == "1"
            assert made.journal.counts() == {"done": 2} and not made.journal.unjudged()

    run(go())


def test_a_judge_who_cannot_judge_costs_no_picture(desk, people):
    desk.table("person", "ann", "bob")

    def blind(row, files):
        raise LikenessError("The judge sees nothing: choose another.")

    async def go():
        async with serving(Fake()) as fakes:
            plan = desk.plan(people=people)
            end, made = await desk.run(fakes, plan, open_faces=faces, judge=lambda _: blind)
            assert end is End.DONE and {row["state"] for row in manifest(made)} == {"done"}
            assert len(desk.told("unjudged")) == 1, "one sentence, not one for each row"
            assert len(made.journal.unjudged()) == len(manifest(made))

    run(go())


def test_a_picture_without_a_face_has_no_likeness(desk, people):
    desk.table("person,Paint.color", "ann,0", f"ann,{RED}")

    async def go():
        async with serving(Fake()) as fakes:
            _, made = await judged(desk, people, fakes, Judging("judge"), None)
            nobody, ann = manifest(made)
            assert (nobody["percent"], nobody["detected"]) == ("0", "0")
            assert float(ann["id_sim"]) > 0.99

    run(go())


@pytest.mark.parametrize(
    ("judging", "change", "words"),
    [
        (Judging("conditioner"), {}, "would judge its own work"),
        (Judging("judge"), {"people": None}, "nothing says who is shown"),
        (Judging("judge", keep=2), {}, "raise the count of seeds"),
        (Judging("judge", below=60.0, most=2), {}, "no seed|none is set"),
    ],
)
def test_likeness_that_cannot_be_measured_is_told_before_anything_runs(desk, people, judging, change, words):
    desk.table("meta.note", "a")

    async def go():
        async with serving(Fake()) as fakes:
            plan = desk.plan(**{"people": people, "judging": judging, **change})
            checked = await desk.check(fakes, plan, open_faces=faces)
            assert any(word in str(one) for one in checked.problems.found for word in words.split("|"))
            assert not fakes[0].posted

    run(go())


def test_people_without_a_face_stop_the_check_unless_they_are_skipped(desk, people):
    picture(desk.folder / "people/nobody/1.png", (0, 0, 0))
    desk.table("meta.note", "a")

    async def go():
        async with serving(Fake()) as fakes:
            plan = desk.plan(people=people)
            found = (await desk.check(fakes, plan, open_faces=faces)).problems
            assert found.count == 1 and "nobody" in str(found.found[0]) and "--skip-people" in str(found.found[0])
            checked = await desk.check(fakes, plan, open_faces=faces, skip_people=True)
            assert not checked.problems and checked.lines == 2
            assert any("nobody is left out" in warning for warning in checked.problems.warnings)

    run(go())
