"""The model files written for the tests are what they pretend to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def test_face_pack_finds_every_known_face_and_tells_them_apart(models, photos, known_faces):
    from likeness.faces import load_pack

    analysis = load_pack(models / "insightface" / "models" / "buffalo_l")
    assert len(known_faces["six people"]) == 6 and len(known_faces["astronaut"]) == 1
    embeddings = []
    for name, photo in photos.items():
        found = sorted(analysis.find(photo), key=lambda face: -face.area)
        assert len(found) == len(known_faces[name])
        for face, known in zip(found, known_faces[name], strict=True):
            assert face.score > 0.9
            np.testing.assert_allclose(face.box, known.box, atol=1.0)
            np.testing.assert_allclose(face.keypoints, known.keypoints, atol=1.0)
            embeddings.append(face.unit_embedding)
    similarity = np.stack(embeddings) @ np.stack(embeddings).T
    assert similarity[~np.eye(len(embeddings), dtype=bool)].max() < 0.97


def test_face_pack_finds_nothing_in_another_picture(models, photos):
    from likeness.faces import load_pack

    analysis = load_pack(models / "insightface" / "models" / "buffalo_l")
    assert analysis.find(photos["astronaut"][:, ::-1].copy()) == []


@pytest.mark.parametrize("file", ["ip-adapter-faceid_sd15.bin", "ip-adapter-plus_sd15.safetensors"])
def test_adapter_files_load_as_adapters_for_sd15(models, file):
    from likeness.adapters import load
    from likeness.weights import families

    adapter = load(models / "ipadapter" / file)
    assert adapter.needs.base is families.SD15


def test_small_sdxl_checkpoint_is_recognised_by_the_host(files, tmp_path):
    import comfy.sd
    import comfy.supported_models

    path = files.write_checkpoint(tmp_path / "sdxl.safetensors", files.SDXL_SMALL, clip=False)
    model, clip, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path))
    assert isinstance(model.model.model_config, comfy.supported_models.SDXL)
    assert clip is None and vae.first_stage_model is not None
    weights = model.model.diffusion_model.state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    path.unlink()
