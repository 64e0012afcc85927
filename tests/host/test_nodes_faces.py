"""The nodes around faces, run in the real host's process on real photographs."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis, Identity, load_mtcnn, load_pack
from likeness.faces.detection import Detection, Detector

INPUTS = {  # in the order of saved workflows, which must never change; new ones go to the end
    "LikenessLoadFaceAnalysis": ["model", "provider"],
    "LikenessFindFaces": ["face_analysis", "image", "choice", "index", "if_none", "min_size", "reference"],
    "LikenessIdentityFromPhotos": ["faces", "name", "outliers", "outlier_threshold"],
    "LikenessSaveIdentity": ["identity", "filename"],
    "LikenessLoadIdentity": ["file"],
    "LikenessCombineIdentities": [
        *("identity_1", "weight_1", "mode", "identity_2", "weight_2"),
        *("identity_3", "weight_3", "identity_4", "weight_4", "name"),
    ],
    "LikenessFaceKeypoints": ["faces", "width", "height"],
}
OUTPUTS = {
    "LikenessLoadFaceAnalysis": ["LIKENESS_FACE_ANALYSIS,INSIGHTFACE,FACEANALYSIS"],
    "LikenessFindFaces": ["LIKENESS_FACES", "IMAGE", "IMAGE", "MASK", "INT"],
    "LikenessIdentityFromPhotos": ["IDENTITY", "IMAGE", "STRING"],
    "LikenessSaveIdentity": ["STRING"],
    "LikenessLoadIdentity": ["IDENTITY", "IMAGE", "STRING"],
    "LikenessCombineIdentities": ["IDENTITY"],
    "LikenessFaceKeypoints": ["IMAGE"],
}
BUILT_IN = [
    "OpenCV (YuNet + SFace)",
    "facexlib (RetinaFace + IR-SE50)",
    "MTCNN (no recogniser)",
    "LBP cascade (boxes only)",
    "miniature",
    "miniature-judge",
]


@pytest.fixture(scope="module")
def nodes(host_nodes):
    """Node classes by id."""
    from likeness.nodes import faces

    return {node.GET_SCHEMA().node_id: node for node in faces.NODES}


@pytest.fixture
def run(nodes):
    """`run("FindFaces", ...)` gives the node's outputs."""
    return lambda node, /, **inputs: nodes[f"Likeness{node}"].execute(**inputs).result


@pytest.fixture
def places(host_nodes, tmp_path, monkeypatch):
    """The host with empty models and output folders, and a home where nobody has left face packs."""
    import folder_paths

    from likeness import models_download

    base = SimpleNamespace(models=tmp_path / "models", output=tmp_path / "output")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setattr(folder_paths, "models_dir", str(base.models))
    monkeypatch.setattr(folder_paths, "output_directory", str(base.output))
    for kind in models_download.OUR_KINDS:
        monkeypatch.delitem(folder_paths.folder_names_and_paths, kind, raising=False)
    models_download.register_folders()
    return base


@pytest.fixture(scope="module")
def mtcnn(photos, known_faces):
    """MTCNN, which looks at each picture only once, and has seen the two photographs already."""
    analysis = load_mtcnn()
    detector = Remembering(analysis.detector)
    for name, faces in known_faces.items():
        found = [Detection(np.float32(face.box), 0.99, np.float32(face.keypoints)) for face in faces]
        detector.answers[detector.key(photos[name][..., ::-1], 1280)] = found
    return replace(analysis, detector=detector)


@pytest.fixture(scope="module")
def pack(files, known_faces, tmp_path_factory):
    """The folder of a face pack that knows the two photographs, with a random recogniser."""
    folder = tmp_path_factory.mktemp("packs") / "buffalo_l"
    files.write_detector(folder / "det_10g.onnx", [face for faces in known_faces.values() for face in faces])
    files.write_recogniser(folder / "w600k_r50.onnx")
    return folder


