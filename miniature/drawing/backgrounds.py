"""The eight scenes behind a person: few, large, soft shapes, as a lens out of focus would show them.

Detail here would cost the generator what it needs for faces, so each scene is known by its colours and a few forms.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .shapes import box, cover, ellipse, smoothstep
from .shots import Scene

Paint = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def _rgb(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    return torch.tensor([red, green, blue], dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def _ramp(y: Tensor, top: tuple[float, float, float], bottom: tuple[float, float, float]) -> Tensor:
    """A vertical gradient, (B, 3, H, W)."""
    return torch.lerp(_rgb(*top, like=y), _rgb(*bottom, like=y), ((y + 1) / 2).clamp(0, 1)[:, None])


def _over(picture: Tensor, alpha: Tensor, red: float, green: float, blue: float) -> Tensor:
    return torch.lerp(picture, _rgb(red, green, blue, like=picture), alpha[:, None])


def _forest(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.62, 0.78, 0.45), (0.16, 0.36, 0.18))
    for centre, radius in ((-1.0, 0.55), (-0.1, 0.45), (0.9, 0.6)):
        picture = _over(
            picture, 0.7 * cover(ellipse(x - centre - 0.5 * shift, y + 0.85, radius, 0.5), 0.25), 0.18, 0.46, 0.2
        )
    for centre, width in ((-0.78, 0.13), (0.1, 0.09), (0.72, 0.15)):
        picture = _over(picture, cover((x - centre - 0.2 * shift).abs() - width, soft), 0.3, 0.2, 0.13)
    return picture


def _beach(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.42, 0.74, 0.95), (0.86, 0.95, 0.98))
    picture = _over(
        picture, cover(ellipse(x - 0.7 * (shift.sign() + 0.3 * shift), y + 0.68, 0.2, 0.2), soft), 1.0, 0.95, 0.62
    )
    picture = _over(picture, cover(-(y - 0.02), soft), 0.1, 0.52, 0.72)
    return _over(picture, cover(-(y - 0.38 - 0.08 * x * shift), soft), 0.94, 0.83, 0.6)


def _city(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.72, 0.77, 0.84), (0.86, 0.84, 0.82))
    towers = ((-0.86, 0.24, -0.62, 0.47), (-0.38, 0.2, -0.15, 0.58), (0.42, 0.2, -0.3, 0.53), (0.88, 0.26, -0.75, 0.42))
    for centre, width, top, tone in towers:
        dx = x - centre - 0.1 * shift
        picture = _over(picture, cover(box(dx, y - top - 1, width, 1.0), soft), tone, tone + 0.01, tone + 0.06)
        lit = torch.maximum((dx.abs() - 0.11).abs() - 0.05, ((y - top - 0.25) % 0.3 - 0.15).abs() - 0.06)
        lit = torch.maximum(lit, top + 0.15 - y)
        picture = _over(picture, cover(lit, soft), 0.98, 0.9, 0.62)
    return picture


def _snow(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.66, 0.76, 0.88), (0.86, 0.91, 0.97))
    for centre in (-0.8, 0.78):
        dx, dy = x - centre - 0.15 * shift, y + 0.55
        picture = _over(picture, cover(torch.maximum(dx.abs() - 0.34 * (dy + 0.3), dy - 1.0), soft), 0.33, 0.47, 0.48)
    picture = _over(picture, cover(ellipse(x + 0.4 * shift, y - 1.35, 2.2, 1.15), soft), 0.96, 0.97, 0.99)
    row = torch.floor(y / 0.4)
    fx, fy = (x + 0.2 * row + 0.2 * shift) % 0.4 - 0.2, y - 0.4 * row - 0.2
    return _over(picture, 0.9 * cover(torch.hypot(fx, fy) - 0.045, soft), 1.0, 1.0, 1.0)


def _desert(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.98, 0.72, 0.42), (1.0, 0.9, 0.66))
    picture = _over(
        picture, cover(ellipse(x - 0.65 * (shift.sign() + 0.3 * shift), y + 0.45, 0.24, 0.24), soft), 1.0, 0.96, 0.8
    )
    picture = _over(picture, cover(ellipse(x + 0.9 - 0.3 * shift, y - 0.85, 1.3, 0.85), soft), 0.85, 0.5, 0.24)
    return _over(picture, cover(ellipse(x - 0.9 - 0.3 * shift, y - 1.05, 1.4, 0.85), soft), 0.76, 0.4, 0.18)


def _mountains(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.55, 0.62, 0.86), (0.9, 0.8, 0.86))
    for centre, top, tone in ((-0.75, -0.72, 0.44), (0.75, -0.55, 0.36)):
        dx, dy = x - centre - 0.15 * shift, y - top
        peak = (dx.abs() - 0.75 * dy) * 0.8
        picture = _over(picture, cover(peak, soft), tone, tone - 0.02, tone + 0.18)
        picture = _over(picture, cover(torch.maximum(peak, dy - 0.26 - 0.12 * dx), soft), 0.97, 0.97, 1.0)
    return _over(picture, cover(-(y - 0.55), 0.3), 0.3, 0.42, 0.38)


def _room(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    picture = _ramp(y, (0.87, 0.75, 0.62), (0.76, 0.6, 0.47))
    dx, dy = x + 0.68 - 0.12 * shift, y + 0.42
    picture = _over(picture, cover(box(dx, dy, 0.3, 0.46), soft), 0.97, 0.95, 0.9)
    pane = torch.minimum(box(dx - 0.125, dy, 0.1, 0.4), box(dx + 0.125, dy, 0.1, 0.4))
    picture = _over(picture, cover(pane, soft), 0.6, 0.82, 0.95)
    dx, dy = x - 0.76 - 0.12 * shift, y + 0.4
    picture = _over(picture, cover(box(dx, dy, 0.22, 0.27), soft), 0.42, 0.27, 0.17)
    return _over(picture, cover(box(dx, dy, 0.15, 0.2), soft), 0.35, 0.6, 0.55)


def _stage(x: Tensor, y: Tensor, shift: Tensor, soft: float) -> Tensor:
    fold = 0.5 + 0.5 * torch.cos((x + 0.1 * shift) * 14.0)
    dark, bright = _rgb(0.36, 0.03, 0.08, like=x), _rgb(0.68, 0.08, 0.13, like=x)
    picture = torch.lerp(dark, bright, fold[:, None])
    beam = smoothstep(1.0, 0.3, torch.hypot(x - 0.1 * shift, 0.8 * y + 0.1))
    picture = _over(picture, 0.6 * beam, 1.0, 0.78, 0.5)
    return _over(picture, cover(-(y - 0.8), soft), 0.3, 0.17, 0.1)


_PAINT: dict[Scene, Paint] = {
    Scene.FOREST: _forest,
    Scene.BEACH: _beach,
    Scene.CITY: _city,
    Scene.SNOW: _snow,
    Scene.DESERT: _desert,
    Scene.MOUNTAINS: _mountains,
    Scene.ROOM: _room,
    Scene.STAGE: _stage,
}


def paint_scenes(scene: Tensor, x: Tensor, y: Tensor, shift: Tensor, pixel: float) -> Tensor:
    """Backgrounds (B, 3, H, W) in 0..1 for `Scene` numbers (B,), on the grid `x`, `y` (1, H, W) in [-1, 1].

    `shift` (B, 1, 1) in [-1, 1] moves things about; `pixel` is a pixel's width in the grid's unit.
    """
    batch, size = len(scene), x.shape[-1]
    picture = torch.zeros(batch, 3, size, size, dtype=x.dtype, device=x.device)
    soft = max(0.07, pixel)
    for kind, paint in _PAINT.items():
        rows = (scene == kind).nonzero().flatten()
        if len(rows):
            count = (len(rows), size, size)
            picture[rows] = paint(x.expand(count), y.expand(count), shift[rows], soft)
    return picture
