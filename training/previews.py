"""Images from a base model as it is now: previews of a training, and DreamBooth's class images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ..injection.key_values import separate_values
from .base.model import BaseModel
from .base.noise import Prediction


@torch.no_grad()
def sample_pictures(
    base: BaseModel,
    prompts: Sequence[str],
    size: tuple[int, int] | None = None,
    seed: int = 0,
    steps: int = 20,
    guidance: float = 5.0,
    negative: str = "",
) -> Tensor:
    """One image per prompt by deterministic DDIM (arXiv 2010.02502) with guidance: (n, 3, height, width), 0..1, CPU.

    size: (height, width) in pixels, None the UNet's own. The start noise of image i follows from seed + i.
    """
    device, scale = base.unet.device, base.codec.decoder.pixels_per_cell
    own = base.unet.config.sample_size
    height, width = (own, own) if size is None else (size[0] // scale, size[1] // scale)
    sizes = torch.tensor([[height * scale, width * scale, 0, 0, height * scale, width * scale]] * 2, device=device)
    pictures = []
    half = torch.autocast(device.type, base.unet.dtype, enabled=base.unet.dtype != torch.float32)
    with _evaluating(base.networks), nullcontext() if base.staged is None else separate_values(base.unet):
        for number, prompt in enumerate(prompts):
            random = torch.Generator().manual_seed(seed + number)
            z = torch.randn(1, base.unet.config.in_channels, height, width, generator=random).to(device)
            both_prompts, conditioning = [negative, prompt], None
            for t, following in _timesteps(len(base.schedule), steps):
                now = torch.full((2,), t, device=device)
                with half:
                    if base.staged is not None:
                        conditioning = base.staged(both_prompts, now)
                    elif conditioning is None:
                        conditioning = base.encode(both_prompts)
                    both = base.predict(z.repeat(2, 1, 1, 1), now, conditioning, sizes)
                without, with_prompt = both.float().chunk(2)
                z = _ddim(base, z, without + guidance * (with_prompt - without), t, following)
            pictures.append(base.codec.decoder.picture(z).float().cpu())
    return torch.cat(pictures) if pictures else torch.empty(0, 3, height * scale, width * scale)


def _timesteps(trained: int, steps: int) -> list[tuple[int, int | None]]:
    """Pairs of a timestep and the one after it, evenly spaced and from the last one on; None: clean."""
    points = [round(trained * (1 - i / steps)) - 1 for i in range(steps)]
    return list(zip(points, [*points[1:], None], strict=True))


def _ddim(base: BaseModel, z: Tensor, prediction: Tensor, t: int, following: int | None) -> Tensor:
    """z at the following timestep: √ᾱ' ẑ_0 + √(1−ᾱ') ε̂."""
    schedule, now = base.schedule, torch.full((len(z),), t, device=z.device)
    z0 = schedule.estimate_z0(z, prediction, now)
    if following is None:
        return z0
    acp = schedule.alphas_cumprod[t].to(z)
    noise = prediction
    if schedule.prediction is Prediction.VELOCITY:
        noise = acp.sqrt() * prediction + (1 - acp).sqrt() * z
    return schedule.add_noise(z0, noise, torch.full_like(now, following))


@contextmanager
def _evaluating(networks: Sequence[nn.Module]):
    """The networks in evaluation mode, put back on leaving."""
    with ExitStack() as stack:
        for network in networks:
            stack.callback(network.train, network.training)
            network.eval()
        yield
