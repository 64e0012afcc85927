"""From photos to a dataset: which face, which crop, which mask, which caption, and what is refused and why."""

from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.faces import FaceAnalysis, build_identity
from likeness.faces.detection import Detection
from likeness.faces.face import Face
from likeness.training.config import MethodSettings
from likeness.training.data.captions import parse_templates, person_templates, renamed, style_templates
from likeness.training.data.dataset import (
    DatasetKind,
    DatasetSettings,
    Frame,
    Framing,
    Unfit,
    build_dataset,
    ellipse_mask,
    fingerprint,
    frame_of,
)
from likeness.training.data.photo_files import Photo
from likeness.training.data.photo_quality import Looks, sharpness
from likeness.training.data.sheet import sheet
from likeness.training.run_record import digest_of

FIVE = np.array([(0.3, 0.35), (0.7, 0.35), (0.5, 0.55), (0.35, 0.75), (0.65, 0.75)], np.float32)
ANNA, BORIS = (0, 255, 0), (255, 0, 255)  # marker colours: opposite directions for the recogniser below


@dataclass(frozen=True)
class Markers:
    """Finds squares in a marker colour; the colour is who it is. Larger first, as detectors sort by certainty."""

    name: str = "markers"
    threshold: float = 0.5
    sizes: tuple[int, ...] = (64,)

    def detect(self, image_bgr, size=None):
        found = []
        for colour in (ANNA, BORIS):
            rows, columns = np.nonzero((image_bgr[..., ::-1] == colour).all(-1))
            if len(rows):
                box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)
                found.append(Detection(box, 0.9, box[:2] + FIVE * (box[2:] - box[:2])))
        return found

    def embed(self, image_rgb, keypoints):
        x, y = np.round(keypoints[0]).astype(int)
        return image_rgb[y, x].astype(np.float32) / 255 - 0.5


ANALYSIS = FaceAnalysis("markers", Markers(), Markers())