@pytest.fixture(scope="module")
def six_people(photos):
    return _image(photos["six people"])


@pytest.fixture(scope="module")
def astronaut(photos):
    return _image(photos["astronaut"])


def _image(*photos):
    return torch.from_numpy(np.stack(photos)).float() / 255


@dataclass
class Remembering:
    """A detector that answers from memory when it is shown the same picture again."""

    detector: Detector
    answers: dict = field(default_factory=dict)

    def __getattr__(self, name):
        return getattr(self.detector, name)

    @staticmethod
    def key(image_bgr, size):
        return image_bgr.tobytes(), image_bgr.shape, size

    def detect(self, image_bgr, size=None):
        key = self.key(image_bgr, size)
        if key not in self.answers:
            self.answers[key] = self.detector.detect(image_bgr, size)
        return self.answers[key]


@dataclass(frozen=True)
class ByColour:
    """Finds one face in every picture that is not black; its embedding follows the picture's main colour."""

    name: str = "by colour"
    threshold: float = 0.5
    sizes: tuple[int, ...] = (64,)

    def detect(self, image_bgr, size=None):
        height, width = image_bgr.shape[:2]
        if image_bgr[height // 2, width // 2].max() == 0:
            return []
        five = np.array([(20, 24), (40, 24), (30, 34), (22, 44), (38, 44)], np.float32)
        return [Detection(np.array([10, 8, 50, 56], np.float32), 0.9, five)]

    def embed(self, image_rgb, keypoints):
        return image_rgb[0, 0].astype(np.float32)


BY_COLOUR = FaceAnalysis("by colour", ByColour(), ByColour())
RED, DARK_RED, BLUE, BLACK = (255, 0, 0), (120, 10, 0), (0, 0, 255), (0, 0, 0)


def _colours(*colours):
    return torch.tensor(colours).float().reshape(-1, 1, 1, 3).expand(-1, 64, 60, 3) / 255


# --- all nodes of the pack


@pytest.fixture(scope="module")
def all_schemas(host_nodes):
    from likeness.nodes import LikenessExtension

    classes = asyncio.run(LikenessExtension().get_node_list())
    return {node.GET_SCHEMA().node_id: (node, node.GET_SCHEMA()) for node in classes}


def test_every_node_says_what_it_does_and_every_input_and_output_has_a_tooltip(all_schemas):
    assert set(INPUTS) <= set(all_schemas)
    for node_id, (_, schema) in all_schemas.items():
        assert node_id.startswith("Likeness") and schema.category.startswith("likeness/")
        assert schema.display_name and len(schema.description or "") > 30, node_id
        assert not [widget.id for widget in schema.inputs if len(widget.tooltip or "") < 10], node_id
        assert not [widget.display_name for widget in schema.outputs if not widget.display_name or not widget.tooltip]


def test_nodes_can_be_called_with_all_inputs_and_with_the_required_ones_alone(all_schemas):
    for node, schema in all_schemas.values():
        signature = inspect.signature(node.execute)
        signature.bind(**{widget.id: None for widget in schema.inputs})
        signature.bind(**{widget.id: None for widget in schema.inputs if not widget.optional})


def test_every_combo_has_options_and_its_default_is_one(all_schemas):
    for node_id, (_, schema) in all_schemas.items():
        for widget in schema.inputs:
            if hasattr(widget, "options"):
                assert len(set(widget.options)) == len(widget.options) > 0, (node_id, widget.id)
                assert widget.default is None or widget.default in widget.options, (node_id, widget.id)


def test_inputs_and_outputs_keep_the_order_of_saved_workflows(all_schemas):
    for node_id, inputs in INPUTS.items():
        schema = all_schemas[node_id][1]
        assert [widget.id for widget in schema.inputs][: len(inputs)] == inputs
        assert [widget.get_io_type() for widget in schema.outputs] == OUTPUTS[node_id]
        required_first = sorted(schema.inputs, key=lambda widget: bool(widget.optional))
        assert required_first == schema.inputs, "the host lists required inputs first"


# --- Load Face Analysis


def _options(node, name):
    return next(widget.options for widget in node.define_schema().inputs if widget.id == name)


def test_packs_on_disk_are_listed_before_what_is_always_there(nodes, places, files):
    load = nodes["LikenessLoadFaceAnalysis"]
    assert _options(load, "model") == BUILT_IN
    for name in ("antelopev2", "buffalo_l", "another"):
        files.write_recogniser(places.models / "insightface" / "models" / name / "w600k_r50.onnx")
    assert _options(load, "model") == ["buffalo_l", "antelopev2", "another", *BUILT_IN]


def test_a_pack_is_opened_once_and_its_licence_is_logged(run, places, pack, caplog):
    (places.models / "insightface" / "models").mkdir(parents=True)
    (places.models / "insightface" / "models" / "buffalo_l").symlink_to(pack)
    with caplog.at_level(logging.INFO):
        (first,) = run("LoadFaceAnalysis", model="buffalo_l", provider="CPU")
        (second,) = run("LoadFaceAnalysis", model="buffalo_l", provider="CPU")
    assert "[likeness]" in caplog.text and "non-commercial research only" in caplog.text
    assert first.recogniser.name == "buffalo_l"
    assert first.recogniser.session is second.recogniser.session


@pytest.mark.parametrize("model", BUILT_IN[2:])
def test_analyses_without_files_open(run, places, model):
    (analysis,) = run("LoadFaceAnalysis", model=model, provider="auto")
    own = model.startswith("miniature")  # the others find faces, and know nobody
    assert (analysis.recogniser is not None) == own and analysis.licence


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("buffalo_l", ["det_10g.onnx", "w600k_r50.onnx", "models/insightface/models/buffalo_l", "likeness models get"]),
        ("my_pack", ["my_pack", "insightface"]),
        ("../../buffalo_l", ["leaves the models folder"]),
        (BUILT_IN[0], ["face_detection_yunet_2023mar.onnx", "opencv_zoo", "likeness models get yunet"]),
        (BUILT_IN[1], ["detection_Resnet50_Final.pth", "models/facexlib", "likeness models get"]),
    ],
)
def test_missing_files_are_named_with_their_folder(run, places, model, words):
    with pytest.raises(LikenessError) as error:
        run("LoadFaceAnalysis", model=model, provider="auto")
    assert not [word for word in words if word not in str(error.value)]


