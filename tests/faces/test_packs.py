"""Opening packs from folders and detectors from packages."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest

from likeness.errors import LikenessError
from likeness.faces import Provider, draw_keypoints, load_lbp, load_mtcnn, load_opencv, load_pack
from likeness.faces.onnx_file import read_graph
from likeness.faces.onnx_session import open_session, provider_names
from likeness.faces.opencv import opencv
from likeness.faces.packs import Task, classify
from likeness.faces.recognition import recogniser_name

pytest.importorskip("onnxruntime")


def test_a_pack_finds_and_recognises(pack, spot):
    analysis = load_pack(pack, Provider.CPU)
    search = analysis.search(spot)
    (face,) = search.faces
    np.testing.assert_allclose(face.box, [296, 296, 344, 344], atol=1e-3)
    np.testing.assert_allclose(face.keypoints[2], [320, 320], atol=1e-3)
    assert face.embedding.shape == (16,) and face.recogniser == "buffalo_l"
    assert analysis.name == "buffalo_l" and analysis.commercial is False and "non-commercial" in analysis.licence


BARE = """
import sys
for name in ("insightface", "onnx", "facexlib", "facenet_pytorch", "cv2", "skimage", "torchvision"):
    sys.modules[name] = None
import likeness.faces
assert "onnxruntime" not in sys.modules
photo = __import__("numpy").load(sys.argv[2])
(face,) = likeness.faces.load_pack(sys.argv[1]).find(photo)
assert face.embedding.shape == (16,)
"""


def test_a_pack_needs_neither_insightface_nor_opencv_nor_onnx(pack, spot, tmp_path):
    np.save(tmp_path / "photo.npy", spot)
    command = [sys.executable, "-c", BARE, str(pack), str(tmp_path / "photo.npy")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr


def test_coordinates_are_those_of_the_photo_whatever_its_shape(pack, spot):
    wide = np.zeros((1280, 2560, 3), np.uint8)
    wide[640:672, 1600:1632] = 255  # 8 pixels of the 640 x 320 it is shrunk to
    (face,) = load_pack(pack).find(wide)
    np.testing.assert_allclose(face.box, [1600 - 96, 640 - 96, 1600 + 96, 640 + 96], atol=1)


def test_a_nested_archive_folder_is_looked_into(tmp_path, pack):
    nested = tmp_path / "antelopev2" / "antelopev2"
    nested.mkdir(parents=True)
    shutil.copy(pack / "det_10g.onnx", nested / "scrfd_10g_bnkps.onnx")
    shutil.copy(pack / "w600k_r50.onnx", nested / "glintr100.onnx")
    analysis = load_pack(tmp_path / "antelopev2")
    assert analysis.recogniser is not None and analysis.recogniser.name == "antelopev2"


@pytest.mark.parametrize("present", [[], ["det_10g.onnx"], ["w600k_r50.onnx"]])
def test_missing_files_are_named_with_pack_folder_and_source(tmp_path, pack, present):
    folder = tmp_path / "buffalo_l"
    folder.mkdir()
    for name in present:
        shutil.copy(pack / name, folder / name)
    with pytest.raises(LikenessError) as raised:
        load_pack(folder)
    for part in ("buffalo_l", "det_10g.onnx", "w600k_r50.onnx", str(folder), "huggingface.co", *present):
        assert part in str(raised.value)


def test_a_folder_that_does_not_exist_is_a_missing_pack(tmp_path):
    with pytest.raises(LikenessError, match=r"no \.onnx file"):
        load_pack(tmp_path / "nowhere")


def test_an_unknown_pack_may_have_no_recogniser(tmp_path, pack):
    folder = tmp_path / "mine"
    folder.mkdir()
    shutil.copy(pack / "det_10g.onnx", folder)
    assert load_pack(folder).recogniser is None


def test_a_fixed_input_size_is_the_only_one_tried(tmp_path, write_detector, write_recogniser, spot):
    write_detector(tmp_path / "mine" / "a.onnx", side=320)
    analysis = load_pack(tmp_path / "mine")
    assert analysis.detector.sizes == (320,)
    assert analysis.search(np.zeros_like(spot)).tried[0] == "size 320"


def test_auraface_is_told_apart_by_its_folder(tmp_path, pack):
    folder = tmp_path / "auraface"
    folder.mkdir()
    shutil.copy(pack / "det_10g.onnx", folder / "scrfd_10g_bnkps.onnx")
    shutil.copy(pack / "w600k_r50.onnx", folder / "glintr100.onnx")
    analysis = load_pack(folder)
    assert analysis.recogniser is not None and analysis.recogniser.name == "auraface"
    assert "AuraFace" in analysis.licence


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("models/buffalo_l/w600k_r50.onnx", "buffalo_l"),
        ("elsewhere/W600K_R50.onnx", "buffalo_l"),
        ("models/antelopev2/antelopev2/glintr100.onnx", "antelopev2"),
        ("models/AuraFace-v1/glintr100.onnx", "auraface"),
        ("buffalo_s/w600k_mbf.onnx", "buffalo_s/w600k_mbf"),
    ],
)
def test_embedding_spaces_have_names(path, name):
    assert recogniser_name(path) == name


def test_files_are_sorted_by_shape(pack, tmp_path, write_recogniser):
    assert classify(read_graph(pack / "det_10g.onnx", weights=False)) is Task.DETECTION
    assert classify(read_graph(pack / "w600k_r50.onnx", weights=False)) is Task.RECOGNITION


def test_a_recogniser_that_normalises_gives_the_same_embedding(tmp_path, write_detector, write_recogniser, spot):
    found = []
    for own in (False, True):
        folder = tmp_path / f"own{own}"
        write_detector(folder / "a.onnx")
        write_recogniser(folder / "b.onnx", own_normalisation=own)
        found.append(load_pack(folder).find(spot)[0].embedding)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-4)


def test_damaged_files_are_refused_by_name(tmp_path, pack):
    folder = tmp_path / "buffalo_l"
    shutil.copytree(pack, folder)
    (folder / "det_10g.onnx").write_bytes((pack / "det_10g.onnx").read_bytes()[:-50])
    with pytest.raises(LikenessError, match=r"det_10g\.onnx"):
        load_pack(folder)
    (folder / "det_10g.onnx").write_bytes(b"")
    with pytest.raises(LikenessError, match=r"det_10g\.onnx"):
        load_pack(folder)


# --- providers


def test_sessions_are_opened_once_per_file(pack):
    first = open_session(pack / "det_10g.onnx", Provider.CPU)
    assert open_session(pack / "det_10g.onnx", Provider.CPU) is first


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_auto_prefers_the_gpu_and_keeps_the_cpu_as_fallback():
    assert provider_names(Provider.AUTO, ["TensorrtExecutionProvider", CUDA, CPU]) == [CUDA, CPU]
    assert provider_names(Provider.AUTO, ["AzureExecutionProvider", CPU]) == [CPU]
    assert provider_names(Provider.CPU, [CUDA, CPU]) == [CPU]


def test_a_provider_that_is_not_there_falls_back_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert provider_names(Provider.ROCM, [CPU, "test only"]) == [CPU]
    assert len([r for r in caplog.records if "ROCm" in r.message]) == 1


# --- detectors from packages


@pytest.mark.parametrize(
    ("missing", "call", "said"),
    [
        ("cv2", lambda: draw_keypoints([], 8, 8), "OpenCV cannot be loaded .*: pip install opencv-python, or"),
        ("skimage.feature", load_lbp, "LBP cascade needs a package: pip install scikit-image, or choose another"),
        ("facenet_pytorch", load_mtcnn, "MTCNN needs a package: pip install --no-deps facenet-pytorch, or choose"),
    ],
)
def test_a_package_that_is_not_there_is_asked_for_in_one_sentence(monkeypatch, missing, call, said):
    opencv.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(LikenessError, match=said):
        call()


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    corner, opposite = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    shared = np.clip(opposite - corner, 0, None).prod()
    return float(shared / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - shared))


def test_mtcnn_finds_six_people_with_eyes_above_mouths(mtcnn, six_people):
    faces = mtcnn.find(six_people)
    assert len(faces) == 6 and mtcnn.recogniser is None
    for face in faces:
        left_eye, right_eye, nose, left_mouth, right_mouth = face.keypoints
        assert left_eye[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
        assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_mtcnn_finds_the_astronaut_in_photos_of_any_size(mtcnn, astronaut):
    (face,) = mtcnn.find(astronaut)
    assert overlap(face.box, np.array([174, 65, 273, 164])) > 0.5
    large = np.repeat(np.repeat(astronaut, 4, 0), 4, 1)
    (big,) = mtcnn.find(large)
    assert overlap(big.box / 4, face.box) > 0.85
    assert mtcnn.find(np.zeros((64, 64, 3), np.uint8)) == []


@pytest.mark.parametrize("shape", [(16, 16), (17, 2000), (5000, 60), (33, 77)])
def test_odd_photos_have_no_face_and_raise_nothing(mtcnn, shape):
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for analysis in (mtcnn, load_lbp()):
        assert analysis.search(noise).faces == []


def test_mtcnn_needs_rgb_order_to_be_right(mtcnn, astronaut):
    """The detector protocol is BGR: detect on the flipped image must equal find on the photo."""
    direct = mtcnn.detector.detect(np.ascontiguousarray(astronaut[..., ::-1]))
    (face,) = mtcnn.find(astronaut)
    np.testing.assert_allclose(direct[0].box, face.box)
    wrong = mtcnn.detector.detect(astronaut)
    assert not wrong or np.abs(wrong[0].box - face.box).max() > 0.01


def test_the_cascade_finds_boxes_without_any_file(astronaut, six_people, mtcnn):
    analysis = load_lbp()
    (face,) = analysis.find(astronaut)
    assert overlap(face.box, np.array([174, 65, 273, 164])) > 0.7
    assert face.keypoints is None and face.embedding is None
    boxes = [face.box for face in analysis.find(six_people)]
    hit = [any(overlap(box, true.box) > 0.3 for box in boxes) for true in mtcnn.find(six_people)]
    assert sum(hit) >= 4
    assert analysis.find(np.zeros((20, 900, 3), np.uint8)) == []


# --- OpenCV's models, with graphs in their form


def test_yunet_boxes_and_points_are_in_pixels_of_the_photo(tmp_path, write_yunet):
    path = tmp_path / "yünet.onnx"  # OpenCV gets the bytes, because it cannot open such names everywhere
    write_yunet(path)
    analysis = load_opencv(path)
    for shape, at in (((480, 640), (200, 304)), ((960, 1280), (400, 608))):
        photo = np.zeros((*shape, 3), np.uint8)
        zoom = shape[0] // 480
        photo[at[0] : at[0] + 8 * zoom, at[1] : at[1] + 8 * zoom] = 255
        (face,) = analysis.find(photo)
        centre = np.array([at[1], at[0]])
        np.testing.assert_allclose(face.box, np.concatenate([centre - 20 * zoom, centre + 20 * zoom]), atol=zoom)
        np.testing.assert_allclose(face.keypoints[0], centre - 8 * zoom, atol=zoom)
        np.testing.assert_allclose(face.keypoints[4], centre + 8 * zoom, atol=zoom)
    assert analysis.recogniser is None and analysis.commercial is True
    assert analysis.find(np.zeros((70, 90, 3), np.uint8)) == []


def test_sface_reads_the_aligned_crop_in_rgb(tmp_path, write_yunet, write_recogniser, spot):
    import onnxruntime

    from likeness.faces import arcface_crop

    write_yunet(tmp_path / "y.onnx")
    write_recogniser(tmp_path / "s.onnx", width=128)
    recogniser = load_opencv(tmp_path / "y.onnx", tmp_path / "s.onnx").recogniser
    assert recogniser is not None and recogniser.name == "sface"
    points = np.array([(300, 300), (340, 302), (320, 322), (304, 345), (338, 344)], np.float32)
    crop = arcface_crop(spot, points).astype(np.float32).transpose(2, 0, 1)[None]
    expected = np.asarray(onnxruntime.InferenceSession(str(tmp_path / "s.onnx")).run(None, {"x": crop})[0])[0]
    np.testing.assert_allclose(recogniser.embed(spot, points), expected, rtol=1e-3, atol=1e-2)


DAMAGE = {
    "empty": lambda content: b"",
    "a web page": lambda content: b"<html>not found</html>" * 50,
    "cut short": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_opencv_models_are_one_sentence_when_they_are_opened(tmp_path, write_yunet, write_recogniser, damage):
    write_yunet(tmp_path / "y.onnx")
    write_recogniser(tmp_path / "s.onnx", width=128)
    for name, words in (("y", "choose face_detection_yunet_2023mar.onnx, and download it again"), ("s", "download it")):
        bad = tmp_path / f"bad_{name}.onnx"
        bad.write_bytes(DAMAGE[damage]((tmp_path / f"{name}.onnx").read_bytes()))
        with pytest.raises(LikenessError, match=rf"bad_{name}\.onnx .*{words}") as caught:
            load_opencv(*((bad,) if name == "y" else (tmp_path / "y.onnx", bad)))
        assert "\n" not in str(caught.value)


def test_opencv_models_in_each_others_place_are_named(tmp_path, write_yunet, write_recogniser):
    write_yunet(tmp_path / "y.onnx")
    write_recogniser(tmp_path / "arcface.onnx", width=512)
    for wrong in ("y.onnx", "arcface.onnx"):
        with pytest.raises(LikenessError, match="is another network than SFace: choose face_recognition_sface"):
            load_opencv(tmp_path / "y.onnx", tmp_path / wrong)
    with pytest.raises(LikenessError, match=r"arcface\.onnx is damaged or another model: choose face_detection_yunet"):
        load_opencv(tmp_path / "arcface.onnx")


def test_an_opencv_without_yunet_is_said(tmp_path, write_yunet, monkeypatch):
    from types import SimpleNamespace

    from likeness.faces import packs

    write_yunet(tmp_path / "y.onnx")
    monkeypatch.setattr(packs, "opencv", lambda: SimpleNamespace(__version__="4.5.1"))
    with pytest.raises(LikenessError, match=r"OpenCV 4\.5\.1 cannot run YuNet.*pip install -U opencv-python"):
        load_opencv(tmp_path / "y.onnx")


def test_opencv_models_that_are_missing_are_named(tmp_path):
    with pytest.raises(LikenessError, match=r"yunet\.onnx is missing"):
        load_opencv(tmp_path / "yunet.onnx")
