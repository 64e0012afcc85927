"""Paints all that grows: hair behind and before the head, brows and beard."""

from __future__ import annotations

import torch

from ...faces.parsing import Part
from .canvas import Canvas
from .figure import Figure
from .shapes import arch_stroke, cover, ellipse, rotate, smoothstep, superellipse


def paint_back_hair(canvas: Canvas, s: Figure) -> None:
    """The hair that hangs behind neck and shoulders, and what stands up from the head."""
    hair = s.hair_outline
    standing = 1 - s.hat
    knot = ellipse(s.u, s.v + 1.12 + 0.05 * s.t["hair_volume"], s.cut("knot") + 1e-3, 0.85 * s.cut("knot") + 1e-3)
    teeth = 0.07 * torch.cos(torch.atan2(s.u, -(s.v + 0.2)) * 30)
    crest = superellipse(s.u - 0.3 * s.n["yaw"], s.v + 0.80, 0.22, 0.42 * s.hair_reach, 3.0) - teeth * smoothstep(
        -0.7, -1.1, s.v
    )
    rounded = (s.hair * (0.70 + 0.35 * smoothstep(0.0, -0.25, knot))[:, None]).clamp(0, 1)
    canvas.paint(cover(hair, s.px) * (s.cut("opacity") > 0.5), s.hair * 0.62, Part.HAIR)
    canvas.paint(cover(knot, s.px) * (s.cut("knot") > 0) * standing, rounded, Part.HAIR)
    canvas.paint(cover(crest, s.px) * s.cut("crest") * standing, s.hair * 0.85, Part.HAIR)


def paint_front_hair(canvas: Canvas, s: Figure) -> None:
    """The hair around the face, its shadow on the forehead, its strands and its gloss."""
    cap = torch.maximum(s.hair_outline, -s.face_opening)
    opacity = s.cut("opacity")
    dense = (opacity > 0.5).float()
    canvas.paint(0.45 * cover(cap - 0.05, 0.16) * canvas.face * dense, s.skin_times(0.55, 0.42, 0.40))

    angle = torch.atan2(s.u - 0.5 * s.cut("parting"), -(s.v + 0.9)) * (s.v < 0.3) + s.u * 1.5
    strands = 1 + 0.09 * s.cut("strands") * torch.cos(angle * 12 + 5 * s.t["hair_shade"])
    curls = torch.cos(13 * s.u + 2 * torch.sin(11 * s.v)) * torch.cos(13 * s.v + 2 * torch.sin(9 * s.u))
    strands = strands + 0.16 * curls * (s.cut("bumps") > 10)
    depth = 0.72 + 0.28 * smoothstep(0.0, -0.22, s.hair_outline)
    band = (torch.hypot(s.u - 0.25 * s.n["light_x"], s.v + 0.1) - 0.82) / 0.10
    gloss = 0.24 * s.cut("strands") * torch.exp(-band * band) * smoothstep(-0.1, -0.5, s.v)
    colour = torch.lerp((s.hair * (strands * depth)[:, None]).clamp(0, 1), (s.hair + 1) / 2, gloss[:, None])
    colour = torch.lerp(s.skin * 0.85, colour, opacity[:, None])  # cropped hair lets the skin through
    canvas.paint(cover(cap, s.px) * (opacity > 0), colour, Part.HAIR)

    crest = superellipse(s.u - 0.3 * s.n["yaw"], s.v + 0.74, 0.20, 0.34, 2.5)
    ridge = (s.hair * (1 + 0.14 * torch.cos(s.u * 40))[:, None]).clamp(0, 1)
    canvas.paint(cover(crest, s.px) * s.cut("crest") * (1 - s.hat), ridge, Part.HAIR)
    bald = (opacity == 0).float() * (1 - s.hat)
    shine = ellipse(s.u - 0.28 * s.n["light_x"], s.v + 0.68, 0.22, 0.10)
    canvas.paint(0.5 * cover(shine, 0.16) * bald, (s.skin * 1.25 + 0.05).clamp(0, 1))


def paint_brow(canvas: Canvas, s: Figure, side: int) -> None:
    """Brows are hair, darker than the head's so that they show on every skin."""
    brow = s.brows[side > 0]
    colour = torch.lerp(s.hair * 0.55, s.skin_times(0.30, 0.20, 0.18), 0.3)
    u, v = rotate(s.u - brow.x, s.v - brow.y, side * (0.05 + 0.26 * s.t["brow_tilt"]))
    half_width = (0.235 + 0.02 * s.t["eye_size"]) * brow.width
    stroke = arch_stroke(u, v, half_width, 0.05, 0.046 + 0.025 * s.t["brow_thickness"])
    canvas.paint(cover(stroke, s.px) * canvas.face, colour, Part.LEFT_BROW if side > 0 else Part.RIGHT_BROW)


def paint_beard(canvas: Canvas, s: Figure) -> None:
    """A beard of the person's own shape, where the prompt asks for one."""
    full, goatee, long = (s.where_kind("beard_shape", i) for i in range(3))
    mouth = s.mouth
    u, v = s.u - mouth.x, s.v - mouth.y
    growth = 0.05 * full + 0.07 * goatee + 0.10 * long
    hang = superellipse(s.u - 0.5 * mouth.x, s.v - 0.95, 0.50, 0.42 + 0.12 * long, 2.4)
    outer = torch.minimum(s.head - growth * smoothstep(0.3, 0.8, s.v), torch.where(long > 0, hang, s.head))
    # Its upper edge: under the nose in the middle, dipping over the cheeks, up to the ears at the sides.
    across = (u / s.face_width).clamp(-1, 1)
    edge = -0.17 + 0.62 * across.abs() - 1.25 * across.abs() ** 3
    cheek = edge - v
    beard = torch.maximum(outer, cheek)
    narrow = superellipse(u, v - 0.18, 0.36, 0.38, 3.0)
    beard = torch.where(goatee > 0, torch.maximum(torch.minimum(outer, s.head - growth), narrow), beard)
    shade = (s.hair * 0.88 * (1 + 0.07 * torch.cos(s.u * 42)[:, None])).clamp(0, 1)
    alpha = cover(beard, s.px)
    canvas.reveal_face(alpha)
    canvas.paint(alpha, shade, Part.SKIN)
    canvas.paint(0.35 * alpha * smoothstep(0.0, 0.5, v), s.hair * 0.6)
