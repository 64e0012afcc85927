"""Find Faces on real photographs and on images that are none."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from helpers.by_colour import BLACK, BY_COLOUR, RED, coloured
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from likeness.errors import LikenessError
from likeness.faces import load_pack


def test_every_person_is_found_and_the_chosen_one_is_shown(run, mtcnn, six_people, caplog):
    with caplog.at_level(logging.INFO):
        faces, preview, crops, mask, count = run("FindFaces", face_analysis=mtcnn, image=six_people)
    assert count == faces.count == 6
    assert preview.shape == six_people.shape and crops.shape == (1, 512, 512, 3) and mask.shape == six_people.shape[:3]
    chosen = faces.chosen[0]
    assert chosen.area == max(face.area for face in faces.all_faces[0])
    x1, y1, x2, y2 = (round(float(value)) for value in chosen.box)
    assert mask[0, y1:y2, x1:x2].min() == 1 and mask.sum() == (y2 - y1) * (x2 - x1)
    changed = (preview - six_people).abs().amax(-1)[0] > 1e-3
    for face in faces.all_faces[0]:
        left, top = (int(value) for value in face.box[:2])
        assert changed[top - 2 : top + 3, left : left + 60].any(), "every face has a box"
    assert changed[(y1 + y2) // 2, x1 : x1 + 4].all(), "the chosen box is thick"
    assert "shows 6 faces" in caplog.text and "'largest'" in caplog.text


def test_the_photos_themselves_are_not_drawn_on(run, mtcnn, six_people):
    before = six_people.clone()
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people)
    assert torch.equal(six_people, before)
    assert torch.equal(torch.from_numpy(faces.photos[0]) / 255, six_people[0])


@pytest.mark.parametrize("index", [0, 2, -1])
def test_index_counts_in_the_order_of_the_rule(run, mtcnn, six_people, index):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people, choice="left to right", index=index)
    middles = sorted(float(face.box[0] + face.box[2]) for face in faces.all_faces[0])
    assert float(faces.chosen[0].box[[0, 2]].sum()) == pytest.approx(middles[index])
    assert faces.all_faces[0][index].box is faces.chosen[0].box


def test_a_painted_region_says_which_face_is_meant(run, mtcnn, six_people):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people, choice="left to right")
    height, width = six_people.shape[1:3]
    for wanted in faces.all_faces[0]:
        x1, y1, x2, y2 = (int(value) for value in wanted.box)
        region = torch.zeros(1, height, width)
        region[:, y1:y2, x1:x2] = 1
        half = torch.nn.functional.interpolate(region[None], scale_factor=0.5)[0]  # of any size
        for mask in (region, half):
            found, *_, count = run("FindFaces", face_analysis=mtcnn, image=six_people, region=mask)
            assert count == 1 and np.array_equal(found.chosen[0].box, wanted.box)
    corner = torch.zeros(1, height, width)
    corner[:, :4, :4] = 1
    for mask, words in (
        (corner, "No face in the photo has its middle on the mask 'region' .6 lie outside."),
        (torch.zeros(1, 64, 64), "'region' is empty"),
        (torch.ones(3, 64, 64), "3 masks on 'region' for 1"),
    ):
        with pytest.raises(LikenessError, match=words):
            run("FindFaces", face_analysis=mtcnn, image=six_people, region=mask)
    skipped, *_ = run(
        "FindFaces",
        face_analysis=mtcnn,
        image=six_people.repeat(2, 1, 1, 1),
        if_none="skip photo",
        region=torch.cat([torch.ones(1, height, width), corner]),
    )
    assert skipped.chosen[0] is not None and skipped.chosen[1] is None


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"choice": "the only face"}, "6 faces were found where only one"),
        ({"index": 6}, "number 6 .* 6 were found"),
        ({"index": -7}, "number -7 .* 6 were found"),
        ({"min_size": 500}, r"too small: the largest has 105x143 pixels and min_size is 500"),
        ({"choice": "prettiest"}, "prettiest.*choice.*largest"),
        ({"if_none": "cry"}, "cry.*if_none.*skip photo"),
        ({"choice": "most similar to reference"}, "connect an identity to 'reference'"),
    ],
)
def test_what_cannot_be_chosen_is_explained(run, mtcnn, six_people, inputs, words):
    with pytest.raises(LikenessError, match=words):
        run("FindFaces", face_analysis=mtcnn, image=six_people, **inputs)


def test_small_faces_are_neither_counted_nor_chosen(run, mtcnn, six_people):
    faces, *_, count = run(
        "FindFaces", face_analysis=mtcnn, image=six_people, choice="left to right", min_size=103, index=0
    )
    assert 0 < count < 6
    assert all(min(face.box[2:] - face.box[:2]) >= 103 for face in faces.all_faces[0])


def test_the_reference_finds_its_own_face(run, pack, six_people):
    analysis = load_pack(pack)
    for index in (1, 4):
        wanted, *_ = run("FindFaces", face_analysis=analysis, image=six_people, choice="left to right", index=index)
        person, *_ = run("IdentityFromPhotos", faces=wanted)
        found, *_ = run(
            "FindFaces",
            face_analysis=analysis,
            image=six_people,
            choice="most similar to reference",
            reference=person,
        )
        np.testing.assert_allclose(found.chosen[0].box, wanted.chosen[0].box)


def test_a_reference_of_another_recogniser_is_refused(run, mtcnn, pack, six_people):
    faces, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=coloured(RED))
    stranger, *_ = run("IdentityFromPhotos", faces=faces, name="Ann")
    similar = {"image": six_people, "choice": "most similar to reference", "reference": stranger}
    with pytest.raises(LikenessError, match=r"'Ann' was made by the recogniser by colour.*buffalo_l"):
        run("FindFaces", face_analysis=load_pack(pack), **similar)
    with pytest.raises(LikenessError, match="MTCNN has no recogniser"):
        run("FindFaces", face_analysis=mtcnn, **similar)


def test_only_the_chosen_face_waits_for_the_recogniser(run, pack, six_people):
    faces, *_ = run("FindFaces", face_analysis=load_pack(pack), image=six_people)
    assert faces.chosen[0].embedding.shape == (512,) and faces.chosen[0].recogniser == "buffalo_l"
    assert all(face.embedding is None for face in faces.all_faces[0])


def test_no_face_is_an_error_that_says_what_was_tried(run, mtcnn):
    with pytest.raises(LikenessError, match=r"No face was found in the photo: tried size 1280.*padding"):
        run("FindFaces", face_analysis=mtcnn, image=torch.rand(1, 64, 64, 3))
    with pytest.raises(LikenessError, match=r"photo 2"):
        run("FindFaces", face_analysis=BY_COLOUR, image=coloured(RED, BLACK))


def test_photos_without_a_face_are_skipped_and_the_batch_keeps_its_length(run):
    image = coloured(BLACK, RED, BLACK)
    faces, preview, crops, mask, count = run("FindFaces", face_analysis=BY_COLOUR, image=image, if_none="skip photo")
    assert [face is not None for face in faces.chosen] == [False, True, False] and count == 1
    assert len(preview) == len(mask) == 3 and len(crops) == 1
    assert mask[0].sum() == mask[2].sum() == 0 < mask[1].sum()
    with pytest.raises(LikenessError, match="any of the 2 photos"):
        run("FindFaces", face_analysis=BY_COLOUR, image=coloured(BLACK, BLACK), if_none="skip photo")


def test_the_whole_picture_can_stand_in_for_a_face(run):
    image = coloured(BLACK).clone()
    image[:, 20:30, 20:30] = 1
    faces, _, crops, mask, count = run("FindFaces", face_analysis=BY_COLOUR, image=image, if_none="use whole picture")
    assert count == 0 and mask.min() == 1
    assert crops.mean() == pytest.approx(float(image.mean()), rel=0.2), "the head crop shows all of the picture"
    person, portraits, report = run("IdentityFromPhotos", faces=faces)
    assert not person.has_embeddings and torch.equal(portraits, crops)
    assert "none" in report


def test_grey_and_transparent_photos_show_the_same_face(run, mtcnn, astronaut):
    def chosen(image):
        return run("FindFaces", face_analysis=mtcnn, image=image)[0].chosen[0].box

    box = chosen(astronaut)
    np.testing.assert_allclose(chosen(astronaut.mean(-1, keepdim=True)), box, atol=12)
    opaque = torch.cat([astronaut, torch.ones_like(astronaut[..., :1])], -1)
    np.testing.assert_allclose(chosen(opaque), box, atol=1)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(0, 64, 64, 3), "empty"),
        (torch.full((1, 64, 64, 3), torch.nan), "NaN"),
        (torch.zeros(1, 64, 64, 2), "shape"),
        (torch.rand(1, 1, 1, 3), "only 1x1 pixels"),
    ],
)
def test_pictures_that_are_none_are_refused(run, mtcnn, image, words):
    with pytest.raises(LikenessError, match=words):
        run("FindFaces", face_analysis=mtcnn, image=image)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    channels=st.sampled_from([1, 3, 4]),
    level=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_shape_of_picture_gives_pictures_of_that_shape(run, batch, height, width, channels, level):
    image = torch.full((batch, height, width, channels), level)
    faces, preview, crops, mask, count = run(
        "FindFaces", face_analysis=BY_COLOUR, image=image, if_none="use whole picture", min_size=0
    )
    assert preview.shape == (batch, height, width, 3) and mask.shape == (batch, height, width)
    assert crops.shape == (batch, 512, 512, 3) and len(faces.photos) == batch
    assert count == sum(number not in faces.whole for number in range(batch))
    for picture in (preview, crops, mask):
        assert torch.isfinite(picture).all() and picture.min() >= 0 and picture.max() <= 1
    if faces.whole:
        assert mask.min() == 1


def test_another_packs_face_analysis_is_taken(run, mtcnn, six_people):
    class Theirs:
        """insightface's class, as other packs pass it on."""

        models = {}

        class det_model:
            @staticmethod
            def detect(image, input_size=None, max_num=0, metric="default"):
                return mtcnn.det_model.detect(image, input_size)

    faces, *_, count = run("FindFaces", face_analysis=Theirs(), image=six_people)
    assert count == 6 and faces.chosen[0].keypoints is not None
    with pytest.raises(LikenessError, match="face analysis input holds a str"):
        run("FindFaces", face_analysis="buffalo_l", image=six_people)


