"""PuLID for FLUX.1, versions 0.9.0 and 0.9.1, whose files look the same (weights of guozinan/PuLID).

    pulid_encoder.*                                                   the encoder of version 1.1: see `encoders`
    pulid_ca.<j>.{norm1,norm2}.{weight,bias}, .{to_q,to_kv,to_out}.weight         cross-attention j, from 0

The tokens E are made as for SDXL (see `adapter`). Behind the double blocks 0, 2, 4, ... and then the single blocks 0,
4, 8, ..., each with the next j, the image's tokens x become

    x + w · CA(E, x)        CA(E, x) = softmax(q Kᵀ/√d) V W_o        q = LN₂(x) W_q,  K, V = LN₁(E) W_kv

E is the same at every step, so that each module is folded around it once. With LN₂(x) = g x̂ + b, for every head

    q Kᵀ/√d = x̂ Aᵀ + c        A = g K W_qᵀ/√d,  c = b W_q Kᵀ/√d
    CA(E, x) = softmax(x̂ Aᵀ + c) B        B = V W_o

With 16 heads of 128 and 32 tokens, these are products with 16 · 32 columns in place of 16 · 128, a quarter of the work,
and the modules themselves are not needed while an image is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import LikenessError
from ...weights import families
from ..effects import BlockTerm, Effect, Prepared
from ..system import Kind, Needs, Request, Sureness, WeightFile
from .adapter import ID_DIM, OPTIONS_NODE, RECOGNISER, PuLIDOptions, person_tokens
from .encoders import IDFormer, build_encoder

HEAD_WIDTH = 128  # of the cross-attention; no shape tells it
DOUBLE, SINGLE = 2, 4  # every so-manieth block has a module behind it
ENCODER, MODULES = "pulid_encoder.", "pulid_ca."
_PARTS = (
    "norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "to_q.weight", "to_kv.weight", "to_out.weight",
)  # fmt: skip


class CrossAttention(nn.Module):
    """One module, under the official key names."""

    def __init__(self, width: int, dim: int, heads: int, head_width: int) -> None:
        """width: of the image's tokens. dim: of the person's."""
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def fold(self, tokens: Tensor) -> Prepared:
        """E, (rows, n, dim) -> A (rows, heads · n, width), c (rows, heads · n) and B (rows, heads · n, width)."""
        to_q, to_kv, to_out = (layer.weight.float() for layer in (self.to_q, self.to_kv, self.to_out))
        norm1, (gain, shift) = self.norm1, (part.float() for part in (self.norm2.weight, self.norm2.bias))
        tokens = F.layer_norm(tokens.float(), tokens.shape[-1:], norm1.weight.float(), norm1.bias.float(), norm1.eps)
        keys, values = (
            half.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (rows, heads, n, d)
            for half in F.linear(tokens, to_kv).chunk(2, dim=-1)
        )
        along = keys * keys.shape[-1] ** -0.5 @ to_q.unflatten(0, (self.heads, -1))
        out = values @ to_out.T.unflatten(0, (self.heads, -1))
        return (along * gain).flatten(1, 2), (along @ shift).flatten(1), out.flatten(1, 2)

    def residual(self, images: Tensor, folded: Prepared) -> Tensor:
        """CA(E, x): (batch, L, width) -> the same shape. folded: rows 1, or one row per image."""
        along, bias, out = folded
        x = F.layer_norm(images, images.shape[-1:], eps=self.norm2.eps)
        if len(along) == 1:
            logits = F.linear(x, along[0], bias[0])
        else:
            logits = torch.baddbmm(bias.unsqueeze(1), x, along.transpose(1, 2))
        shares = logits.unflatten(-1, (self.heads, -1)).softmax(dim=-1, dtype=torch.float32).to(x.dtype).flatten(-2)
        return shares @ out[0] if len(out) == 1 else shares @ out


class CrossAttentions(nn.Module):
    """All modules of a file, as `effects.BlockModules`; `state_dict()` has the official keys."""

    pulid_ca: nn.ModuleList
    at_every_step = False

    def __init__(self, weights: Mapping[str, Tensor], name: str, head_width: int = HEAD_WIDTH) -> None:
        """weights: official keys, of which others than the modules' are left out. Raises KeyError, ValueError or
        RuntimeError when they are not all there, or differ in size."""
        super().__init__()
        self.name = name
        modules = _below(weights, MODULES)
        with torch.device("meta"):
            self.pulid_ca = nn.ModuleList(
                CrossAttention(
                    width=len(modules[f"{j}.norm2.weight"]),
                    dim=len(modules[f"{j}.norm1.weight"]),
                    heads=_heads(len(modules[f"{j}.to_q.weight"]), head_width),
                    head_width=head_width,
                )
                for j in range(len({key.split(".")[0] for key in modules}))
            )
        self.pulid_ca.load_state_dict(modules, strict=True, assign=True)
        if len({(module.to_q.in_features, module.to_kv.in_features) for module in self._modules_in_order()}) != 1:
            raise ValueError("modules differ in width")
        self.requires_grad_(False).eval()

    @property
    def width(self) -> int:
        """Of the image's tokens that they read."""
        return self._modules_in_order()[0].to_q.in_features

    @property
    def dim(self) -> int:
        """Width of the person's tokens."""
        return self._modules_in_order()[0].to_kv.in_features

    def prepare(self, number: int, tokens: Tensor) -> Prepared:
        """A module folded around a person's tokens, in float32."""
        return self._modules_in_order()[number].fold(tokens)

    def residual(self, number: int, images: Tensor, prepared: Prepared) -> Tensor:
        """What a module adds to the image's tokens: (batch, L, width) -> the same shape."""
        return self._modules_in_order()[number].residual(images, prepared)

    def _modules_in_order(self) -> Sequence[CrossAttention]:
        return self.pulid_ca  # type: ignore[return-value]


