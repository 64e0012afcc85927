"""The table of attention sites, enumerated from a network of any layout."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny_unets

from likeness.adapters.ip_adapter.weight_types import SD15, SDXL
from likeness.injection.plan import layout_of
from likeness.injection.sites import sites_of_comfy_unet, sites_of_diffusers_unet

LAYOUTS = tiny_unets.LAYOUTS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sites_follow_the_order_of_diffusers_processors(tiny, layout):
    """Official files number all processors, self and cross, in the order in which diffusers registers them."""
    unet = tiny.unet(layout)
    names = list(unet.attn_processors)
    sites = sites_of_diffusers_unet(unet)
    assert len(sites) == LAYOUTS[layout][1]
    assert [f"{site.diffusers_path}.attn2.processor" for site in sites] == [names[site.slot] for site in sites]
    assert [f"{site.diffusers_path}.attn1.processor" for site in sites] == [names[site.slot - 1] for site in sites]
    assert len(names) == 2 * len(sites)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_widths_are_those_of_the_layers(tiny, layout):
    unet = tiny.unet(layout)
    for site in sites_of_diffusers_unet(unet):
        attention = unet.get_submodule(f"{site.diffusers_path}.attn2")
        assert (site.width, site.context_dim) == (attention.to_q.out_features, attention.to_k.in_features)
        assert site.heads == attention.heads
        assert site.index == int(site.diffusers_path.rsplit(".", 1)[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_execution_order_is_input_middle_output(tiny, layout):
    sites = sorted(sites_of_diffusers_unet(tiny.unet(layout)), key=lambda site: (site.transformer, site.index))
    rank = {"input": 0, "middle": 1, "output": 2}
    places = [(rank[site.block[0]], site.block[1], site.index) for site in sites]
    assert places == sorted(places)
    assert {site.transformer for site in sites} == set(range(len({site.block for site in sites})))
    assert len({site.key for site in sites}) == len(sites)


@pytest.mark.parametrize(("name", "expected"), [("SD1.5", SD15), ("SDXL", SDXL)])
def test_the_real_layouts_are_recognised_at_any_width(tiny, name, expected):
    """Style and composition know these two; a layout is a place of blocks, not a width."""
    assert layout_of(sites_of_diffusers_unet(tiny.unet(name))) == expected


def test_the_middle_block_is_stored_last_and_named_zero(tiny):
    for name in ("SD1.5", "SDXL"):
        middle = [site for site in sites_of_diffusers_unet(tiny.unet(name)) if site.block[0] == "middle"]
        sites = sites_of_diffusers_unet(tiny.unet(name))
        assert sites[-len(middle) :] == tuple(middle)
        assert {site.block for site in middle} == {("middle", 0)}


def test_sd15_s_table_is_the_published_one(tiny):
    table = [(s.slot, s.block, s.transformer) for s in sites_of_diffusers_unet(tiny.unet("SD1.5"))]
    blocks = [("input", i) for i in (1, 2, 4, 5, 7, 8)] + [("output", i) for i in range(3, 12)] + [("middle", 0)]
    order = [0, 1, 2, 3, 4, 5, *range(7, 16), 6]
    assert table == [(2 * i + 1, block, t) for i, (block, t) in enumerate(zip(blocks, order, strict=True))]


def test_sdxl_s_table_is_the_published_one(tiny):
    sites = sites_of_diffusers_unet(tiny.unet("SDXL"))
    first = {site.block: site.slot for site in reversed(sites)}
    assert first == {
        ("input", 4): 1, ("input", 5): 5, ("input", 7): 9, ("input", 8): 29,
        ("output", 0): 49, ("output", 1): 69, ("output", 2): 89,
        ("output", 3): 109, ("output", 4): 113, ("output", 5): 117, ("middle", 0): 121,
    }  # fmt: skip


def test_a_network_that_is_no_unet_has_no_sites():
    assert sites_of_comfy_unet(torch.nn.Linear(2, 2)) == ()
