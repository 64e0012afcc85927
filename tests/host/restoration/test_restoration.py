"""Restore Faces, Upscale Portrait, Paste Faces Back and their loader in the host: sizes, kinds, people, errors."""

from __future__ import annotations

import contextlib
import gc
import logging

import pytest
import torch
from helpers import restorers as small
from helpers.by_colour import BLACK, BY_COLOUR, RED, coloured

from likeness.errors import LikenessError


@pytest.fixture
def restorer(run, files):
    return run("LoadFaceRestorer", file="GFPGANv1.4.pth")[0]


def inputs(restorer, image, **others):
    return {"image": image, "restorer": restorer, "face_analysis": BY_COLOUR, "identity_guard": 0.0, **others}


# --- loading


def test_files_that_users_have_are_listed_the_default_first_and_codeformer_last(nodes, places, files):
    (files / "detection_Resnet50_Final.pth").write_bytes(b"x")
    (files / "parsing_parsenet.pth").write_bytes(b"x")
    (files / "a.onnx").write_bytes(b"x")
    node = nodes["LikenessLoadFaceRestorer"]
    options = next(widget.options for widget in node.define_schema().inputs if widget.id == "file")
    assert options == ["GFPGANv1.4.pth", "RestoreFormer.pth", "codeformer.pth"]
    assert node.validate_inputs(file="GFPGANv1.4.pth") is True


def test_where_there_is_no_file_the_list_says_how_to_get_one(nodes, places):
    node = nodes["LikenessLoadFaceRestorer"]
    options = next(widget.options for widget in node.define_schema().inputs if widget.id == "file")
    assert options == ["GFPGANv1.4.pth"]
    said = node.validate_inputs(file=options[0])
    assert "models get gfpgan-v1.4" in said and "facerestore_models" in said


def test_a_restorer_that_lies_among_the_upscale_models_is_found(run, places):
    folder = places.models / "upscale_models"
    folder.mkdir(parents=True)
    torch.save(small.gfpgan(), folder / "GFPGANv1.4.pth")
    assert run("LoadFaceRestorer", file="GFPGANv1.4.pth")[0].restorer.kind.title == "GFPGAN"


def test_the_licence_is_shown_and_float16_becomes_float32_with_a_note(nodes, files, caplog):
    node = nodes["LikenessLoadFaceRestorer"]
    shown = node.execute(file="codeformer.pth", precision="float16")
    text = shown.ui.as_dict()["text"][0]
    assert "non-commercial" in text and "commercial use: not allowed" in text and "overflows in float16" in text
    assert next(shown.result[0].module.parameters()).dtype is torch.float32
    assert "overflows in float16" in caplog.text
    assert "Apache-2.0" in node.execute(file="RestoreFormer.pth").ui.as_dict()["text"][0]


# --- restoring


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_keep_their_size_their_channels_and_their_transparency(run, restorer, photo, channels):
    image = torch.cat([photo, torch.rand(1, 64, 60, 1)], -1) if channels == 4 else photo[..., :channels]
    finished, comparison, preview, mask, report = run("RestoreFaces", **inputs(restorer, image))
    assert finished.shape == image.shape and mask.shape == (1, 64, 60) and preview.shape == (1, 64, 60, 3)
    assert comparison.shape == (1, 64, 128, 3)
    assert not torch.equal(finished[..., :3], image[..., :3])
    if channels == 4:
        assert torch.equal(finished[..., 3], image[..., 3])
    outside = mask[0] == 0
    assert outside.any() and torch.allclose(finished[0][outside][..., :3], image[0][outside][..., :3], atol=1e-6)
    assert "1 face: 1 restored" in report and "Apache-2.0" in report


