"""What is on MODEL, CLIP and VAE computes the same once it is diffusers modules, and can be trained."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from likeness.errors import LikenessError
from likeness.training.base.vocabulary import NewToken, Vocabulary
from likeness.weights.checkpoint_layout import unet_names


@pytest.fixture(scope="module")
def sockets(host_nodes):
    from likeness.nodes import sockets

    return sockets


def denoised(model, z, sigma, conditioning, **extra):
    """The host's image of the clean latents at a noise level."""
    return model.model.apply_model(z, torch.full((len(z),), sigma), c_crossattn=conditioning, **extra)


def estimate(base, z, t, states, **added):
    """The same of a converted model: host latents are z_t / √ᾱ."""
    acp = base.schedule.alphas_cumprod[t]
    z_t = z * acp.sqrt()
    prediction = base.unet(z_t, torch.full((len(z),), t), states, added_cond_kwargs=added or None).sample
    return base.schedule.estimate_z0(z_t, prediction, torch.full((len(z),), t))


def with_lora(patcher, prefix, seed=3):
    """A clone with a random LoRA-like change on every second matrix."""
    clone = patcher.clone()
    random = torch.Generator().manual_seed(seed)
    state = {key: value for key, value in patcher.model_state_dict(prefix).items() if value.ndim == 2}
    changes = {key: (0.05 * torch.randn(v.shape, generator=random),) for key, v in list(state.items())[::2]}
    assert len(clone.add_patches(changes, 0.7)) == len(changes) > 3
    return clone


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("patched", [False, True])
def test_a_model_with_its_patches_predicts_the_same(sockets, recipes, kind, patched):
    import comfy.model_management

    model = recipes.tiny_sd15() if kind == "sd15" else recipes.tiny_sdxl()
    if patched:
        model = with_lora(model, sockets.UNET)
    random = torch.Generator().manual_seed(1)
    width = model.model.model_config.unet_config["context_dim"]
    z, states = torch.randn(2, 4, 16, 24, generator=random), torch.randn(2, 77, width, generator=random)
    unet, schedule = sockets.unet_of(model, 16), sockets.schedule_of(model)
    extra, added = {}, {}
    if kind == "sdxl":
        pooled, ids = torch.randn(2, 64, generator=random), torch.tensor([[128.0, 192, 0, 8, 128, 192]] * 2)
        embedded = torch.cat([model.model.embedder(row) for row in ids.T], 1)
        extra, added = {"y": torch.cat([pooled, embedded], 1)}, {"text_embeds": pooled, "time_ids": ids}
    t = 400
    sigma = float(model.get_model_object("model_sampling").sigmas[t])
    comfy.model_management.load_models_gpu([model])
    with torch.no_grad():
        theirs = denoised(model, z, sigma, states, **extra)
        base = type("Base", (), {"unet": unet, "schedule": schedule})
        ours = estimate(base, z, t, states, **added)
    assert torch.allclose(ours, theirs, atol=2e-4 * float(theirs.std()) + 1e-5)
    again = sockets.merged_weights(model, sockets.UNET)  # now that the host has patched its own weights
    fresh = unet.state_dict()
    names = unet_names(fresh)
    assert all(torch.allclose(again[names[key]], value, atol=1e-6) for key, value in fresh.items())
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("sdxl", [False, True])
@pytest.mark.parametrize("patched", [False, True])
def test_a_clip_with_its_patches_says_the_same(sockets, recipes, sdxl, patched):
    clip = recipes.tiny_clip(sdxl=sdxl)
    if patched:
        clip = clip.clone()
        clip.patcher = with_lora(clip.patcher, "clip_l.transformer.")
    prompts = ["a photo of a person", "sks, with a (red) hat", ""]
    towers = sockets.towers_of(clip)
    assert [tower.kind for tower in towers] == (["clip_l", "clip_g"] if sdxl else ["clip_l"])
    for prompt in prompts:
        with torch.no_grad():
            tokens = clip.tokenize(prompt.replace("(", "\\(").replace(")", "\\)"))
            theirs, their_pooled = clip.encode_from_tokens(tokens, return_pooled=True)
            if not sdxl:
                ours = towers[0].last(towers[0].ids([prompt]), 0)
            else:
                parts = [tower.penultimate(tower.ids([prompt])) for tower in towers]
                ours = torch.cat([states for states, _ in parts], -1)
                assert parts[1][1] is not None and torch.allclose(parts[1][1], their_pooled, atol=1e-4)
        assert torch.allclose(ours, theirs, atol=1e-4), prompt


LONG = ", ".join(["a woman in a long red velvet dress beside an old stone bridge over a quiet river"] * 9)


