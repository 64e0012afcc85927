"""Super-resolution: tiles that show no seam and halve when memory is full, and images of every size."""

from __future__ import annotations

import pytest
import torch
from helpers import restorers as small
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.errors import LikenessError
from likeness.restoration import upscale
from likeness.restoration.spandrel_files import described
from likeness.restoration.tiles import (
    GRID,
    OVERLAP,
    SMALLEST,
    STEEP,
    STRETCH,
    TILE,
    feather,
    fitted,
    tiles_of,
    upscaled,
)


def doubled(window: torch.Tensor) -> torch.Tensor:
    """A network that sees one pixel only."""
    return (window.sqrt().repeat_interleave(2, -1).repeat_interleave(2, -2)).clamp(0, 1)


def network(scale: int = 4) -> upscale.Upscaler:
    return upscale.adopted_upscaler(described(small.esrgan(scale=scale), "x").eval())


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(16, 48), st.integers(0, 8))
def test_tiles_cover_the_picture_and_a_local_network_gives_the_same_as_untiled(height, width, tile, overlap):
    picture = torch.rand(1, 3, height, width)
    seen = torch.zeros(height, width)
    for top, left, tall, wide in tiles_of(height, width, (tile, tile), overlap):
        assert 0 < tall <= tile and 0 < wide <= tile
        seen[top : top + tall, left : left + wide] += 1
    assert seen.min() >= 1
    steps: list[int] = []
    made = upscaled(picture, doubled, 2, (tile, tile), overlap, lambda: steps.append(1))
    assert torch.allclose(made, doubled(picture), atol=1e-5)
    assert len(steps) == len(list(tiles_of(height, width, (tile, tile), overlap)))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 8000), st.integers(1, 8000))
def test_fitted_tiles_are_bounded_alike_and_see_no_more_than_fixed_ones(height, width):
    tile = fitted(height, width)
    assert max(tile) <= STRETCH * TILE and all((side - OVERLAP) % GRID == 0 for side in tile)
    ours, fixed = (list(tiles_of(height, width, size)) for size in (tile, (TILE, TILE)))
    assert sum(t.height * t.width for t in ours) <= sum(t.height * t.width for t in fixed)
    assert len(ours) <= len(fixed)
    assert max(t.top + t.height for t in ours) == height and max(t.left + t.width for t in ours) == width


def test_away_from_the_seams_a_real_network_gives_the_same_as_untiled():
    made, picture = network(2), torch.rand(1, 3, 96, 80)
    tiled, whole = upscaled(picture, made.descriptor, 2, (64, 64), 32), made.descriptor(picture)
    assert (tiled - whole).abs().max() < 0.1  # its field of view is wider than the overlap
    inside = (slice(None), slice(None), slice(0, 30), slice(0, 30))
    assert torch.allclose(tiled[inside], whole[inside], atol=1e-3)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(300, 410), (211, 333)])
def test_seams_do_not_show(scale, size):
    """Networks that fold 2 x 2 or 4 x 4 pixels see another image in a tile that begins between their places."""
    made, picture = network(scale), torch.rand(1, 3, *size)
    with torch.no_grad():
        whole = made.descriptor(picture)
        tile = fitted(*size, 160)
        ours, linear = (upscaled(picture, made.descriptor, scale, tile, OVERLAP, power=power) for power in (STEEP, 1))
    assert len(list(tiles_of(*size, tile))) >= 4
    assert (ours - whole).abs().max() < 1 / 255
    assert (ours - whole).abs().max() < (linear - whole).abs().max() / 3


def test_full_memory_halves_the_tile_down_to_the_smallest():
    sizes: list[int] = []

    def narrow(window: torch.Tensor) -> torch.Tensor:
        sizes.append(max(window.shape[-2:]))
        if sizes[-1] > 150:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return doubled(window)

    picture = torch.rand(1, 3, 300, 200)
    assert torch.allclose(upscaled(picture, narrow, 2), doubled(picture), atol=1e-5)
    assert sizes[:3] == [300, 256, 128] and max(sizes[2:]) == SMALLEST

    def never(window: torch.Tensor) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        upscaled(picture, never, 2)

    def broken(window: torch.Tensor) -> torch.Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        upscaled(picture, broken, 2)


