"""Identities that servers make because this machine has no face models: once per person, the same as made here."""

from __future__ import annotations

import asyncio
import csv
import io

import pytest
import torch
from batch_fake import Fake, graph, in_background, serving
from colour_judge import colour_judge, picture
from PIL import Image
from typer.testing import CliRunner

from likeness import cli
from likeness.batch.people import PersonPhotos, identity_from
from likeness.batch.plan import PlannedPeople
from likeness.cli import opening
from likeness.errors import LikenessError
from likeness.faces import Identity, read_photo
from likeness.faces.found import find_faces, identity_of
from likeness.faces.identity import join_photos

ANN, BOB = (255, 60, 60), (60, 255, 60)


def run(coroutine):
    return asyncio.run(coroutine)


def no_models(name):
    raise LikenessError(f"The face pack {name!r} is not here: get it.")


@pytest.fixture
def people(desk):
    """Ann and Bob; one photo of Ann shows nobody, one of Bob is no image."""
    for name, (red, green, blue) in (("ann", ANN), ("bob", BOB)):
        for number in (1, 2):
            picture(desk.folder / f"people/{name}/{number}.png", (red - number, green, blue))
    picture(desk.folder / "people/ann/3.png", (0, 0, 0))
    (desk.folder / "people/bob/3.png").write_bytes(b"no image")
    made = graph()
    made["3"] = {"class_type": "LikenessLoadIdentity", "inputs": {"file": "somebody.safetensors"}}
    desk.write_graph(made)
    desk.table("Paint.color", "1", "2", "3")
    (desk.folder / "plan.yaml").write_text(
        "workflow: api.json\ntable: rows.csv\n"
        "people: {photos: 'people/*/*.png', into: LikenessLoadIdentity.file, faces: sface}\n"
    )
    return PlannedPeople(str(desk.folder / "people/*/*.png"), ("LikenessLoadIdentity.file",), faces="sface")


def seeing(fake, folder):
    """The server sees by colour."""

    def sees(content):
        path = folder / "seen.png"
        Image.open(io.BytesIO(content)).save(path)
        try:
            identity, _ = identity_of(find_faces(colour_judge("conditioner"), [read_photo(path)]))
        except LikenessError:
            return None
        identity.write(path)
        return path.read_bytes()

    fake.sees = sees
    return fake


def batch(desk, fakes, verb="run", *words):
    servers = [word for fake in fakes for word in ("--server", fake.url)]
    return CliRunner().invoke(
        cli.command_tree(), ["batch", verb, str(desk.folder / "plan.yaml"), "--out", str(desk.out), *servers, *words]
    )


def test_identities_are_made_once_on_servers_and_sent_as_files(desk, people, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", no_models)
    fakes = [seeing(Fake(), desk.folder), seeing(Fake("0.33.0"), desk.folder)]
    with in_background(*fakes):
        checked = batch(desk, fakes, "check")
        assert checked.exit_code == 0 and "analyses the photos of 2 people (OpenCV" in checked.output
        assert not any(fake.posted or fake.uploaded for fake in fakes), "a check sends nothing"
        said = batch(desk, fakes)
        assert said.exit_code == 0, said.output
        looked_at = sum(len(fake.seen) for fake in fakes)
        assert looked_at == 5, "each photo once; the one that cannot be read never"
        assert batch(desk, fakes).exit_code == 0 and sum(len(fake.seen) for fake in fakes) == looked_at
    with (desk.out / "manifest.csv").open() as file:
        assert [row["person"] for row in csv.DictReader(file)] == ["ann", "bob"] * 3
    files = sorted((desk.out / "identities").glob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        made = Identity.load(file)
        photos = sorted((desk.folder / "people" / made.name).glob("*.png"))
        here = identity_from(PersonPhotos(made.name, photos), colour_judge("conditioner"))
        assert made.recogniser == here.recogniser and torch.equal(made.embeddings, here.embeddings)
        assert torch.equal(made.aligned, here.aligned) and torch.equal(made.boxes, here.boxes)
    sent = {
        posted["prompt"]["3"]["inputs"]["file"] for fake in fakes for posted in fake.posted if "3" in posted["prompt"]
    }
    assert len(sent) == 2 and all(name.startswith("batch/") for name in sent)
    models = {p["prompt"]["analysis"]["inputs"]["model"] for f in fakes for p in f.posted if "analysis" in p["prompt"]}
    assert models == {"OpenCV (YuNet + SFace)"}


def test_a_server_that_goes_away_leaves_its_photos_to_the_other(desk, people, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", no_models)
    one, two = seeing(Fake(), desk.folder), seeing(Fake(), desk.folder)
    one.next_answers = ["500"]
    with in_background(one, two):
        assert batch(desk, [one, two]).exit_code == 0
        assert not one.seen and len(two.seen) == 5


def test_somebody_without_a_face_stops_the_run_before_any_row(desk, people, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", no_models)
    for number in (1, 2):
        picture(desk.folder / f"people/ann/{number}.png", (0, 0, 0))
    fake = seeing(Fake(), desk.folder)
    with in_background(fake):
        said = batch(desk, [fake])
        assert said.exit_code == 2 and "No photo has a face" in said.output and "ann" in said.output
        assert not any("1" in posted["prompt"] for posted in fake.posted), "no row was sent"
        assert batch(desk, [fake], "run", "--skip-people").exit_code == 0
    with (desk.out / "manifest.csv").open() as file:
        assert {row["person"] for row in csv.DictReader(file)} == {"bob"}


def test_photos_that_no_server_and_nobody_here_can_look_at_are_told_by_the_check(desk, people):
    poor = {key: value for key, value in Fake().info.items() if key != "LikenessSaveIdentity"}

    async def problems(fake, faces="sface"):
        async with serving(fake) as fakes:
            plan = desk.plan(people=PlannedPeople(people.photos, people.into, faces=faces))
            return (await desk.check(fakes, plan, open_faces=no_models)).problems.found

    assert "is not here" in str(run(problems(Fake(info=poor)))[0])
    assert "is not here" in str(run(problems(Fake(), "antelopev2"))[0])
    assert not run(problems(Fake(), "auto"))


def test_a_server_that_cannot_open_its_own_face_models_is_told(desk, people, monkeypatch):
    monkeypatch.setattr(opening, "open_faces", no_models)
    fake = seeing(Fake(), desk.folder)
    fake.next_answers = ["400"]
    with in_background(fake):
        said = batch(desk, [fake])
    assert isinstance(said.exception, LikenessError) and "cannot analyse photos with 'OpenCV" in str(said.exception)


def test_photos_joined_are_the_person_of_all_of_them(tmp_path):
    colours = [ANN, (250, 64, 60), (0, 0, 0), BOB, (252, 61, 66)]
    photos = [read_photo(picture(tmp_path / f"{n}.png", colour)) for n, colour in enumerate(colours)]

    def alone(photo):
        try:
            return identity_of(find_faces(colour_judge(), [photo]), "x", None)[0]
        except LikenessError:
            return None

    joined = join_photos([alone(photo) for photo in photos], "ann")
    from likeness.faces.found import IfNone, Rule

    whole, _ = identity_of(find_faces(colour_judge(), photos, Rule(if_none=IfNone.SKIP)), "ann")
    assert joined.kept == whole.kept and joined.outliers == whole.outliers and joined.name == "ann"
    assert torch.equal(joined.embeddings, whole.embeddings) and torch.equal(joined.portraits, whole.portraits)
    with pytest.raises(LikenessError, match="No photo has a face"):
        join_photos([None, None])
