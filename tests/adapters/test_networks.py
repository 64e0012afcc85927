"""The networks' sizes: read from the weights, but for the width of a head, which the system states."""

from __future__ import annotations

import math

import pytest
import torch

from likeness.adapters.networks import PerceiverAttention, PerceiverSizes, Resampler, build_projection


@pytest.mark.parametrize("head_width", [16, 32, 64])
def test_heads_are_as_wide_as_the_system_says(head_width):
    """Against softmax(q Kᵀ/√d) V written out head by head."""
    torch.manual_seed(0)
    inner, dim = 64, 24
    attention = PerceiverAttention(dim, inner // head_width, head_width).double()
    features, latents = torch.randn(2, 5, dim).double(), torch.randn(2, 3, dim).double()
    x, z = attention.norm1(features), attention.norm2(latents)
    q, (k, v) = attention.to_q(z), attention.to_kv(torch.cat([x, z], 1)).chunk(2, -1)
    heads = []
    for first in range(0, inner, head_width):
        part = slice(first, first + head_width)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(head_width)
        heads.append(scores.softmax(-1) @ v[..., part])
    torch.testing.assert_close(
        attention(features, latents), attention.to_out(torch.cat(heads, -1)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("head_width", "heads"), [(64, 32), (128, 16)], ids=["IP-Adapter", "PhotoMaker v2"])
def test_one_file_makes_as_many_heads_as_its_system_has(head_width, heads):
    sizes = PerceiverSizes(8, 16, 1, heads, head_width, 32, 8)
    weights = {key: value.detach() for key, value in Resampler(sizes, 4).state_dict().items()}
    network = build_projection(weights, head_width)
    assert PerceiverSizes.of(weights, head_width) == sizes
    assert network.layers[0][0].heads == heads  # type: ignore[index, union-attr]


def test_weights_that_no_such_head_divides_are_refused():
    weights = Resampler(PerceiverSizes(8, 16, 1, 3, 32, 32, 8), 4).state_dict()
    with pytest.raises(ValueError, match="width 96"):
        PerceiverSizes.of(weights, 64)
