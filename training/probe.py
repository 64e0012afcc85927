"""Attention maps with gradient, of the wanted tokens at the wanted sites and of nothing else.

The probe hooks the queries and keys that a site computes anyway, so every attention, the probed ones included, keeps
its own processor and stays on the fast path. Of the softmax over the prompt only the wanted columns are made:
A_k = exp(s_k − logsumexp(s)), in float32.

Gradient checkpointing runs a transformer block once without keeping its graph and again in the backward pass, and
values caught on the side in the first run may have no gradient. Here the maps leave a checkpointed block through its
outputs, so they have one in every mode, the reentrant included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import LikenessError
from ..injection.sites import AttentionSite, sites_of_diffusers_unet

Grid = tuple[int, int]


def columns_of(queries: Tensor, keys: Tensor, positions: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """softmax(QKᵀ/√d) per head, only the columns of some keys: (batch, heads, n, L), float32.

    queries: (batch, L, width), keys: (batch, tokens, width), positions: (batch, n), indices into the tokens. mask:
    (batch, tokens), false for keys that are not attended to.
    """
    with torch.autocast(queries.device.type, enabled=False):
        q = queries.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        k = keys.float().unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = (k @ q.transpose(-1, -2)) * q.shape[-1] ** -0.5  # (batch, heads, tokens, L)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, :, None], float("-inf"))
        wanted = positions[:, None, :, None].expand(-1, heads, -1, scores.shape[-1])
        return (scores.gather(2, wanted) - scores.logsumexp(2, keepdim=True)).exp()


def sites_by_grid(unet: nn.Module, latent_size: Grid) -> dict[Grid, list[AttentionSite]]:
    """The sites of the down and up path by the grid of their queries, in the order in which they run.

    latent_size: (height, width). The middle block is left out: its maps are too coarse to place anything.
    """
    table: dict[Grid, list[AttentionSite]] = {}
    for site, grid in _grids_of_sites(unet, latent_size):
        if not site.diffusers_path.startswith("mid_block."):
            table.setdefault(grid, []).append(site)
    return table


def sites_up_to(unet: nn.Module, latent_size: Grid, largest: Grid) -> list[AttentionSite]:
    """All sites whose queries lie on this grid or a coarser one, the middle block's too, in the order in which they
    run."""
    return [
        site
        for site, (height, width) in _grids_of_sites(unet, latent_size)
        if height <= largest[0] and width <= largest[1]
    ]


def sites_around_middle(unet: nn.Module, latent_size: Grid, blocks: int) -> list[tuple[AttentionSite, Grid]]:
    """The sites of so many blocks around the middle one, with the grids of their queries, in the order in which they
    run. Counted are the blocks that have cross-attention: of the 7 of SD1.5, 5 are all but the first and the last."""
    found = _grids_of_sites(unet, latent_size)
    names = list(dict.fromkeys(_block_of(site) for site, _ in found))
    start = max((len(names) - blocks) // 2, 0)
    wanted = names[start : start + blocks]
    return [(site, grid) for site, grid in found if _block_of(site) in wanted]


def _block_of(site: AttentionSite) -> str:
    """`down_blocks.1` or `mid_block`."""
    part, number, *_ = site.diffusers_path.split(".")
    return part if part == "mid_block" else f"{part}.{number}"


def _grids_of_sites(unet: nn.Module, latent_size: Grid) -> list[tuple[AttentionSite, Grid]]:
    """Every site with the grid of its queries, in the order in which they run."""
    grids: list[Grid] = [latent_size]
    for block in unet.down_blocks[:-1]:  # type: ignore[union-attr, index]
        height, width = grids[-1]
        halved = getattr(block, "downsamplers", None) is not None
        grids.append(((height + 1) // 2, (width + 1) // 2) if halved else (height, width))
    levels = {"down_blocks": grids, "up_blocks": grids[::-1]}
    found = []
    for site in sorted(sites_of_diffusers_unet(unet), key=lambda s: (s.transformer, s.index)):
        part, level, *_ = site.diffusers_path.split(".")
        found.append((site, levels[part][int(level)] if part in levels else grids[-1]))
    return found


def sites_at(unet: nn.Module, latent_size: Grid, grid: Grid) -> list[AttentionSite]:
    """The sites of the down and up path whose queries lie on this grid.

    Raises LikenessError, naming the grids there are, when there is none.
    """
    table = sites_by_grid(unet, latent_size)
    if grid not in table:
        there = ", ".join(f"{h}x{w}" for h, w in sorted(table, reverse=True)) or "none"
        raise LikenessError(
            f"This model has no attention maps of {grid[0]}x{grid[1]} for latents of "
            f"{latent_size[0]}x{latent_size[1]} (there are: {there}): choose another resolution for the attention loss."
        )
    return table[grid]


def refocusing_grid(latent_size: Grid, division: int = 4) -> Grid:
    """A quarter of the latent's sides: 16x16 for SD1.5 at 512, 32x32 for SDXL at 1024 (MagiCapture, generalised)."""
    height, width = latent_size
    return -(-height // division), -(-width // division)


@dataclass
class _Recording:
    """maps: by slot, in the order in which sites run. reference_maps: the same with the keys of the reference."""

    positions: Tensor
    mask: Tensor | None = None
    reference: Tensor | None = None
    maps: dict[int, Tensor] = field(default_factory=dict)
    reference_maps: dict[int, Tensor] = field(default_factory=dict)

    def anew(self) -> _Recording:
        """Of the same, with nothing recorded yet."""
        return _Recording(self.positions, self.mask, self.reference)


@dataclass(frozen=True)
class Maps:
    """One map per site, (batch, heads, n, L), in the order in which sites run. of_reference: those that the same
    queries make with the keys of the reference, without gradient; empty where there is none."""

    of_prompt: list[Tensor] = field(default_factory=list)
    of_reference: list[Tensor] = field(default_factory=list)


class AttentionProbe:
    """Listens at some cross-attention sites of a diffusers UNet.

        probe = AttentionProbe(unet, sites_at(unet, size, refocusing_grid(size)))
        with probe.recording(positions) as maps:
            prediction = unet(...)
        attention_refocusing(maps, ...)

    Attach it once for the length of a training run, after LoRA layers and checkpointing are in place, and `detach` it
    after the last backward pass: checkpointed blocks run again there, and must do again what they did in the forward
    pass. While nothing is recorded it costs nothing.
    """

    def __init__(self, unet: nn.Module, sites: Sequence[AttentionSite]) -> None:
        self._recording: _Recording | None = None
        self._queries: dict[int, Tensor] = {}
        self._keys: dict[int, Tensor] = {}
        self._hooks: list[Any] = []
        self._checkpoints: list[tuple[Any, Callable[..., Any]]] = []
        transformers: dict[str, Any] = {}
        for site in sites:
            self._attach(unet.get_submodule(f"{site.diffusers_path}.attn2"), site)
            path = site.diffusers_path.rsplit(".transformer_blocks.", 1)[0]
            transformers[path] = unet.get_submodule(path)
        for transformer in transformers.values():
            if getattr(transformer, "gradient_checkpointing", False):
                original = transformer._gradient_checkpointing_func
                self._checkpoints.append((transformer, original))
                transformer._gradient_checkpointing_func = self._through(original)

    @contextmanager
    def recording(self, positions: Tensor, mask: Tensor | None = None) -> Iterator[list[Tensor]]:
        """Positions (batch, n) of the wanted tokens in the prompt, the start token counted; mask (batch, tokens), where
        prompts differ in length. After the UNet has run and the block is left, the list holds one map per site,
        (batch, heads, n, L), in the order in which sites run."""
        with self.comparing(positions, mask) as maps:
            yield maps.of_prompt

    @contextmanager
    def comparing(
        self, positions: Tensor, mask: Tensor | None = None, reference: Tensor | None = None
    ) -> Iterator[Maps]:
        """The same, and what these queries find in another prompt. reference: its states (batch, tokens, dim), as long
        as the prompt's."""
        maps = Maps()
        with self._while(_Recording(positions, mask, reference)) as recording:
            yield maps
        assert recording is not None
        maps.of_prompt.extend(recording.maps.values())
        maps.of_reference.extend(recording.reference_maps.values())

    def detach(self) -> None:
        """Leave the UNet as it was."""
        for hook in self._hooks:
            hook.remove()
        for transformer, original in self._checkpoints:
            transformer._gradient_checkpointing_func = original
        self._hooks, self._checkpoints = [], []

    def _attach(self, attention: Any, site: AttentionSite) -> None:
        slot = site.slot

        def keep(store: dict[int, Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
            def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
                if self._recording is not None:
                    store[slot] = output

            return hook

        def record(_module: nn.Module, _args: Any, _output: Any) -> None:
            recorded = self._recording
            if recorded is None:
                return
            q, k = self._queries.pop(slot), self._keys.pop(slot)
            recorded.maps[slot] = columns_of(q, k, recorded.positions, site.heads, recorded.mask)
            if recorded.reference is not None:
                with torch.no_grad(), self._while(None):
                    k = attention.to_k(recorded.reference)
                    found = columns_of(q, k, recorded.positions, site.heads, recorded.mask)
                recorded.reference_maps[slot] = found

        self._hooks += [
            attention.to_q.register_forward_hook(keep(self._queries)),
            attention.to_k.register_forward_hook(keep(self._keys)),
            attention.register_forward_hook(record),
        ]

    def _through(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """The checkpoint function, with the maps among the outputs of what it runs.

        What is listened for belongs to the forward pass and goes with the closure into the second run, whatever the
        probe does by then.
        """

        def run_checkpointed(block: nn.Module, *args: Any) -> Any:
            outer = self._recording
            slots: list[int] = []

            def run(*inputs: Any) -> Any:
                inner = None if outer is None else outer.anew()
                with self._while(inner):
                    output = block(*inputs)
                if inner is None or not inner.maps:
                    return output
                slots[:] = inner.maps
                return output, *inner.maps.values(), *inner.reference_maps.values()

            output = checkpoint(run, *args)
            if outer is None or not slots:
                return output
            output, *maps = output
            maps, of_reference = maps[: len(slots)], maps[len(slots) :]
            outer.maps.update(zip(slots, maps, strict=True))
            if of_reference:
                outer.reference_maps.update(zip(slots, [found.detach() for found in of_reference], strict=True))
            return output

        return run_checkpointed

    @contextmanager
    def _while(self, recording: _Recording | None) -> Iterator[_Recording | None]:
        before, self._recording = self._recording, recording
        try:
            yield recording
        finally:
            self._recording = before
