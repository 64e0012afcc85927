"""Paints what a person wears: clothes (and the neck in them), glasses and hat."""

from __future__ import annotations

import torch

from ...faces.parsing import Part
from .canvas import Canvas
from .figure import Figure
from .looks import CLOTH
from .shapes import box, cover, ellipse, lens, segment, smoothstep, superellipse
from .shots import Clothing


def paint_body(canvas: Canvas, s: Figure) -> None:
    """Neck, shoulders and clothes, in the upright frame."""
    lean = -0.5 * s.n["roll"]
    x, y = s.bx - lean, s.by
    cloth = s.look_up(CLOTH, torch.as_tensor(s.shots.clothing_colour, device=s.device))
    shirt, sweater, suit = (s.where_clothing(clothing) for clothing in Clothing)

    neck_width = 0.36 + 0.09 * s.t["neck_width"]
    flare = neck_width + 0.15 * smoothstep(0.9, 1.35, y) ** 2
    neck = torch.maximum((s.bx - lean * smoothstep(0.3, 1.1, y)).abs() - flare, 0.3 - y)
    shoulders = superellipse(x, y - 2.42, 1.42, 1.26, 2.6)
    neck_colour = s.skin_times(0.90, 0.85, 0.83)

    canvas.paint(cover(neck, s.px) * cover(y - 1.5, s.px), neck_colour, Part.NECK)
    canvas.paint(cover(shoulders, s.px), cloth, Part.CLOTH)
    canvas.paint(0.45 * cover(shoulders, s.px) * smoothstep(0.75, 1.4, x.abs()), cloth * 0.6)

    # A V of skin above a shirt, of white cloth above a suit.
    tip = 1.48 + 0.40 * suit
    slope = (neck_width + 0.07) / (tip - 1.08)
    edge = (x.abs() - slope * (tip - y)) / torch.sqrt(1 + slope * slope)
    opening = torch.maximum(edge, 1.0 - y)
    canvas.paint(cover(torch.maximum(opening, shoulders), s.px) * suit, s.rgb(0.95, 0.95, 0.96), Part.CLOTH)
    canvas.paint(cover(torch.maximum(opening, neck), s.px) * shirt, neck_colour, Part.NECK)
    # The head's shadow falls on the neck.
    shadow = ellipse(s.u, s.v - 0.35, 0.72, 0.85)
    throat = cover(torch.maximum(neck, y - 1.30), s.px)
    canvas.paint(0.60 * cover(shadow, 0.30) * throat, s.skin_times(0.62, 0.52, 0.50))
    tie = torch.maximum(x.abs() - 0.07 - 0.10 * (y - 1.25).clamp_min(0), 1.26 - y)
    canvas.paint(cover(tie, s.px) * suit, cloth * 0.45, Part.CLOTH)

    # Lapels and collar.
    bright = (cloth * 1.12 + 0.07).clamp(0, 1)
    collar = torch.maximum(edge.abs() - 0.085, torch.maximum(y - tip - 0.06, 1.07 + 0.25 * (x.abs() - neck_width) - y))
    canvas.paint(cover(collar, s.px) * shirt, bright, Part.CLOTH)
    canvas.paint(cover(collar - 0.02, s.px) * suit, cloth * 0.72, Part.CLOTH)
    placket = torch.maximum(x.abs() - 0.03, tip + 0.05 - y)
    canvas.paint(cover(placket, s.px) * shirt, cloth * 0.75, Part.CLOTH)
    roll_neck = box(x, y - 1.17, neck_width + 0.07, 0.16, 0.09)
    canvas.paint(cover(roll_neck, s.px) * sweater, bright * 0.94, Part.CLOTH)
    fold = (y - 1.32 - 0.05 * x * x).abs() - 0.025
    canvas.paint(0.8 * cover(torch.maximum(fold, roll_neck - 0.05), s.px) * sweater, cloth * 0.6)


def paint_glasses(canvas: Canvas, s: Figure) -> None:
    """Round black frames with a pale reflection, temples and a bridge."""
    left, right = s.eyes
    frame = s.rgb(0.07, 0.07, 0.09)
    rings = []
    for eye in (left, right):
        rim = superellipse(s.u - eye.x, s.v - eye.y - 0.02, 0.31 * eye.width, 0.285, 2.6)
        rings.append(rim.abs() - 0.030)
        lens_area = cover(rim, s.px)
        canvas.paint(0.13 * lens_area, s.rgb(0.75, 0.88, 1.0))
        streak = ((s.u - eye.x) + (s.v - eye.y) * 0.8 + 0.10).abs() - 0.035
        canvas.paint(0.30 * lens_area * cover(streak, s.px), s.rgb(1.0, 1.0, 1.0))
    bridge = segment(s.u, s.v, left.x + 0.27 * left.width, left.y, right.x - 0.27 * right.width, right.y) - 0.032
    temples = torch.minimum(
        segment(s.u, s.v, left.x - 0.29 * left.width, left.y, -s.face_width, left.y + 0.02),
        segment(s.u, s.v, right.x + 0.29 * right.width, right.y, s.face_width, right.y + 0.02),
    )
    shape = torch.minimum(
        torch.minimum(rings[0], rings[1]), torch.minimum(bridge, torch.maximum(temples - 0.026, s.head))
    )
    canvas.paint(cover(shape, s.px), frame, Part.GLASSES)


def paint_hat(canvas: Canvas, s: Figure) -> None:
    """A round hat with a ribbon and a brim, low enough to be seen and high enough to leave the brows free."""
    colour = s.look_up(CLOTH, torch.as_tensor(s.shots.hat, device=s.device))
    u, v = s.u - 0.10 * s.n["yaw"], s.v - 0.15 * s.n["pitch"]
    width = s.face_width + 0.10
    line = -0.50 + 0.10 * (u / width) ** 2
    dome = torch.maximum(superellipse(u, v + 0.46, width, 0.66, 2.6), v - line)
    canvas.paint(0.45 * cover(v - line - 0.16, 0.14) * canvas.face, s.skin_times(0.50, 0.40, 0.40))
    fall = (0.80 + 0.28 * smoothstep(0.0, -0.35, dome))[:, None]
    canvas.paint(cover(dome, s.px), (colour * fall).clamp(0, 1), Part.HAT)
    ribbon = torch.maximum(dome, line - 0.20 - v)
    canvas.paint(cover(ribbon, s.px), colour * 0.45, Part.HAT)
    brim = lens(u, v - line - 0.02, width + 0.42, 0.05, 0.11)
    canvas.paint(cover(brim, s.px), (colour * 0.92 + 0.02).clamp(0, 1), Part.HAT)
