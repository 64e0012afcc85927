"""The model a training starts from: denoiser, text encoders, codec and noise schedule, whoever built them.

Nothing here knows where the modules come from: a diffusers folder, a host's sockets, or the miniature world.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import LikenessError
from ...weights.checkpoint_layout import vae_weights
from ...weights.families import CLIP_L, SDXL, Family, of_text_encoders
from ..loop import first_broken
from ..objectives.identity import Decoder
from .noise import NoiseSchedule
from .prompt_tokens import chunks_of, groups_of


@dataclass(frozen=True, eq=False)
class Posterior:
    """The latents of images, (batch, channels, h, w), as the denoiser sees them: a normal distribution, or, with
    std None, just these."""

    mean: Tensor
    std: Tensor | None = None

    def sample(self, generator: torch.Generator) -> Tensor:
        """Latents drawn on the generator's device."""
        if self.std is None:
            return self.mean
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)


@dataclass(frozen=True, eq=False)
class Codec:
    """Images to latents and back. encode: (batch, 3, H, W), -1..1, to their posterior. module: what holds weights.

    in_checkpoints: these under the names of a checkpoint's VAE, without prefix; None: no checkpoint could hold it.
    """

    encode: Callable[[Tensor], Posterior]
    decoder: Decoder
    module: nn.Module
    in_checkpoints: Callable[[], Mapping[str, Tensor]] | None = None

    @classmethod
    def of(cls, vae: Any) -> Codec:
        """That of a diffusers AutoencoderKL."""

        def encode(pictures: Tensor) -> Posterior:
            found = vae.encode(pictures.to(vae.device, vae.dtype)).latent_dist
            scale = vae.config.scaling_factor
            return Posterior(found.mean.float() * scale, found.std.float() * scale)

        return cls(encode, Decoder.of(vae), vae, lambda: vae_weights(vae))

    @classmethod
    def exact(cls, module: Any, pixels_per_cell: int = 8) -> Codec:
        """That of a module whose `encode` and `decode` map images 0..1 to latents and back, without chance."""

        def encode(pictures: Tensor) -> Posterior:
            return Posterior(module.encode((pictures + 1) / 2))

        return cls(encode, Decoder(lambda z: 2 * module.decode(z) - 1, 1.0, pixels_per_cell), module)


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What the denoiser is given of prompts. states: (batch, tokens, dim); pooled: (batch, dim), SDXL only.

    mask: (batch, tokens), true where a prompt goes; None: everywhere, because all are of one length. values: like
    states, what the values of cross-attention are projected from; None: from the states, as the keys are. reference:
    like states, those of prompts whose attention maps are compared with these; None: nothing is compared.
    """

    states: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    values: Tensor | None = None
    reference: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Conditioning]) -> Conditioning:
        """Prompts of several lengths as one batch. What fills up the shorter ones is not attended to, so that each is
        recorded as it would be alone. Where some have values of their own, those of the others are their states."""
        lengths = [part.states.shape[1] for part in parts]
        longest = max(lengths)

        def padded(rows: Sequence[Tensor]) -> Tensor:
            return torch.cat([F.pad(each, (0, 0, 0, longest - each.shape[1])) for each in rows])

        def beside(own: Sequence[Tensor | None]) -> Tensor | None:
            if all(each is None for each in own):
                return None
            return padded([part.states if each is None else each for part, each in zip(parts, own, strict=True)])

        states, values = padded([part.states for part in parts]), beside([part.values for part in parts])
        reference = beside([part.reference for part in parts])
        pooled = (
            None if parts[0].pooled is None else torch.cat([part.pooled for part in parts if part.pooled is not None])
        )
        if min(lengths) == longest:
            return cls(states, pooled, None, values, reference)
        ends = torch.tensor(lengths, device=states.device).repeat_interleave(
            torch.tensor([len(part.states) for part in parts], device=states.device)
        )
        mask = torch.arange(longest, device=states.device) < ends[:, None]
        return cls(states, pooled, mask, values, reference)


@dataclass(eq=False)
class TextTower:
    """One text encoder with its tokenizer. kind: clip_l, clip_g or clip_h, as embedding files call it. words: the ids
    of each word that was added to it."""

    tokenizer: Any
    encoder: Any
    kind: str = CLIP_L.name
    words: Sequence[Sequence[int]] = ()

    def chunks(self, prompt: str) -> Tensor:
        """Token ids (chunks, length) of one prompt of any length, padded as the tokenizer pads."""
        tokenizer = self.tokenizer
        length = min(tokenizer.model_max_length, self.encoder.config.max_position_embeddings)
        found = tokenizer(prompt, add_special_tokens=False, truncation=False, verbose=False).input_ids
        special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        return torch.tensor(chunks_of(groups_of(found, self.words), length, *special), device=self.encoder.device)

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (chunks, length) of all prompts, one after the other; most have one chunk."""
        return torch.cat([self.chunks(prompt) for prompt in prompts])

    def last(self, ids: Tensor, skip: int) -> Tensor:
        """The last hidden states, or those `skip` layers earlier, after the final norm: SD1.x."""
        found = self.encoder(ids, output_hidden_states=skip > 0)
        if skip == 0:
            return found.last_hidden_state
        return getattr(self.encoder, "text_model", self.encoder).final_layer_norm(found.hidden_states[-1 - skip])

    def penultimate(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """SDXL's hidden states [-2] without a norm, and the projected state of the end token where there is one.

        The end token is looked for by its id: encoders with an old configuration take the highest id instead, which is
        a placeholder's once there are any.
        """
        found = self.encoder(ids, output_hidden_states=True)
        projection = getattr(self.encoder, "text_projection", None)
        if projection is None:
            return found.hidden_states[-2], None
        end = (ids == self.tokenizer.eos_token_id).int().argmax(-1)
        last = found.last_hidden_state[torch.arange(len(ids), device=ids.device), end]
        return found.hidden_states[-2], projection(last)


@dataclass(eq=False)
class BaseModel:
    """What is trained, or trained against. One tower: SD1.x and SD2; two: SDXL. clip_skip: layers left out, SD1.x.

    staged: how prompts are read at timesteps (batch,), for methods with other words at other stages of denoising, or
    with values of their own; None: the same at all, by `encode`.
    """

    unet: Any
    text: tuple[TextTower, ...]
    codec: Codec
    schedule: NoiseSchedule
    clip_skip: int = 0
    spell: Callable[[str], str] = field(default=str)  # how the tokenizers know a prompt's learned words
    staged: Callable[[Sequence[str], Tensor], Conditioning] | None = None

    @property
    def is_sdxl(self) -> bool:
        return self.family is SDXL

    @property
    def family(self) -> Family:
        return of_text_encoders([tower.kind for tower in self.text])

    @property
    def encoders(self) -> list[Any]:
        return [tower.encoder for tower in self.text]

    @property
    def networks(self) -> list[Any]:
        """All that a training could change."""
        return [self.unet, *self.encoders]

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move everything, with weights in `dtype`; the codec stays float32 (SDXL's overflows in half precision)."""
        for network in self.networks:
            network.to(device)
            if network.dtype != dtype:
                network.to(dtype)
        self.codec.module.to(device)

    def require_numbers(self) -> None:
        """LikenessError where a weight is not a number, as in a damaged checkpoint or one that float16 cannot hold."""
        parts = {"denoiser": self.unet, "VAE": self.codec.module}
        parts |= {f"text encoder {number}": encoder for number, encoder in enumerate(self.encoders, 1)}
        for part, module in parts.items():
            if broken := first_broken(module.state_dict()):
                raise LikenessError(
                    f"The base model's {part} holds values that are not numbers ({broken}): download the model again, "
                    "choose another one, or another precision."
                )

    def require_vae(self) -> None:
        """A model all of whose weights are trained is saved as a checkpoint, which has a VAE in it: LikenessError
        before hours are spent."""
        if self.codec.in_checkpoints is None:
            raise LikenessError(
                "Training all weights needs a model whose VAE a checkpoint can hold: take an SD1.5, SD2 or SDXL model "
                "with its own VAE, or train a LoRA."
            )

    def ids(self, prompts: Sequence[str]) -> list[Tensor]:
        """Each prompt's token ids (tokens,) in the first text encoder, as the denoiser reads them."""
        return [self.text[0].chunks(self.spell(prompt)).flatten() for prompt in prompts]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        """The prompts, of any length, as the denoiser reads them, with gradient to whatever in the encoders wants one.

        The chunks of a long prompt are encoded one by one and joined; pooled is the first one's, as in the host.
        """
        spelled = [self.spell(prompt) for prompt in prompts]
        return self.encode_ids([[tower.chunks(prompt) for prompt in spelled] for tower in self.text])

    def encode_ids(self, chunks: Sequence[Sequence[Tensor]]) -> Conditioning:
        """The same of token ids: of each text encoder, those (chunks, length) of every prompt."""
        counts = [len(ids) for ids in chunks[0]]
        pooled: Any = [None] * len(counts)
        if self.is_sdxl:
            found = [tower.penultimate(torch.cat(list(ids))) for tower, ids in zip(self.text, chunks, strict=True)]
            states = torch.cat([each for each, _ in found], -1)
            if found[-1][1] is not None:
                pooled = [rows[:1] for rows in found[-1][1].split(counts)]
        else:
            states = self.text[0].last(torch.cat(list(chunks[0])), self.clip_skip)
        parts = zip(states.split(counts), pooled, strict=True)
        return Conditioning.joined([Conditioning(part.flatten(0, 1)[None], first) for part, first in parts])

    def predict(self, z_t: Tensor, t: Tensor, conditioning: Conditioning, time_ids: Tensor | None = None) -> Tensor:
        """The denoiser's output, ε or velocity. time_ids: (batch, 6), SDXL's sizes and crops.

        Within `separate_values(unet)` where the conditioning has values of its own.
        """
        added, states = None, conditioning.states
        if conditioning.values is not None:
            states = torch.cat([states, conditioning.values], -1)
        if self.is_sdxl:
            added = {"text_embeds": conditioning.pooled, "time_ids": time_ids}
        return self.unet(z_t, t, states, added_cond_kwargs=added, encoder_attention_mask=conditioning.mask).sample

    def fingerprint(self) -> str:
        """Tells base models apart, before they are trained: shapes of all weights and a few values of each, of
        denoiser, text encoders and codec; the noise schedule, what is predicted, and the layers left out."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(f"{self.clip_skip} {self.schedule.prediction}".encode())
        parts = enumerate([*self.networks, self.codec.module])
        weights = {f"{number}/{name}": value for number, part in parts for name, value in part.state_dict().items()}
        weights["schedule"] = self.schedule.alphas_cumprod
        for name, value in sorted(weights.items()):
            few = value.detach().flatten()[:: max(1, value.numel() // 4)][:4].float().cpu()
            digest.update(f"{name} {tuple(value.shape)}".encode() + few.half().numpy().tobytes())
        return digest.hexdigest()