def test_a_missing_package_is_named(run, places, monkeypatch):
    monkeypatch.setitem(sys.modules, "facenet_pytorch", None)
    with pytest.raises(LikenessError, match="pip install --no-deps facenet-pytorch"):
        run("LoadFaceAnalysis", model=BUILT_IN[2], provider="auto")


def test_an_unknown_provider_is_refused(run, places):
    with pytest.raises(LikenessError, match=r"provider.*CPU"):
        run("LoadFaceAnalysis", model=BUILT_IN[3], provider="NPU")


# --- Find Faces


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
    faces, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=_colours(RED))
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
        run("FindFaces", face_analysis=BY_COLOUR, image=_colours(RED, BLACK))


def test_photos_without_a_face_are_skipped_and_the_batch_keeps_its_length(run):
    image = _colours(BLACK, RED, BLACK)
    faces, preview, crops, mask, count = run("FindFaces", face_analysis=BY_COLOUR, image=image, if_none="skip photo")
    assert [face is not None for face in faces.chosen] == [False, True, False] and count == 1
    assert len(preview) == len(mask) == 3 and len(crops) == 1
    assert mask[0].sum() == mask[2].sum() == 0 < mask[1].sum()
    with pytest.raises(LikenessError, match="any of the 2 photos"):
        run("FindFaces", face_analysis=BY_COLOUR, image=_colours(BLACK, BLACK), if_none="skip photo")