class PuLIDFlux(CrossAttentions):
    """A loaded file: its encoder, in float32, and its modules. Frozen."""

    title = "PuLID for FLUX"
    pulid_encoder: IDFormer

    def __init__(self, weights: Mapping[str, Tensor], name: str) -> None:
        """Raises LikenessError when the weights are not a complete PuLID for FLUX."""
        try:
            super().__init__(weights, name)
            encoder = build_encoder({key: value.float() for key, value in _below(weights, ENCODER).items()})
            if not isinstance(encoder, IDFormer) or encoder.dim != self.dim:
                raise ValueError("tokens and modules do not fit together")
            self.pulid_encoder = encoder
        except (KeyError, RuntimeError, ValueError, IndexError) as error:
            raise LikenessError(
                f"{name!r} is not a complete PuLID file for FLUX ({_fault(weights)}): download it again, or choose "
                "another file."
            ) from error

    @property
    def needs(self) -> Needs:
        """See `system.Needs`."""
        return Needs(base=families.FLUX, recogniser=RECOGNISER, raw=True, every_photo=True)

    @property
    def site_shapes(self) -> Mapping[int, tuple[int, int]]:
        """None: FLUX has no cross-attention of its own."""
        return {}

    def effects(self, request: Request) -> tuple[Effect, ...]:
        """See `system.Adapter`: one block term."""
        options = request.options_of(PuLIDOptions, OPTIONS_NODE)
        person = request.person(self, ID_DIM, options.any_recogniser)
        if request.dit is None:
            raise LikenessError(f"The adapter {self.name!r} was made for FLUX: apply it to a FLUX model.")
        numbers = request.dit.every(DOUBLE, SINGLE)
        if len(numbers) > len(self.pulid_ca):
            raise LikenessError(
                f"The adapter {self.name!r} has {len(self.pulid_ca)} modules, but the connected MODEL, with "
                f"{request.dit.double} + {request.dit.single} blocks, takes {len(numbers)}: choose an adapter that was "
                "made for a model of this depth."
            )
        tokens = person_tokens(self.pulid_encoder, self.name, person, request, options)
        return (BlockTerm(self, numbers, tokens, request.strength, options.starting(request.scope)),)

    def notes(self, request: Request) -> list[str]:
        """See `system.Adapter`."""
        found = []
        if request.options_of(PuLIDOptions, OPTIONS_NODE).mode is not None:
            found.append("The method of PuLID Options has no effect on FLUX.")
        used = len(request.dit.every(DOUBLE, SINGLE)) if request.dit else 0
        if used < len(self.pulid_ca):
            found.append(f"The MODEL has fewer blocks than FLUX.1: {used} of {len(self.pulid_ca)} modules are used.")
        return found


def _heads(inner: int, head_width: int) -> int:
    if inner % head_width:
        raise ValueError(f"attention of width {inner} has no heads of width {head_width}")
    return inner // head_width


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}


def _fault(weights: Mapping[str, Tensor]) -> str:
    modules, encoder = _below(weights, MODULES), _below(weights, ENCODER)
    if not modules or not encoder:
        return f"the modules {MODULES}* are missing" if encoder else f"the encoder {ENCODER}* is missing"
    numbers = {key.split(".")[0] for key in modules}
    wanted = [f"{MODULES}{j}.{part}" for j in range(len(numbers)) for part in _PARTS]
    return next((f"{key} is missing" for key in wanted if key not in weights), "its parts do not fit together")


def recognise(file: WeightFile) -> Sureness:
    """Whether a file is PuLID's for FLUX."""
    return Sureness.YES if file.has(ENCODER) or file.has(MODULES) else Sureness.NO


def load(file: WeightFile) -> PuLIDFlux:
    """The adapter of a file that was recognised."""
    return PuLIDFlux(file.weights, file.name)


SYSTEM = Kind("PuLID for FLUX", recognise, ("pulid",), load)
