"""EVA02-CLIP's image encoder: read under every name it is published with, and refused in one sentence otherwise."""

from __future__ import annotations

import pytest
import torch
from helpers import pulid as files

from likeness.adapters import eva_clip
from likeness.errors import LikenessError
from likeness.weights.files import read_weights

# Official name -> timm's.
TIMM = {
    "attn.inner_attn_ln.": "attn.norm.", "attn.q_bias": "attn.q_proj.bias", "attn.v_bias": "attn.v_proj.bias",
    "mlp.ffn_ln.": "mlp.norm.", "mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2.",
}  # fmt: skip


@pytest.fixture(scope="module")
def weights():
    return files.eva()


@pytest.fixture(scope="module")
def pixels():
    side = files.EVA_PATCH * files.EVA_GRID
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def renamed(weights, prefix: str):
    """As timm names it, below a prefix."""
    found = {}
    for key, value in weights.items():
        if key.startswith("visual."):
            name = key.removeprefix("visual.")
            for official, timm in TIMM.items():
                name = name.replace(official, timm)
            found[prefix + name] = value
    return found


def same(a: eva_clip.EvaFeatures, b: eva_clip.EvaFeatures) -> bool:
    return torch.equal(a.pooled, b.pooled) and all(map(torch.equal, a.hidden, b.hidden))


def test_the_official_file_is_read_as_it_is(tmp_path, weights, pixels):
    torch.save(weights, tmp_path / eva_clip.FILE)
    tower = eva_clip.build_eva(read_weights(tmp_path / eva_clip.FILE)[0])
    features = tower.encode_pixels(pixels)
    assert tower.image_size == 28 and tower.widths == (files.EVA_WIDTH, files.EVA_EMBED)
    assert features.pooled.shape == (2, files.EVA_EMBED)
    assert [tuple(states.shape) for states in features.hidden] == [(2, 5, files.EVA_WIDTH)] * 5


@pytest.mark.parametrize("prefix", ["", "visual.trunk."], ids=["timm", "open_clip"])
def test_other_publishers_names_are_the_same_network(weights, pixels, prefix):
    one, other = eva_clip.build_eva(weights), eva_clip.build_eva(renamed(weights, prefix))
    assert same(one.encode_pixels(pixels), other.encode_pixels(pixels))


def test_angles_in_the_file_are_passed_over_in_silence(weights, pixels, caplog):
    angles = {"visual.rope.freqs_cos": torch.zeros(4, 64), "visual.blocks.3.attn.rope.freqs_sin": torch.zeros(4, 64)}
    plain, given = eva_clip.build_eva(weights), eva_clip.build_eva(weights | angles)
    assert same(plain.encode_pixels(pixels), given.encode_pixels(pixels))
    assert not caplog.records


def test_places_matter(weights, pixels):
    """Without them an image and its mirror image would give the same class token, but for the absolute positions."""
    still = {k: torch.zeros_like(v) if k.endswith("pos_embed") else v for k, v in weights.items()}
    tower = eva_clip.build_eva(still)
    mirrored = torch.cat([pixels[..., 14:], pixels[..., :14]], dim=-1)  # the patches change places, their pixels do not
    one, other = tower.encode_pixels(pixels).pooled, tower.encode_pixels(mirrored).pooled
    assert not torch.allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    ("missing", "says"),
    [("visual.blocks.7.", "layer 7 is missing"), ("visual.blocks.3.mlp.w2.", "layers are missing"),
     ("visual.", "does not contain this network"), ("visual.head.", "layers are missing")],
)  # fmt: skip
def test_a_file_cut_short_says_so(weights, missing, says):
    cut = {key: value for key, value in weights.items() if not key.startswith(missing)}
    with pytest.raises(LikenessError) as error:
        eva_clip.build_eva(cut, "eva.pt")
    text = str(error.value)
    assert "eva.pt" in text and says in text and eva_clip.FILE in text and text.endswith(".") and "\n" not in text


def test_it_computes_in_single_precision(weights):
    tower = eva_clip.build_eva(weights)
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    assert not any(parameter.requires_grad for parameter in tower.parameters())
