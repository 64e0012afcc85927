"""What each adapter is shown of a person: which crops, which embeddings, joined how; and what is said when it is not
there."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.adapters import Evidence, IPAdapter, SiteWeight, build
from likeness.adapters.clip_vision import PUBLISHED, ClipFeatures, EncoderSize, Unconditional
from likeness.adapters.image_prep import Crop, pixel_values
from likeness.adapters.ip_adapter.embeds import CombineMode, ImageEmbeds
from likeness.adapters.ip_adapter.reference import Reference, ReferenceOptions, references, unused_inputs
from likeness.adapters.ip_adapter.weight_types import SD15, TransformerLayout, WeightType
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.faces.similarity import unit

VIT_H_SMALL = EncoderSize(1280, 1024, 32)  # ViT-H's widths, but small images


class StandInEncoder:
    """A class token and 2 x 2 patches: the mean colours, through fixed matrices. Keeps the pixels it was shown."""

    def __init__(self, size: EncoderSize = VIT_H_SMALL) -> None:
        self._size = size
        self.shown: list[Tensor] = []
        generator = torch.Generator().manual_seed(3)
        self.to_hidden = torch.randn(3, size.hidden, generator=generator)
        self.to_embed = torch.randn(3, size.embed, generator=generator)

    @property
    def size(self) -> EncoderSize:
        return self._size

    def encode_pixels(self, pixels: Tensor) -> ClipFeatures:
        self.shown.append(pixels)
        patches = torch.nn.functional.adaptive_avg_pool2d(pixels, 2).flatten(2).transpose(1, 2)
        colours = torch.cat([patches.mean(1, keepdim=True), patches], dim=1) + 0.1
        return ClipFeatures(colours[:, 0] @ self.to_embed, colours @ self.to_hidden)


def person(
    photos: int = 3, *, recogniser: str | None = "buffalo_l", dim: int = 512, keypoints: bool = True
) -> Identity:
    """Photos of one person with embeddings of different lengths and crops that can be told apart."""
    generator = torch.Generator().manual_seed(photos)
    dim = dim if recogniser else 0
    raw = torch.randn(photos, dim, generator=generator) * torch.arange(1, photos + 1).unsqueeze(1)
    points = photos if keypoints else 0

    def crops(count: int, side: int) -> Tensor:
        return torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)

    return Identity(
        name="Ada", recogniser=recogniser, embeddings=raw, weights=torch.ones(photos),
        aligned=crops(points, 224), portraits=crops(points, 512), heads=crops(photos, 512),
        keypoints=torch.zeros(points, 5, 2), boxes=torch.zeros(photos, 4),
        photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip


def pictures(count: int, height: int = 40, width: int = 40, seed: int = 1) -> Tensor:
    return torch.rand(count, height, width, 3, generator=torch.Generator().manual_seed(seed))


class Shown:
    """Runs `references` and keeps what the adapter was given."""

    def __init__(self, adapter: IPAdapter, identity: Identity | None = None, encoder: Any = None) -> None:
        self.adapter, self.identity, self.encoder = adapter, identity, encoder
        self.evidence: list[Evidence] = []
        self.structure: list[float] = []

    def __call__(self, weight: float = 1.0, layout: TransformerLayout = SD15, **options: Any) -> list[Reference]:
        self.evidence.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.adapter, "encode", partial(self._encode, self.adapter.encode))
            return references(self.adapter, self.identity, self.encoder, ReferenceOptions(**options), layout, weight)

    def _encode(self, encode: Any, evidence: Evidence, structure: float) -> Any:
        self.evidence.append(evidence)
        self.structure.append(structure)
        return encode(evidence, structure)

    @property
    def ids(self) -> Tensor:
        [evidence] = self.evidence
        assert evidence.id_embeds is not None
        return evidence.id_embeds

    @property
    def features(self) -> Tensor:
        [evidence] = self.evidence
        assert evidence.features is not None
        return evidence.features


MAKERS = {
    "base": lambda o: o.pooled(768),
    "plus": lambda o: o.resampler(768, dim=64, depth=1, tokens=4),
    "faceid": lambda o: o.identity(768),
    "faceid-plus": lambda o: o.identity_plus(768, depth=1),
    "portrait": lambda o: o.identity(768, 16),
    "unnorm": lambda o: o.resampler(768, 512, dim=64, depth=1),
}


@cache
def adapter(official: Any, kind: str) -> IPAdapter:
    return build(official.flat(official.groups(MAKERS[kind](official), official.SD15)), f"{kind}.bin")


@pytest.fixture
def show(official):
    """show(kind, identity, encoder) -> Shown; the encoder is a stand-in unless told."""

    def make(kind: str, identity: Identity | None = None, encoder: Any = "stand-in") -> Shown:
        return Shown(adapter(official, kind), identity, StandInEncoder() if encoder == "stand-in" else encoder)

    return make


def sentence(call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments, **options)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# What is shown --------------------------------------------------------------------------------------------------------


def test_faceid_reads_the_mean_direction_as_a_unit_vector(show):
    ada = person()
    faceid = show("faceid", ada, None)
    [reference] = faceid()
    expected = unit(unit(ada.embeddings).mean(0, keepdim=True))
    torch.testing.assert_close(faceid.ids, expected)
    torch.testing.assert_close(faceid.ids.norm(), torch.tensor(1.0))
    assert reference.tokens.cond.shape == reference.tokens.uncond.shape == (1, 4, 768)


def test_portrait_reads_every_photo_and_shares_one_softmax(show):
    ada = person(3)
    portrait = show("portrait", ada, None)
    [reference] = portrait()
    torch.testing.assert_close(portrait.ids, unit(ada.embeddings))
    assert reference.tokens.cond.shape == (1, 3 * 16, 768)
    assert reference.tokens.uncond.shape == (1, 16, 768), "copies of the empty encoding say nothing new"


def test_unnorm_reads_the_recogniser_s_raw_output(show):
    ada = person(2)
    unnorm = show("unnorm", ada, None)
    [reference] = unnorm()
    assert torch.equal(unnorm.ids, ada.embeddings)
    assert reference.tokens.cond.shape == (1, 2 * 16, 768)


def test_plus_looks_at_head_crops(show):
    ada = person(2)
    plus = show("plus", ada)
    [reference] = plus()
    torch.testing.assert_close(plus.encoder.shown[0], pixel_values(ada.heads.float() / 255, 32))
    assert plus.features.shape == (2, 5, 1280)
    assert reference.tokens.cond.shape == (1, 2 * 4, 768)
    assert reference.tokens.uncond.shape == (1, 4, 768)


def test_faceid_plus_looks_at_aligned_crops_and_reads_the_mean_beside_them(show):
    ada = person(2)
    plus = show("faceid-plus", ada)
    [reference] = plus()
    torch.testing.assert_close(plus.encoder.shown[0], pixel_values(ada.aligned.float() / 255, 32))
    torch.testing.assert_close(plus.ids, ada.mean_embedding().expand(2, -1))
    assert reference.tokens.cond.shape == (1, 2 * 4, 768)


def test_pictures_take_the_place_of_the_crops(show):
    plus = show("plus", person())
    plus(images=pictures(1))
    torch.testing.assert_close(plus.encoder.shown[0], pixel_values(pictures(1), 32))
    nobody = show("base")
    [reference] = nobody(images=pictures(2))
    assert nobody.features.shape == (2, 1024)
    assert reference.tokens.cond.shape == (1, 8, 768)


@pytest.mark.parametrize("channels", [1, 4], ids=["grey", "with alpha"])
def test_grey_pictures_and_ones_with_alpha_are_read(show, channels):
    plus = show("plus")
    picture = torch.rand(1, 20, 20, channels)
    [reference] = plus(images=picture)
    alpha = picture[..., 3:] if channels == 4 else 1.0
    rgb = picture[..., :3].expand(-1, -1, -1, 3) * alpha + 0.5 * (1 - alpha)
    torch.testing.assert_close(plus.encoder.shown[0], pixel_values(rgb, 32))
    assert reference.tokens.cond.isfinite().all()


def test_structure_reaches_the_adapter(show):
    plus = show("faceid-plus", person(1))
    plus(structure=0.3)
    assert plus.structure == [0.3]


def test_crop_and_sharpening_reach_the_encoder(show):
    plus, wide = show("plus"), pictures(1, 20, 60)
    plus(images=wide, crop=Crop.LEFT, sharpening=0.5)
    torch.testing.assert_close(plus.encoder.shown[0], pixel_values(wide, 32, Crop.LEFT, 0.5))


# The unconditioned half -----------------------------------------------------------------------------------------------


def test_plus_is_unconditioned_by_zero_pixels_and_the_base_by_zeros(show):
    plus = show("plus")
    plus(images=pictures(1))
    assert plus.encoder.shown[-1].count_nonzero() == 0
    base = show("base")
    base(images=pictures(1))
    assert len(base.encoder.shown) == 1, "zeros need no encoder"
    assert base.evidence[0].uncond_features is None


def test_a_black_image_can_be_chosen_instead(show):
    plus = show("plus")
    plus(images=pictures(1), unconditional=Unconditional.BLACK_IMAGE)
    torch.testing.assert_close(plus.encoder.shown[-1], pixel_values(torch.zeros(1, 32, 32, 3), 32))


@pytest.mark.parametrize("kind", ["plus", "base", "faceid-plus"])
def test_a_negative_picture_is_shown_for_the_unconditioned_half(show, kind):
    with_negative = show(kind, person(2))
    [reference] = with_negative(images=pictures(1), negative=pictures(2, seed=9))
    torch.testing.assert_close(with_negative.encoder.shown[-1], pixel_values(pictures(2, seed=9), 32))
    [plain] = show(kind, person(2))(images=pictures(1))
    assert torch.equal(reference.tokens.cond, plain.tokens.cond)
    assert not torch.allclose(reference.tokens.uncond, plain.tokens.uncond, atol=1e-3)


@pytest.mark.parametrize("kind", ["faceid", "portrait", "unnorm"])
def test_pictures_do_no_harm_to_adapters_that_read_none(show, kind):
    """Another pack stops with a traceback at a negative image for FaceID."""
    options = {
        "images": pictures(1), "negative": pictures(1), "composition_images": pictures(2), "tiled": True,
        "detail_tiles": 2, "reference_mask": torch.ones(3, 8, 8),
        "embeds": ImageEmbeds(torch.rand(1, 7)),
    }  # fmt: skip
    [reference] = show(kind, person(2), None)(**options)
    [plain] = show(kind, person(2), None)()
    assert torch.equal(reference.tokens.cond, plain.tokens.cond)
    assert reference.site_weights == plain.site_weights and reference.mask is None


def test_options_without_effect_are_named(official):
    options = ReferenceOptions(negative=pictures(1), tiled=True)
    assert unused_inputs(adapter(official, "faceid"), options) == ["image_negative", "tiled"]
    assert unused_inputs(adapter(official, "plus"), options) == []
    assert unused_inputs(adapter(official, "faceid"), ReferenceOptions()) == []


# Several photos -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", CombineMode)
def test_photos_combine_before_the_projection(show, mode):
    plus = show("plus")
    rows = show("plus")
    rows(images=pictures(3))
    [reference] = plus(images=pictures(3), combine=mode)
    expected = {
        CombineMode.CONCAT: rows.features,
        CombineMode.ADD: rows.features.sum(0, keepdim=True),
        CombineMode.SUBTRACT: rows.features[:1] - rows.features[1:].mean(0, keepdim=True),
        CombineMode.AVERAGE: rows.features.mean(0, keepdim=True),
        CombineMode.NORM_AVERAGE: (rows.features / rows.features.norm(dim=0)).mean(0, keepdim=True),
        CombineMode.MAX: rows.features.amax(0, keepdim=True),
        CombineMode.MIN: rows.features.amin(0, keepdim=True),
    }[mode]
    torch.testing.assert_close(plus.features, expected)
    assert reference.tokens.cond.shape == (1, 4 * len(expected), 768)


@pytest.mark.parametrize("mode", CombineMode)
@pytest.mark.parametrize("kind", ["faceid", "portrait", "unnorm", "faceid-plus"])
def test_embeddings_combine_in_every_mode(show, kind, mode):
    adapter_ = show(kind, person(3))
    [reference] = adapter_(combine=mode)
    rows = 3 if mode is CombineMode.CONCAT else 1
    assert adapter_.ids.shape == (rows, 512)
    assert reference.tokens.cond.isfinite().all()
    if mode is CombineMode.CONCAT:
        whole = person(3).embeddings if kind == "unnorm" else unit(person(3).embeddings)
        torch.testing.assert_close(adapter_.ids, whole)


@pytest.mark.parametrize("mode", [CombineMode.AVERAGE, CombineMode.NORM_AVERAGE])
def test_averages_of_unit_vectors_stay_unit_vectors(show, mode):
    faceid = show("faceid", person(3), None)
    faceid(combine=mode)
    torch.testing.assert_close(faceid.ids.norm(dim=-1), torch.ones(1))


def test_the_weights_of_the_photos_count(show):
    ada = replace(person(2), weights=torch.tensor([1.0, 0.0]))
    faceid = show("faceid", ada, None)
    faceid()
    torch.testing.assert_close(faceid.ids, unit(ada.embeddings[:1]))


def test_as_many_embeddings_as_pictures_when_they_are_not_the_identity_s_own(show):
    plus = show("faceid-plus", person(3))
    for mode in (None, CombineMode.CONCAT):
        [reference] = plus(images=pictures(2), combine=mode)
        assert plus.ids.shape == (2, 512) and plus.features.shape == (2, 5, 1280)
        torch.testing.assert_close(plus.ids, person(3).mean_embedding().expand(2, -1))
        assert reference.tokens.cond.shape == (1, 8, 768)


# Unfolding ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tokens"), [("plus", 4), ("base", 4), ("faceid", 4), ("portrait", 16), ("faceid-plus", 4)]
)
def test_unfolded_pictures_have_a_row_each(show, kind, tokens):
    ada = person(3)
    given = {"images": pictures(3)} if kind == "base" else {}
    unfolded = show(kind, ada)
    [reference] = unfolded(one_picture_each=True, **given)
    assert reference.tokens.cond.shape == (3, tokens, 768)
    assert not torch.allclose(reference.tokens.cond[0], reference.tokens.cond[1], atol=1e-3)
    if unfolded.adapter.needs_embedding:
        torch.testing.assert_close(unfolded.ids, unit(ada.embeddings))


def test_unfolded_pictures_of_another_number_share_the_mean_embedding(show):
    plus = show("faceid-plus", person(3))
    [reference] = plus(images=pictures(2), one_picture_each=True)
    torch.testing.assert_close(plus.ids, person(3).mean_embedding().expand(2, -1))
    assert reference.tokens.cond.shape == (2, 4, 768)


def test_unfolding_leaves_combining_aside(show):
    [reference] = show("plus")(images=pictures(3), one_picture_each=True, combine=CombineMode.AVERAGE)
    assert reference.tokens.cond.shape == (3, 4, 768)


def test_weights_per_picture_travel_with_every_reference(show):
    [reference] = show("plus")(images=pictures(1), picture_weights=(1.0, 0.5))
    assert reference.row_weights == (1.0, 0.5)
    assert show("plus")(images=pictures(1))[0].row_weights is None


# Where it is heard ----------------------------------------------------------------------------------------------------


def strengths(reference: Reference) -> list[float]:
    return [site.strength for site in reference.site_weights]


def test_the_weight_is_spread_by_type_and_by_hand(show):
    [plain] = show("base")(0.7, images=pictures(1))
    assert plain.site_weights == (SiteWeight(0.7),) * 16
    [by_hand] = show("base")(0.5, images=pictures(1), layer_weights="5:2, middle:1", weight_type=WeightType.EASE_IN)
    assert strengths(by_hand) == [1.0 if i == 5 else 0.5 if i == 6 else 0 for i in range(16)]
    [style] = show("base")(1.0, images=pictures(1), weight_type=WeightType.STYLE_TRANSFER_PRECISE, style_boost=2.0)
    assert {i for i, site in enumerate(style.site_weights) if site.swapped} == {4, 5}


def test_style_and_composition_are_two_references_that_share_no_site(show):
    shown = show("plus")
    style, composition = shown(
        0.8, images=pictures(1, seed=1), composition_images=pictures(1, seed=2), composition_weight=0.4
    )
    assert [bool(a) for a in strengths(style)] != [bool(b) for b in strengths(composition)]
    assert not any(a and b for a, b in zip(strengths(style), strengths(composition), strict=True))
    assert max(strengths(style)) == pytest.approx(0.8) and max(strengths(composition)) == pytest.approx(0.4)
    first, second = (e.features for e in shown.evidence)
    assert first is not None and second is not None and not torch.allclose(first, second)
    torch.testing.assert_close(shown.encoder.shown[0], pixel_values(pictures(1, seed=1), 32))


def test_the_style_can_take_every_site_the_composition_leaves(show):
    style, composition = show("plus")(1.0, images=pictures(1), composition_images=pictures(1), expand_style=True)
    heard = [bool(a) or bool(b) for a, b in zip(strengths(style), strengths(composition), strict=True)]
    assert all(heard)


def test_the_reference_mask_is_for_the_reference_and_not_for_the_composition(show):
    shown, mask = show("plus"), torch.zeros(1, 40, 40)
    mask[:, :, :20] = 1
    shown(images=pictures(1), composition_images=pictures(1, seed=2), reference_mask=mask)
    expected = [pixel_values(pictures(1), 32, mask=mask), pixel_values(pictures(1, seed=2), 32)]
    pixels = [p for p in shown.encoder.shown if p.count_nonzero()]  # without those that stand for no image
    torch.testing.assert_close(torch.cat(pixels), torch.cat(expected))


@pytest.mark.parametrize(("height", "width", "count"), [(40, 40, 4), (20, 60, 3)])
def test_tiles_are_references_of_their_own_that_fill_the_picture_together(show, height, width, count):
    shown = show("plus")
    tiles = shown(0.5, images=pictures(1, height, width), tiled=True, sharpening=0.2)
    assert len(tiles) == count
    assert all(tile.site_weights == (SiteWeight(0.5),) * 16 for tile in tiles)
    masks = torch.cat([tile.mask for tile in tiles if tile.mask is not None])
    torch.testing.assert_close(masks.sum(0), torch.ones(height, width))
    assert not torch.allclose(tiles[0].tokens.cond, tiles[-1].tokens.cond, atol=1e-3)


def test_a_masked_part_is_hidden_from_tiles_and_close_ups_too(show):
    mask = torch.zeros(1, 40, 40)
    mask[:, :, :20] = 1  # the right half does not count
    changed = pictures(1).clone()
    changed[:, :, 20:] = 1 - changed[:, :, 20:]
    for options in ({"tiled": True}, {"detail_tiles": 2}, {}):
        one, other = (show("plus")(images=p, reference_mask=mask, **options) for p in (pictures(1), changed))
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a.tokens.cond, b.tokens.cond, atol=0.05, rtol=0.05)
        free = show("plus")(images=changed, **options)
        assert not all(
            torch.allclose(a.tokens.cond, b.tokens.cond, atol=0.05) for a, b in zip(free, other, strict=True)
        )


def test_close_ups_add_a_second_row_of_tokens(show):
    [reference] = show("plus")(images=pictures(1), detail_tiles=2)
    assert reference.tokens.cond.shape == (1, 8, 768)
    [with_id] = show("faceid-plus", person(1))(detail_tiles=2)
    assert with_id.tokens.cond.shape == (1, 8, 768)


# Saved encodings ------------------------------------------------------------------------------------------------------


def test_saved_encodings_need_no_encoder(show):
    encoder = StandInEncoder()
    seen = show("plus", None, encoder)
    [reference] = seen(images=pictures(2))
    saved = ImageEmbeds(seen.features, encoder.encode_pixels(torch.zeros(1, 3, 32, 32)).penultimate)
    [again] = show("plus", None, None)(embeds=saved)
    torch.testing.assert_close(again.tokens.cond, reference.tokens.cond)
    torch.testing.assert_close(again.tokens.uncond, reference.tokens.uncond)


def test_saved_encodings_without_their_counterpart_ask_for_the_encoder(show):
    saved = ImageEmbeds(torch.rand(1, 5, 1280))
    assert show("plus")(embeds=saved)[0].tokens.uncond.shape == (1, 4, 768)
    assert "clip_vision" in sentence(show("plus", None, None), embeds=saved)
    assert show("base", None, None)(embeds=ImageEmbeds(torch.rand(1, 1024)))[0].tokens.cond.shape == (1, 4, 768)


def test_different_counterparts_of_saved_encodings_are_all_heard(show):
    saved = ImageEmbeds(torch.rand(2, 5, 1280), torch.rand(2, 5, 1280))
    [reference] = show("plus", None, None)(embeds=saved)
    assert reference.tokens.uncond.shape == (1, 8, 768)
    alike = ImageEmbeds(torch.rand(2, 5, 1280), torch.rand(1, 5, 1280).expand(2, -1, -1))
    assert show("plus", None, None)(embeds=alike)[0].tokens.uncond.shape == (1, 4, 768)


@pytest.mark.parametrize(
    ("kind", "shape", "expected"),
    [
        ("plus", (1, 5, 1664), "1664 wide"),
        ("plus", (1, 1280), "hold one vector"),
        ("base", (1, 5, 1024), "hold every token"),
        ("base", (1, 1280), "1280 wide"),
    ],
)
def test_encodings_of_another_adapter_are_refused(show, kind, shape, expected):
    saved = ImageEmbeds(torch.rand(shape), adapter="IP-Adapter Full Face", encoder="ViT-bigG/14")
    text = sentence(show(kind), embeds=saved)
    assert expected in text and "ViT-bigG/14" in text and "encode the images again" in text


# What is missing or does not fit --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["faceid", "faceid-plus", "portrait", "unnorm"])
def test_a_missing_identity_is_asked_for(show, kind):
    assert "Identity from Photos or Load Identity" in sentence(show(kind), images=pictures(1))


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_nothing_to_look_at_is_explained(show, kind):
    assert "connect an identity, or a reference image" in sentence(show(kind))


def test_an_identity_without_embeddings_is_explained(show):
    text = sentence(show("faceid", person(2, recogniser=None)))
    assert "'Ada' has none" in text and "buffalo_l" in text


def test_an_embedding_of_another_width_is_explained(show):
    text = sentence(show("faceid", person(2, recogniser="edgeface", dim=128)), any_recogniser=True)
    assert "512 numbers" in text and "makes 128" in text and "edgeface" in text


def test_another_recogniser_is_refused_unless_allowed(show):
    faceid = show("faceid", person(2, recogniser="antelopev2"), None)
    text = sentence(faceid)
    assert "trained on the recogniser buffalo_l" in text and "made with antelopev2" in text
    assert faceid(any_recogniser=True)[0].tokens.cond.isfinite().all()


@pytest.mark.parametrize("kind", ["base", "plus", "faceid-plus"])
def test_a_missing_encoder_is_asked_for(show, kind):
    text = sentence(show(kind, person(1), None))
    assert "connect ViT-H/14 to clip_vision" in text and f"'{kind}.bin'" in text


@pytest.mark.parametrize(("maker", "wanted"), [("pooled", "ViT-bigG/14"), ("resampler", "ViT-bigG/14")])
def test_the_encoder_that_is_asked_for_is_the_one_of_the_adapter(official, maker, wanted):
    projection = official.pooled(768, official.VIT_G) if maker == "pooled" else official.resampler(768, 1664, depth=1)
    big = build(official.flat(official.groups(projection, official.SD15)), "vit-g.bin")
    assert f"connect {wanted} to clip_vision" in sentence(Shown(big), images=pictures(1))


@pytest.mark.parametrize(
    ("kind", "numbers"), [("plus", "1280 ≠ 1664"), ("base", "1024 ≠ 1280"), ("faceid-plus", "1280 ≠ 1664")]
)
def test_the_wrong_encoder_is_named(show, kind, numbers):
    text = sentence(show(kind, person(1), StandInEncoder(PUBLISHED["ViT-bigG/14"])))
    assert f"needs ViT-H/14, got ViT-bigG/14 ({numbers})" in text


def test_faces_without_keypoints_are_explained(show):
    text = sentence(show("faceid-plus", person(2, keypoints=False)))
    assert "no keypoints" in text and "buffalo_l" in text
    assert show("plus", person(2, keypoints=False))()[0].tokens.cond.isfinite().all()


def test_several_pictures_cannot_be_tiled(show):
    assert "got 2" in sentence(show("plus"), images=pictures(2), tiled=True)


@pytest.mark.parametrize(
    "bad", [torch.zeros(0, 8, 8, 3), torch.zeros(3), torch.full((1, 8, 8, 3), torch.nan)], ids=["empty", "flat", "NaN"]
)
def test_pictures_that_are_none_are_refused(show, bad):
    assert "reference image" in sentence(show("plus"), images=bad)


@pytest.mark.parametrize("options", [{}, {"tiled": True}, {"detail_tiles": 2}], ids=str)
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (torch.ones(3, 8, 8), "3 reference masks for 1 reference images"),
        (torch.full((1, 8, 8), torch.nan), "NaN"),
        (torch.zeros(0, 8, 8), "empty, its shape is (0, 8, 8)"),
        (torch.ones(1, 8, 8, 3), "shape (1, 8, 8, 3)"),
        (torch.zeros(1, 64, 64), "Load Image gives an empty mask"),
        (torch.zeros(64, 64), "The reference mask is empty"),
    ],
)
def test_reference_masks_that_do_not_fit_are_refused(show, options, mask, expected):
    assert expected in sentence(show("plus"), images=pictures(1), reference_mask=mask, **options)


def test_one_reference_mask_each_is_understood(show):
    left = torch.zeros(8, 8)
    left[:, :4] = 1
    shown = show("plus")
    shown(images=pictures(2), reference_mask=torch.stack([torch.ones(8, 8), left]))
    first, second = shown.encoder.shown[0]
    assert first[..., -8:].count_nonzero() and not second[..., -8:].count_nonzero() and second.count_nonzero()


def test_one_empty_reference_mask_of_several_is_named(show):
    masks = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    assert "reference mask number 2 of 2 is empty" in sentence(show("plus"), images=pictures(2), reference_mask=masks)


@pytest.mark.parametrize("options", [{}, {"detail_tiles": 2}], ids=str)
def test_a_mask_of_which_the_crop_leaves_nothing_is_told(show, options):
    """What is checked is what the encoder sees, not what was connected."""
    mask = torch.zeros(1, 20, 100)
    mask[..., :20] = 1
    text = sentence(show("plus"), images=torch.rand(1, 20, 100, 3), reference_mask=mask, **options)
    assert "The crop 'center' removes everything" in text
    show("plus")(images=torch.rand(1, 20, 100, 3), reference_mask=mask, crop=Crop.LEFT, **options)
    show("plus")(images=torch.rand(1, 20, 100, 3), reference_mask=mask, crop=Crop.PAD, **options)


@pytest.mark.parametrize("name", ["faceid", "faceid-plus"])
def test_photos_that_were_left_out_do_not_move_the_next_face_up(show, name):
    """unfold_batch gives image i photo i."""
    whole = replace(person(3), kept=(True, True, True))
    assert len(show(name, whole)(one_picture_each=True)[0].tokens.cond) == 3
    moved = replace(whole, kept=(True, False, True, True))
    text = sentence(show(name, moved), one_picture_each=True)
    assert "Of the 4 photos" in text and "photo 2 was left out" in text and "unfold_batch" in text
    show(name, moved)()  # without unfold_batch everybody is one person
    show(name, replace(whole, kept=()))(one_picture_each=True)  # as in older files


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
@pytest.mark.parametrize("options", [{}, {"layer_weights": "1:1"}, {"composition_images": pictures(1)}], ids=len)
def test_a_weight_that_is_no_number_is_refused(show, weight, options):
    assert "enter a number" in sentence(show("plus"), weight, images=pictures(1), **options)


NUMBERS = ("composition_weight", "style_boost", "composition_boost", "structure", "sharpening", "detail_share")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38, "1.0"])
@pytest.mark.parametrize("name", [*NUMBERS, "detail_tiles"])
def test_options_that_are_no_numbers_are_refused(show, name, value):
    assert "enter a number" in sentence(show("plus"), images=pictures(1), **{name: value})


@pytest.mark.parametrize(("name", "value"), [("sharpening", -0.1), ("detail_share", 1.5), ("detail_tiles", 0)])
def test_options_out_of_their_range_are_refused(show, name, value):
    assert "enter a number from" in sentence(show("plus"), images=pictures(1), **{name: value})


@pytest.mark.parametrize("weight", [float("nan"), float("-inf"), 1e38])
def test_weights_of_pictures_that_are_no_numbers_are_refused(show, weight):
    assert "enter a number" in sentence(show("plus"), images=pictures(1), picture_weights=(1.0, weight))


def test_an_encoding_that_is_no_number_is_refused(show):
    with pytest.raises(LikenessError, match="encoding of the reference holds values that are NaN"):
        ImageEmbeds(torch.full((1, 5, 8), float("nan")))
    with pytest.raises(LikenessError, match="encoding of the reference"):
        ImageEmbeds(torch.zeros(1, 5, 8), torch.full((1, 5, 8), float("inf")))


@pytest.mark.parametrize("kind", [WeightType.STYLE_TRANSFER, WeightType.COMPOSITION_PRECISE])
def test_style_on_an_unknown_layout_is_refused(show, kind):
    text = sentence(show("plus"), layout=TransformerLayout((1,), True, (0,)), images=pictures(1), weight_type=kind)
    assert "SD1.5 and SDXL only" in text


def test_layer_weights_that_name_no_layer_are_refused(show):
    assert '"16:1"' in sentence(show("plus"), images=pictures(1), layer_weights="16:1")


def test_negative_weights_are_legal(show):
    [reference] = show("plus")(-0.5, images=pictures(1))
    assert strengths(reference) == [-0.5] * 16
