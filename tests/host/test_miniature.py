"""The miniature world in the real ComfyUI: the same numbers as without a host, through the host's own doors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.server import RunFailed

from likeness.adapters import load
from likeness.adapters.effects import Effect, PromptEdit, PromptStates, Scope
from likeness.errors import LikenessError
from likeness.faces import Identity
from likeness.injection.sites import diffusers_layers, sites_of_diffusers_unet
from likeness.miniature.models.generate import encode_prompts, generate_latents, identity_injection, pictures_of
from likeness.miniature.models.latents import load_codec
from likeness.miniature.models.networks import build_text_encoder, build_tokenizer, build_unet
from likeness.miniature.models.weights import FOLDER, load_text_encoder, load_unet, save_weights
from likeness.training.ip_adapter import fresh_faceid

PROMPT = "a photo of a smiling person wearing glasses and a red shirt in the snow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped weights, or random ones in their place until there are any."""
    if (FOLDER / "unet.safetensors").is_file():
        return FOLDER
    folder = tmp_path_factory.mktemp("miniature")
    torch.manual_seed(0)
    save_weights(build_unet().state_dict(), folder / "unet.safetensors")
    save_weights(build_text_encoder().state_dict(), folder / "text_encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    """Without a host: denoiser, text encoder, tokenizer."""
    return load_unet(folder), load_text_encoder(folder), build_tokenizer()


@pytest.fixture(scope="module")
def theirs(host_nodes, folder):
    """In the host: MODEL, CLIP, VAE, loaded as the executor runs nodes."""
    from likeness.miniature.models import comfy as host

    with torch.inference_mode():
        return SimpleNamespace(model=host.load_model(folder), clip=host.load_clip(folder), vae=host.load_vae())


@pytest.fixture(scope="module")
def adapter_weights(ours) -> dict[str, torch.Tensor]:
    """A FaceID file's content: 512 numbers to 4 tokens, 7 sites, LoRA of rank 16, all of it with effect."""
    torch.manual_seed(3)
    weights = fresh_faceid(ours[0])
    return {k: torch.randn_like(v) / 16 if k.endswith("up.weight") else v for k, v in weights.items()}


def embedding() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(4)), dim=-1)


def encode(clip: Any, text: str) -> Any:
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def sampled(
    host_nodes: Any, model: Any, clip: Any, *, seed: int = 5, steps: int = 6, cfg: float = 4.0,
    effects: Sequence[Effect] = (),
) -> torch.Tensor:  # fmt: skip
    """What the host's own KSampler node makes of an empty latent of 128 pixels. effects: on the prompt."""
    from likeness.injection.comfy import edited

    with torch.inference_mode():
        [latent] = host_nodes.EmptyLatentImage().generate(128, 128)
        positive, negative = edited(encode(clip, PROMPT), effects), encode(clip, "")
        [result] = host_nodes.KSampler().sample(
            model, seed, steps, cfg, "euler", "normal", positive, negative, latent, denoise=1.0
        )
    return result["samples"].clone()