BEYOND = {"0..1": lambda image: image, "above 1": lambda image: image * 3, "below 0": lambda image: image - 0.2}


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("values", BEYOND)
def test_what_is_not_changed_comes_out_to_the_bit(run, restorer, channels, values):
    """Whatever the image: grey, transparent, darker than black or brighter than white."""
    image = BEYOND[values](torch.rand(2, 64, 60, channels))
    image[:, 32, 30] = 0.5  # where the analysis looks for a face
    kept, *_, mask, report = run("RestoreFaces", **inputs(restorer, image, strength=0.0))
    assert torch.equal(kept, image) and not mask.any()
    assert "2 left as it was" in report and "the strength is 0" in report
    none = image.clone()
    none[:, 32, 30] = 0
    none[:, 32, 30, 3:] = 1
    assert torch.equal(run("RestoreFaces", **inputs(restorer, none))[0], none)
    restored, _, _, mask, _ = run("RestoreFaces", **inputs(restorer, image))
    assert torch.equal(restored[mask == 0], image[mask == 0]) and not torch.equal(restored, image)
    found, _, crops, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=image)
    assert torch.equal(run("PasteFacesBack", image=image, faces=found, crops=crops * 0.3, strength=0.0)[0], image)
    pasted, mask = run("PasteFacesBack", image=image, faces=found, crops=crops * 0.3)
    assert torch.equal(pasted[mask == 0], image[mask == 0]) and not torch.equal(pasted, image)


def test_nothing_changes_outside_of_a_region_not_even_by_its_own_edge(run, restorer, photo, upscale_model):
    region = (torch.rand(1, 64, 60) > 0.5).float()
    outside = region == 0
    finished, *_ = run("RestoreFaces", **inputs(restorer, photo, region=region))
    assert torch.equal(finished[outside], photo[outside]) and not torch.equal(finished, photo)
    found, _, crops, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=photo)
    pasted, _ = run("PasteFacesBack", image=photo, faces=found, crops=crops * 0.3, region=region)
    assert torch.equal(pasted[outside], photo[outside]) and not torch.equal(pasted, photo)
    half = torch.zeros(1, 64, 60)
    half[:, :30] = 1
    plain, whole = (
        run("UpscalePortrait", **inputs(restorer, photo, upscale_model=upscale_model(), scale_by=2.0, **given))[0]
        for given in ({"strength": 0.0}, {"region": half})
    )
    assert torch.equal(whole[:, 62:], plain[:, 62:]) and not torch.equal(whole[:, :58], plain[:, :58])


def test_the_same_inputs_give_the_same_picture(run, restorer, photo):
    first = run("RestoreFaces", **inputs(restorer, photo))[0]
    torch.manual_seed(99)
    assert torch.equal(run("RestoreFaces", **inputs(restorer, photo))[0], first)


def test_a_picture_without_a_face_passes_as_it_is_with_a_remark_or_is_an_error(run, restorer):
    image = coloured(BLACK, RED)
    finished, comparison, *_, report = run("RestoreFaces", **inputs(restorer, image))
    assert torch.equal(finished[0], image[0]) and "image 1 shows no face and was kept" in report
    with pytest.raises(LikenessError, match="No face was found in image 1"):
        run("RestoreFaces", **inputs(restorer, image, if_none="error"))
    _, comparison, *_ = run("RestoreFaces", **inputs(restorer, coloured(BLACK)))
    assert comparison.shape == (1, 64, 120, 3)


def test_one_chosen_face_of_find_faces(run, restorer, photo):
    image = torch.cat([photo, coloured(BLACK)])
    found = run("FindFaces", face_analysis=BY_COLOUR, image=image, if_none="skip photo")[0]
    finished, *_, report = run("RestoreFaces", **inputs(restorer, image, faces=found, people="the chosen face"))
    assert "1 face: 1 restored" in report and torch.equal(finished[1], image[1])
    with pytest.raises(LikenessError, match="Image 2 shows no face to restore"):
        run("RestoreFaces", **inputs(restorer, image, faces=found, if_none="error"))
    with pytest.raises(LikenessError, match="connect its faces"):
        run("RestoreFaces", **inputs(restorer, image, people="the chosen face"))
    with pytest.raises(LikenessError, match="2 images of 60x64 and the image is 1 image of 60x64"):
        run("RestoreFaces", **inputs(restorer, photo, faces=found))


