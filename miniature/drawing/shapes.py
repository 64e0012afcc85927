"""Signed distances of simple shapes on grids of points: negative inside, in the unit of the coordinates.

`x` and `y` are (B, H, W) or broadcast to it; every other number is a tensor (B, 1, 1) or a plain number. Distances
are exact near the outline, which is all that anti-aliasing needs. Ellipse after Inigo Quilez' "2D distance functions".
"""

from __future__ import annotations

import torch
from torch import Tensor

Number = Tensor | float


def cover(distance: Tensor, width: Number) -> Tensor:
    """How much of a pixel of that width lies inside, 0..1. A larger width gives a soft edge."""
    return (0.5 - distance / width).clamp(0, 1)


def ellipse(x: Tensor, y: Tensor, rx: Number, ry: Number) -> Tensor:
    """An axis-parallel ellipse around the origin."""
    px, py = x / rx, y / ry
    k0 = torch.hypot(px, py)
    k1 = torch.hypot(px / rx, py / ry)
    return k0 * (k0 - 1) / k1.clamp_min(1e-6)


def superellipse(x: Tensor, y: Tensor, rx: Number, ry: Number, power: Number) -> Tensor:
    """|x/rx|^p + |y/ry|^p = 1: an ellipse at p = 2, nearly a rectangle at p = 6. Scaled by the smaller radius."""
    px, py = (x / rx).abs().clamp_min(1e-6), (y / ry).abs().clamp_min(1e-6)
    a, b = px**power, py**power
    k0 = (a + b) ** (1 / power)
    gradient = torch.hypot(a / (px * rx), b / (py * ry)) * k0 / (a + b)
    return (k0 - 1) / gradient.clamp_min(1e-6)


def lens(x: Tensor, y: Tensor, half_width: Number, top: Number, bottom: Number) -> Tensor:
    """Between two parabolas that meet at (+-half_width, 0): `top` up and `bottom` down from the axis at the middle.

    Eyes, lips and open mouths. A negative `top` puts the upper parabola below the axis.
    """
    t = x / half_width
    arch = 1 - t * t
    slope = 2 * t.abs() / half_width
    upper = (-y - top * arch) / torch.sqrt(1 + (top * slope) ** 2)
    lower = (y - bottom * arch) / torch.sqrt(1 + (bottom * slope) ** 2)
    return torch.maximum(upper, lower)


def segment(x: Tensor, y: Tensor, x0: Number, y0: Number, x1: Number, y1: Number) -> Tensor:
    """Distance to a straight stroke without thickness; subtract a radius to make it a capsule."""
    dx, dy = x1 - x0, y1 - y0
    t = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy + 1e-9)
    t = t.clamp(0, 1)
    return torch.hypot(x - x0 - t * dx, y - y0 - t * dy)


def arch_stroke(x: Tensor, y: Tensor, half_width: Number, lift: Number, thickness: Number) -> Tensor:
    """A parabolic stroke from (-half_width, 0) to (half_width, 0), its middle `lift` above the axis, with thin ends."""
    t = (x / half_width).clamp(-1, 1)
    line = y + lift * (1 - t * t)
    radius = thickness * (1 - 0.6 * t * t)
    side = (x.abs() - half_width).clamp_min(0)
    return torch.hypot(line / torch.sqrt(1 + (2 * lift * t / half_width) ** 2), side) - radius


def box(x: Tensor, y: Tensor, rx: Number, ry: Number, rounding: Number = 0.0) -> Tensor:
    """An axis-parallel rectangle around the origin with rounded corners; `rounding` lies within the radii."""
    qx, qy = x.abs() - rx + rounding, y.abs() - ry + rounding
    return torch.hypot(qx.clamp_min(0), qy.clamp_min(0)) + torch.maximum(qx, qy).clamp_max(0) - rounding


def rotate(x: Tensor, y: Tensor, angle: Number) -> tuple[Tensor, Tensor]:
    """Coordinates in a frame turned by `angle` (clockwise as seen, since y points down)."""
    angle = torch.as_tensor(angle, dtype=x.dtype, device=x.device)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def smoothstep(low: Number, high: Number, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
