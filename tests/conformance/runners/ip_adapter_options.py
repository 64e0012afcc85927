"""IP-Adapter's options: weight types."""

from __future__ import annotations

import sys
from typing import Any

import torch
from likeness.adapters import site_weights as sites

harness = sys.modules["likeness_conformance"]


@harness.runs("ip_adapter", r"peer parity: weight types")
def weight_types(case: Any) -> dict[str, torch.Tensor]:
    layout = {len(known): known for known in (sites.SD15, sites.SDXL)}[len(case.config["first_site"])]
    cond, uncond, swap = [], [], []
    for name, options in case.config["rows"]:
        row = sites.site_weights(
            sites.WeightType(name),
            layout,
            case.config["weight"],
            composition_weight=case.config["weight_composition"],
            **options,
        )
        cond.append([0.0 if site.swapped else site.strength for site in row])
        uncond.append([site.strength for site in row])
        swap.append([float(site.swapped) for site in row])
    return {"mult_cond": torch.tensor(cond), "mult_uncond": torch.tensor(uncond), "swap": torch.tensor(swap)}
