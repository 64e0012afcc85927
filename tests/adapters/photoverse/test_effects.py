"""PhotoVerse outside of ComfyUI: transformers' encoders and a diffusers UNet, by the same effects."""

from __future__ import annotations

from typing import Any

import comfyui
import pytest
import torch
from helpers import photoverse as made
from helpers.small_world import person

from likeness.adapters.clip_vision import TransformersClipEncoder
from likeness.adapters.effects import AttentionTerm, PromptEdit, PromptStates, Scope, WeightDelta
from likeness.adapters.photoverse import PhotoVerse, PhotoVerseOptions, Unconditioned, load
from likeness.adapters.photoverse.face import FaceMask
from likeness.adapters.system import Request, WeightFile
from likeness.adapters.text_encoder import TransformersTextEncoder
from likeness.errors import LikenessError
from likeness.injection.diffusers import apply_effects
from likeness.injection.plan import layout_of
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet

WIDTH, DIM = 24, 24
PLAIN = PhotoVerseOptions(mask=FaceMask.NONE)


@pytest.fixture(scope="module")
def unet() -> Any:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
        cross_attention_dim=DIM, attention_head_dim=4, norm_num_groups=8,
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def reader() -> TransformersTextEncoder:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    host = comfyui.find()
    if host is None:
        pytest.skip(f"the vocabulary of CLIP {comfyui.HOW_TO_GET_IT}")
    torch.manual_seed(1)
    tokenizer = CLIPTokenizer.from_pretrained(host / "comfy" / "sd1_tokenizer")
    model = CLIPTextModel(
        CLIPTextConfig(hidden_size=DIM, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    )
    return TransformersTextEncoder([("clip_l", tokenizer, model)])


@pytest.fixture(scope="module")
def clip() -> TransformersClipEncoder:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(2)
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=17, num_attention_heads=4, image_size=32,
        patch_size=16, projection_dim=8,
    )  # fmt: skip
    return TransformersClipEncoder(CLIPVisionModelWithProjection(config))


@pytest.fixture(scope="module")
def adapter(unet) -> PhotoVerse:
    sites = sites_of_diffusers_unet(unet)
    shapes, paths = [(s.width, s.context_dim) for s in sites], [s.diffusers_path for s in sites]
    return load(WeightFile("face.safetensors", made.unofficial(shapes, width=WIDTH, paths=paths)))


@pytest.fixture
def ask(unet, reader, clip):
    def request(options: PhotoVerseOptions = PLAIN, **given: Any) -> Request:
        sites = sites_of_diffusers_unet(unet)
        usual: dict[str, Any] = {
            "identity": person(), "encoder": clip, "text": "a photo of S*, laughing", "text_encoder": reader,
        }  # fmt: skip
        return Request(layout_of(sites), diffusers_layers(sites), options=options, **{**usual, **given})

    return request


def answer(unet: Any, effects: Any, text: torch.Tensor) -> torch.Tensor:
    """Both halves, the unconditioned one first."""
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)).repeat(2, 1, 1, 1)
    with torch.no_grad(), apply_effects(unet, effects):
        return unet(z, 300, text).sample


@pytest.fixture
def text(reader) -> torch.Tensor:
    from likeness.adapters.text_encoder import encode_tokens

    states = [encode_tokens(reader, reader.tokenize(words)).states for words in ("", "a photo of person, laughing")]
    return torch.cat(states)


def test_a_request_becomes_words_a_branch_and_a_change_of_weights(adapter, ask):
    plain, words, term, change = adapter.effects(ask())
    assert isinstance(plain, PromptEdit) and isinstance(words, PromptEdit) and isinstance(term, AttentionTerm)
    assert isinstance(change, WeightDelta) and len(change.changes) == 2 * len(adapter.site_shapes)
    assert term.merge is None and term.tokens.cond.shape == (1, 1, DIM) and not term.tokens.uncond.any()


def test_the_face_changes_the_conditioned_half_alone(adapter, ask, unet, text):
    effects = [effect for effect in adapter.effects(ask()) if not isinstance(effect, WeightDelta)]
    found, bare = answer(unet, effects, text), answer(unet, [], text)
    assert torch.allclose(found[0], bare[0], atol=1e-6) and not torch.allclose(found[1], bare[1], atol=1e-3)
    gamma = adapter.effects(ask(PhotoVerseOptions(gamma=0.5, sigma=1.5, mask=FaceMask.NONE)))
    weighed = answer(unet, [effect for effect in gamma if not isinstance(effect, WeightDelta)], text)
    assert torch.allclose(weighed[0], bare[0], atol=1e-6) and not torch.allclose(weighed[1], found[1], atol=1e-3)


def test_an_empty_image_is_what_the_unofficial_code_gives_the_unconditioned_half(adapter, ask, clip):
    options = PhotoVerseOptions(mask=FaceMask.NONE, unconditioned=Unconditioned.ZERO_IMAGE)
    [term] = [effect for effect in adapter.effects(ask(options)) if isinstance(effect, AttentionTerm)]
    states = clip.hidden_states(torch.zeros(1, 3, 32, 32), [-1])
    assert adapter.image_adapter is not None
    assert torch.allclose(term.tokens.uncond, adapter.image_adapter(states), atol=1e-6)


def test_two_people_share_one_softmax_in_any_order(adapter, ask, unet, text):
    ann, ben = person(seed=1), person(seed=2)
    there = adapter.effects(ask(identity=ann, others=(ben,), text="a* and b*", trigger_words=("a*", "b*")))
    back = adapter.effects(ask(identity=ben, others=(ann,), text="a* and b*", trigger_words=("b*", "a*")))
    [term] = [effect for effect in there if isinstance(effect, AttentionTerm)]
    assert term.tokens.cond.shape == (1, 2, DIM)
    assert torch.allclose(answer(unet, there, text), answer(unet, back, text), atol=1e-5)


def test_strength_goes_from_the_class_word_through_the_person(adapter, ask):
    nothing = PromptStates(torch.zeros(1, 1, 1))

    def words(strength: float) -> torch.Tensor:
        edits = [effect for effect in adapter.effects(ask(strength=strength)) if isinstance(effect, PromptEdit)]
        return edits[-1].edit(nothing).states

    none, half, whole = words(0.0), words(0.5), words(1.0)
    assert torch.allclose(half, (none + whole) / 2, atol=1e-5) and not torch.allclose(none, whole)
    for quiet in ({"strength": 0.0}, {"scope": Scope(0.5, 0.5)}):
        effects = adapter.effects(ask(**quiet))
        assert not any(isinstance(effect, AttentionTerm) for effect in effects)
        assert all(effect.why_never for effect in effects if isinstance(effect, WeightDelta))


def test_more_words_than_a_window_holds_are_left_out_and_told_of(adapter, ask, reader, monkeypatch):
    from dataclasses import replace

    small = [replace(tower, length=5) for tower in reader.towers]
    monkeypatch.setattr(type(reader), "towers", property(lambda self: tuple(small)))
    request = ask(PhotoVerseOptions(words=5, mask=FaceMask.NONE), text="S*")
    assert any("5 words and the prompt has room for 3" in note for note in adapter.notes(request))


def test_layers_are_counted_alike(clip):
    """The output of layer n; the last one, without a norm."""
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    last, before, sixteenth = clip.hidden_states(pixels, [-1, 16, 17])
    assert torch.equal(last, sixteenth) and torch.allclose(before, clip.encode_pixels(pixels).penultimate)
    with pytest.raises(LikenessError, match="layer 18 of the CLIP vision model, which has 17"):
        clip.hidden_states(pixels, [18])
