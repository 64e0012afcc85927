"""The miniature world as ComfyUI's MODEL, CLIP and VAE, from shipped weights: no checkpoint, no network, no diffusers.

Imported inside the host only.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip as sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from comfy.taesd.taesd import TAESD
from torch import Tensor, nn

from ...errors import LikenessError
from ..drawing.captions import check_prompt
from .latents import CHANNELS, FACTOR, load_codec
from .networks import LATENT_SIZE, TEXT, TEXT_WIDTH, TOKENIZER, UNET
from .weights import FOLDER, read_tensors

PICTURE = FACTOR * LATENT_SIZE  # pixels a side
_KEY = "likeness_miniature"  # of our wrapper


def _patcher(disable_dynamic: bool) -> type[comfy.model_patcher.ModelPatcher]:
    """What the host's own loaders manage weights by: newer hosts choose it when they start."""
    plain = comfy.model_patcher.ModelPatcher
    return plain if disable_dynamic else getattr(comfy.model_patcher, "CoreModelPatcher", plain)


def _made_again_by(patcher: Any, load: Callable[..., Any], *arguments: Any) -> Any:
    """The patcher, of which newer hosts can make another of its own weights, for another device."""
    patcher.cached_patcher_init = (load, arguments)
    return patcher


# --- MODEL


class MiniatureLatents(comfy.latent_formats.LatentFormat):
    """16 channels of unit variance, with the colours of their previews."""

    latent_channels = CHANNELS

    def __init__(self) -> None:
        decoder = load_codec().decoder
        assert decoder.bias is not None
        # What one cell decodes to among cells like it, averaged over its 64 pixels.
        self.latent_rgb_factors = decoder.weight.sum((2, 3)).view(3, -1, CHANNELS).mean(1).T.tolist()
        self.latent_rgb_factors_bias = decoder.bias.view(3, -1).mean(1).tolist()


class Miniature(comfy.supported_models.SD15):
    """SD1.5's family, small, predicting the velocity."""

    unet_extra_config = {"num_heads": UNET["attention_head_dim"], "num_head_channels": -1}
    latent_format = MiniatureLatents

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> Any:
        return comfy.model_base.ModelType.V_PREDICTION


