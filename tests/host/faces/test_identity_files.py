"""Save Identity and Load Identity."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bad_values
import pytest
import torch
from helpers.by_colour import options

from likeness.errors import LikenessError
from likeness.faces import Identity


def test_an_identity_comes_back_as_it_was_saved(run, nodes, places, ann):
    assert options(nodes["LikenessLoadIdentity"], "file") == ["(no identity saved yet)"]
    (path,) = run("SaveIdentity", identity=ann, filename="family/ann")
    assert path == "family/ann.safetensors"
    assert (places.models / "likeness_identities" / path).is_file()
    assert options(nodes["LikenessLoadIdentity"], "file") == [path]
    loaded, portraits, report = run("LoadIdentity", file=path)
    assert (loaded.name, loaded.recogniser) == ("Ann", "by colour")
    for name in ("embeddings", "weights", "aligned", "portraits", "heads", "keypoints", "boxes", "photo_sizes"):
        assert torch.equal(getattr(loaded, name), getattr(ann, name)), name
    assert torch.equal(portraits, ann.portraits / 255) and "Ann: 2 photos" in report


def test_nothing_is_overwritten(run, places, ann):
    paths = [run("SaveIdentity", identity=ann, filename=name)[0] for name in ("ann", "ann", "ann.safetensors")]
    assert len(set(paths)) == 3 and paths[0] == "ann.safetensors"
    contents = [(places.models / "likeness_identities" / path).stat().st_size for path in paths]
    assert len(set(contents)) == 1


def test_a_number_is_added_for_everybody_who_saves_under_one_name_at_once(run, places, ann):
    with ThreadPoolExecutor(8) as pool:
        saved = list(pool.map(lambda _: run("SaveIdentity", identity=ann, filename="family/ann")[0], range(24)))
    assert len(set(saved)) == 24
    folder = places.models / "likeness_identities" / "family"
    assert sorted(file.name for file in folder.iterdir()) == sorted(name.removeprefix("family/") for name in saved)
    assert all(len(Identity.load(file)) == 2 for file in folder.iterdir())


def test_a_full_disk_leaves_no_cut_file_that_hides_the_whole_one(run, nodes, places, ann, monkeypatch):
    whole = Path.write_bytes

    def full(self: Path, content: bytes) -> int:
        if self.is_relative_to(places.models):
            whole(self, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    (path,) = run("SaveIdentity", identity=ann, filename="ann")
    assert (places.output / "likeness" / path).is_file()
    assert not any(file.is_file() for file in places.models.rglob("*"))
    assert run("LoadIdentity", file=path)[0].name == "Ann"


def test_a_killed_save_leaves_nothing_under_the_name(places, ann, monkeypatch):
    def killed(self: Path, content: bytes) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        ann.save(places.output / "ann.safetensors")
    assert list(places.output.iterdir()) == []


def test_dots_in_a_name_are_no_suffix(run, places, ann):
    assert run("SaveIdentity", identity=ann, filename="ann v1.2")[0] == "ann v1.2.safetensors"


@pytest.mark.parametrize("filename", ["", "  ", "../ann", "a/../../ann", "/tmp/ann", "\\ann", "C:\\ann", "a/", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(run, places, ann, filename):
    with pytest.raises(LikenessError, match="does not name a file inside models/likeness_identities"):
        run("SaveIdentity", identity=ann, filename=filename)
    assert not list(places.models.parent.rglob("*.safetensors"))


@pytest.mark.parametrize("filename", bad_values.NAMES)
def test_names_that_some_system_cannot_keep_are_refused(run, places, ann, filename):
    try:
        (path,) = run("SaveIdentity", identity=ann, filename=filename)
    except LikenessError as error:
        assert str(error).isprintable() and not list(places.models.parent.rglob("*.safetensors"))
    else:  # a sub-folder is fine, and so are spaces around a name
        assert path in ("a/b.safetensors", "x.safetensors")


def test_where_models_cannot_be_written_the_output_folder_serves(run, nodes, places, ann):
    places.models.mkdir()
    (places.models / "likeness_identities").write_text("a file is in the way")
    (path,) = run("SaveIdentity", identity=ann, filename="ann")
    assert (places.output / "likeness" / path).is_file()
    assert options(nodes["LikenessLoadIdentity"], "file") == [path]
    assert run("LoadIdentity", file=path)[0].name == "Ann"
    places.output.rename(places.output.with_name("old"))
    places.output.write_text("in the way as well")
    with pytest.raises(LikenessError, match=r"could not be written.*likeness_identities"):
        run("SaveIdentity", identity=ann, filename="ann")


def test_a_name_taken_in_either_folder_is_taken(run, places, ann):
    ann.save(places.output / "likeness" / "ann.safetensors")
    (path,) = run("SaveIdentity", identity=ann, filename="ann")
    assert path != "ann.safetensors"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("(no identity saved yet)", "No identity was saved yet in .*likeness_identities.*Save Identity"),
        ("bob.safetensors", "'bob.safetensors' was not found in .*likeness_identities"),
        ("../bob.safetensors", "leaves"),
    ],
)
def test_an_identity_that_is_not_there_is_explained(run, places, file, words):
    with pytest.raises(LikenessError, match=words):
        run("LoadIdentity", file=file)


def test_a_changed_file_is_read_again(nodes, run, places, ann):
    (path,) = run("SaveIdentity", identity=ann, filename="ann")
    load = nodes["LikenessLoadIdentity"]
    before = load.fingerprint_inputs(file=path)
    assert load.fingerprint_inputs(file=path) == before
    file = places.models / "likeness_identities" / path
    file.unlink()
    assert load.fingerprint_inputs(file=path) != before
    ann.take([0]).save(file)
    assert load.fingerprint_inputs(file=path) != before
    assert len(run("LoadIdentity", file=path)[0]) == 1


def test_only_identities_are_saved(run, places):
    with pytest.raises(LikenessError, match=r"identity'? holds a Tensor"):
        run("SaveIdentity", identity=torch.zeros(512), filename="ann")
