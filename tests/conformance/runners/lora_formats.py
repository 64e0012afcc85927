"""LoRA files in every spelling: all give the same change, and ours is written as kohya writes it."""

from __future__ import annotations

from typing import Any

import torch
from conformance import harness
from conformance.runners import _training as common
from torch import Tensor, nn

from likeness.weights import lora_files
from likeness.weights.lora import LoraPair, merged
from likeness.weights.lora_files import SDXL_TEXT_1, SDXL_TEXT_2, TEXT, UNET, Component, read_lora

FORMATS = ("kohya.", "peft.", "legacy.")


def pairs_of(case: Any, spellings: dict[str, str], component: Component) -> dict[str, LoraPair]:
    """The LoRA of the case: the same in all formats that it holds."""
    files = [read_lora(weights, spellings, component) for f in FORMATS if (weights := case.weights_below(f))]
    for file in files:
        assert not file.others and set(file.pairs) == set(files[0].pairs)
        for path, pair in file.pairs.items():
            torch.testing.assert_close(pair.delta(), files[0].pairs[path].delta(), rtol=1e-4, atol=1e-6)
    return files[0].pairs


def assert_written_as_read(case: Any, pairs: dict[str, LoraPair], names: dict[str, str]) -> None:
    stored = case.weights_below("kohya.")
    written = lora_files.kohya_weights(pairs, names)
    extra = set(written) - set(stored)
    assert set(stored) <= set(written) and all(key.endswith(".alpha") for key in extra)
    assert all(torch.equal(written[key], stored[key]) for key in stored)


def respelled_file(file: dict[str, Tensor], alias: dict[str, str]) -> dict[str, Tensor]:
    """A kohya file under the other spelling of the UNet."""
    other = {**alias, **{new: old for old, new in alias.items()}}
    return {f"{other[key.split('.', 1)[0]]}.{key.split('.', 1)[1]}": value for key, value in file.items()}


@harness.runs("lora_formats", r"unet_.*")
def unet(case: Any) -> dict[str, Tensor]:
    network = common.unet_of(case)
    spellings = lora_files.unet_spellings(network)
    pairs = pairs_of(case, spellings, UNET)
    assert_written_as_read(case, pairs, lora_files.kohya_unet_names(network))
    respelled = read_lora(respelled_file(case.weights_below("kohya."), case.config["kohya_alias"]), spellings)
    assert set(respelled.pairs) == set(pairs) and not respelled.others
    base = common.forward(case, network)
    with merged(network, pairs, case.config["strength"]):
        return {"eps_base": base, "eps": common.forward(case, network)}


@harness.runs("lora_formats", r"text_encoder_.*")
def text_encoder(case: Any) -> dict[str, Tensor]:
    encoder: nn.Module = common.text_encoder_of(case, case.weights_below("text."))
    component = {"te": TEXT, "te1": SDXL_TEXT_1, "te2": SDXL_TEXT_2}[case.config["encoder"]]
    pairs = pairs_of(case, lora_files.text_spellings(encoder, component), component)
    assert_written_as_read(case, pairs, lora_files.kohya_text_names(encoder, component))
    with merged(encoder, pairs, case.config["strength"]):
        return common.encoded(encoder, case.inputs["input_ids"])