@pytest.mark.parametrize("sdxl", [False, True])
@pytest.mark.parametrize("prompt", ["", "a photo of a person", LONG, f"{LONG} and " * 3])
def test_a_prompt_of_any_length_says_the_same(sockets, recipes, sdxl, prompt):
    clip, model = recipes.tiny_clip(sdxl=sdxl), recipes.tiny_sdxl() if sdxl else recipes.tiny_sd15()
    base = sockets.base_from_sockets(model, clip, recipes.tiny_vae(), 64)
    with torch.no_grad():
        states, pooled = clip.encode_from_tokens(clip.tokenize(prompt), return_pooled=True)
        ours = base.encode([prompt])
        batch = base.encode([prompt, "a person"])
    assert ours.states.shape == states.shape and torch.allclose(ours.states, states, atol=1e-4)
    assert torch.allclose(batch.states[:1], states, atol=1e-4)
    if sdxl:
        assert ours.pooled is not None and torch.allclose(ours.pooled, pooled, atol=1e-4)


@pytest.mark.parametrize("vectors", [1, 3, 9])
def test_prompts_with_learned_words_are_cut_where_the_host_cuts_them(sockets, recipes, tmp_path, vectors):
    word, clip = "embedding:ohwx", recipes.tiny_clip()
    clip.tokenizer.clip_l.embedding_directory = str(tmp_path)
    save_file({"emb_params": -torch.arange(vectors).float()[:, None].expand(-1, 64) - 1}, tmp_path / "ohwx.safetensors")
    base: Any = SimpleNamespace(text=sockets.towers_of(clip), spell=str)
    ids = Vocabulary(base, [NewToken(word, vectors, "person")]).ids(word)
    numbers = {token: -1.0 - number for number, token in enumerate(ids)}

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.one_of(st.just(word), st.integers(1, 90).map("a ".__mul__)), min_size=1, max_size=6))
    def check(parts):
        prompt = " ".join(part.strip() for part in parts)
        theirs = [[float(t[0]) if torch.is_tensor(t) else t for t, _ in row] for row in clip.tokenize(prompt)["l"]]
        ours = base.text[0].chunks(base.spell(prompt)).tolist()
        assert [[numbers.get(token, token) for token in row] for row in ours] == theirs

    check()


def test_clip_set_last_layer_is_followed(sockets, recipes):
    clip = recipes.tiny_clip().clone()
    clip.clip_layer(-2)
    tower = sockets.towers_of(clip)
    with torch.no_grad():
        theirs = clip.encode_from_tokens(clip.tokenize("a photo"))
        ours = tower[0].last(tower[0].ids(["a photo"]), sockets._clip_skip(clip, tower))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_vae_made_in_inference_mode_gives_the_same_latents_and_gradients(sockets, recipes):
    with torch.inference_mode():
        vae, model = recipes.tiny_vae(), recipes.tiny_sd15()
    codec = sockets.codec_of(vae, model)
    pictures = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = model.model.process_latent_in(vae.encode(pictures.movedim(1, -1)))
        ours = codec.encode(2 * pictures - 1)
    assert ours.std is None and torch.allclose(ours.mean, theirs, atol=1e-4)
    z = torch.randn(1, 4, 4, 6, requires_grad=True)
    picture = codec.decoder.picture(z)
    with torch.no_grad():
        decoded = vae.decode(model.model.process_latent_out(z.detach())).movedim(-1, 1)
    assert torch.allclose(picture, decoded, atol=1e-4)
    picture.sum().backward()
    assert z.grad is not None and codec.decoder.pixels_per_cell == 8


def test_the_schedule_follows_sampling_nodes(sockets, recipes):
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model = recipes.tiny_sd15()
    plain = sockets.schedule_of(model)
    assert plain.prediction.value == "epsilon" and len(plain) == 1000
    assert torch.allclose(plain.alphas_cumprod, type(plain).scaled_linear().alphas_cumprod, atol=1e-6)
    [velocity] = ModelSamplingDiscrete().patch(model, "v_prediction", True)
    changed = sockets.schedule_of(velocity)
    assert changed.prediction.value == "v_prediction" and float(changed.alphas_cumprod[-1]) < 1e-6
    assert sockets.schedule_of(model).prediction.value == "epsilon"


def test_parts_that_do_not_belong_together_are_refused(sockets, recipes):
    sd15, sdxl, clip, vae = recipes.tiny_sd15(), recipes.tiny_sdxl(), recipes.tiny_clip(), recipes.tiny_vae()
    with pytest.raises(LikenessError, match="CLIP and MODEL do not belong together: the text has width 64"):
        sockets.base_from_sockets(sdxl, clip, vae, 128)
    with pytest.raises(LikenessError, match="training works with SD1"):
        sockets.base_from_sockets(recipes.tiny_flux(), clip, vae, 128)
    with pytest.raises(LikenessError, match="'vae' is empty"):
        sockets.base_from_sockets(sd15, clip, None, 128)
    assert not sockets.base_from_sockets(sd15, clip, vae, 128).is_sdxl


def test_the_hosts_own_weights_stay_as_they_are(sockets, recipes):
    model, clip, vae = recipes.tiny_sd15(), recipes.tiny_clip(), recipes.tiny_vae()
    before = {key: value.clone() for key, value in model.model.state_dict().items()}
    base = sockets.base_from_sockets(model, clip, vae, 128)
    for network in base.networks:
        for parameter in network.parameters():
            parameter.data.add_(1)
    assert all(torch.equal(before[key], value) for key, value in model.model.state_dict().items())
