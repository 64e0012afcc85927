"""The trainings of the miniature on a handful of images: stopped at any moment, they resume bit for bit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from likeness.errors import LikenessError
from likeness.miniature.drawing.people import SPLITS
from likeness.miniature.drawing.shots import Style
from likeness.miniature.models.backend import PRESENT, observe
from likeness.miniature.models.latents import load_codec
from likeness.miniature.models.networks import RECOGNISER_CROP, Observer, build_recogniser
from likeness.miniature.models.weights import load_observer, save_weights
from likeness.miniature.train import base, denoising, observer, recogniser
from likeness.miniature.train.corpus import Order, draw_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return draw_corpus(Order("base", 4, 4), tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    for module, size in ((base, 4), (observer, 8), (recogniser, 8)):
        monkeypatch.setattr(module, "BATCH", size)
    monkeypatch.setattr(observer, "_STRANGE", 4)


def trainings(corpus, folder):
    codec = load_codec()
    yield "base", lambda: base.BaseTraining(corpus, codec, folder / "base", 3)
    yield "observer", lambda: observer.ObserverTraining(corpus, codec, folder / "observer", 3)
    yield (
        "recogniser",
        lambda: recogniser.RecogniserTraining(
            build_recogniser, RECOGNISER_CROP, corpus, codec, folder / "recogniser", 3
        ),
    )


@pytest.mark.parametrize("name", ["base", "observer", "recogniser"])
def test_a_training_stopped_in_the_middle_ends_like_one_that_was_not(name, corpus, tmp_path):
    make = dict(trainings(corpus, tmp_path / "whole"))[name]
    whole = make()
    assert whole.run.go(whole.loss)

    make = dict(trainings(corpus, tmp_path / "stopped"))[name]
    stopped = make()
    with pytest.raises(KeyboardInterrupt):
        stopped.run.go(lambda step, random: stopped.loss(step, random) if step < 2 else _interrupt())
    resumed = make()
    assert resumed.run.resume()
    assert resumed.run.step == 2
    assert resumed.run.go(resumed.loss)
    for module in whole.run.modules:
        ours, theirs = resumed.run.modules[module].state_dict(), whole.run.modules[module].state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def _interrupt():
    raise KeyboardInterrupt


def test_pictures_are_drawn_once_and_a_missing_part_is_drawn_again(corpus, tmp_path, monkeypatch):
    order = Order("base", 4, 4)
    first = draw_corpus(order, tmp_path)
    assert np.array_equal(first.rgb, corpus.rgb)
    next(tmp_path.rglob("*.npz")).unlink()
    assert np.array_equal(draw_corpus(order, tmp_path).rgb, first.rgb)
    monkeypatch.setattr("likeness.miniature.train.corpus._draw_shard", lambda *_: pytest.fail("drawn again"))
    assert np.array_equal(draw_corpus(order, tmp_path).rgb, first.rgb)


def test_the_face_counts_most_and_the_background_least(corpus):
    assert set(np.unique(corpus.weight)) == {1, 2, 4}
    corners = corpus.weight[:, -1, [0, -1]]
    assert (corners == 1).all()
    x, y = (corpus.keypoints[:, 2] // 4).astype(int).T  # the nose
    assert (corpus.weight[np.arange(len(corpus)), y, x] == 4).all()


def test_references_are_photos_in_other_shots_than_the_targets():
    photos, targets = Order("adapter", 3, 4, photos=True).shots(), Order("adapter", 3, 4).shots()
    assert (photos.style == Style.PHOTO).all()
    assert not np.allclose(photos.nuisance, targets.nuisance)


def test_no_person_is_in_two_splits():
    ranges = sorted(SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(one.stop <= following.start for one, following in pairwise(ranges))


def test_room_for_words_is_made_before_person_and_nothing_else_moves(corpus):
    captions = denoising.Captions(corpus)
    ids = captions.of(np.arange(4), torch.Generator().manual_seed(0), torch.zeros(4, dtype=torch.bool))
    longer, at = captions.with_words(ids, 2)
    for before, after, places in zip(ids, longer, at, strict=True):
        first = int(places[0])
        assert before[first] == captions.person
        assert torch.equal(after[:first], before[:first])
        assert torch.equal(after[first + 2 :], before[first:-2])


def test_a_state_of_another_network_is_refused_in_one_sentence(corpus, tmp_path):
    codec = load_codec()
    run = observer.ObserverTraining(corpus, codec, tmp_path, 3).run
    run.modules["net"] = torch.nn.Linear(2, 2)
    run.averages = {}
    run.save()
    with pytest.raises(LikenessError, match="state"):
        observer.ObserverTraining(corpus, codec, tmp_path, 3).run.resume()


def test_an_observer_of_few_steps_still_counts_the_faces_it_was_taught(corpus):
    torch.manual_seed(0)
    net = Observer().eval()
    with torch.no_grad():
        scores = [observe(net, corpus.pictures(slice(None))).scores]
        observer.admit(net, corpus)
        scores.append(observe(net, corpus.pictures(slice(None))).scores)
        settled = net.presence.bias.clone()
        net.presence.bias += 1
        observer.admit(net, corpus)
    assert (scores[0] < PRESENT).all()
    assert (scores[1] >= PRESENT).all()
    assert torch.equal(net.presence.bias, settled + 1)  # one that is sure enough stays as it is


def test_a_damaged_weight_file_says_how_to_get_it_back(tmp_path):
    save_weights(Observer().state_dict(), tmp_path / "observer.safetensors")
    load_observer(tmp_path)
    (tmp_path / "observer.safetensors").write_bytes(b"nothing")
    with pytest.raises(LikenessError, match=r"observer\.safetensors.*retrain"):
        load_observer(tmp_path)


def test_verification_tells_separated_people_from_mixed_ones():
    random = np.random.default_rng(0)
    person = np.repeat(np.arange(20), 5)
    directions = random.standard_normal((20, 64))
    near = directions[person] + 0.1 * random.standard_normal((100, 64))
    assert recogniser.verification(near, person) == (1.0, 1.0)
    right, _ = recogniser.verification(random.standard_normal((100, 64)), person)
    assert right < 0.6
