"""Single-file checkpoints: read, run, and written back under the same names with the same numbers."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from conformance.runners import _training as common
from torch import Tensor

from likeness.weights import checkpoint_layout as layout
from likeness.weights import families


def assert_same(written: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    assert set(written) == set(stored), set(written) ^ set(stored)
    assert all(torch.equal(written[name], stored[name]) for name in stored)


def loaded(model: Any, names: dict[str, str], stored: dict[str, Tensor], prefix: str) -> Any:
    model.load_state_dict(layout.from_original(stored, model.state_dict(), names, prefix))
    assert_same(layout.to_original(model.state_dict(), names, prefix), stored)
    return model.eval()


@harness.runs("checkpoint_layout", r"unet_.*")
def unet(case: Any) -> dict[str, Tensor]:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model = UNet2DConditionModel(**case.config["unet"])
    names = layout.unet_names(model.state_dict())
    assert {layout.UNET + theirs: ours for ours, theirs in names.items()} == case.config["ldm_to_diffusers"]
    return {"eps": common.forward(case, loaded(model, names, case.weights_below("ldm."), layout.UNET))}


@harness.runs("checkpoint_layout", r"vae")
def vae(case: Any) -> dict[str, Tensor]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    model = AutoencoderKL(**case.config["vae"])
    loaded(model, layout.vae_names(model.state_dict()), case.weights_below("ldm."), layout.VAE)
    with torch.no_grad():
        posterior = model.encode(case.inputs["x"]).latent_dist  # type: ignore[union-attr]
        decoded = model.decode(case.inputs["z"]).sample  # type: ignore[union-attr]
    return {"decoded": decoded, "mean": posterior.mean, "logvar": posterior.logvar}


@harness.runs("checkpoint_layout", r"openclip_text_encoder")
def open_clip(case: Any) -> dict[str, Tensor]:
    _, (prefix, _) = families.SDXL.texts
    stored = layout.below(case.weights_below("ldm."), prefix)
    encoder = common.text_encoder_of(case, layout.from_open_clip(stored))
    assert_same(layout.to_open_clip(encoder.state_dict()), stored)
    return common.encoded(encoder, case.inputs["input_ids"])
