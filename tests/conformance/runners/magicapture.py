"""MagiCapture: its objectives, alone and in one tuning step, and its LoRA."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from conformance import harness
from conformance.runners import _magicapture_file as official_file
from conformance.runners import _training as common
from torch import Tensor, nn

from likeness.faces.align import arcface_template, differentiable_crop, similarity_transform
from likeness.faces.recognition import FrozenRecogniser
from likeness.training.base.lora import add_lora, fill_lora
from likeness.training.base.noise import NoiseSchedule
from likeness.training.data.examples import Example
from likeness.training.data.masks import face_mask
from likeness.training.objectives import magicapture, reconstruction
from likeness.training.objectives.attention_refocusing import attention_refocusing
from likeness.training.objectives.identity import Decoder, LikenessTarget, arcface_measure
from likeness.training.objectives.magicapture import ShotKind
from likeness.training.probe import AttentionProbe, columns_of, sites_at
from likeness.training.recipe import Pass, Sample
from likeness.training.recipes import magicapture as recipe
from likeness.weights import lora_files
from likeness.weights.lora import LoraPair, merged

OFFICIAL_GRID = (16, 16)


# Objectives -----------------------------------------------------------------------------------------------------------


@harness.runs("magicapture", r"masked_reconstruction")
def masked_reconstruction(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    prediction = given["pred"].requires_grad_()
    target = common.schedule_of(config).target(given["latents"], given["noise"], given["timesteps"])
    mask = reconstruction.soft_mask(given["mask"], target.shape[-2:], config["mask_temperature"])
    weight = magicapture.reconstruction_weight(ShotKind(config["kind"]), config["progress"], config["lambda_style"])
    loss = weight * reconstruction.masked_reconstruction(prediction, target, mask).mean()
    return common.scaled(case, {"loss": loss, "grad_pred": torch.autograd.grad(loss, prediction)[0]})


def wanted(case: Any, subject: list[int], style: list[int]) -> tuple[Tensor, Tensor]:
    """Positions and regions of the tokens in a case's prompt."""
    config, given, kind = case.config, case.inputs, ShotKind(case.config["kind"])
    size = tuple(given["latent_hw"].tolist()) if "latent_hw" in given else given["latents"].shape[-2:]
    mask = reconstruction.soft_mask(given["mask"], size, config["mask_temperature"])
    ids = {ShotKind.INSTANCE: subject, ShotKind.STYLE: style, ShotKind.BOTH: subject + style}[kind]
    regions = magicapture.regions(kind, mask, len(subject), len(style))
    return magicapture.positions(given["input_ids"], ids), regions