def test_prompts_have_the_same_states(theirs, ours):
    [[states, _]] = encode(theirs.clip, PROMPT)
    torch.testing.assert_close(states, encode_prompts(*ours[1:], [PROMPT]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
def test_latents_are_those_made_without_a_host(host_nodes, theirs, ours, cfg):
    expected = generate_latents(*ours, PROMPT, [5], steps=6, guidance=cfg)
    result = sampled(host_nodes, theirs.model, theirs.clip, cfg=cfg)
    assert result.shape == (1, 16, 16, 16)
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=1e-4)


@pytest.fixture
def adapter_file(adapter_weights, tmp_path, monkeypatch) -> Path:
    """An untrained adapter where the pack keeps its own."""
    from likeness.miniature.models import weights

    path = tmp_path / weights.ADAPTER_FILE.name
    save_weights(adapter_weights, path)
    monkeypatch.setattr(weights, "ADAPTER_FILE", path)
    return path


def somebody(recogniser: str = "miniature") -> Identity:
    """A person of one photo, known by `embedding()` alone."""
    return Identity(
        "somebody", recogniser, 7 * embedding(), torch.ones(1), *(torch.zeros(0, s, s, 3) for s in (224, 512, 512)),
        torch.zeros(0, 5, 2), torch.zeros(1, 4), torch.tensor([[128, 128]]),
    )  # fmt: skip


def apply_identity(model: Any, identity: Identity, weight: float = 0.8) -> tuple[Any, str]:
    """Through our own nodes, as an artist has them."""
    from likeness.nodes.adapter_files import MINIATURE
    from likeness.nodes.adapters import ApplyIdentity, LoadIdentityAdapter

    with torch.inference_mode():
        [adapter] = LoadIdentityAdapter.execute(MINIATURE).args
        return ApplyIdentity.execute(model, adapter, weight, 0.0, 1.0, 1.0, identity).args  # type: ignore[return-value]


def test_latents_with_a_face_are_those_made_without_a_host(host_nodes, theirs, ours, adapter_file):
    adapter = load(adapter_file).float()
    lora = adapter.lora(diffusers_layers(sites_of_diffusers_unet(ours[0])))
    assert lora is not None
    injection = identity_injection(ours[0], adapter, embedding(), 0.8)
    expected = generate_latents(*ours, PROMPT, [5], steps=6, effects=[injection, lora])
    model, report = apply_identity(theirs.model, somebody())
    assert "4 tokens at 7 of 7 sites" in report and "LoRA 1 on 56 weights" in report
    result = sampled(host_nodes, model, theirs.clip)
    # Rounding grows over the steps and is multiplied by the guidance, in single values more than on average.
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-4)
    assert float((result - expected).abs().mean()) < 1e-4
    assert (result - generate_latents(*ours, PROMPT, [5], steps=6)).abs().max() > 0.01


def _turned(text: PromptStates) -> PromptStates:
    return PromptStates(text.states.roll(1, dims=-1), values=text.states.flip(-1))


