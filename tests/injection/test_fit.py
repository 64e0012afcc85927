"""Whether an adapter was made for the model it is put into."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from likeness.errors import LikenessError
from likeness.injection.plan import check_fit
from likeness.injection.sites import AttentionSite
from likeness.weights.families import FLUX, OTHER, SD15, SDXL, Family


@dataclass
class Adapter:
    base: Family
    site_shapes: dict[int, tuple[int, int]] = field(default_factory=dict)
    name: str = "adapter.bin"


def sites_of(family: Family) -> list[AttentionSite]:
    return [
        AttentionSite(2 * i + 1, ("input", 1), 0, 0, "", "", 320, family.text_width or 64, 8)
        for i in range(family.sites or 3)
    ]


def with_layers(family: Family) -> Adapter:
    return Adapter(family, {site.slot: (site.width, site.context_dim) for site in sites_of(family)})


MODELS = {
    "SD15": sites_of(SD15),
    "SDXL": sites_of(SDXL),
    "Flux": [],
    "FluxSchnell": [],
    "SD3": [],
    "tiny": sites_of(OTHER),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("adapter", "fits"),
    [
        (with_layers(SD15), {"SD15"}),
        (with_layers(SDXL), {"SDXL"}),
        (with_layers(OTHER), {"tiny"}),
        (Adapter(SD15), {"SD15"}),
        (Adapter(SDXL), {"SDXL"}),
        (Adapter(FLUX), {"Flux", "FluxSchnell"}),
        (Adapter(OTHER), set()),
    ],
    ids=["SD1.5", "SDXL", "other", "SD1.5 no layers", "SDXL no layers", "FLUX no layers", "other no layers"],
)
def test_an_adapter_fits_the_models_it_was_made_for_and_no_other(adapter, fits, model):
    if model in fits:
        check_fit(adapter, MODELS[model], model, adapter.base)
    else:
        with pytest.raises(LikenessError, match=rf"'adapter.bin' was made for .* the connected MODEL is {model}\b"):
            check_fit(adapter, MODELS[model], model, adapter.base)


@pytest.mark.parametrize(
    ("adapter", "model", "made_for", "connected"),
    [
        (with_layers(SDXL), "Flux", "SDXL (70 cross-attention layers, text width 2048)", "Flux"),
        (Adapter(SDXL), "SD15", "SDXL", "SD15, SD1.5 (16 cross-attention layers, text width 768)"),
        (Adapter(FLUX), "SDXL", "FLUX", "SDXL, SDXL (70 cross-attention layers, text width 2048)"),
        (with_layers(OTHER), "SD3", "a model with 3 cross-attention layers, text width 64", "SD3"),
    ],
)
def test_the_sentence_names_both_families(adapter, model, made_for, connected):
    with pytest.raises(LikenessError) as error:
        check_fit(adapter, MODELS[model], model, adapter.base)
    assert f"was made for {made_for}, but the connected MODEL is {connected}: choose" in str(error.value)
