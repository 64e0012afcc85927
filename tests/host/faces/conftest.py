"""The nodes around faces in the host's process, face analyses that cost little, and two real photographs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import by_colour

from likeness.faces import Identity, load_mtcnn
from likeness.faces.detection import Detection, Detector

# The tests import it by this name.


@dataclass
class Remembering:
    """A detector that answers from memory when it is shown the same image again."""

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


@pytest.fixture(scope="session")
def nodes(host_nodes):
    """Node classes by id."""
    from likeness.nodes import faces, keypoints, masks

    return {node.GET_SCHEMA().node_id: node for node in (*faces.NODES, *keypoints.NODES, *masks.NODES)}


@pytest.fixture
def run(nodes):
    """`run("FindFaces", ...)` gives the node's outputs."""
    return lambda node, /, **inputs: nodes[f"Likeness{node}"].execute(**inputs).result


@pytest.fixture
def places(host_nodes, tmp_path, monkeypatch, without_face_packages):
    """The host with empty models and output folders, no weights in packages, and a home without face packs."""
    import folder_paths

    from likeness import models_download

    models_download.register_folders()  # before anything is moved, so that nothing of here stays registered
    base = SimpleNamespace(models=tmp_path / "models", output=tmp_path / "output")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setattr(folder_paths, "models_dir", str(base.models))
    monkeypatch.setattr(folder_paths, "output_directory", str(base.output))
    for kind in models_download.OUR_KINDS:
        monkeypatch.delitem(folder_paths.folder_names_and_paths, kind, raising=False)
    models_download.register_folders()
    return base


@pytest.fixture(scope="session")
def mtcnn(photos, known_faces):
    """MTCNN, which looks at each image only once, and has seen the two photographs already."""
    analysis = load_mtcnn()
    detector = Remembering(analysis.detector)
    for name, faces in known_faces.items():
        found = [Detection(np.float32(face.box), 0.99, np.float32(face.keypoints)) for face in faces]
        detector.answers[detector.key(photos[name][..., ::-1], 1280)] = found
    return replace(analysis, detector=detector)


@pytest.fixture(scope="session")
def pack(files, known_faces, tmp_path_factory):
    """The folder of a face pack that knows the two photographs, with a random recogniser."""
    folder = tmp_path_factory.mktemp("packs") / "buffalo_l"
    files.write_detector(folder / "det_10g.onnx", [face for faces in known_faces.values() for face in faces])
    files.write_recogniser(folder / "w600k_r50.onnx")
    return folder


@pytest.fixture(scope="session")
def six_people(photos):
    return _image(photos["six people"])


@pytest.fixture(scope="session")
def astronaut(photos):
    return _image(photos["astronaut"])


def _image(*photos):
    return torch.from_numpy(np.stack(photos)).float() / 255


@pytest.fixture
def ann(run) -> Identity:
    return run("IdentityFromPhotos", faces=by_colour.found(run, by_colour.RED, by_colour.DARK_RED), name="Ann")[0]