def test_the_guard_reports_and_reduces(run, restorer, photo, caplog):
    caplog.set_level(logging.WARNING)
    image = photo.clone()
    image[:, :2, :2] = torch.tensor([0.9, 0.1, 0.1])
    *_, report = run("RestoreFaces", **inputs(restorer, image, identity_guard=1.0))
    assert "likeness" in report and ("reduced" in report or "left as it was" in report)
    assert "image 1, face 0" in caplog.text


def test_region_and_fidelity_reach_the_restoration(run, files, photo):
    restorer = run("LoadFaceRestorer", file="codeformer.pth")[0]
    region = torch.zeros(1, 64, 60)
    region[:, :30] = 1
    finished, *_ = run("RestoreFaces", **inputs(restorer, photo, region=region))
    assert torch.allclose(finished[0, 33:], photo[0, 33:], atol=1e-6)
    exact, beautiful, plain = (
        run("RestoreFaces", **inputs(restorer, photo, **wishes))[0]
        for wishes in ({"fidelity": 1.0}, {"fidelity": 0.0}, {"fidelity": 0.0, "adain": False})
    )
    assert not torch.equal(exact, beautiful) and not torch.equal(beautiful, plain)
    with pytest.raises(LikenessError, match="holds 3 masks for 1 images"):
        run("RestoreFaces", **inputs(restorer, photo, region=region.repeat(3, 1, 1)))


def test_other_loaders_restorers_are_taken_and_other_things_are_not(run, photo, upscale_model):
    from likeness.restoration.spandrel_files import described

    descriptor = described(small.restoreformer(), "x")
    assert not torch.equal(run("RestoreFaces", **inputs(descriptor, photo))[0], photo)
    with pytest.raises(LikenessError, match=r"ESRGAN, which restores no faces"):
        run("RestoreFaces", **inputs(upscale_model(), photo))
    with pytest.raises(LikenessError, match="restorer input holds a str"):
        run("RestoreFaces", **inputs("x", photo))


def test_models_are_in_the_hosts_care_and_leave_with_it(run, restorer, photo, monkeypatch):
    import comfy.model_management as host

    run("RestoreFaces", **inputs(restorer, photo))
    assert any(loaded.model is restorer.patcher for loaded in host.current_loaded_models)

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(restorer.restorer.network, "forward", fail)
    with pytest.raises(ZeroDivisionError):
        run("RestoreFaces", **inputs(restorer, photo))
    host.unload_all_models()
    assert not any(loaded.model is restorer.patcher for loaded in host.current_loaded_models)
    assert {parameter.device for parameter in restorer.module.parameters()} == {restorer.patcher.offload_device}


def test_cancel_ends_the_loop(run, restorer, photo):
    import comfy.model_management as host

    host.interrupt_current_processing(True)
    with pytest.raises(host.InterruptProcessingException):
        run("RestoreFaces", **inputs(restorer, photo.repeat(3, 1, 1, 1)))
    assert not host.processing_interrupted()


def tensors() -> int:
    """How many bytes of tensors are alive."""
    gc.collect()
    return sum(one.nbytes for one in gc.get_objects() if isinstance(one, torch.Tensor))


@pytest.mark.parametrize("enlarged", [False, True])
def test_a_cancel_in_a_long_sequence_leaves_nothing(run, restorer, photo, upscale_model, enlarged, monkeypatch):
    import comfy.model_management as host

    frames = photo.repeat(30, 1, 1, 1)
    more = {"upscale_model": upscale_model(), "scale_by": 2.0} if enlarged else {}
    node = "UpscalePortrait" if enlarged else "RestoreFaces"
    plain, calls = restorer.restorer.network.forward, []

    def forward(*given, **named):
        calls.append(1)
        if len(calls) == 10:
            host.interrupt_current_processing(True)
        return plain(*given, **named)

    run(node, **inputs(restorer, photo, **more))
    before = tensors()
    monkeypatch.setattr(restorer.restorer.network, "forward", forward)
    with contextlib.suppress(host.InterruptProcessingException):  # pytest.raises would hold on to the frames
        run(node, **inputs(restorer, frames, **more))
    assert 10 <= len(calls) < 16 and not host.processing_interrupted()
    assert tensors() == before and torch.equal(frames, photo.repeat(30, 1, 1, 1))
    monkeypatch.undo()
    assert "1 restored" in run(node, **inputs(restorer, photo, **more))[-1]


