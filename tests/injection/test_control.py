"""When and where a ControlNet with a context of its own acts, whatever the host."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.adapters.effects import ControlContext, MaskResize, Scope
from likeness.adapters.types import IdentityTokens
from likeness.injection.control import open_at_step, residual_mask
from likeness.injection.diffusers import control_residuals
from likeness.injection.plan import Role

SHARES = st.integers(0, 20).map(lambda twentieth: twentieth / 20)


@given(SHARES, SHARES, st.integers(1, 60))
def test_the_window_is_the_one_of_the_official_code(start, end, steps):
    for step in range(steps):
        closed = step / steps < start - 1e-9 or (step + 1) / steps > end + 1e-9
        assert open_at_step(Scope(start, end), step, steps) is not closed


def test_the_whole_run_is_open_at_every_step():
    assert all(open_at_step(Scope(), step, 30) for step in range(30))


def test_without_a_mask_there_is_no_factor():
    assert residual_mask(Scope(), (4, 4), images=2, chunks=2) is None


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2), st.integers(1, 9), st.integers(1, 9))
def test_masks_of_any_number_fit_the_batch(masks, images, chunks, height, width):
    mask = torch.rand(masks, 16, 12, generator=torch.Generator().manual_seed(0))
    factors = residual_mask(Scope(mask=mask), (height, width), images, chunks)
    assert factors is not None
    rows = 1 if masks == 1 else images * chunks
    assert factors.shape == (rows, 1, height, width)
    assert factors.min() >= 0 and factors.max() <= 1
    if rows > 1:
        torch.testing.assert_close(factors[:images], factors[-images:])  # every chunk alike


def test_weights_of_images_multiply_the_mask_and_rows_choose_among_them():
    scope = Scope(mask=torch.full((1, 4, 4), 0.5), image_weights=(1.0, 0.0, 2.0))
    factors = residual_mask(scope, (2, 2), images=3, chunks=1)
    assert factors is not None and factors[:, 0, 0, 0].tolist() == [0.5, 0.0, 1.0]
    window = residual_mask(scope, (2, 2), images=2, chunks=1, rows=(2, 0))
    assert window is not None and window[:, 0, 0, 0].tolist() == [1.0, 0.5]


class Net:
    """A diffusers ControlNet that tells what it was given and adds ones."""

    def __call__(self, sample, timestep, *, encoder_hidden_states, controlnet_cond, conditioning_scale, **_):
        self.context, self.hint = encoder_hidden_states, controlnet_cond
        down = [torch.full((len(sample), 2, size, size), conditioning_scale) for size in (8, 4)]
        return down, torch.full((len(sample), 2, 2, 2), conditioning_scale)


def residuals(net: Net, images: int = 1, step: int = 0, **scope) -> list[torch.Tensor] | None:
    tokens = IdentityTokens(torch.ones(1, 3, 4), torch.zeros(1, 3, 4))
    effect = ControlContext("x", tokens, scope.pop("strength", 0.5), Scope(**scope))
    sample = torch.zeros(2 * images, 4, 8, 8)
    found = control_residuals(net, effect, sample, 1, torch.ones(1, 3, 64, 64), step=step, steps=4)
    return None if found is None else [*found[0], found[1]]


@pytest.mark.parametrize("images", [1, 3])
def test_diffusers_net_reads_the_tokens_of_each_half(images):
    net = Net()
    found = residuals(net, images)
    assert found is not None and [r.unique().tolist() for r in found] == [[0.5]] * 3
    assert net.context.shape == (2 * images, 3, 4) and len(net.hint) == 2 * images
    assert not net.context[:images].any() and (net.context[images:] == 1).all(), Role.UNCOND


def test_diffusers_residuals_are_masked_and_end_with_the_window():
    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    for how in MaskResize:
        found = residuals(Net(), mask=mask, mask_resize=how)
        assert found is not None
        assert all(not r[..., 0].any() and (r[..., -1] == 0.5).all() for r in found[:1])
    assert residuals(Net(), end=0.5, step=1) is not None
    assert residuals(Net(), end=0.5, step=2) is None
    assert residuals(Net(), strength=0.0) is None