def photo(seed=0, size=(200, 160), faces=((ANNA, (40, 50, 80)),), name=None, **rest):
    """Coloured noise with marked squares, (colour, (left, top, side)). Its squares carry a fine line, to be sharp."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 200, (*size, 3), np.uint8)
    pixels = np.kron(pixels[::8, ::8], np.ones((8, 8, 1), np.uint8))[: size[0], : size[1]]
    for colour, (left, top, side) in faces:
        pixels[top : top + side, left : left + side] = colour
        pixels[top + side // 2 : top + side // 2 + 2, left + 4 : left + side - 4] = 0
    return Photo(name or f"{seed}.png", pixels, **rest)


def person(**changes):
    return replace(DatasetSettings(DatasetKind.PERSON, "ohwx", resolution=64), **changes)


def build(photos, analysis=ANALYSIS, parser=None, identity=None, **changes):
    return build_dataset(photos, person(**changes), analysis, parser, identity)


def identity_of(colour):
    face = ANALYSIS.find(photo(faces=((colour, (40, 50, 80)),)).pixels)[0]
    return build_identity([photo().pixels], [face], "meant")


# --- what comes out


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(90, 300),
    width=st.integers(90, 300),
    resolution=st.integers(8, 20).map(lambda n: 8 * n),
    framing=st.sampled_from(Framing),
    kind=st.sampled_from(DatasetKind),
    has_face=st.booleans(),
)
def test_every_size_of_photo_becomes_an_example_on_the_grid(height, width, resolution, framing, kind, has_face):
    faces = ((ANNA, (width // 8, height // 8, 66)),) if has_face else ()
    made = build_dataset(
        [photo(size=(height, width), faces=faces)],
        DatasetSettings(kind, "ohwx", resolution=resolution, framing=framing, unfit=Unfit.KEEP),
        ANALYSIS,
    )
    [example], [sample] = made.examples(), made.pictures
    assert example.pixels.shape[0] == 3 and example.pixels.shape[1] % 8 == example.pixels.shape[2] % 8 == 0
    assert (
        example.pixels.dtype == torch.float32 and -1 <= float(example.pixels.min()) < float(example.pixels.max()) <= 1
    )
    assert example.face_mask is not None and example.face_mask.shape == (1, *example.size)
    assert float(example.face_mask.min()) >= 0 and float(example.face_mask.max()) <= 1
    assert bool(example.face_mask.any()) == has_face
    assert example.original_size == (height, width)
    if framing is not Framing.WHOLE:
        assert example.size == (resolution, resolution)
    if has_face:
        assert sample.keypoints is not None and example.face_mask is not None
        x, y = np.round(sample.keypoints[2]).astype(int)  # the nose is in the face
        assert example.face_mask[0, y, x] == 1


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(16, 400),
    width=st.integers(16, 400),
    box=st.tuples(*[st.floats(-60, 460) for _ in range(2)], *[st.floats(1, 300) for _ in range(2)]),
    framing=st.sampled_from(Framing),
)
def test_frames_stay_inside_the_photo_even_when_the_face_does_not(height, width, box, framing):
    x, y, w, h = box
    face = Face(np.array([x, y, x + w, y + h], np.float32), 0.9)
    frame = frame_of((height, width), face, person(framing=framing))
    assert frame.top >= 0 and frame.top + frame.height <= height
    assert frame.left >= 0 and frame.left + frame.width <= width
    assert frame.height >= 1 and frame.width >= 1


def test_the_face_is_where_its_keypoints_say_after_cropping():
    [sample] = build([photo(faces=((ANNA, (40, 50, 80)),))], resolution=128).pictures
    assert sample.keypoints is not None
    for x, y in np.round(sample.keypoints[[0, 1, 3, 4]]).astype(int):
        assert np.abs(sample.pixels[y, x].astype(int) - ANNA).max() < 12


def test_head_and_shoulders_is_closer_than_the_largest_square_and_keeps_the_proportions():
    wide = photo(size=(400, 600), faces=((ANNA, (400, 40, 64)),))
    by_framing = {framing: build([wide], framing=framing, resolution=192).pictures[0] for framing in Framing}
    shares = {framing: (sample.pixels == ANNA).all(-1).mean() for framing, sample in by_framing.items()}
    assert shares[Framing.HEAD] > 2 * shares[Framing.SQUARE] > 0
    assert by_framing[Framing.WHOLE].pixels.shape[:2] == (128, 256)  # about 192², in 2:3, on a grid of 64
    assert by_framing[Framing.SQUARE].crop == (0, 96)  # 200 of 600 pixels at 192/400, the face's side of the photo


def test_crop_ids_are_those_of_the_scaled_photo():
    assert Frame(100, 40, 256, 256, (512, 512)).scale == (2.0, 2.0)
    [sample] = build([photo(size=(128, 320), faces=((ANNA, (200, 20, 70)),))], framing=Framing.SQUARE).pictures
    assert sample.original_size == (128, 320)
    assert sample.crop == (0, round((235 - 64) / 2))


def test_captions_differ_and_all_hold_the_trigger_and_the_class_word():
    made = build([photo(seed) for seed in range(4)], class_word="woman", unfit=Unfit.KEEP)
    captions = [sample.caption for sample in made.pictures]
    assert len(set(captions)) == 4
    assert all("ohwx woman" in caption for caption in captions)
    assert len(set(person_templates("man"))) >= 8 and len(set(style_templates("man"))) >= 5


def test_own_templates_and_own_captions_come_first():
    two = [photo(1), photo(2, caption="{} in the rain")]
    made = build(two, templates=parse_templates("\n  a photo of a {}  person\n"), unfit=Unfit.KEEP)
    assert [s.caption for s in made.pictures] == ["a photo of a ohwx person", "ohwx in the rain"]


# --- whose face


def test_the_largest_face_is_taken_without_an_identity_and_the_meant_one_with_it():
    both = photo(size=(200, 300), faces=((ANNA, (10, 50, 70)), (BORIS, (180, 50, 100))))
    largest, meant = build([both]), build([both], identity=identity_of(ANNA))
    for made, colour in ((largest, BORIS), (meant, ANNA)):
        [sample] = made.pictures
        assert sample.mask is not None
        assert np.abs(np.median(sample.pixels[sample.mask > 127], 0) - colour).max() < 12
    assert "somebody else" not in largest.report()  # cropped away
    assert "another person is in the image" in build([both], framing=Framing.WHOLE, resolution=192).report()


def test_a_style_is_nobodys_face_so_all_faces_are_masked():
    both = photo(size=(200, 300), faces=((ANNA, (10, 50, 70)), (BORIS, (180, 50, 100))))
    style = DatasetSettings(DatasetKind.STYLE, "ohwx", resolution=192, framing=Framing.WHOLE)
    [of_style] = build_dataset([both], style, ANALYSIS).pictures
    [of_person] = build_dataset([both], replace(style, kind=DatasetKind.PERSON), ANALYSIS).pictures
    assert of_style.mask is not None and of_person.mask is not None
    left, right = np.array_split(of_style.mask > 127, 2, axis=1)
    assert left.any() and right.any()
    left, right = np.array_split(of_person.mask > 127, 2, axis=1)
    assert not left.any() and right.any()
    assert "in the style of ohwx" in of_style.caption


def test_an_identity_of_another_recogniser_is_refused():
    with pytest.raises(LikenessError, match="made by the recogniser another and these photos were analysed by markers"):
        build([photo()], identity=replace(identity_of(ANNA), recogniser="another"))


# --- what is refused


def bad_photos():
    flat = photo(7, name="blurred.png")
    pixels = flat.pixels.copy()
    pixels[(pixels == 0).all(-1)] = ANNA
    pixels[:] = np.where((pixels == ANNA).all(-1, keepdims=True), pixels, 90)
    return {
        "nobody.png: no face was found": photo(2, faces=(), name="nobody.png"),
        "small.png: its face is too small (20x20 pixels, 64 are needed)": photo(
            3, faces=((ANNA, (60, 60, 20)),), name="small.png"
        ),
        "copy.png: it is almost the same image as 0.png": Photo("copy.png", photo(0).pixels[:, ::-1].copy()),
        "blurred.png: it is blurred": Photo(flat.name, pixels),
        "tiny.png: it has only 9x9 pixels": Photo("tiny.png", np.zeros((9, 9, 3), np.uint8)),
    }


def test_a_face_is_judged_by_what_training_sees_of_it():
    far = photo(size=(1600, 1600), faces=((ANNA, (700, 700, 70)),))
    close, whole = build([far], resolution=512), build([far], resolution=512, framing=Framing.WHOLE, unfit=Unfit.KEEP)
    assert "used" in close.report() and not close.left_out
    assert "only 22x22 pixels of its face are left at this resolution (32 are needed)" in whole.report()
    with pytest.raises(LikenessError, match="'head and shoulders' crops closer"):
        build([far], resolution=512, framing=Framing.SQUARE)
    assert build([far], resolution=512, framing=Framing.SQUARE, smallest_face=0)


def test_a_mask_is_judged_by_what_is_left_of_it():
    mask = np.zeros((400, 800), np.uint8)
    mask[300:340, 700:740] = 255  # of somebody else, whom the crop leaves out
    one = photo(size=(400, 800), faces=((ANNA, (40, 50, 80)),), mask=mask)
    made = build([photo(1), one])
    assert [left.reasons for left in made.left_out] == [("its mask lies outside the crop around its face",)]
    build([photo(mask=np.zeros((200, 160), np.uint8))])  # nothing was painted, and nothing is lost
    grey = replace(made.pictures[0], mask=np.full_like(made.pictures[0].mask, 100))
    with pytest.raises(LikenessError, match=r"1\.png has no face mask"):
        replace(made, pictures=(grey,)).require_masks()


def test_repeats_are_shown_more_often_and_are_part_of_what_it_is_made_of():
    two = [photo(0, repeats=3), photo(1)]
    made = build(two)
    assert len(made) == 2 and len(made.examples()) == 4
    assert "0.png: used; shown 3 times as often as others" in made.report()
    assert fingerprint(two, person()) != fingerprint([photo(0), photo(1)], person())
    assert [example.name for example in made.examples()] == ["0.png"] * 3 + ["1.png"]
    once = replace(made, pictures=tuple(replace(sample, repeats=1) for sample in made.pictures))
    assert digest_of([made], MethodSettings()) != digest_of([once], MethodSettings()), (
        "a run with others is another run"
    )


@pytest.mark.parametrize("sentence", bad_photos())
def test_an_unfit_photo_is_left_out_with_its_reason(sentence):
    made = build([photo(0), bad_photos()[sentence]])
    assert [sample.name for sample in made.pictures] == ["0.png"]
    [left_out] = made.left_out
    name, _, reason = sentence.partition(": ")
    assert left_out.name == name and reason in "; ".join(left_out.reasons)
    assert f"{name}: left out, because {reason}" in made.report()


def test_stop_names_all_unfit_photos_in_one_sentence_and_keep_uses_them():
    bad = bad_photos()
    photos = [photo(0), *bad.values()]
    with pytest.raises(LikenessError) as refused:
        build(photos, unfit=Unfit.STOP)
    assert all(sentence in str(refused.value) for sentence in bad)
    assert "5 of 6 images are unfit" in str(refused.value)
    kept = build([photo(0), bad["nobody.png: no face was found"]], unfit=Unfit.KEEP)
    assert len(kept) == 2 and "unfit but kept: no face was found in it" in kept.report()
    with pytest.raises(LikenessError, match=r"nobody\.png has no face mask"):
        kept.require_masks()


def test_a_picture_that_cannot_be_read_is_reported_or_stops():
    sentence = "notes.png cannot be read as a picture"
    note = "notes.txt: not used, because no image has this name"
    report = build_dataset([photo()], person(), ANALYSIS, unreadable=[sentence], notes=[note]).report()
    assert sentence in report and note in report
    with pytest.raises(LikenessError, match="1 of 2 images are unfit"):
        build_dataset([photo()], person(unfit=Unfit.STOP), ANALYSIS, unreadable=[sentence])


def test_somebody_else_among_several_photos_is_left_out():
    three = [photo(seed, faces=((colour, (40, 50, 80)),)) for seed, colour in enumerate((ANNA, ANNA, BORIS))]
    made = build(three)
    assert [sample.name for sample in made.pictures] == ["0.png", "1.png"]
    assert "does not look like the others (cosine -1.00)" in made.report()


class Blind(Markers):
    """A second recogniser that takes everybody for Anna."""

    def embed(self, image_rgb, keypoints):
        return np.array([-0.5, 0.5, -0.5], np.float32)


SECOND = FaceAnalysis("second", Markers(), Markers("second"))
BLIND = FaceAnalysis("blind", Markers(), Blind("blind"))


@pytest.mark.parametrize("meant", [None, ANNA])
@pytest.mark.parametrize(("first", "second"), [(ANALYSIS, BLIND), (BLIND, ANALYSIS), (ANALYSIS, SECOND)])
def test_a_photo_is_used_only_if_it_shows_the_person_to_both_judges(first, second, meant):
    photos = [photo(0), photo(1), photo(2), photo(3, faces=((BORIS, (40, 50, 80)),))]
    identity = None
    if meant:
        face = first.find(photo().pixels)[0]
        identity = build_identity([photo().pixels], [face], "meant")
    made = build_dataset(photos, person(), first, identity=identity, second=second)
    [left_out] = made.left_out
    whom = "'meant'" if meant else "the others"
    doubts = [one.recogniser.name for one in (first, second) if one is not BLIND]
    assert left_out.name == "3.png"
    assert left_out.reasons[0].startswith(f"its face does not look like {whom} (cosine -")
    assert all(f"by {name}" in left_out.reasons[0] for name in doubts) and "by blind" not in left_out.reasons[0]
    assert any("by the second judge" in remark for remark in made.pictures[0].remarks)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (ANALYSIS, ANALYSIS, "is markers, as the first one: connect another one"),
        (ANALYSIS, FaceAnalysis("eyes only", Markers()), "has no recogniser: connect another one"),
        (FaceAnalysis("eyes only", Markers()), SECOND, "connect to 'face_analysis' an analysis with a recogniser"),
    ],
)
def test_a_second_judge_that_is_none_is_refused_in_one_sentence(first, second, words):
    with pytest.raises(LikenessError, match=words):
        build_dataset([photo()], person(), first, second=second)
    style = DatasetSettings(DatasetKind.STYLE, "ohwx", resolution=64)
    assert len(build_dataset([photo()], style, first, second=second)) == 1, "nobody is judged there"


def test_a_second_judge_makes_another_dataset():
    photos = [photo(0), photo(1)]
    assert fingerprint(photos, person(), ANALYSIS) != fingerprint(photos, person(), ANALYSIS, second=SECOND)


@pytest.mark.parametrize("colours", [(ANNA, BORIS), (ANNA, ANNA, BORIS, BORIS)])
def test_people_mixed_half_and_half_stop_unless_the_meant_one_is_given(colours):
    photos = [photo(seed, faces=((colour, (40, 50, 80)),)) for seed, colour in enumerate(colours)]
    with pytest.raises(LikenessError, match="The photos show different people"):
        build(photos)
    assert len(build(photos, unfit=Unfit.KEEP)) == len(photos)
    made = build(photos, identity=identity_of(BORIS))
    assert len(made) == colours.count(BORIS)
    assert "does not look like 'meant'" in made.report()


def test_one_picture_is_allowed_with_a_warning_and_two_without():
    assert "one image only" in build([photo()]).report()
    assert "one image only" not in build([photo(0), photo(1)]).report()


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(LikenessError, match="no image to train on"):
        build([])
    with pytest.raises(LikenessError, match=r"None of the 1 images is fit.*no face was found"):
        build([photo(faces=())])


def test_a_person_needs_somebody_to_look_for_faces_or_masks():
    with pytest.raises(LikenessError, match="without a face analysis: connect one, or put a mask"):
        build([photo()], analysis=None)
    mask = np.zeros((200, 160), np.uint8)
    mask[50:130, 40:120] = 255
    made = build([photo(mask=mask)], analysis=None)
    made.require_masks()
    assert made.pictures[0].keypoints is None
    assert 0.05 < (made.pictures[0].mask > 127).mean() < 0.5  # type: ignore[operator] - framed around the mask


def test_a_style_without_an_analysis_has_no_masks_and_says_so_when_they_are_needed():
    made = build_dataset([photo(), photo(1)], DatasetSettings(DatasetKind.STYLE, "ohwx", resolution=64))
    assert [example.face_mask for example in made.examples()] == [None, None]
    with pytest.raises(LikenessError, match="has no face mask, which this training needs"):
        made.require_masks()


@pytest.mark.parametrize("trigger", ["", "  ", "two words", "a{}"])
def test_a_trigger_is_one_word(trigger):
    with pytest.raises(LikenessError, match="is not one word"):
        person(trigger=trigger)


def test_a_trigger_is_not_the_class_word():
    with pytest.raises(LikenessError, match="'Woman' is the class word too"):
        person(trigger="Woman", class_word="old woman")


def test_a_trigger_is_renamed_where_it_is_a_word():
    assert renamed("OHWX and ohwxy, ohwx's", "ohwx", "<a>") == "<a> and ohwxy, <a>'s"


def test_captions_without_the_trigger_word_are_named():
    with pytest.raises(LikenessError, match=r"caption of 0\.png lacks the trigger word 'ohwx'"):
        build([photo(caption="a woman in the rain"), photo(1, caption="an Ohwx, smiling")])
    for caption in ("an ohwxy woman", "一张ohwx的照片"):  # other tokens than those of the word
        with pytest.raises(LikenessError, match="lacks the trigger word"):
            build([photo(caption=caption)])
    assert build([photo(caption="a photo of Zo\u00eb")], trigger="Zoe\u0308")


def test_templates_need_a_place_for_the_trigger_and_resolutions_the_grid():
    with pytest.raises(LikenessError, match=r"template 'a photo' has no \{\}"):
        parse_templates("a photo of {}\na photo")
    for resolution in (0, 60, 100):
        with pytest.raises(LikenessError, match="not a multiple of 8"):
            person(resolution=resolution)


# --- judging images


def test_sharpness_falls_with_blur_and_not_with_size():
    from PIL import Image, ImageFilter

    picture = Image.fromarray(photo().pixels)
    values = [sharpness(np.array(picture.filter(ImageFilter.GaussianBlur(sigma)))) for sigma in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True) and values[0] > 20 * values[3]
    large = np.array(picture.resize((1600, 2000), Image.Resampling.LANCZOS))
    assert sharpness(large) > values[1]
    assert sharpness(np.full((1, 1, 3), 9, np.uint8)) == 0


def test_copies_are_known_scaled_compressed_and_mirrored_and_others_are_not():
    import io

    from PIL import Image

    picture = Image.fromarray(photo(1).pixels)
    file = io.BytesIO()
    picture.resize((111, 133)).save(file, "JPEG", quality=60)
    with Image.open(file) as opened:
        small = np.array(opened)
    looks = Looks.of(photo(1).pixels)
    assert looks.is_copy_of(Looks.of(small))
    assert looks.is_copy_of(Looks.of(np.ascontiguousarray(small[:, ::-1])))
    assert not any(looks.is_copy_of(Looks.of(photo(seed).pixels), 1.0) for seed in range(2, 12))
    flat = [np.full((64, 64, 3), value, np.uint8) for value in (20, 200)]
    assert not Looks.of(flat[0]).is_copy_of(Looks.of(flat[1]))


# --- masks


def test_the_ellipse_holds_the_keypoints_and_turns_with_the_face():
    upright = Face(np.array([40, 50, 120, 130], np.float32), 0.9, 40 + FIVE * 80)
    turned = replace(upright, keypoints=np.stack([upright.keypoints[:, 1], 199 - upright.keypoints[:, 0]], 1))  # type: ignore[index]
    mask, turned_mask = ellipse_mask((200, 200), upright), ellipse_mask((200, 200), turned)
    assert all(mask[int(y), int(x)] == 255 for x, y in upright.keypoints)  # type: ignore[union-attr]
    assert (np.rot90(mask) == turned_mask).mean() > 0.99
    rows = np.flatnonzero(mask.any(1))
    assert rows[-1] - rows[0] > np.ptp(np.flatnonzero(mask.any(0)))  # higher than wide


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 80),
    width=st.integers(8, 80),
    left=st.floats(-60, 100),
    top=st.floats(-60, 100),
    side=st.floats(1, 120),
    turn=st.floats(0, 6.3),
)
def test_the_ellipse_is_the_same_wherever_the_photo_ends(height, width, left, top, side, turn):
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = (np.array([left, top]) + side * ((FIVE - 0.5) @ rotation.T + 0.5)).astype(np.float32)
    face = Face(np.array([left, top, left + side, top + side], np.float32), 0.9, points)
    far = replace(face, box=face.box + 400, keypoints=points + 400)
    assert np.array_equal(
        ellipse_mask((height, width), face), ellipse_mask((900, 900), far)[400:, 400:][:height, :width]
    )


def test_the_mask_of_a_large_photo_takes_little_memory():
    face = Face(np.array([3000, 2000, 3400, 2400], np.float32), 0.9, 3000 + FIVE * 400)
    tracemalloc.start()
    mask = ellipse_mask((5000, 5000), face)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert mask.any() and most < 3 * mask.nbytes


def test_the_ellipse_fits_drawn_faces():
    people = pytest.importorskip("likeness.miniature.drawing.people")
    from likeness.miniature.drawing.renderer import render
    from likeness.miniature.drawing.shots import draw_shots

    drawn = render(people.split_people("test", 12), draw_shots(range(12)), size=128)
    overlaps = []
    for face, points, box in zip(drawn.face, drawn.keypoints, drawn.boxes, strict=True):
        mask = ellipse_mask((128, 128), Face(box.numpy(), 1.0, points.numpy())) > 0
        truth = face.numpy() > 0.5
        overlaps.append((mask & truth).sum() / (mask | truth).sum())
    assert np.mean(overlaps) > 0.6


class OneParser:
    """Stands in for a parsing network: skin on the upper half of the crop, or nothing."""

    name, licence = "stub", "none"

    def __init__(self, part):
        self.part = part

    def parse_crops(self, crops):
        labels = torch.zeros(crops.shape[:3], dtype=torch.uint8)
        labels[:, : crops.shape[1] // 2] = self.part
        return labels


def test_a_parser_makes_the_mask_and_an_ellipse_stands_in_where_it_sees_nothing():
    from likeness.faces import Part

    parsed, ellipse = (build([photo()], parser=OneParser(part), resolution=128) for part in (Part.SKIN, Part.HAIR))  # type: ignore[arg-type]
    plain = build([photo()], resolution=128)
    assert np.array_equal(ellipse.pictures[0].mask, plain.pictures[0].mask)  # type: ignore[arg-type]
    assert "its mask is an ellipse" in ellipse.report()
    assert not np.array_equal(parsed.pictures[0].mask, plain.pictures[0].mask)  # type: ignore[arg-type]


# --- looking at it, and knowing it again


def test_the_sheet_shows_every_picture_with_its_verdict():
    made = build([photo(seed) for seed in range(3)] + [photo(9, faces=())])
    page = sheet(made)
    assert page.dtype == np.uint8 and page.ndim == 3
    smaller = sheet(replace(made, left_out=()))
    assert page.shape != smaller.shape  # the photo that was left out is on it
    unmasked = replace(made, pictures=tuple(replace(sample, mask=None) for sample in made.pictures))
    assert not np.array_equal(sheet(unmasked), page)
    assert sheet(build([photo(seed) for seed in range(70)], unfit=Unfit.KEEP)).shape[0] < 8000


def test_the_fingerprint_follows_photos_captions_masks_and_settings():
    photos = [photo(0), photo(1)]
    base = fingerprint(photos, person(), ANALYSIS)
    assert fingerprint([photo(0), photo(1)], person(), ANALYSIS) == base
    mask = np.zeros((200, 160), np.uint8)
    others = [
        fingerprint(photos[:1], person(), ANALYSIS),
        fingerprint([photo(0), photo(1, caption="{}")], person(), ANALYSIS),
        fingerprint([photo(0), photo(1, mask=mask)], person(), ANALYSIS),
        fingerprint(photos, person(trigger="sks"), ANALYSIS),
        fingerprint(photos, person(), None),
        fingerprint(photos, person(), ANALYSIS, identity=identity_of(ANNA)),
    ]
    assert len({base, *others}) == len(others) + 1
