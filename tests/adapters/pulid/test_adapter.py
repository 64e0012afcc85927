"""PuLID: which files it takes, how several photos become tokens, and what it says when something is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers import pulid as files
from safetensors.torch import save_file

from likeness import adapters
from likeness.adapters import eva_clip
from likeness.adapters.effects import AttentionTerm
from likeness.adapters.pulid import (
    FIDELITY,
    NEUTRAL,
    STYLE,
    VERSION_1_1,
    Background,
    Mode,
    Projection,
    PuLID,
    PuLIDOptions,
    TokenPooling,
    encode,
)
from likeness.adapters.system import Request
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.weights import families
from likeness.weights.families import TransformerLayout

SHAPES = [(32, 64)] * 3 + [(64, 64)] * 4
TOWER = eva_clip.build_eva(files.eva())


def load(tmp_path, weights, name: str = "pulid.safetensors"):
    save_file(weights, tmp_path / name)
    return adapters.load(tmp_path / name)


def person(photos: int = 1, seed: int = 0, **changes) -> Identity:
    generator = torch.Generator().manual_seed(seed)

    def crops(side: int) -> torch.Tensor:
        return torch.randint(0, 256, (photos, side, side, 3), generator=generator, dtype=torch.uint8)

    made = Identity(
        name="Ada", recogniser="antelopev2", embeddings=torch.randn(photos, 512, generator=generator) * 20,
        weights=torch.ones(photos), aligned=crops(224), portraits=crops(512), heads=crops(512),
        keypoints=torch.zeros(photos, 5, 2), boxes=torch.zeros(photos, 4), photo_sizes=torch.full((photos, 2), 512),
    )  # fmt: skip
    return replace(made, **changes)


def request(identity: Identity | None, **changes) -> Request:
    def parse(crops: torch.Tensor) -> torch.Tensor:
        labels = torch.ones(crops.shape[:3], dtype=torch.uint8)
        labels[:, :100] = 0
        return labels

    layout = TransformerLayout((4,), True, (0,))
    return Request(layout, {}, identity=identity, find_eva=lambda: TOWER, parse=parse, **changes)


def term(adapter: PuLID, identity: Identity, options: PuLIDOptions | None = None) -> AttentionTerm:
    (effect,) = adapter.effects(request(identity, options=options))
    assert isinstance(effect, AttentionTerm)
    return effect


def refused(call, *arguments) -> str:
    with pytest.raises(LikenessError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "tokens"), [("v1", 10), ("v1.1", 32)])
@pytest.mark.parametrize("layout", [lambda weights: weights, files.repacked], ids=["official", "re-packed"])
def test_both_versions_load_in_both_layouts(tmp_path, version, tokens, layout):
    adapter = load(tmp_path, layout(files.adapter(SHAPES, version=version)))
    assert adapter.title == f"PuLID {version}"
    assert adapter.needs.recogniser == "antelopev2" and adapter.needs.raw
    assert list(adapter.site_shapes.values()) == SHAPES
    zeros = adapter.default_mode.zeros
    assert term(adapter, person()).tokens.cond.shape == (1, tokens + zeros, 64)


def test_a_nested_pickle_is_the_same_file(tmp_path):
    weights = files.repacked(files.adapter(SHAPES))
    nested = {
        group: {k[len(group) + 1 :]: v for k, v in weights.items() if k.startswith(group)}
        for group in ("image_proj", "ip_adapter")
    }
    torch.save(nested, tmp_path / "x.bin")
    official = load(tmp_path, files.adapter(SHAPES))
    one, other = term(official, person()), term(adapters.load(tmp_path / "x.bin"), person())  # type: ignore[arg-type]
    torch.testing.assert_close(one.tokens.cond, other.tokens.cond)


def test_the_state_dict_has_the_official_keys():
    weights = files.adapter(SHAPES)
    assert PuLID(files.repacked(weights), "x").state_dict().keys() == weights.keys()


def test_a_full_file_is_for_sdxl(tmp_path, official):
    assert load(tmp_path, files.adapter(official.SDXL)).needs.base is families.SDXL


@pytest.mark.parametrize(
    ("left_out", "says"),
    [("id_adapter_attn_layers.", "layers id_adapter_attn_layers.* are missing"),
     ("id_adapter.", "encoder id_adapter.* is missing"),
     ("id_adapter.mapping_patch_3.", "do not fit together"),
     ("id_adapter_attn_layers.5.id_to_v.", "do not fit together")],
)  # fmt: skip
def test_an_incomplete_file_says_what_is_missing(tmp_path, left_out, says):
    weights = {k: v for k, v in files.adapter(SHAPES).items() if not k.startswith(left_out)}
    text = refused(load, tmp_path, weights)
    assert "pulid.safetensors" in text and "PuLID" in text and says in text


def test_the_image_encoder_is_not_taken_for_an_adapter(tmp_path):
    text = refused(load, tmp_path, files.eva(), "EVA02_CLIP_L_336_psz14_s6B.safetensors")
    assert "EVA02-CLIP" in text and "models/clip_vision" in text


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def v1() -> PuLID:
    return PuLID(files.adapter(SHAPES), "pulid_v1.bin")


@pytest.fixture(scope="module")
def v11() -> PuLID:
    return PuLID(files.adapter(SHAPES, version="v1.1"), "pulid_v1.1.safetensors")


def test_the_mode_is_that_of_the_version_unless_chosen(v1, v11):
    assert (v1.default_mode, v11.default_mode) == (FIDELITY, VERSION_1_1) == (
        Mode(8, Projection.ORTHO_V2), Mode(20, Projection.ORTHO_V2)
    )  # fmt: skip
    assert (Mode(16, Projection.ORTHO), Mode(0, Projection.OFF)) == (STYLE, NEUTRAL)
    chosen = term(v1, person(), PuLIDOptions(NEUTRAL))
    assert chosen.tokens.cond.shape[1] == 10 and chosen.merge is None
    style = term(v1, person(), PuLIDOptions(STYLE))
    assert not style.tokens.cond[:, 10:].any() and style.merge is Projection.ORTHO.merge


def test_the_raw_embedding_is_read_not_its_direction(v1):
    longer = person(embeddings=2 * person().embeddings)
    assert not torch.allclose(term(v1, person()).tokens.cond, term(v1, longer).tokens.cond)


def test_the_unconditioned_half_is_the_encoder_of_zeros_and_nobodys(v1):
    one, other = term(v1, person(seed=1)).tokens, term(v1, person(seed=2)).tokens
    assert torch.equal(one.uncond, other.uncond) and one.uncond[:, :10].any()
    assert not torch.allclose(one.cond, other.cond)


def test_further_photos_bring_version_1_their_faces_alone(v1):
    """The official interface: every token of the first photo, those of the embedding of the others, in both halves."""
    each = [term(v1, person(3).take([i]), PuLIDOptions(NEUTRAL)).tokens for i in range(3)]
    tokens = term(v1, person(3), PuLIDOptions(NEUTRAL)).tokens
    torch.testing.assert_close(tokens.cond, torch.cat([each[0].cond, each[1].cond[:, :5], each[2].cond[:, :5]], dim=1))
    torch.testing.assert_close(tokens.uncond, torch.cat([each[0].uncond, *[each[0].uncond[:, :5]] * 2], dim=1))
    mixed = term(v1, person(3), PuLIDOptions(NEUTRAL, TokenPooling.EVERY_TOKEN)).tokens
    torch.testing.assert_close(mixed.cond, torch.cat([row.cond for row in each], dim=1))
    assert mixed.uncond.shape == mixed.cond.shape


def test_version_1_1_reads_all_photos_at_once(v11):
    tokens = term(v11, person(3)).tokens
    assert tokens.cond.shape == tokens.uncond.shape == (1, 52, 64)
    assert not torch.allclose(tokens.cond, term(v11, person(3).take([0])).tokens.cond)


@pytest.mark.parametrize("version", ["v1", "v11"])
def test_a_mean_counts_photos_by_their_weight(request, version):
    adapter = request.getfixturevalue(version)
    who = person(2, weights=torch.tensor([3.0, 1.0]))
    options = PuLIDOptions(NEUTRAL, TokenPooling.MEAN)
    one, two = (term(adapter, who.take([i]), options).tokens.cond for i in range(2))
    torch.testing.assert_close(term(adapter, who, options).tokens.cond, 0.75 * one + 0.25 * two)


def test_what_is_around_the_face_does_not_count(v1):
    """The labels of this test are background in the first hundred lines."""
    who = person()
    portraits = who.portraits.clone()
    portraits[:, :100] = 0
    changed = replace(who, portraits=portraits)
    assert torch.equal(term(v1, who).tokens.cond, term(v1, changed).tokens.cond)
    as_is = PuLIDOptions(background=Background.PHOTO)
    assert not torch.equal(term(v1, who, as_is).tokens.cond, term(v1, changed, as_is).tokens.cond)


def test_colours_do_not_count(v1):
    who = person()
    grey = (who.portraits.float() @ torch.tensor([0.299, 0.587, 0.114])).round().to(torch.uint8)
    shown = replace(who, portraits=grey.unsqueeze(-1).expand(-1, -1, -1, 3).contiguous())
    torch.testing.assert_close(term(v1, who).tokens.cond, term(v1, shown).tokens.cond, atol=2e-2, rtol=2e-2)


def test_the_filter_can_be_the_older_one(v1):
    older = PuLIDOptions(antialias=False)
    assert not torch.allclose(term(v1, person()).tokens.cond, term(v1, person(), older).tokens.cond)


def test_encode_leaves_its_inputs_as_they_are(v1):
    ids, seen = person().embeddings, TOWER.encode_pixels(torch.randn(1, 3, 28, 28))
    before = ids.clone(), seen.pooled.clone()
    encode(v1.id_adapter, ids, seen)
    assert torch.equal(ids, before[0]) and torch.equal(seen.pooled, before[1])


# What is missing ------------------------------------------------------------------------------------------------------


def test_without_an_identity(v1):
    assert "Identity from Photos" in refused(v1.effects, request(None))


def test_without_antelopev2(v1):
    text = refused(v1.effects, request(person(recogniser="buffalo_l")))
    assert "antelopev2" in text and "buffalo_l" in text and "pulid_v1.bin" in text
    seen = request(person(recogniser="buffalo_l"), seen_by=lambda identity, name: replace(identity, recogniser=name))
    assert v1.effects(seen)


def test_without_aligned_faces(v1):
    nobody = person().portraits[:0]
    assert "no aligned faces" in refused(v1.effects, request(person(portraits=nobody)))


@pytest.mark.parametrize(("field", "says"), [("find_eva", "EVA02-CLIP"), ("parse", "parsing")])
def test_without_the_image_encoder_and_without_the_parsing_network(v1, field, says):
    """A binding that has neither: the nodes say where the files are to be put."""
    nothing = {field: Request.__dataclass_fields__[field].default}
    assert says in refused(v1.effects, replace(request(person()), **nothing))


def test_an_image_encoder_of_other_widths(v1):
    weights = files.eva()
    weights["visual.head.weight"], weights["visual.head.bias"] = torch.zeros(7, 64), torch.zeros(7)
    other = eva_clip.build_eva(weights, "other.pt")
    text = refused(v1.effects, replace(request(person()), find_eva=lambda: other))
    assert "other.pt" in text and "64 and 7" in text and "64 and 32" in text


def test_options_of_another_system(v1):
    assert "PuLID Options" in refused(v1.effects, request(person(), options="reference"))