def test_the_whole_picture_can_stand_in_for_a_face(run):
    image = _colours(BLACK).clone()
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
        run("FindFaces", face_analysis=BY_COLOUR, image=_colours(RED, RED))
    comfy.model_management.interrupt_current_processing(False)


# --- Identity from Photos


def _found(run, *colours):
    return run("FindFaces", face_analysis=BY_COLOUR, image=_colours(*colours), if_none="use whole picture")[0]


def test_a_stranger_among_the_photos_is_named_and_left_out(run, caplog):
    faces = _found(run, RED, BLUE, DARK_RED)
    person, portraits, report = run("IdentityFromPhotos", faces=faces, name="Ann")
    assert person.name == "Ann" and len(person) == len(portraits) == 2 and portraits.shape[1:] == (512, 512, 3)
    assert "Ann: 2 photos used" in report and "recogniser: by colour" in report
    assert "photo 2 does not look like the others" in report and "photo 2 does not look" in caplog.text
    assert "mean similarity of two photos: 1.00" in report


def test_outliers_are_kept_on_request_or_by_the_threshold(run):
    faces = _found(run, RED, BLUE, DARK_RED)
    kept, _, report = run("IdentityFromPhotos", faces=faces, outliers="keep")
    assert len(kept) == 3 and "photo 2 does not look like the others" in report
    tolerant, _, report = run("IdentityFromPhotos", faces=faces, outlier_threshold=-1.0)
    assert len(tolerant) == 3 and "does not look" not in report
    with pytest.raises(LikenessError, match="outliers"):
        run("IdentityFromPhotos", faces=faces, outliers="shrug")


def test_whole_pictures_take_no_part_beside_real_faces(run):
    person, _, report = run("IdentityFromPhotos", faces=_found(run, RED, BLACK, DARK_RED))
    assert len(person) == len(person.embeddings) == len(person.aligned) == 2
    assert "photo 2 has no embedding or keypoints" in report


def test_one_photo_has_no_similarity_to_report(run):
    person, _, report = run("IdentityFromPhotos", faces=_found(run, RED), name=" ")
    assert person.name == "person" and "1 photo used" in report and "similarity" not in report


def test_other_values_on_the_faces_socket_are_refused(run):
    with pytest.raises(LikenessError, match="'faces' holds a list"):
        run("IdentityFromPhotos", faces=[])


# --- Save Identity, Load Identity


@pytest.fixture
def ann(run) -> Identity:
    return run("IdentityFromPhotos", faces=_found(run, RED, DARK_RED), name="Ann")[0]


def test_an_identity_comes_back_as_it_was_saved(run, nodes, places, ann):
    assert _options(nodes["LikenessLoadIdentity"], "file") == ["(no identity saved yet)"]
    (path,) = run("SaveIdentity", identity=ann, filename="family/ann")
    assert path == "family/ann.safetensors"
    assert (places.models / "likeness_identities" / path).is_file()
    assert _options(nodes["LikenessLoadIdentity"], "file") == [path]
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


def test_dots_in_a_name_are_no_suffix(run, places, ann):
    assert run("SaveIdentity", identity=ann, filename="ann v1.2")[0] == "ann v1.2.safetensors"


@pytest.mark.parametrize("filename", ["", "  ", "../ann", "a/../../ann", "/tmp/ann", "\\ann", "C:\\ann", "a/", "a\0b"])
def test_names_that_lead_out_of_the_folder_are_refused(run, places, ann, filename):
    with pytest.raises(LikenessError, match="does not name a file inside models/likeness_identities"):
        run("SaveIdentity", identity=ann, filename=filename)
    assert not list(places.models.parent.rglob("*.safetensors"))


def test_where_models_cannot_be_written_the_output_folder_serves(run, nodes, places, ann):
    places.models.mkdir()
    (places.models / "likeness_identities").write_text("a file is in the way")
    (path,) = run("SaveIdentity", identity=ann, filename="ann")
    assert (places.output / "likeness" / path).is_file()
    assert _options(nodes["LikenessLoadIdentity"], "file") == [path]
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
    with pytest.raises(LikenessError, match="'identity' holds a Tensor"):
        run("SaveIdentity", identity=torch.zeros(512), filename="ann")