@pytest.mark.parametrize("size", [(7, 900), (33, 500), (40, 700), (64, 600), (20, 700), (500, 60)])
def test_full_memory_on_a_narrow_picture_halves_its_length_alone(size):
    """A tile that is no longer than the overlap would never come to the end of the image."""

    def narrow(window: torch.Tensor) -> torch.Tensor:
        if max(window.shape[-2:]) > 250:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return doubled(window)

    picture = torch.rand(1, 3, *size)
    made = upscaled(picture, narrow, 2, fitted(*size, upscale.CPU_TILE))
    assert torch.allclose(made, doubled(picture), atol=1e-5)


def test_a_cancel_inside_the_loop_ends_it():
    class Cancelled(Exception):
        pass

    steps: list[int] = []

    def step() -> None:
        steps.append(1)
        if len(steps) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        upscaled(torch.rand(1, 3, 64, 64), doubled, 2, (32, 32), 8, step)
    assert len(steps) == 2


def test_the_feather_never_reaches_nothing():
    weights = feather(64, 40, 8)
    assert weights.min() > 0 and weights.max() == 1
    steep = feather(512, 512, 32 * 8, STEEP)
    assert steep.min() > 0 and torch.allclose((steep * 0.7).div(steep), torch.tensor(0.7))  # a corner has one tile
    assert torch.equal(feather(8, 64, 8)[0, 0, :, 32], torch.ones(8))  # not longer than the fade


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(16, 16), (17, 21), (1, 3), (33, 64)])
def test_pictures_of_any_size_are_enlarged(scale, size):
    made = network(scale).enlarge(torch.rand(*size, 3))
    assert made.shape == (size[0] * scale, size[1] * scale, 3)
    assert made.min() >= 0 and made.max() <= 1 and made.dtype is torch.float32


def test_grey_networks_see_grey_and_give_three_channels():
    made = network(2)
    grey = upscale.Upscaler(_Grey(), ())
    assert grey.enlarge(torch.rand(8, 8, 3)).shape == (16, 16, 3)
    assert made.enlarge(torch.rand(8, 8, 3)).shape == (16, 16, 3)


class _Grey:
    """A description of a network of one channel."""

    def __init__(self):
        self.model = torch.nn.Conv2d(1, 1, 1)
        self.scale, self.input_channels = 2, 1

    def __call__(self, window):
        assert window.shape[1] == 1
        return doubled(window)


def test_a_tile_that_overflows_in_half_precision_is_made_again():
    class Overflowing(_Grey):
        def __call__(self, window):
            made = doubled(window)
            return made * torch.nan if torch.is_autocast_enabled("cpu") else made

    picture = torch.rand(8, 8, 3)
    exact = upscale.Upscaler(Overflowing(), ()).enlarge(picture)
    assert torch.equal(upscale.Upscaler(Overflowing(), ()).enlarge(picture, torch.bfloat16), exact)
    assert exact.isfinite().all()


def test_what_is_no_network_for_super_resolution_is_said():
    with pytest.raises(LikenessError, match="RestoreFormer restores single faces and ruins whole images"):
        upscale.adopted_upscaler(described(small.restoreformer(), "x"))
    with pytest.raises(LikenessError, match="holds a float: connect ComfyUI's Load Upscale Model"):
        upscale.adopted_upscaler(3.0)
    assert network().half and network().scale == 4
    with pytest.raises(LikenessError, match="which is too large"):
        network(4).enlarge(torch.zeros(1, 1, 3).expand(20_000, 20_000, 3))


def test_resizing_does_not_alias_and_keeps_what_has_the_size():
    stripes = (torch.arange(64) % 2).float().expand(64, 64)[..., None].expand(-1, -1, 3)
    assert (upscale.resized(stripes, 16, 16) - 0.5).abs().max() < 0.1
    assert upscale.resized(stripes, 64, 64) is stripes
    assert upscale.resized(stripes, 37, 91).shape == (37, 91, 3)
