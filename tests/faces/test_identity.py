from __future__ import annotations

import gzip
import json
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import bad_values
import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from likeness.errors import LikenessError
from likeness.faces import Combine, Face, Identity, build_identity, combine_identities, cosine_similarity, unit
from likeness.faces.align import ARCFACE_112, FFHQ_512, arcface_template

PHOTO = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)


def face(embedding=None, points=True, recogniser="buffalo_l") -> Face:
    return Face(
        box=np.array([20, 20, 90, 110], np.float32),
        score=0.9,
        keypoints=(ARCFACE_112 + 5).astype(np.float32) if points else None,
        embedding=None if embedding is None else np.asarray(embedding, np.float32),
        recogniser=None if embedding is None else recogniser,
    )


def person(*embeddings, name="p", recogniser="buffalo_l") -> Identity:
    faces = [face(e, recogniser=recogniser) for e in embeddings]
    return build_identity([PHOTO] * len(faces), faces, name, outlier_threshold=None)


def test_an_identity_holds_every_product_of_its_photos():
    identity = person([3, 4, 0], [0, 5, 0])
    assert len(identity) == 2
    assert identity.aligned.shape == (2, 224, 224, 3) and identity.aligned.dtype == torch.uint8
    assert identity.portraits.shape == identity.heads.shape == (2, 512, 512, 3)
    assert identity.keypoints.shape == (2, 5, 2) and identity.boxes.shape == (2, 4)
    assert identity.photo_sizes.tolist() == [[150, 130]] * 2
    assert identity.recogniser == "buffalo_l"


def test_crops_have_the_keypoints_on_their_templates():
    photo = np.zeros((600, 600, 3), np.uint8)
    points = FFHQ_512 * 0.8 + 50
    for (x, y), colour in zip(points, np.eye(5, 3) * 155 + 100, strict=True):
        photo[round(y) - 5 : round(y) + 6, round(x) - 5 : round(x) + 6] = colour
    seen = Face(np.array([50, 50, 450, 450], np.float32), 1, points.astype(np.float32))
    portrait = build_identity([photo], [seen]).portraits[0].numpy()
    for (x, y), colour in zip(FFHQ_512, np.eye(5, 3) * 155 + 100, strict=True):
        assert np.abs(portrait[round(y), round(x)] - colour).max() <= 1