# --- Combine Identities


@pytest.fixture
def bob(run) -> Identity:
    return run("IdentityFromPhotos", faces=_found(run, BLUE), name="Bob")[0]


def test_a_blend_lies_between_the_people(run, ann, bob):
    def share_of_bob(**weights):
        (both,) = run("CombineIdentities", identity_1=ann, identity_2=bob, mode="blend", **weights)
        return float(both.mean_embedding() @ bob.mean_embedding())

    shares = [share_of_bob(weight_1=weight) for weight in (4.0, 1.0, 0.25)]
    assert shares == sorted(shares) and shares[1] == pytest.approx(0.5**0.5, abs=1e-3)


def test_the_same_person_counts_every_photo_alike(run, ann, bob):
    (both,) = run("CombineIdentities", identity_1=ann, identity_3=bob, name="Cleo")
    assert both.name == "Cleo" and len(both) == 3 and both.weights.tolist() == [1, 1, 1]
    assert run("CombineIdentities", identity_1=ann, identity_4=bob)[0].name == "Ann + Bob"


def test_weight_0_leaves_an_identity_out(run, ann, bob):
    (alone,) = run("CombineIdentities", identity_1=ann, identity_2=bob, weight_2=0.0, mode="blend")
    assert len(alone) == len(ann) and torch.allclose(alone.mean_embedding(), ann.mean_embedding())


def test_what_cannot_be_combined_is_explained(run, mtcnn, astronaut, ann):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=astronaut)
    nameless, *_ = run("IdentityFromPhotos", faces=faces)
    with pytest.raises(LikenessError, match="different recognisers"):
        run("CombineIdentities", identity_1=ann, identity_2=nameless)
    with pytest.raises(LikenessError, match="'identity_3' holds a str"):
        run("CombineIdentities", identity_1=ann, identity_3="bob")
    with pytest.raises(LikenessError, match="one must be above zero"):
        run("CombineIdentities", identity_1=ann, weight_1=0.0)
    with pytest.raises(LikenessError, match="mode"):
        run("CombineIdentities", identity_1=ann, mode="average")


# --- Face Keypoints


def test_dots_lie_on_the_keypoints_of_the_chosen_face(run, mtcnn, six_people):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people, choice="left to right", index=1)
    (picture,) = run("FaceKeypoints", faces=faces)
    assert picture.shape == six_people.shape
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1)]
    for (x, y), colour in zip(faces.chosen[0].keypoints, colours, strict=True):
        assert tuple(picture[0, int(y), int(x)].tolist()) == colour
    lit = picture[0].amax(-1) > 0
    assert 0 < lit.float().mean() < 0.02


@pytest.mark.parametrize(("width", "height", "size"), [(640, 0, (443, 640)), (0, 443, (443, 640)), (512, 1024, None)])
def test_the_photo_is_fitted_into_the_canvas(run, mtcnn, six_people, width, height, size):
    faces, *_ = run("FindFaces", face_analysis=mtcnn, image=six_people)
    (picture,) = run("FaceKeypoints", faces=faces, width=width, height=height)
    assert picture.shape[1:3] == (size or (height, width))
    scale = 0.5 if size else 0.4
    above = 0 if size else (1024 - 0.4 * 886) / 2
    x, y = faces.chosen[0].keypoints[4] * scale + np.array([0, above])  # drawn last, so it lies on top
    assert tuple(picture[0, int(y), int(x)].tolist()) == (1, 0, 1)