@harness.runs("magicapture", r"attention_refocusing")
def refocusing(case: Any) -> dict[str, Tensor]:
    given, config = case.inputs, case.config
    grid = (config["map_resolution"],) * 2
    positions, regions = wanted(case, config["subject_token_ids"], config["style_token_ids"])
    used = [
        i
        for i, layer in enumerate(config["layers"])
        if layer["place"] != "mid" and layer["tokens"] == grid[0] * grid[1]
    ]
    leaves = {f"{part}.{i}": given[f"{part}.{i}"].requires_grad_() for i in used for part in ("q", "k")}
    maps = [columns_of(leaves[f"q.{i}"], leaves[f"k.{i}"], positions, config["layers"][i]["heads"]) for i in used]
    loss = attention_refocusing(maps, regions, grid).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    named = {f"grad_attn.{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return common.scaled(case, {"attention_loss": loss, **named})


# Faces ----------------------------------------------------------------------------------------------------------------


@harness.runs("magicapture", r"face_align")
def face_align(case: Any) -> dict[str, Tensor]:
    size, image = case.config["size"], case.inputs["image"].requires_grad_()
    landmarks = case.inputs["landmarks"]
    crop = differentiable_crop(image, landmarks.unsqueeze(0), size)
    gradient = torch.autograd.grad((crop * case.inputs["cotangent"]).sum(), image)[0]
    matrix = similarity_transform(landmarks.numpy(), arcface_template(size))
    return {"crop": crop, "grad_image": gradient, "matrix": torch.from_numpy(np.asarray(matrix, np.float32))}


@harness.runs("magicapture", r"face_mask")
def mask_of_face(case: Any) -> dict[str, Tensor]:
    (_, height, width) = case.expected["mask"].shape
    labels = case.inputs["labels"].numpy().repeat(8, 0).repeat(8, 1)
    return {"mask": face_mask(labels, case.config["bbox"], (height, width))}


# LoRA -----------------------------------------------------------------------------------------------------------------


def with_lora(model: nn.Module, pairs: dict[str, LoraPair], scale: float) -> nn.Module:
    """The model with peft layers of these values; MagiCapture has no alpha, its scale multiplies up @ down."""
    rank = next(iter(pairs.values())).rank
    add_lora(model, pairs, rank)
    fill_lora(model, {path: LoraPair(p.down, p.up, alpha=scale * rank) for path, p in pairs.items()})
    return model


def loaded(module: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    module.load_state_dict({name: value for name, value in weights.items() if ".lora_" not in f".{name}"})
    return module


@harness.runs("magicapture", r"lora_linear")
def lora_linear(case: Any) -> dict[str, Tensor]:
    out_features, in_features = case.weights["linear.weight"].shape
    model = nn.ModuleDict({"linear": nn.Linear(in_features, out_features, bias=case.config["bias"])})
    pair = LoraPair(case.weights["lora_down.weight"], case.weights["lora_up.weight"])
    layer: Any = with_lora(loaded(model, case.weights), {"linear": pair}, case.config["scale"]).get_submodule("linear")
    y = layer(case.inputs["x"])
    weights = [layer.lora_A["likeness"].weight, layer.lora_B["likeness"].weight]
    down, up = torch.autograd.grad((y * case.inputs["cotangent"]).sum(), weights)
    return common.scaled(case, {"y": y, "grad_down": down, "grad_up": up})


@harness.runs("magicapture", r"lora_conv")
def lora_conv(case: Any) -> dict[str, Tensor]:
    width_out, width_in = case.weights["conv.weight"].shape[:2]
    config = case.config
    conv = nn.Conv2d(width_in, width_out, config["kernel"], config["stride"], config["padding"])
    pair = LoraPair(case.weights["lora_down.weight"], case.weights["lora_up.weight"])
    model = loaded(nn.ModuleDict({"conv": conv}), case.weights)
    return {"y": with_lora(model, {"conv": pair}, config["scale"]).get_submodule("conv")(case.inputs["x"])}


@harness.runs("magicapture", r"lora_cross_attention")
def lora_cross_attention(case: Any) -> dict[str, Tensor]:
    from diffusers.models.attention_processor import Attention

    config, weights = case.config, case.weights
    attention = Attention(
        config["channels"], config["context"], heads=config["heads"], dim_head=config["channels"] // config["heads"]
    )
    pairs = {
        name.removesuffix(".lora_down.weight"): LoraPair(down, weights[name.replace("down", "up")])
        for name, down in weights.items()
        if name.endswith(".lora_down.weight")
    }
    layer = with_lora(loaded(attention, weights), pairs, config["scale"])
    return {"y": layer(case.inputs["hidden_states"], case.inputs["encoder_hidden_states"])}


# Official files -------------------------------------------------------------------------------------------------------


@harness.runs("magicapture", r"official_file_unet")
def official_file_unet(case: Any) -> dict[str, Tensor]:
    unet, file, header = common.unet_of(case), case.weights_below("file."), case.config["file_metadata"]
    order = official_file.official_unet_order(unet, official_file.official_targets(header, lora_files.UNET))
    assert order == case.config["index_to_module"]
    with merged(unet, official_file.read_official(file, lora_files.UNET, order), case.config["lora_scale"]):
        eps = common.forward(case, unet)
    return {"eps": eps, "embeds": torch.stack(list(official_file.official_tokens(file, header).values()))}


@harness.runs("magicapture", r"official_file_text_encoder")
def official_file_text_encoder(case: Any) -> dict[str, Tensor]:
    encoder, file = common.text_encoder_of(case, case.weights_below("text.")), case.weights_below("file.")
    order = official_file.official_text_order(encoder)
    with merged(encoder, official_file.read_official(file, lora_files.TEXT, order), case.config["lora_scale"]):
        return common.encoded(encoder, case.inputs["input_ids"])


# One tuning step ------------------------------------------------------------------------------------------------------


class Recogniser(nn.Module):
    """The cases' stand-in for iResNet-100."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        shapes = [weights[f"conv{i}.weight"].shape for i in (1, 2, 3)]
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(s[1], s[0], 3, 2, 1) for s in shapes)
        width_out, width_in = weights["fc.weight"].shape
        self.fc = nn.Linear(width_in, width_out)
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = nn.functional.leaky_relu(conv(x), 0.2)
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))


def vae_of(case: Any) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config = dict(case.config["vae"])
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(
        **config,
        down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
    )
    report = vae.load_state_dict(case.weights_below("vae."), strict=False)
    assert not report.unexpected_keys and all(
        key.startswith(("encoder.", "quant_conv.")) for key in report.missing_keys
    )
    return vae.eval().requires_grad_(False)


@harness.runs("magicapture", r"tuning_step")
def tuning_step(case: Any) -> dict[str, Tensor]:
    given, config, kind = case.inputs, case.config, ShotKind(case.config["kind"])
    schedule = NoiseSchedule.scaled_linear()
    unet, file = common.unet_of(case), case.weights_below("lora.unet:")
    order = config["lora_index_to_module"]
    pairs = {path: LoraPair(file[f"{i}:down"], file[f"{i}:up"]) for i, path in enumerate(order)}
    with_lora(unet, pairs, config["lora_scale"])
    text = given["encoder_hidden_states"].requires_grad_()
    size = given["latents"].shape[-2:]
    positions, _ = wanted(case, [config["subject_token_id"]], [config["style_token_id"]])
    probe = AttentionProbe(unet, sites_at(unet, tuple(size), OFFICIAL_GRID))
    noise, latents, progress = given["noise"], given["latents"], config["progress"]
    likeness = LikenessTarget(given["landmarks"], given["face_embedding"]) if kind.shows_person else None
    mask = reconstruction.soft_mask(given["mask"], size, config["mask_temperature"])
    example = Example(given["latents"][0], "")
    samples = [Sample(example, "", about=recipe.Shot(kind, mask[0], likeness))]

    def look(t: Tensor, maps: Any = ()) -> Pass:
        z_t = schedule.add_noise(latents, noise, t)
        prediction = unet(z_t, t, text).sample
        again = lambda: look(given["id_timestep"])  # noqa: E731
        return Pass(samples, schedule, progress, latents, noise, t, z_t, prediction, maps, again)

    with probe.recording(positions) as maps:
        found = look(given["timestep"], maps)
    settings = recipe.MagiCaptureSettings(
        lambda_id=config["lambda_id"], identity_pass=recipe.IdentityPass.SEPARATE, decode_whole=True
    )
    recon = recipe.reconstruct(found, config["lambda_style"])
    attention = recipe.refocus(1, recipe.Refocusing.OFFICIAL, OFFICIAL_GRID, found)
    outputs = {"attention_loss": attention, "recon_plus_id": recon}
    if kind.shows_person:
        measure = arcface_measure(FrozenRecogniser(Recogniser(case.weights_below("face.")), "stand-in"))
        term = recipe.resemble(settings, Decoder.of(vae_of(case)), measure, len(schedule), None, found)
        outputs["id_term"] = config["lambda_id"] * term
        outputs["recon_plus_id"] = recon + outputs["id_term"]
    outputs["total"] = outputs["recon_plus_id"] + config["lambda_attention"] * attention
    stored = [name for name in case.expected if name.startswith("grad.unet:")]
    leaves = [text]
    for name in stored:
        index, half = name.removeprefix("grad.unet:").split(":")
        layer: Any = unet.get_submodule(order[int(index)])
        leaves.append((layer.lora_A if half == "down" else layer.lora_B)["likeness"].weight)
    gradients = torch.autograd.grad(outputs["total"], leaves)
    outputs.update(zip(["grad_encoder_hidden_states", *stored], gradients, strict=True))
    return common.scaled(case, outputs)