# --- enlarging


@pytest.mark.parametrize("scale_by", [1.0, 1.5, 2.0, 3.3, 4.0])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_enlarged_by_any_factor(run, photo, upscale_model, scale_by, channels):
    image = torch.cat([photo, torch.rand(1, 64, 60, 1)], -1) if channels == 4 else photo[..., :channels]
    finished, comparison, _preview, mask, report = run(
        "UpscalePortrait", image=image, upscale_model=upscale_model(), scale_by=scale_by
    )
    height, width = round(64 * scale_by), round(60 * scale_by)
    assert finished.shape == (1, height, width, channels) and mask.shape == (1, height, width)
    assert comparison.shape == (1, height, 2 * width, 3) and "no restorer" in report


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (17, 33), (1, 5), (7, 4000), (600, 530)])
@pytest.mark.parametrize("scale", [1, 2])
def test_pictures_of_any_size(run, upscale_model, size, scale):
    image = torch.rand(1, *size, 3)
    finished, *_ = run("UpscalePortrait", image=image, upscale_model=upscale_model(scale), scale_by=1.0)
    assert finished.shape == image.shape and finished.isfinite().all()


def test_faces_are_restored_from_the_original_and_pasted_at_the_new_size(run, restorer, photo, upscale_model):
    enlarged, *_ = run("UpscalePortrait", image=photo, upscale_model=upscale_model(), scale_by=2.5)
    finished, comparison, preview, mask, report = run(
        "UpscalePortrait", **inputs(restorer, photo, upscale_model=upscale_model(), scale_by=2.5)
    )
    assert finished.shape == enlarged.shape and comparison.shape == (1, 64, 128, 3) and preview.shape == photo.shape
    outside = mask[0] == 0
    assert torch.equal(finished[0][outside], enlarged[0][outside]) and not torch.equal(finished, enlarged)
    assert "1 face: 1 restored" in report
    centre = mask[0].nonzero().float().mean(0) / 2.5
    assert abs(centre[0] - 36) < 6 and abs(centre[1] - 30) < 6
    with pytest.raises(LikenessError, match="needs the input face_analysis"):
        run("UpscalePortrait", image=photo, upscale_model=upscale_model(), restorer=restorer)


def test_tiles_are_put_together_as_the_host_does(upscale_model):
    from comfy.utils import tiled_scale

    from likeness.restoration.tiles import upscaled

    network = upscale_model()
    for height, width, tile, overlap in ((70, 130, 64, 16), (64, 64, 64, 8), (97, 50, 40, 8)):
        image = torch.rand(1, 3, height, width)
        theirs = tiled_scale(image, network, tile_x=tile, tile_y=tile, overlap=overlap, upscale_amount=2)
        assert torch.allclose(upscaled(image, network, 2, (tile, tile), overlap), theirs, atol=1e-5)


def test_a_large_picture_is_what_the_hosts_node_gives_but_for_the_seams(run, upscale_model):
    from comfy.utils import tiled_scale

    image, network = torch.rand(1, 40, 700, 3), upscale_model()
    ours, *_ = run("UpscalePortrait", image=image, upscale_model=network, scale_by=2.0)
    theirs = tiled_scale(image.movedim(-1, -3), network, tile_x=512, tile_y=512, overlap=32, upscale_amount=2)
    far = (ours - theirs.movedim(-3, -1)).abs().amax(-1)[0].amax(0) > 1e-3
    assert far.sum() < 6 * 2 * 32  # columns of the seams, of ours and of theirs


