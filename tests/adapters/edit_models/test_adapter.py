from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.small_world import person

from likeness.adapters.edit_models import SCHEMES, EncodedPhotos, Picture, Reach, ReferenceAdapter, ReferenceOptions
from likeness.adapters.edit_models import schemes as rows
from likeness.adapters.effects import ReferenceTerm, Scope
from likeness.adapters.system import Request
from likeness.errors import LikenessError
from likeness.weights.families import FLUX, FLUX2, KREA2, OTHER, QWEN_IMAGE, TransformerLayout


class Vae:
    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append((images.shape[1], images.shape[2]))
        return images.mean(-1)[:, None, ::8, ::8]


def request(family: Any = KREA2, **options: Any) -> Request:
    layout = TransformerLayout((), False, ())
    return Request(layout, {}, **{"family": family, "identity": person(photos=3), **options})


def term(adapter: ReferenceAdapter, asked: Request) -> ReferenceTerm:
    [effect] = adapter.effects(asked)
    assert isinstance(effect, ReferenceTerm)
    return effect


def test_every_scheme_is_a_row_of_its_own():
    assert len({scheme.title for scheme in SCHEMES}) == len(SCHEMES)
    assert {scheme.base for scheme in SCHEMES} == {KREA2, FLUX2, QWEN_IMAGE, FLUX}
    assert all(not scheme.isolated or scheme.method == rows.TIMESTEP_ZERO for scheme in SCHEMES)


def test_a_model_tells_its_scheme_where_it_has_only_one():
    assert rows.of_model(FLUX2, None) is rows.FLUX2_PLAIN and rows.of_model(FLUX, None) is rows.KONTEXT
    assert rows.of_model(QWEN_IMAGE, True) is rows.QWEN_2511
    for family, known in ((KREA2, None), (QWEN_IMAGE, None), (QWEN_IMAGE, False)):
        with pytest.raises(LikenessError, match="choose the scheme in Reference Adapter"):
            rows.of_model(family, known)
    with pytest.raises(LikenessError, match="does not attend to reference images"):
        rows.of_model(OTHER, None)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.title)
def test_every_scheme_makes_a_term_of_a_person(scheme):
    vae = Vae()
    found = term(ReferenceAdapter(vae, scheme), request(scheme.base))
    photos = found.photos.encoded((832 // scheme.pixels, 1216 // scheme.pixels), len(found.photos))
    assert len(photos) == len(found.photos) == (3 if scheme.several else 1)
    assert found.method == scheme.method and found.isolated is scheme.isolated
    assert all(side % 16 == 0 for size in vae.sizes for side in size)


def test_sizes_of_two_targets_are_kept_and_no_more():
    vae = Vae()
    photos = term(ReferenceAdapter(vae, rows.IDENTITY_EDIT_12), request()).photos
    for target in ((104, 152), (208, 304), (104, 152), (52, 76), (104, 152)):
        photos.encoded(target, 1)
    assert len(vae.sizes) == 4


def test_the_strength_can_count_for_the_face_alone():
    adapter = ReferenceAdapter(Vae(), rows.KREA2_EDIT, ReferenceOptions(reach=Reach.FACE, most=1))
    [photo] = term(adapter, request()).photos.encoded((104, 152), 1)
    assert photo.face is not None and photo.face.shape == (1, 512, 512)
    assert photo.face[0, 256, 256] == 1 and photo.face[0, 64, 256] == 0


def test_a_sheet_of_three_repeats_the_first():
    adapter = ReferenceAdapter(Vae(), rows.IDENTITY_EDIT_12, ReferenceOptions(Picture.SHEET))
    photos = term(adapter, request()).photos
    assert isinstance(photos, EncodedPhotos)
    [sheet] = photos.photos
    assert sheet.size == (1024, 1024)
    assert torch.equal(sheet.image[:, :512, :512], sheet.image[:, 512:, 512:])


def test_other_people_leave_less_room():
    adapter = ReferenceAdapter(Vae(), rows.FLUX2_PLAIN)
    for others, count in ((0, 3), (2, 2), (3, 1), (9, 1)):
        asked = request(FLUX2, references=others)
        assert len(term(adapter, asked).photos) == count
    assert any("at most 4" in note for note in adapter.notes(request(FLUX2, references=4)))
    assert adapter.notes(request(FLUX2)) == []


def test_portraits_are_taken_where_they_are_asked_for():
    who = person(photos=1)
    adapter = ReferenceAdapter(Vae(), rows.KREA2_REID, ReferenceOptions(Picture.PORTRAIT))
    photos = term(adapter, request(identity=who)).photos
    assert isinstance(photos, EncodedPhotos)
    torch.testing.assert_close(photos.photos[0].image[0], who.portraits[0].float() / 255)
    boxes_only = replace(who, **{key: getattr(who, key)[:0] for key in ("aligned", "portraits", "keypoints")})
    with pytest.raises(LikenessError, match="holds no portraits"):
        adapter.effects(request(identity=boxes_only))


@pytest.mark.parametrize(
    ("latents", "scheme"),
    [((4, False), rows.KREA2_REID), ((16, False), rows.KREA2_REID), ((16, True), rows.FLUX2_PLAIN)],
)
def test_the_vae_of_another_model_is_refused(latents, scheme):
    """FLUX.1's has as many channels as Krea 2's, and no frames."""
    with pytest.raises(LikenessError, match="The VAE belongs to another model"):
        ReferenceAdapter(Vae(), scheme, latents=latents).effects(request(scheme.base))


def test_off_never_acts():
    adapter = ReferenceAdapter(Vae(), rows.KREA2_REID)
    assert term(adapter, request(strength=0.0)).why_never == "the strength is 0"
    assert term(adapter, request(scope=Scope(0.5, 0.5))).why_never
    with pytest.raises(LikenessError, match="none below 0"):
        adapter.effects(request(strength=-0.5))