@pytest.mark.parametrize(
    "scope",
    [Scope(0.2, 0.6), Scope(0.25, 1.0), Scope(0.0, 0.4), Scope(0.5, 0.9, first_step=lambda steps: steps // 3)],
    ids=["from step to step", "start", "end", "first step"],
)
@pytest.mark.parametrize("kind", ["term", "delta", "edit", "all"])
def test_windows_hold_the_same_steps_as_without_a_host(host_nodes, theirs, ours, adapter_file, kind, scope):
    """Of 6 steps the scheduler `normal` makes one at every fifth of the timesteps: borders at a step's own noise."""
    from likeness.injection.comfy import apply_effects

    adapter = load(adapter_file).float()
    lora = adapter.lora(diffusers_layers(sites_of_diffusers_unet(ours[0])), 2.0)
    assert lora is not None
    made: dict[str, Effect] = {
        "term": replace(identity_injection(ours[0], adapter, embedding()), scope=scope),
        "delta": replace(lora, scope=scope),
        "edit": PromptEdit(_turned, scope),
    }
    effects = list(made.values()) if kind == "all" else [made[kind]]
    with torch.inference_mode():
        model = apply_effects(theirs.model, effects).model
    expected = generate_latents(*ours, PROMPT, [5], steps=6, effects=effects)
    result = sampled(host_nodes, model, theirs.clip, effects=effects)
    torch.testing.assert_close(result, expected, atol=2e-3, rtol=1e-3)
    for others in (Scope(), Scope(scope.start, scope.end - 0.2), Scope(scope.start + 0.2, scope.end)):
        other = generate_latents(*ours, PROMPT, [5], steps=6, effects=[replace(e, scope=others) for e in effects])
        assert (result - other).abs().max() > 1e-2


def test_the_adapter_wants_faces_seen_by_the_miniature(theirs, adapter_file):
    with pytest.raises(LikenessError, match=r"trained on the recogniser miniature.* made with buffalo_l"):
        apply_identity(theirs.model, somebody("buffalo_l"))


def test_an_adapter_that_is_not_there_is_explained(host_nodes, tmp_path, monkeypatch):
    from likeness.miniature.models import weights
    from likeness.nodes.adapter_files import MINIATURE
    from likeness.nodes.adapters import LoadIdentityAdapter

    monkeypatch.setattr(weights, "ADAPTER_FILE", tmp_path / "gone.safetensors")
    with pytest.raises(LikenessError, match="adapter of the miniature world is missing"):
        LoadIdentityAdapter.execute(MINIATURE)


def test_pictures_go_through_the_hosts_vae_nodes_and_back(host_nodes, theirs):
    pictures = torch.rand(2, 128, 128, 3)
    codec = load_codec()
    with torch.inference_mode():
        [latent] = host_nodes.VAEEncode().encode(theirs.vae, pictures)
        [decoded] = host_nodes.VAEDecode().decode(theirs.vae, latent)
        [tiled] = host_nodes.VAEDecodeTiled().decode(theirs.vae, latent, 64, 16)
        [encoded_tiled] = host_nodes.VAEEncodeTiled().encode(theirs.vae, pictures, 64, 16)
    expected = codec.encode(pictures.permute(0, 3, 1, 2))
    torch.testing.assert_close(latent["samples"].clone(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoded_tiled["samples"].clone(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(decoded.clone(), codec.decode(expected).permute(0, 2, 3, 1), atol=1e-5, rtol=0)
    assert tiled.shape == decoded.shape and (tiled - decoded).abs().mean() < 0.02


def test_previews_show_the_colours_of_the_picture(theirs):
    import latent_preview

    colour = torch.tensor([0.8, 0.5, 0.2])
    latent = load_codec().encode(colour.view(1, 3, 1, 1).expand(1, 3, 128, 128))
    format_ = theirs.model.model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(format_.latent_rgb_factors, format_.latent_rgb_factors_bias)
    preview = previewer.decode_latent_to_preview(latent)
    assert preview.size == (16, 16)
    assert preview.getpixel((8, 8)) == pytest.approx([204, 128, 51], abs=6)


@pytest.mark.parametrize("size", [(512, 512), (128, 64)])
def test_another_size_is_refused_in_one_sentence(host_nodes, theirs, size):
    [latent] = host_nodes.EmptyLatentImage().generate(*size)
    positive = encode(theirs.clip, PROMPT)
    with pytest.raises(LikenessError, match="128x128"), torch.inference_mode():
        host_nodes.KSampler().sample(theirs.model, 0, 1, 1.0, "euler", "normal", positive, positive, latent)


def test_unknown_words_are_named(theirs):
    with pytest.raises(LikenessError, match="does not know 'unicorn', 'masterpiece'"):
        theirs.clip.tokenize("a (photo:1.2) of a unicorn, (masterpiece:1.1)")


def test_prompt_weights_are_understood(theirs):
    [[plain, _]], [[heavy, _]] = encode(theirs.clip, "a red hat"), encode(theirs.clip, "a (red:1.4) hat")
    changed = (plain - heavy).abs().amax((0, 2)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [2]


def test_embedding_files_are_read_and_their_names_are_no_unknown_words(theirs, tmp_path):
    from safetensors.torch import save_file

    row = torch.randn(2, 128)
    save_file({"emb_params": row}, tmp_path / "mia.safetensors")
    words = theirs.clip.tokenizer.clip_l
    before = words.embedding_directory
    words.embedding_directory = [str(tmp_path)]
    try:
        tokens = theirs.clip.tokenize("a photo of embedding:mia, (embedding:mia person:1.2) in the snow")["l"][0]
    finally:
        words.embedding_directory = before
    assert sum(torch.is_tensor(token) for token, _ in tokens) == 4
    assert len(tokens) == 77


def test_lora_files_reach_model_and_clip(theirs, host_nodes):
    """Keys as trainers write them, by the host's own loader."""
    import comfy.sd

    torch.manual_seed(0)
    names = {
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q": (128, 128),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (128, 128),
        "lora_unet_up_blocks_0_attentions_1_proj_in": (128, 128),
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (128, 128),
    }
    lora = {}
    for name, (out, into) in names.items():
        lora[f"{name}.lora_up.weight"] = torch.randn(out, 4)
        lora[f"{name}.lora_down.weight"] = torch.randn(4, into)
        lora[f"{name}.alpha"] = torch.tensor(4.0)
    model, clip = comfy.sd.load_lora_for_models(theirs.model, theirs.clip, lora, 1.0, 1.0)
    assert len(model.patches) == 3
    assert len(clip.patcher.patches) == 1
    assert (encode(clip, PROMPT)[0][0] - encode(theirs.clip, PROMPT)[0][0]).abs().max() > 1e-3
    changed, plain = (sampled(host_nodes, each, theirs.clip, steps=1) for each in (model, theirs.model))
    assert (changed - plain).abs().max() > 1e-3


def test_every_diffusers_lora_target_has_a_place(theirs, ours):
    import comfy.lora

    places = comfy.lora.model_lora_keys_unet(theirs.model.model, {})
    for name, module in ours[0].named_modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            assert f"lora_unet_{name.replace('.', '_')}" in places, name


def test_weights_can_be_trained(theirs):
    """They are loaded within the executor's inference mode, and yet no inference tensors."""
    for module in (theirs.model.model, theirs.clip.cond_stage_model, theirs.vae.first_stage_model):
        assert not any(t.is_inference() for t in (*module.parameters(), *module.buffers()))


def test_a_damaged_file_is_named(host_nodes, tmp_path):
    from likeness.miniature.models import comfy as host

    (tmp_path / "unet.safetensors").write_bytes(b"damaged")
    with pytest.raises(LikenessError, match=r"'unet\.safetensors'.*missing or damaged"):
        host.load_model(tmp_path)


# --- with the weights that are shipped, through the real server


@pytest.mark.parametrize("name", ["miniature", "miniature-judge"])
def test_the_face_analyses_need_no_file_of_the_artist(host_nodes, name):
    from likeness.nodes.faces import LoadFaceAnalysis

    [analysis] = LoadFaceAnalysis.execute(name).args
    assert analysis.name == analysis.recogniser.name == name


def graph(prompt: str, side: int = 128) -> dict[str, Any]:
    """The smallest graph that paints."""
    text = {"clip": ["1", 1]}
    sampler = {"seed": 5, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    nodes = {
        "1": ("LikenessLoadMiniature", {}),
        "2": ("CLIPTextEncode", {"text": prompt, **text}),
        "3": ("CLIPTextEncode", {"text": "", **text}),
        "4": ("EmptyLatentImage", {"width": side, "height": side, "batch_size": 1}),
        "5": (
            "KSampler",
            {**sampler, "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0]},
        ),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}),
        "7": ("SaveImage", {"images": ["6", 0], "filename_prefix": "miniature"}),
    }
    return {number: {"class_type": kind, "inputs": inputs} for number, (kind, inputs) in nodes.items()}


def test_the_server_paints_the_picture_that_is_made_without_a_host(client, ours):
    [picture] = client.images(client.run(graph(PROMPT)), "7")
    [expected] = pictures_of(load_codec(), generate_latents(*ours, PROMPT, [5], steps=4))
    assert picture.shape == (128, 128, 3)
    assert abs(picture / 255.0 - expected.numpy()).max() < 2.5 / 255


@pytest.mark.parametrize(
    ("prompt", "side", "node", "sentence"),
    [
        ("a photo of a unicorn", 128, "CLIPTextEncode", "does not know 'unicorn'"),
        (PROMPT, 512, "KSampler", "128x128"),
    ],
)
def test_mistakes_reach_the_artist_as_one_sentence(client, server, prompt, side, node, sentence):
    with pytest.raises(RunFailed) as failure:
        client.run(graph(prompt, side))
    assert failure.value.node_type == node
    assert sentence in failure.value.message and "\n" not in failure.value.message.strip()