def test_mean_of_unit_vectors_ignores_their_lengths_and_the_raw_mean_does_not():
    identity = person([10, 0], [0, 1])
    torch.testing.assert_close(identity.mean_embedding(), torch.tensor([1.0, 1.0]) / 2**0.5)
    torch.testing.assert_close(identity.mean_embedding(unit=False), torch.tensor([5.0, 0.5]))
    weighted = replace(identity, weights=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(weighted.mean_embedding(), torch.tensor([0.0, 1.0]))


def test_a_stranger_among_the_photos_is_named_by_number_and_left_out():
    embeddings = [[1, 0.1, 0], [1, 0, 0.1], [0, -1, 2], [1, 0.1, 0.1]]
    faces = [face(embeddings[0]), None, *(face(e) for e in embeddings[1:])]
    identity = build_identity([PHOTO] * 5, faces)
    assert len(identity) == 3
    assert len(identity.outliers) == 1 and identity.outliers[0].startswith("photo 4 ")
    assert len(build_identity([PHOTO] * 5, faces, leave_out=False)) == 4
    assert not build_identity([PHOTO] * 5, faces, outlier_threshold=None).outliers


def test_photos_are_judged_by_the_one_most_like_all_others_whatever_their_order():
    """The stranger comes first: judged against the first photo everybody else would be left out."""
    people = [[0, -1, 2], [1, 0.1, 0], [1, 0, 0.1], [1, 0.1, 0.1]]
    for first in range(4):
        faces = [face(e) for e in people[first:] + people[:first]]
        identity = build_identity([PHOTO] * 4, faces)
        stranger = (4 - first) % 4 + 1
        assert len(identity) == 3 and [text.split()[1] for text in identity.outliers] == [str(stranger)]


@pytest.mark.parametrize("threshold", [float("nan"), float("inf"), -1.5, 2.0, 10**400, "0.25"])
def test_a_threshold_that_keeps_everybody_or_nobody_in_silence_is_refused(threshold):
    with pytest.raises(LikenessError, match=r"The outlier threshold is .*from -1 to 1"):
        build_identity([PHOTO], [face([1.0])], outlier_threshold=threshold)


@pytest.mark.parametrize("bad", [[1.0, float("nan")], [float("inf"), 0.0], [0.0, 0.0]])
def test_a_recogniser_that_gives_no_numbers_makes_nobody(bad):
    with pytest.raises(LikenessError, match="recogniser buffalo_l returned NaN for photo 3"):
        build_identity([PHOTO] * 3, [face([1.0, 0.0]), None, face(bad)])


IMPOSSIBLE = {
    "embeddings": (float("nan"), float("inf"), 1e30),
    "weights": (float("nan"), float("inf"), -1.0, 1e30),
    "keypoints": (float("nan"), float("-inf"), 1e30),
    "boxes": (float("nan"), float("inf")),
    "photo_sizes": (0, -5),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_nobody_is_made_of_impossible_values_or_read_from_them(tmp_path, name, value):
    identity = person([3, 4, 0], [0, 5, 0], name="Ada")
    changed = getattr(identity, name).clone()
    changed.view(-1)[-1] = value
    with pytest.raises(LikenessError, match=r"The identity 'Ada' cannot be used, because"):
        replace(identity, **{name: changed})
    getattr(identity, name).copy_(changed)  # behind its back
    with pytest.raises(LikenessError, match=r"cannot be used"):
        identity.check()
    file = identity.save(tmp_path / "ada.safetensors")
    with pytest.raises(LikenessError, match=r"The identity file 'ada\.safetensors' cannot be used, because"):
        Identity.load(file)


def test_weights_that_leave_nobody_and_embeddings_of_nobody_are_refused():
    with pytest.raises(LikenessError, match="all zero"):
        replace(person([1.0]), weights=torch.zeros(1))
    with pytest.raises(LikenessError, match="is all zeros"):
        replace(person([1.0, 0.0]), embeddings=torch.zeros(1, 2))


def test_an_identity_knows_which_photos_have_a_row(tmp_path):
    people = [face([1, 0.1, 0]), None, face([0, -1, 2]), face([1, 0, 0.1]), face([1, 0.1, 0.1])]
    identity = build_identity([PHOTO] * 5, people)
    assert identity.kept == (True, False, False, True, True) and identity.left_out == [2, 3]
    again = Identity.load(identity.save(tmp_path / "a.safetensors"))
    assert again.kept == identity.kept
    assert again.take([2]).kept == (False, False, False, False, True)
    assert again.take([1, 0]).left_out == [2, 3, 5]
    assert combine_identities([again]).left_out == [2, 3] and combine_identities([again, again]).kept == ()


def test_what_an_older_file_does_not_say_is_not_guessed(tmp_path):
    tensors, metadata = parts(person([1.0], [2.0]))
    del metadata["kept"]
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    assert Identity.load(tmp_path / "a.safetensors").kept == ()
    for kept in ("[true]", "[true, true, 5]", "3", "[true, true, true]", "{", "[[]]", '["x"]', "[null, 2, true, true]"):
        save_file(tensors, tmp_path / "b.safetensors", metadata | {"kept": kept})
        with pytest.raises(LikenessError, match="damaged"):
            Identity.load(tmp_path / "b.safetensors")


def test_of_two_photos_that_disagree_none_is_left_out():
    identity = build_identity([PHOTO] * 2, [face([1, 0]), face([0, 1])])
    assert len(identity) == 2 and "photos 1 and 2" in identity.outliers[0]


def test_without_recogniser_there_is_everything_but_embeddings():
    identity = build_identity([PHOTO], [face()])
    assert identity.embeddings.shape == (1, 0) and identity.recogniser is None
    assert len(identity.aligned) == 1
    with pytest.raises(LikenessError, match="no embedding"):
        identity.mean_embedding()


def test_boxes_alone_give_heads_alone(tmp_path):
    identity = build_identity([PHOTO] * 2, [face(points=False)] * 2)
    assert len(identity) == len(identity.heads) == 2
    assert len(identity.aligned) == len(identity.portraits) == len(identity.keypoints) == 0
    loaded = Identity.load(identity.save(tmp_path / "boxes.safetensors"))
    assert loaded.aligned.shape == (0, 224, 224, 3)


@pytest.mark.parametrize(
    ("photos", "faces", "message"),
    [
        (1, [None], "No photo has a face"),
        (2, [face([1.0])], "2 photos but 1 faces"),
        (2, [face([1.0]), face([1.0], recogniser="antelopev2")], "different recognisers"),
        (2, [face([1.0]), face()], "different recognisers"),
    ],
)
def test_what_is_no_person_is_refused(photos, faces, message):
    with pytest.raises(LikenessError, match=message):
        build_identity([PHOTO] * photos, faces)


# --- the file


def test_a_file_gives_back_the_same_identity(tmp_path):
    identity = replace(person([3, 4, 0], [0, 5, 0], name="Ada"), outliers=("photo 3 ...",))
    loaded = Identity.load(identity.save(tmp_path / "deep" / "ada.safetensors"))
    for field in fields(Identity):
        left, right = getattr(identity, field.name), getattr(loaded, field.name)
        assert torch.equal(left, right) if torch.is_tensor(left) else left == right, field.name


def test_a_file_warns_that_it_is_biometric_data(tmp_path):
    with safe_open(person([1.0]).save(tmp_path / "a.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    assert "biometric" in metadata["notice"] and metadata["recogniser"] == "buffalo_l"


def test_a_file_is_never_overwritten(tmp_path):
    path = person([1.0]).save(tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(LikenessError, match="exists already"):
        person([2.0]).save(path)
    assert path.read_bytes() == before


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(LikenessError, match=r"x\.safetensors' does not exist"):
        Identity.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(LikenessError, match="is not an identity"):
        Identity.load(path)
    path.write_bytes(b"no tensors here")
    with pytest.raises(LikenessError, match="cannot be read"):
        Identity.load(path)


def test_truncated_newer_and_incomplete_files_are_refused(tmp_path):
    whole = person([1.0]).save(tmp_path / "a.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(LikenessError, match="damaged"):
        Identity.load(tmp_path / "cut.safetensors")
    with safe_open(whole, framework="pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors, tmp_path / "new.safetensors", metadata | {"version": "999"})
    with pytest.raises(LikenessError, match="newer version"):
        Identity.load(tmp_path / "new.safetensors")
    save_file({"boxes": tensors["boxes"]}, tmp_path / "part.safetensors", metadata)
    with pytest.raises(LikenessError, match="lacks embeddings"):
        Identity.load(tmp_path / "part.safetensors")
    for broken in ({"version": "x"}, {"outliers": "{"}, {"outliers": json.dumps(3)}):
        save_file(tensors, tmp_path / "odd.safetensors", metadata | broken)
        with pytest.raises(LikenessError, match="damaged"):
            Identity.load(tmp_path / "odd.safetensors")


def parts(identity: Identity) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What the file of an identity holds."""
    content = safetensors.torch.load(written(identity))
    header = json.loads(written(identity)[8:].split(b"}}")[0] + b"}}")
    return content, header["__metadata__"]


def written(identity: Identity) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return identity.save(Path(folder) / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"weights": torch.ones(3)},
        {"weights": torch.ones(2, dtype=torch.float64)},
        {"weights": torch.ones(2, 1)},
        {"boxes": torch.tensor(1.0)},
        {"boxes": torch.zeros(0, 4)},
        {"boxes": torch.zeros(2, 5)},
        {"embeddings": torch.ones(2)},
        {"aligned": torch.zeros(1, 224, 224, 3, dtype=torch.uint8)},
        {"heads": torch.zeros(2, 8, 8, 3, dtype=torch.uint8)},
        {"photo_sizes": torch.ones(2, 2)},
    ],
)
def test_rows_that_do_not_belong_together_are_refused(tmp_path, change):
    tensors, metadata = parts(person([1.0, 0.0], [0.0, 1.0]))
    save_file(tensors | change, tmp_path / "a.safetensors", metadata)
    with pytest.raises(LikenessError, match="damaged"):
        Identity.load(tmp_path / "a.safetensors")


def test_texts_of_a_file_are_plain_and_short(tmp_path):
    tensors, metadata = parts(person([1.0]))
    hostile = {
        "name": "a\n\x1b[2J\0" + "x" * 100_000,
        "recogniser": "buffalo_l\n",
        "outliers": json.dumps(["y\r\n" * 10_000, 3, None]),
    }
    save_file(tensors, tmp_path / "a.safetensors", metadata | hostile)
    loaded = Identity.load(tmp_path / "a.safetensors")
    assert loaded.recogniser == "buffalo_l" and loaded.name.startswith("a[2Jx") and len(loaded.outliers) == 3
    for text in (loaded.name, *loaded.outliers):
        assert text.isprintable() and len(text) <= 300
    for metadata_only in ({"outliers": "[" * 100_000}, {"version": "-1"}, {"version": "9" * 5000}, {"version": "0"}):
        save_file(tensors, tmp_path / "b.safetensors", metadata | metadata_only)
        with pytest.raises(LikenessError, match="damaged"):
            Identity.load(tmp_path / "b.safetensors")


@pytest.mark.parametrize("name", [name for name in bad_values.FILES if name != "unreadable"])
def test_what_is_no_file_is_no_identity(tmp_path, name):
    path = tmp_path / "a.safetensors"
    bad_values.FILES[name](path)
    with pytest.raises(LikenessError, match=r"a\.safetensors"):
        Identity.load(path)


@pytest.mark.parametrize(
    "header",
    [
        b'{"boxes":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}',
        b'{"boxes":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]},'
        b'"boxes":{"dtype":"F32","shape":[1,4],"data_offsets":[0,16]},"__metadata__":{"format":"likeness.identity"}}',
        b'{"__metadata__":{"format":["likeness.identity"]}}',
        b'{"boxes":{"dtype":"F4","shape":[1,4],"data_offsets":[0,16]}}',
        b"[" * 10_000,
    ],
)
def test_crafted_headers_are_refused(tmp_path, header):
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    with pytest.raises(LikenessError, match=r"a\.safetensors"):
        Identity.load(tmp_path / "a.safetensors")


SMALL = written(person([1.0, 2.0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 1500))
def test_a_damaged_file_is_read_or_refused_in_one_sentence(tmp_path_factory, changes, length):
    content = bytearray(SMALL)
    for place, byte in changes:
        content[place] = byte
    file = tmp_path_factory.mktemp("damaged") / "a.safetensors"
    file.write_bytes(content[:length] if length < 1000 else content)
    try:
        Identity.load(file).check()
    except LikenessError as error:
        assert "a.safetensors" in str(error)


# --- several


def test_photos_of_one_person_count_alike_wherever_they_come_from():
    together = combine_identities([person([1, 0], [1, 0], [1, 0]), person([0, 1])])
    assert len(together) == 4
    torch.testing.assert_close(together.mean_embedding(), unit(torch.tensor([3.0, 1.0])))


@given(
    weights=st.tuples(st.floats(0.05, 5), st.floats(0.05, 5)),
    first=st.lists(st.lists(st.floats(0.1, 3), min_size=4, max_size=4), min_size=1, max_size=3),
)
@settings(max_examples=20, deadline=None)
def test_a_blend_lies_between_its_people_whatever_the_number_of_their_photos(weights, first):
    a, b = person(*first), person([0, 1, -1, 0.5])
    blend = combine_identities([a, b], weights, Combine.BLEND)
    expected = unit(weights[0] * a.mean_embedding() + weights[1] * b.mean_embedding())
    assert cosine_similarity(blend.mean_embedding()[None], expected[None]).item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(blend.mean_embedding(), expected, atol=1e-4, rtol=1e-4)


def test_names_and_remarks_are_joined():
    a = replace(person([1.0], name="Ada"), outliers=("photo 2 ...",))
    together = combine_identities([a, person([1.0], name="Bob")])
    assert together.name == "Ada + Bob"
    assert together.outliers == ("Ada: photo 2 ...",)


@pytest.mark.parametrize(
    ("identities", "weights", "message"),
    [
        ([], None, "no identity"),
        ([person([1.0]), person([1.0], recogniser="antelopev2")], None, "different recognisers"),
        ([person([1.0])], [1, 2], "1 identities but 2 weights"),
        ([person([1.0])], [0], "above zero"),
        ([person([1.0]), person([1.0])], [1, -1], "negative"),
        ([person([1.0])], [float("nan")], "negative"),
    ],
)
def test_what_cannot_be_combined_is_refused(identities, weights, message):
    with pytest.raises(LikenessError, match=message):
        combine_identities(identities, weights)


def test_a_person_seen_in_boxes_only_takes_the_crops_away_from_the_sum():
    boxes = build_identity([PHOTO], [face(points=False)])
    together = combine_identities([build_identity([PHOTO], [face()]), boxes])
    assert len(together) == 2 and len(together.aligned) == 0 and len(together.keypoints) == 0


# Several recognisers, and the versions of the file -------------------------------------------------------------------


class ByBrightness:
    """A recogniser that says how bright a crop is, and notes what it was shown."""

    name = "antelopev2"

    def __init__(self) -> None:
        self.shown = []

    def embed(self, image_rgb: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
        self.shown.append((image_rgb, keypoints))
        return np.array([image_rgb.mean(), 1.0], np.float32)


def test_an_identity_is_seen_again_from_its_own_crops():
    identity, recogniser = person([3, 4, 0], [0, 5, 0]), ByBrightness()
    both = identity.seen_again(recogniser)
    assert both.recognisers == ("buffalo_l", "antelopev2")
    assert torch.equal(both.embeddings, identity.embeddings), "the first recogniser stays the first"
    for (crop, points), kept in zip(recogniser.shown, identity.aligned, strict=True):
        assert np.array_equal(crop, kept.numpy())
        np.testing.assert_allclose(points, arcface_template(224), atol=1e-4)
    other = both.as_seen_by("antelopev2")
    assert other.embeddings[:, 0].tolist() == pytest.approx([crop.numpy().mean() for crop in identity.aligned])
    assert other.recognisers == ("antelopev2", "buffalo_l")
    assert torch.equal(other.as_seen_by("buffalo_l").embeddings, identity.embeddings)
    with pytest.raises(KeyError):
        both.as_seen_by("auraface")


def test_a_recogniser_that_has_seen_the_person_is_not_asked_again():
    recogniser = ByBrightness()
    both = person([1, 0]).seen_again(recogniser)
    assert both.seen_again(recogniser) is both and len(recogniser.shown) == 1


def test_without_an_aligned_face_a_person_cannot_be_seen_again():
    boxes_only = build_identity([PHOTO], [face(points=False)])
    with pytest.raises(LikenessError, match="no aligned face"):
        boxes_only.seen_again(ByBrightness())


def test_all_embeddings_are_saved_taken_and_joined(tmp_path):
    both = person([1, 0], [0, 1]).seen_again(ByBrightness())
    loaded = Identity.load(both.save(tmp_path / "both.safetensors"))
    assert loaded.recognisers == both.recognisers
    assert torch.equal(loaded.also["antelopev2"], both.also["antelopev2"])
    assert torch.equal(both.take([1]).also["antelopev2"], both.also["antelopev2"][1:])
    joined = combine_identities([both, both.take([0])])
    assert len(joined.also["antelopev2"]) == 3
    assert combine_identities([both, person([1, 0])]).also == {}, "what only one of them has cannot be joined"


def test_identities_of_different_recognisers_join_in_one_that_both_know():
    ours, theirs = person([1, 0]).seen_again(ByBrightness()), person([0, 2], recogniser="antelopev2")
    joined = combine_identities([ours, theirs])
    assert joined.recogniser == "antelopev2" and joined.embeddings[1].tolist() == [0, 2]
    with pytest.raises(LikenessError, match="different recognisers"):
        combine_identities([person([1, 0]), theirs])


def test_a_file_of_version_1_loads(tmp_path):
    """Written by 0.1.0: two photos of 'Anna', grey ramps for crops."""
    packed = Path(__file__).with_name("files") / "identity_v1.safetensors.gz"
    file = tmp_path / "anna.safetensors"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    anna = Identity.load(file)
    assert (anna.name, anna.recogniser, len(anna), anna.also) == ("Anna", "buffalo_l", 2, {})
    assert anna.embeddings[1, 0].item() == pytest.approx(6.12)
    assert anna.weights.tolist() == [1.0, 0.5] and anna.photo_sizes.tolist() == [[640, 480], [800, 600]]
    assert anna.outliers[0].startswith("photo 3")
    again = Identity.load(anna.save(tmp_path / "again.safetensors"))
    for item in fields(Identity):
        ours, theirs = getattr(again, item.name), getattr(anna, item.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs


def test_parts_that_a_later_version_adds_are_left_alone(tmp_path):
    """A new tensor per photo must not make every reader refuse the file, nor its lack every older file."""
    path = person([1, 0]).save(tmp_path / "p.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {"landmarks": torch.zeros(1, 106, 2)}, tmp_path / "more.safetensors", metadata)
    assert Identity.load(tmp_path / "more.safetensors").embeddings.tolist() == [[1, 0]]


@pytest.mark.parametrize("rows", [torch.zeros(2, 4), torch.zeros(1), torch.zeros(1, 4, dtype=torch.int64)])
def test_embeddings_that_do_not_belong_to_the_photos_are_refused(tmp_path, rows):
    path = person([1, 0]).save(tmp_path / "p.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {"embeddings.other": rows}, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(LikenessError, match="damaged"):
        Identity.load(tmp_path / "bad.safetensors")


# Nobody -------------------------------------------------------------------------------------------------------------


def test_people_who_cancel_each_other_out_are_nobody():
    with pytest.raises(LikenessError, match="cancel each other out"):
        person([1, 0], [-1, 0])
    with pytest.raises(LikenessError, match="negative or all zero"):
        replace(person([1, 0], [0, 1]), weights=torch.tensor([1e-45, 0.0]))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("embeddings.", torch.ones(1, 4), "no recogniser"),
        ("embeddings.other", torch.ones(1, 0), "no recogniser"),
        ("photo_sizes", torch.full((1, 2), 2**62), "impossible size"),
    ],
)
def test_impossible_parts_of_a_file_are_refused(tmp_path, key, value, words):
    path = person([1, 0]).save(tmp_path / "p.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {key: value}, tmp_path / "bad.safetensors", metadata)
    with pytest.raises(LikenessError, match=words):
        Identity.load(tmp_path / "bad.safetensors")


def test_the_first_recogniser_said_twice_counts_once(tmp_path):
    path = person([1, 0]).save(tmp_path / "p.safetensors")
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    save_file(tensors | {"embeddings.buffalo_l": torch.ones(1, 2)}, tmp_path / "twice.safetensors", metadata)
    loaded = Identity.load(tmp_path / "twice.safetensors")
    assert loaded.recognisers == ("buffalo_l",) and loaded.embeddings.tolist() == [[1, 0]]