def test_a_face_restorer_is_no_upscale_model(run, photo):
    from likeness.restoration.spandrel_files import described

    with pytest.raises(LikenessError, match="restores single faces and ruins whole images"):
        run("UpscalePortrait", image=photo, upscale_model=described(small.restoreformer(), "x"))


# --- pasting


def test_crops_of_find_faces_come_back_where_they_were(run, photo):
    image = (photo * 255).round() / 255
    found, _, crops, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=image)
    same, mask = run("PasteFacesBack", image=image, faces=found, crops=crops)
    assert (same - image).abs().max() < 1e-5 and mask.max() > 0.9
    darker, mask = run("PasteFacesBack", image=image, faces=found, crops=crops * 0.5, paste="square")
    inside = mask[0] > 0.999
    assert (darker[0][inside] - image[0][inside] * 0.5).abs().mean() < 0.05
    assert torch.equal(darker[0][mask[0] == 0], image[0][mask[0] == 0])


def test_portraits_of_an_identity_come_back_where_they_were(run, photo):
    image = (photo * 255).round() / 255
    found, *_ = run("FindFaces", face_analysis=BY_COLOUR, image=image)
    _, portraits, _ = run("IdentityFromPhotos", faces=found)
    same, _ = run("PasteFacesBack", image=image, faces=found, crops=portraits, framing="portraits (aligned)")
    assert (same - image).abs().max() < 1e-5
    with pytest.raises(LikenessError, match="connect the same images, and one crop for each face"):
        run("PasteFacesBack", image=image, faces=found, crops=portraits.repeat(2, 1, 1, 1))


# --- sizes and lists


def test_an_8k_picture_is_restored_in_its_own_size(run, restorer):
    image = torch.full((1, 4320, 7680, 3), 0.5)
    image[0, :64, :60] = torch.rand(64, 60, 3)
    image[0, 2160, 3840] = 1  # the analysis by colour looks at the middle
    finished, _, _, mask, report = run("RestoreFaces", **inputs(restorer, image))
    assert finished.shape == image.shape and "1 restored" in report
    assert mask[0, 100:].max() == 0 and torch.equal(finished[0, 100:], image[0, 100:])


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (2, 3), (1, 1), (7, 4000), (4000, 7)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_odd_sizes_pass(run, restorer, size, channels):
    image = torch.rand(1, *size, channels)
    finished, comparison, *_, report = run("RestoreFaces", **inputs(restorer, image))
    assert finished.shape == image.shape and report
    assert comparison.shape[0] == 1


def test_a_long_sequence_keeps_its_order_and_moves_the_bar(run, restorer, photo, monkeypatch):
    import comfy.utils

    moved: list[tuple[int, int]] = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, *_, **__: moved.append((value, total)))
    frames = torch.cat([photo * (n + 1) / 12 for n in range(12)])
    finished, *_, report = run("RestoreFaces", **inputs(restorer, frames, batch_size=5))
    assert "12 faces: 12 restored" in report and moved[-1] == (12, 12)
    one = run("RestoreFaces", **inputs(restorer, frames[7:8]))[0]
    assert torch.allclose(finished[7], one[0], atol=1e-4)


def test_an_upscale_model_goes_when_the_graph_lets_go_of_it(run, photo, upscale_model):
    import gc
    import weakref

    network = upscale_model()
    run("UpscalePortrait", image=photo, upscale_model=network, scale_by=1.0)
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None


def test_a_parser_decides_what_is_pasted_and_stays_in_the_hosts_care(run, restorer, photo, places):
    import comfy.model_management as host

    from likeness.faces.parsing import BiSeNet
    from likeness.nodes import masks

    path = places.models / "facexlib" / "parsing_bisenet.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(BiSeNet(4, 19).state_dict(), path)
    shaped, parsed = (
        run("RestoreFaces", **inputs(restorer, photo, paste=paste))[3]
        for paste in ("face shape (no download)", path.name)
    )
    assert not torch.equal(shaped, parsed)
    managed = masks._opened(path, path.stat().st_mtime_ns)[1]
    assert any(loaded.model is managed.patcher for loaded in host.current_loaded_models)
