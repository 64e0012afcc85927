"""Searching photos: order of attempts, explanations, the duck type of other packs, and insightface in all versions."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from likeness.errors import LikenessError
from likeness.faces import Detection, FaceAnalysis, adopt_analysis
from likeness.faces.analysis import PADDINGS
from likeness.faces.detection import SIZES

POINTS = np.array([(30, 40), (60, 40), (45, 55), (32, 70), (58, 70)], np.float32)
BOX = np.array([20, 20, 70, 80], np.float32)
PHOTO = np.zeros((100, 200, 3), np.uint8)


class Scripted:
    """A detector that finds its face at some sizes, or only in images larger than the photo."""

    name, threshold, sizes = "scripted", 0.5, SIZES

    def __init__(self, at: tuple[int, ...] = (), padded: float | None = None, score: float = 0.9):
        self.at, self.padded, self.score = at, padded, score
        self.calls: list[tuple[int | None, tuple[int, ...]]] = []
        self.pictures: list[np.ndarray] = []

    def detect(self, image_bgr, size=None):
        self.calls.append((size, image_bgr.shape[:2]))
        self.pictures.append(image_bgr)
        if self.padded is not None and image_bgr.shape[0] == round(100 * (1 + 2 * self.padded)):
            shift = np.array([200, 100], np.float32) * self.padded
            return [Detection(BOX + np.tile(shift, 2), self.score, POINTS + shift)]
        if size in self.at:
            return [Detection(BOX, self.score, POINTS)]
        return [Detection(BOX, 0.31, POINTS)]


class Blind:
    """A recogniser that returns the mean colour of the photo."""

    name = "mean colour"

    def embed(self, image_rgb, keypoints):
        return image_rgb.reshape(-1, 3).mean(0).astype(np.float32)


def test_sizes_are_tried_from_large_to_small_and_the_first_success_ends_it():
    detector = Scripted(at=(448, 256))
    search = FaceAnalysis("x", detector).search(PHOTO)
    assert [size for size, _ in detector.calls] == [640, 512, 448]
    assert search.tried == ("size 640", "size 512", "size 448") and len(search.faces) == 1


@pytest.mark.parametrize("padding", PADDINGS)
def test_then_the_photo_is_padded_and_the_padding_taken_off_the_result(padding):
    detector = Scripted(padded=padding)
    (face,) = FaceAnalysis("x", detector).find(PHOTO)
    assert [size for size, _ in detector.calls][: len(SIZES)] == list(SIZES)
    np.testing.assert_allclose(face.box, BOX)
    assert face.keypoints is not None
    np.testing.assert_allclose(face.keypoints, POINTS)


def test_a_failure_tells_what_was_tried_and_how_close_it_came():
    search = FaceAnalysis("x", Scripted()).search(PHOTO)
    sentence = search.explain("photo 3")
    assert search.faces == [] and search.best_score == pytest.approx(0.31)
    for part in ("photo 3", "size 640", "size 128", "25%", "50%", "0.31", "0.50", "drawn"):
        assert part in sentence


def test_a_tiny_photo_is_not_shown_to_the_detector():
    detector = Scripted(at=SIZES)
    search = FaceAnalysis("x", detector).search(np.zeros((1, 1, 3), np.uint8))
    assert not detector.calls and not search.faces and "1x1" in search.explain()


def test_detectors_get_bgr_and_recognisers_rgb_and_the_photo_stays_as_it_is():
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[..., 0] = 200
    before = photo.copy()
    detector = Scripted(at=(640,))
    (face,) = FaceAnalysis("x", detector, Blind()).find(photo, number=4)
    assert detector.pictures[0][0, 0].tolist() == [0, 0, 200]
    assert face.embedding is not None and face.embedding.tolist() == [200, 0, 0]
    assert face.recogniser == "mean colour" and face.photo == 4
    assert np.array_equal(photo, before)
    assert FaceAnalysis("x", detector, Blind()).find(photo, embed=False)[0].embedding is None


# --- what other packs expect of insightface


def test_other_packs_get_faces_by_attribute_and_by_item():
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[..., 2] = 200  # BGR: red
    (face,) = FaceAnalysis("x", Scripted(at=(640,)), Blind()).get(photo)
    assert face.embedding.tolist() == face["embedding"].tolist() == [200, 0, 0]
    assert face.normed_embedding.tolist() == face["normed_embedding"].tolist() == [1, 0, 0]
    assert face.embedding_norm == pytest.approx(200)
    assert np.array_equal(face.bbox, BOX) and np.array_equal(face["kps"], POINTS) and face.det_score == 0.9
    assert face.gender is None


def test_a_loop_over_input_sizes_as_other_packs_write_it_shrinks_the_detection():
    detector = Scripted(at=(256,))
    analysis = FaceAnalysis("x", detector)
    for size in range(640, 128, -64):
        analysis.det_model.input_size = (size, size)
        if analysis.get(PHOTO):
            break
    assert [size for size, _ in detector.calls] == [640, 576, 512, 448, 384, 320, 256]


def test_the_det_model_gives_insightfaces_arrays():
    boxes, points = FaceAnalysis("x", Scripted(at=(320,))).det_model.detect(PHOTO, input_size=(320, 320))
    assert points is not None
    assert boxes.shape == (1, 5) and points.shape == (1, 5, 2)
    boxes, points = FaceAnalysis("x", Scripted()).det_model.detect(PHOTO)
    assert boxes.shape == (0, 5)


# --- an INSIGHTFACE made by another pack


class Insightface:
    """The detection interface of insightface; `new` is 1.0 and later, where setting `input_size` has no effect."""

    def __init__(self, new: bool):
        self.new, self.input_size, self.sizes = new, (640, 640), []

    def detect(self, img, input_size=None, max_num=0, metric="default"):
        if input_size is None:
            input_size = (640, 640) if self.new else self.input_size
        self.sizes.append(input_size)
        if input_size[0] > 256:
            return np.zeros((0, 5), np.float32), np.zeros((0, 5, 2), np.float32)
        return np.array([[*BOX, 0.8]], np.float32), POINTS[None]


class Recognition:
    model_file = "/models/antelopev2/antelopev2/glintr100.onnx"
    input_size = (112, 112)

    def get_feat(self, imgs):
        assert imgs.shape == (112, 112, 3)
        return imgs.reshape(-1, 3).mean(0, keepdims=True)


@pytest.mark.parametrize("new", [False, True])
def test_an_adopted_insightface_really_shrinks(new):
    model = Insightface(new)
    adopted = adopt_analysis(SimpleNamespace(det_model=model, models={"recognition": Recognition()}))
    photo = np.zeros((100, 200, 3), np.uint8)
    photo[..., 0] = 200
    (face,) = adopted.find(photo)
    assert model.sizes == [(s, s) for s in (640, 512, 448, 320, 256)]
    assert face.recogniser == "antelopev2"
    assert face.embedding is not None and face.embedding[2] > 50 > face.embedding[0] == 0  # it sees BGR
    assert "non-commercial" in adopted.licence and adopted.commercial is False


def test_our_own_analysis_is_adopted_as_it_is():
    analysis = FaceAnalysis("x", Scripted())
    assert adopt_analysis(analysis) is analysis


def test_anything_else_is_refused():
    with pytest.raises(LikenessError, match="dict without a face detector"):
        adopt_analysis({})


def test_the_installed_insightface_agrees_with_our_runners(pack, spot):
    app = pytest.importorskip("insightface.app")
    from likeness.faces import load_pack

    theirs = app.FaceAnalysis(name=str(pack), providers=["CPUExecutionProvider"])
    theirs.prepare(ctx_id=-1, det_size=(640, 640))
    ours = load_pack(pack)
    (adopted,), (own,) = adopt_analysis(theirs).find(spot), ours.find(spot)
    (reference,) = theirs.get(np.ascontiguousarray(spot[..., ::-1]))
    np.testing.assert_allclose(own.box, reference.bbox, atol=1e-3)
    np.testing.assert_allclose(own.keypoints, reference.kps, atol=1e-3)
    # Equal but for the 8-bit rounding of the crop.
    for face in (own, adopted):
        np.testing.assert_allclose(face.embedding, reference.embedding, rtol=2e-3, atol=2e-2)
    swapped = ours.recogniser.embed(np.ascontiguousarray(spot[..., ::-1]), own.keypoints)
    assert np.abs(swapped - reference.embedding).max() > 10 * np.abs(own.embedding - reference.embedding).max()
    assert np.abs(swapped - reference.embedding).max() > 0.1