def test_faces_without_keypoints_cannot_be_drawn(run, astronaut, mtcnn):
    (boxes_only,) = run("LoadFaceAnalysis", model=BUILT_IN[3], provider="auto")
    faces, *_ = run("FindFaces", face_analysis=boxes_only, image=astronaut)
    person, portraits, _ = run("IdentityFromPhotos", faces=faces)
    assert len(person.portraits) == 0 and len(portraits) == 1, "heads stand in for portraits"
    with pytest.raises(LikenessError, match=r"Photo 1 has no keypoints to draw, because LBP.* boxes only"):
        run("FaceKeypoints", faces=faces)
    with pytest.raises(LikenessError, match="Photo 2 has no keypoints to draw, because it shows no face"):
        run("FaceKeypoints", faces=_found(run, RED, BLACK))


def test_skipped_photos_have_no_keypoint_picture(run):
    faces, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=_colours(BLACK, RED), if_none="skip photo")
    (pictures,) = run("FaceKeypoints", faces=faces)
    assert pictures.shape == (1, 64, 60, 3)


# --- as a graph


class _Server:
    """What the executor needs of the server: somebody to send messages to."""

    client_id, last_node_id, sockets_metadata = "test", None, {}

    def __init__(self):
        self.messages = []

    def send_sync(self, event, data, sid=None):
        self.messages.append((event, data))


@pytest.fixture
def execute(host_nodes, nodes, monkeypatch):
    """Validate and run a graph in the host's own executor: its messages and the history's outputs."""
    import execution

    if "PreviewAny" not in host_nodes.NODE_CLASS_MAPPINGS:  # those of comfy_extras/ do not come with the import
        asyncio.run(host_nodes.init_builtin_extra_nodes())
    for node_id, node in nodes.items():
        monkeypatch.setitem(host_nodes.NODE_CLASS_MAPPINGS, node_id, node)

    def run_graph(graph):
        server = _Server()
        executor = execution.PromptExecutor(server)
        valid, error, outputs, node_errors = asyncio.run(execution.validate_prompt("id", graph, None))
        assert valid, (error, node_errors)
        executor.execute(graph, "id", {"client_id": "test"}, outputs)
        return server.messages, executor.history_result["outputs"] if executor.success else None

    return run_graph


def _node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def test_a_graph_goes_from_a_photo_to_a_file_and_back(execute, run, places, photos, monkeypatch, tmp_path):
    import folder_paths
    from PIL import Image

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    Image.fromarray(photos["astronaut"]).save(tmp_path / "photo.png")
    graph = {
        "1": _node("LoadImage", image="photo.png"),
        "2": _node("LikenessLoadFaceAnalysis", model=BUILT_IN[2], provider="auto"),
        "3": _node(
            "LikenessFindFaces",
            face_analysis=["2", 0],
            image=["1", 0],
            choice="largest",
            index=0,
            if_none="error",
            min_size=32,
        ),
        "4": _node(
            "LikenessIdentityFromPhotos", faces=["3", 0], name="Eileen", outliers="leave out", outlier_threshold=0.25
        ),
        "5": _node("LikenessCombineIdentities", identity_1=["4", 0], weight_1=1.0, mode="same person"),
        "6": _node("LikenessSaveIdentity", identity=["5", 0], filename="eileen"),
    }
    _, outputs = execute(graph)
    assert outputs is not None and outputs["6"]["text"] == ["eileen.safetensors"]
    assert run("LoadIdentity", file="eileen.safetensors")[0].name == "Eileen"


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (_node("LikenessLoadFaceAnalysis", model="antelopev2", provider="auto"), "likeness models get antelopev2"),
        (_node("LikenessLoadIdentity", file="bob.safetensors"), "'bob.safetensors' was not found"),
    ],
)
def test_a_file_that_only_the_author_of_a_workflow_has_gives_our_sentence(execute, places, loader, words):
    messages, outputs = execute({"1": loader, "2": _node("PreviewAny", source=["1", 0])})
    assert outputs is None
    [error] = [data for event, data in messages if event == "execution_error"]
    assert error["node_id"] == "1" and words in error["exception_message"]
