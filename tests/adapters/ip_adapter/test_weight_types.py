from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.ip_adapter.weight_types import (
    SD15,
    SDXL,
    TransformerLayout,
    WeightType,
    layer_weights,
    parse_layer_weights,
    scale,
    site_weights,
    style_and_composition,
)
from likeness.errors import LikenessError

PRUNED = TransformerLayout(inputs=(1, 2), has_middle=False, outputs=(3, 4, 5))
LISTED = {
    WeightType.STYLE_TRANSFER,
    WeightType.COMPOSITION,
    WeightType.STRONG_STYLE_TRANSFER,
    WeightType.STYLE_AND_COMPOSITION,
    WeightType.STRONG_STYLE_AND_COMPOSITION,
    WeightType.STYLE_TRANSFER_PRECISE,
    WeightType.COMPOSITION_PRECISE,
}
layouts = st.builds(
    TransformerLayout,
    inputs=st.integers(1, 6).map(lambda n: tuple(range(n))),
    has_middle=st.booleans(),
    outputs=st.integers(1, 6).map(lambda n: tuple(range(n))),
)


def strengths(weights):
    return [site.strength for site in weights]


def active(weights):
    return {t: site.strength for t, site in enumerate(weights) if site.strength}


def test_layouts_name_every_transformer_in_execution_order():
    assert len(SD15) == 16
    assert SD15.names[6] == "middle.0"
    assert len(SDXL) == 11
    assert (SDXL.names[3], SDXL.names[4], SDXL.names[6]) == ("input.8", "middle.0", "output.1")


@pytest.mark.parametrize("layout", [SD15, SDXL, PRUNED])
def test_a_layout_is_read_from_the_blocks_of_a_model(layout):
    blocks = [(part, int(name.partition(".")[2])) for part, name in zip(layout.parts, layout.names, strict=True)]
    assert TransformerLayout.of_blocks(blocks) == layout


@given(layouts, st.sampled_from(sorted(set(WeightType) - LISTED, key=str)), st.floats(-5, 5))
def test_curves_work_on_every_layout_and_stay_within_the_weight(layout, kind, weight):
    row = site_weights(kind, layout, weight)
    assert len(row) == len(layout)
    assert all(abs(site.strength) <= abs(weight) + 1e-9 and not site.swapped for site in row)


@pytest.mark.parametrize("kind", sorted(LISTED, key=str))
def test_style_and_composition_types_refuse_an_unknown_layout(kind):
    with pytest.raises(LikenessError, match=r"SD1\.5 and SDXL only"):
        site_weights(kind, PRUNED, 1.0)


@given(st.sampled_from(list(WeightType)), st.sampled_from([SD15, SDXL]), st.floats(-3, 3), st.floats(-3, 3))
def test_scaling_equals_a_larger_weight(kind, layout, weight, factor):
    scaled = scale(site_weights(kind, layout, weight), factor)
    direct = site_weights(kind, layout, weight * factor)
    assert strengths(scaled) == pytest.approx(strengths(direct), abs=1e-9)


@given(st.sampled_from(list(WeightType)), st.sampled_from([SD15, SDXL]))
def test_weight_zero_silences_every_site(kind, layout):
    assert not active(site_weights(kind, layout, 0.0))
    assert not any(site.swapped for site in site_weights(kind, layout, 0.0))


def test_middle_block_obeys_the_middle_types():
    assert site_weights(WeightType.STRONG_MIDDLE, SDXL, 1.0)[4].strength == 1.0
    assert site_weights(WeightType.WEAK_MIDDLE, SDXL, 1.0)[4].strength == pytest.approx(0.2)


def test_precise_composition_without_boost_pushes_nothing_away():
    row = site_weights(WeightType.COMPOSITION_PRECISE, SDXL, 0.8, composition_boost=0.0)
    assert active(row) == {3: 0.8}
    assert not any(site.swapped for site in row)


