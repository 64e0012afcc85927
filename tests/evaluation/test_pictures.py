"""Prompts, similarity of images and quality, with encoders that read colours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from likeness.evaluation.prompts import (
    attributes,
    clip_t,
    forget,
    plain_text,
)
from likeness.evaluation.quality import crop_sharpness, sane
from likeness.evaluation.similarity import (
    aligned_faces,
    diversity,
    keep_base,
    masked_clip,
    style_gain,
    without_faces,
)
from likeness.faces import Face
from likeness.faces.align import arcface_template

WORDS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}


class ColourClip:
    """An image is its mean colour, a text the sum of the colours it names."""

    def encode_images(self, images):
        return images.mean((1, 2))

    def encode_texts(self, texts):
        return torch.tensor(
            [np.sum([WORDS[w] for w in WORDS if w in text] or [(1, 1, 1)], 0) for text in texts]
        ).float()

    def count_tokens(self, text):
        return len(text.split()) + 2


CLIP = ColourClip()


def _flat(*colours):
    return torch.tensor(colours).float().reshape(-1, 1, 1, 3).expand(-1, 8, 8, 3)


RED, GREEN, GREY = (1.0, 0, 0), (0, 1.0, 0), (0.5, 0.5, 0.5)


def test_clip_t_is_the_cosine_of_picture_and_text():
    cosines = clip_t(_flat(RED, RED, GREY), ["a red hat", "a green hat", "red and blue"], CLIP)
    np.testing.assert_allclose(cosines, [1, 0, np.sqrt(2 / 3)], atol=1e-6)
    assert clip_t(torch.zeros(0, 8, 8, 3), [], CLIP).shape == (0,)
    with pytest.raises(ValueError, match="1 images and 2 texts"):
        clip_t(_flat(RED), ["a", "b"], CLIP)


def test_a_long_prompt_is_the_mean_of_its_sentences():
    padding = "very " * 80
    cosines = clip_t(_flat(RED), [f"A {padding}red hat. A green coat."], CLIP)
    assert float(cosines) == pytest.approx(0.5)
    assert float(clip_t(_flat(RED), ["A red hat. A green coat."], CLIP)) == pytest.approx(np.sqrt(0.5))


def test_the_placeholder_becomes_a_word_that_clip_knows():
    assert plain_text("a photo of <ann>, not of <anna>", "<ann>", "a woman") == "a photo of a woman, not of <anna>"
    assert plain_text("sks, masks", "sks", "person") == "person, masks"
    assert plain_text("a photo", "", "person") == "a photo"


def test_attributes_are_a_share_of_what_was_asked():
    def classifier(images):
        return [{"hat": "red", "glasses": "none"} for _ in images]

    wanted = [{"hat": "red", "glasses": "round"}, {"hat": "red"}, {}, {"beard": "long"}]
    np.testing.assert_allclose(attributes(_flat(*[RED] * 4), wanted, classifier), [0.5, 1, np.nan, 0])


def test_what_a_trained_model_has_forgotten_of_everybody_else():
    def classifier(images):
        return [{"hat": "red" if image[0, 0, 0] > 0.5 else "none"} for image in images]

    wanted = [{"hat": "red"}, {"hat": "red"}, {}]
    base, trained = _flat(RED, RED, GREEN), _flat(RED, GREEN, GREEN)
    nothing = forget(base, base, wanted, classifier, CLIP.encode_images)
    assert nothing.attributes == 0 and nothing.clip_i == pytest.approx(0, abs=1e-6)
    something = forget(trained, base, wanted, classifier, CLIP.encode_images)
    assert something.attributes == pytest.approx(0.5) and something.clip_i == pytest.approx(1 / 3)
    assert np.isnan(forget(base[:0], base[:0], [], classifier, CLIP.encode_images).clip_i)


# --- similarity


def test_the_face_does_not_count_for_style():
    image, reference = _flat(RED).clone(), _flat(RED).clone()
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:6, 2:6] = 1
    image[:, 2:6, 2:6] = torch.tensor(GREEN)
    encoder = CLIP.encode_images
    assert float(masked_clip(image, reference, mask, mask, encoder)) == pytest.approx(1)
    assert float(masked_clip(image, reference, 0 * mask, 0 * mask, encoder)) < 0.99
    assert torch.equal(without_faces(image, mask)[0, 3, 3], torch.tensor(GREY))


def test_style_is_a_difference():
    np.testing.assert_allclose(style_gain(torch.tensor([0.8]), torch.tensor([[0.5, 0.7]])), [0.2], atol=1e-6)


def test_an_undisturbed_base_is_kept():
    mask = torch.zeros(2, 8, 8)
    kept = keep_base(_flat(RED, GREEN), _flat(RED, RED), mask, CLIP.encode_images)
    np.testing.assert_allclose(kept, [1, 0], atol=1e-6)


def test_diversity_is_the_mean_distance_of_pairs():
    assert diversity(_flat(RED, RED, RED), CLIP.encode_images) == pytest.approx(0, abs=1e-6)
    assert diversity(_flat(RED, GREEN, RED), CLIP.encode_images) == pytest.approx(2 / 3, abs=1e-6)
    assert np.isnan(diversity(_flat(RED), CLIP.encode_images))


def test_aligned_faces_leave_out_who_has_no_keypoints():
    photo = np.full((112, 112, 3), 200, np.uint8)
    face = Face(box=np.zeros(4), score=1.0, keypoints=arcface_template(112).astype(np.float32))
    assert aligned_faces([photo, photo], [face, None]).shape == (1, 112, 112, 3)
    assert aligned_faces([photo], [None]).shape == (0, 112, 112, 3)


# --- quality


def test_what_is_no_picture_is_told():
    images = torch.rand(4, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    images[1] = 0
    images[2] = 0.7
    images[3, 0, 0, 0] = torch.nan
    assert sane(images).tolist() == [True, False, False, False]


def test_a_blurred_face_is_less_sharp():
    sharp = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    planes = sharp.permute(0, 3, 1, 2)
    blurred = torch.nn.functional.avg_pool2d(planes, 3, 1, 1).permute(0, 2, 3, 1)
    assert float(crop_sharpness(blurred)) < 0.2 * float(crop_sharpness(sharp))
    assert float(crop_sharpness(torch.full((1, 8, 8, 3), 0.3))) == pytest.approx(0, abs=1e-12)