def test_cancel_stops_between_photos(run):
    import comfy.model_management

    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run("FindFaces", face_analysis=BY_COLOUR, image=coloured(RED, RED))
    comfy.model_management.interrupt_current_processing(False)


# --- several photos


def test_photos_of_all_inputs_and_of_the_folder_are_searched_in_this_order(nodes, run, tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    colours = [((255, 0, 0), (40, 30)), ((0, 255, 0), (50, 60)), ((0, 0, 255), (64, 20))]
    (tmp_path / "anna").mkdir()
    Image.new("RGB", (70, 80), (9, 90, 200)).save(tmp_path / "anna" / "a.png")
    batches = [torch.zeros(1, *size, 3) + torch.tensor(colour) / 255 for colour, size in colours]
    given = dict(zip(("image", "image_2", "image_4"), batches, strict=True))
    found, pictures, *_ = run("FindFaces", face_analysis=BY_COLOUR, if_none="use whole picture", folder="anna", **given)
    assert [photo.shape[:2] for photo in found.photos] == [(40, 30), (50, 60), (64, 20), (80, 70)]
    assert [tuple(photo[0, 0]) for photo in found.photos] == [*(colour for colour, _ in colours), (9, 90, 200)]
    assert pictures.shape == (4, 80, 70, 3)
    node = nodes["LikenessFindFaces"]
    before = node.fingerprint_inputs(folder="anna")
    Image.new("RGB", (70, 80)).save(tmp_path / "anna" / "b.png")
    assert node.fingerprint_inputs(folder="anna") != before and node.fingerprint_inputs() == ""


def test_without_a_photo_the_two_ways_to_give_one_are_named(run):
    with pytest.raises(LikenessError, match="connect image, or enter the name of a folder"):
        run("FindFaces", face_analysis=BY_COLOUR)


def test_a_folder_that_is_not_there_is_named_before_anything_runs(nodes):
    assert "'gone'" in nodes["LikenessFindFaces"].validate_inputs(folder="gone")
    assert nodes["LikenessFindFaces"].validate_inputs(folder="") is True