@pytest.mark.parametrize("layout", [SD15, SDXL])
@pytest.mark.parametrize("expand", [False, True])
def test_style_and_composition_references_never_share_a_site(layout, expand):
    style, composition = style_and_composition(layout, 1.0, 0.7, expand_style=expand)
    assert not set(active(style)) & set(active(composition))
    kind = WeightType.STRONG_STYLE_AND_COMPOSITION if expand else WeightType.STYLE_AND_COMPOSITION
    assert active(style) | active(composition) == active(site_weights(kind, layout, 1.0, composition_weight=0.7))


@pytest.mark.parametrize(
    "text",
    [
        "3:2.5,6:1",
        " 3 : 2.5 ,\n6: 1.0,",
        "6:1;3:2.5",
        "input.8:2.5, output.1:1",
        "INPUT.8:2.5\r\n6:1\n",
        "3:25e-1,6:+1",
    ],
)
def test_layer_text_forgives_blanks_and_takes_indices_or_names(text):
    assert active(parse_layer_weights(text, SDXL)) == {3: 2.5, 6: 1.0}


def test_layer_text_accepts_negative_weights_and_the_middle_by_its_short_name():
    assert active(parse_layer_weights("middle:-0.5", SD15)) == {6: -0.5}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("3:1, 11:1", '"11:1" names no layer'),
        ("-1:1", '"-1:1" names no layer'),
        ("output.7:1", '"output.7:1" names no layer'),
        ("3:nan", "'3:nan' is not a number"),
        ("3:inf", "'3:inf' is not a number"),
        ("3:", "'3:' is not a number"),
        ("3", '"3" is not a pair'),
        ("3:1:2", "'3:1:2' is not a number"),
        (":1", '":1" names no layer'),
        ("3:1, input.8:2", '"input.8:2" names layer 3 a second time'),
        (" ,\n", "empty"),
    ],
)
def test_layer_text_errors_name_the_entry(text, named):
    with pytest.raises(LikenessError) as error:
        parse_layer_weights(text, SDXL)
    assert named in str(error.value)
    assert "\n" not in str(error.value)


@given(st.dictionaries(st.integers(0, 15), st.floats(-5, 5).filter(bool)))
def test_layer_text_reads_back_what_was_written(wanted):
    text = ", ".join(f"{t}:{value!r}" for t, value in wanted.items())
    row = layer_weights(text, WeightType.LINEAR, SD15, 1.0)
    assert active(row) == (wanted or dict.fromkeys(range(16), 1.0))


def test_layer_text_is_multiplied_by_the_weight_and_blank_text_means_the_type():
    assert active(layer_weights("6:2", WeightType.LINEAR, SDXL, 0.5)) == {6: 1.0}
    blank = layer_weights(" \n", WeightType.STYLE_TRANSFER_PRECISE, SDXL, 0.5, style_boost=2.0)
    assert blank == site_weights(WeightType.STYLE_TRANSFER_PRECISE, SDXL, 0.5, style_boost=2.0)


def test_precise_types_keep_their_swap_under_layer_text():
    row = layer_weights("3:1, 6:1", WeightType.STYLE_TRANSFER_PRECISE, SDXL, 1.0)
    assert (row[3].swapped, row[6].swapped) == (True, False)
    row = layer_weights("3:1, 6:1", WeightType.COMPOSITION_PRECISE, SDXL, 1.0)
    assert (row[3].swapped, row[6].swapped) == (False, True)
    assert not any(site.swapped for site in layer_weights("3:1, 6:1", WeightType.LINEAR, SDXL, 1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(bad):
    with pytest.raises(LikenessError, match="weight is"):
        site_weights(WeightType.LINEAR, SD15, bad)
    with pytest.raises(LikenessError, match="style boost is"):
        site_weights(WeightType.STYLE_TRANSFER_PRECISE, SD15, 1.0, style_boost=bad)