def _unet_config() -> dict[str, Any]:
    """The network of `networks.UNET` in the host's terms."""
    widths, layers = UNET["block_out_channels"], UNET["layers_per_block"]
    depth = [int("CrossAttn" in block) for block in UNET["down_block_types"]]
    return {
        "image_size": UNET["sample_size"],
        "in_channels": UNET["in_channels"],
        "out_channels": UNET["out_channels"],
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [d for d in depth for _ in range(layers)],
        "transformer_depth_output": [d for d in depth for _ in range(layers + 1)],
        "transformer_depth_middle": depth[-1],
        "context_dim": UNET["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": False,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
        "adm_in_channels": None,
        "legacy": False,
    }


@torch.inference_mode(False)  # so that its weights can be trained in a graph
def load_model(folder: Path = FOLDER, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The MODEL, in float32. LikenessError when its weight file is missing or damaged.

    disable_dynamic: whether its weights are loaded whole, as the host asks where it makes it again.
    """
    config = _unet_config()
    names = comfy.utils.unet_to_diffusers(config)
    weights = {names[name]: value for name, value in read_tensors(folder / "unet.safetensors").items()}
    settings = Miniature({**config, "dtype": torch.float32})
    settings.set_inference_dtype(torch.float32, None)
    offload = mm.unet_offload_device()
    model = comfy.model_base.BaseModel(settings, settings.model_type(weights), device=offload)
    model.diffusion_model.load_state_dict(weights)
    patcher = _patcher(disable_dynamic)(model.eval(), load_device=mm.get_torch_device(), offload_device=offload)
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, _check_size)
    return _made_again_by(patcher, load_model, folder)


def _check_size(executor: Any, noise: Tensor, *args: Any, **keywords: Any) -> Any:
    """OUTER_SAMPLE: only images of the one size that the network was trained on."""
    height, width = noise.shape[-2:]
    if (height, width) != (LATENT_SIZE, LATENT_SIZE):
        raise LikenessError(
            f"The miniature world draws images of {PICTURE}x{PICTURE} pixels, and this latent is for "
            f"{width * FACTOR}x{height * FACTOR}: set the width and height of the empty latent to {PICTURE}."
        )
    return executor(noise, *args, **keywords)


# --- CLIP

_EMBEDDING = re.compile(r"embedding:\S+")


class MiniatureWords(sd1_clip.SDTokenizer):
    """The world's tokenizer, which refuses words that the world does not know."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(
            str(TOKENIZER),
            embedding_directory=embedding_directory,
            embedding_size=TEXT_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **keywords: Any) -> Any:
        said = " ".join(part for part, _ in sd1_clip.token_weights(sd1_clip.escape_important(text), 1.0))
        check_prompt(
            _EMBEDDING.sub(" ", sd1_clip.unescape_important(said)), placeholders=self.tokenizer.get_added_vocab()
        )
        return super().tokenize_with_weights(text, return_word_ids, **keywords)


class MiniatureTokenizer(sd1_clip.SD1Tokenizer):
    """What a CLIP holds."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=MiniatureWords)


class MiniatureText(sd1_clip.SDClipModel):
    """The text encoder of `networks.TEXT`, empty. `vocabulary` words, of which the last two begin and end a prompt."""

    def __init__(
        self, vocabulary: int, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None
    ) -> None:
        start, end = vocabulary - 2, vocabulary - 1
        super().__init__(
            device=device,
            dtype=dtype,
            textmodel_json_config={**TEXT, "vocab_size": vocabulary, "eos_token_id": end},
            special_tokens={"start": start, "end": end, "pad": end},
            return_projected_pooled=False,
            model_options=model_options or {},
        )
        # The host's table always has the rows of CLIP-L's vocabulary.
        table = self.operations.Embedding(vocabulary, TEXT_WIDTH, dtype=dtype, device=device)
        self.transformer.set_input_embeddings(table.requires_grad_(False))


class MiniatureClipModel(sd1_clip.SD1ClipModel):
    """`MiniatureText` under the name of SD1.5's encoder, which LoRA files expect."""

    def __init__(self, vocabulary: int, **keywords: Any) -> None:
        def build(**options: Any) -> MiniatureText:
            return MiniatureText(vocabulary, **options)

        super().__init__(**keywords, clip_model=build)  # type: ignore[arg-type]


@torch.inference_mode(False)
def load_clip(folder: Path = FOLDER, disable_dynamic: bool = False) -> comfy.sd.CLIP:
    """The CLIP, in float32, with the host's embedding folders. LikenessError and disable_dynamic as `load_model`."""
    import folder_paths

    weights = read_tensors(folder / "text_encoder.safetensors")
    weights = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in weights.items()}
    weights["text_projection.weight"] = torch.eye(TEXT_WIDTH)  # there is none, and SD1.5 does not use it
    target = comfy.supported_models_base.ClipTarget(MiniatureTokenizer, MiniatureClipModel)
    target.params["vocabulary"] = len(weights["text_model.embeddings.token_embedding.weight"])
    clip = comfy.sd.CLIP(
        target,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        model_options={"dtype": torch.float32},
        **({"disable_dynamic": True} if disable_dynamic else {}),
    )
    clip.cond_stage_model.clip_l.transformer.load_state_dict(weights)
    _made_again_by(clip.patcher, _clip_patcher, folder)
    return clip


def _clip_patcher(folder: Path, disable_dynamic: bool = False) -> Any:
    return load_clip(folder, disable_dynamic).patcher


# --- VAE


@torch.inference_mode(False)
def load_vae(disable_dynamic: bool = False) -> comfy.sd.VAE:
    """The VAE: the world's codec in the host's VAE. LikenessError when its file is missing or damaged."""
    codec = load_codec()
    # The host builds a VAE by looking at weights, so we give it another small net's and then ours for that.
    vae = comfy.sd.VAE(sd=TAESD(latent_channels=CHANNELS).state_dict(), dtype=torch.float32)
    vae.first_stage_model = codec
    vae.patcher = _patcher(disable_dynamic)(codec, load_device=vae.device, offload_device=vae.patcher.offload_device)
    _made_again_by(vae.patcher, _vae_patcher)
    vae.process_input = vae.process_output = nn.Identity()  # the codec takes and gives 0..1
    return vae


def _vae_patcher(disable_dynamic: bool = False) -> Any:
    return load_vae(disable_dynamic).patcher
