"""Paints the bare head and its features: marks, eyes, nose and mouth."""

from __future__ import annotations

import torch

from ...faces.parsing import Part
from .canvas import Canvas
from .figure import Figure
from .looks import IRIS
from .people import Mark
from .shapes import arch_stroke, cover, ellipse, lens, rotate, segment, smoothstep


def paint_head(canvas: Canvas, s: Figure) -> None:
    """Ears and the bare face with its broad light and shade."""
    size = 0.115 + 0.055 * s.t["ear_size"]
    for side, part in ((-1, Part.RIGHT_EAR), (1, Part.LEFT_EAR)):
        turned = 1 - 1.1 * side * s.n["yaw"]  # the ear one looks at grows, the other hides
        u = s.u - side * (s.face_width + 0.35 * size)
        v = s.v - 0.12 - 0.5 * s.n["pitch"]
        ear = ellipse(u, v, size * turned, 1.75 * size)
        bare = (s.cut("end") < 0.5).float()  # longer hair hides the ears
        canvas.paint(bare * cover(ear, s.px), s.skin_times(0.95, 0.88, 0.86), part)
        inner = ellipse(u + side * 0.01, v + 0.01, 0.55 * size * turned, 1.15 * size)
        canvas.paint(0.6 * bare * cover(inner, 2 * s.px), s.skin_times(0.74, 0.60, 0.58))

    head = cover(s.head, s.px)
    canvas.reveal_face(head)
    canvas.paint(head, s.skin, Part.SKIN)
    edge = smoothstep(-0.26, 0.0, s.head) * head
    canvas.paint(0.45 * edge, s.skin_times(0.80, 0.69, 0.67))
    for side in (-1, 1):
        cheek = s.place(side * 0.42, 0.42)
        blush = cover(ellipse(s.u - cheek.x, s.v - cheek.y, 0.20, 0.14), 0.22)
        canvas.paint(0.30 * blush * head, s.skin_times(1.0, 0.74, 0.72))


def paint_marks(canvas: Canvas, s: Figure) -> None:
    """What a face is known by at first sight: a mole, freckles or a birthmark."""
    head = cover(s.head, s.px)
    side = s.t["mark_side"].sign()
    at = s.place(side * (0.36 + 0.10 * s.t["mark_side"].abs()), 0.38 + 0.14 * s.t["mark_height"])
    mole = torch.hypot(s.u - at.x, s.v - at.y) - 0.062
    canvas.paint(cover(mole, s.px) * s.where_kind("mark", Mark.MOLE), s.skin_times(0.32, 0.22, 0.20))

    at = s.place(side * 0.42, torch.where(s.t["mark_height"] > 0, 0.42, -0.40))
    patch = ellipse(s.u - at.x, s.v - at.y, 0.20, 0.17) + 0.03 * torch.cos(3 * torch.atan2(s.v - at.y, s.u - at.x))
    canvas.paint(
        0.75 * cover(patch, 1.5 * s.px) * head * s.where_kind("mark", Mark.BIRTHMARK), s.skin_times(0.78, 0.42, 0.42)
    )

    nose = s.place(0.0, 0.28)
    u, v = s.u - nose.x, s.v - nose.y
    row, pitch = torch.floor(v / 0.13), 0.17
    u = u + 0.5 * pitch * (row % 2)
    column = torch.floor(u / pitch)
    wander = 0.035 * torch.sin(12.9 * row + 78.2 * column)  # freckles keep no grid
    du, dv = u - pitch * (column + 0.5) + wander, v - 0.13 * (row + 0.5) - 0.8 * wander
    dots = torch.hypot(du, dv) - 0.042
    band = cover(ellipse(s.u - nose.x, v, 0.60, 0.21), 2 * s.px)
    canvas.paint(
        0.8 * cover(dots, s.px) * band * head * s.where_kind("mark", Mark.FRECKLES), s.skin_times(0.66, 0.44, 0.34)
    )


def paint_eye(canvas: Canvas, s: Figure, side: int) -> None:
    """White, iris, pupil, glint and lids of one eye; `side` is -1 for the one on the left of the image."""
    eye, part = s.eyes[side > 0], Part.LEFT_EYE if side > 0 else Part.RIGHT_EYE
    u, v = rotate(s.u - eye.x, s.v - eye.y, -side * (0.04 + 0.20 * s.t["eye_tilt"]))
    half_width = (0.212 + 0.038 * s.t["eye_size"]) * eye.width
    wide = s.where_expression(1.0, 0.86, 1.28)
    top = (0.138 + 0.024 * s.t["eye_size"] + 0.038 * s.t["eye_roundness"]) * wide
    bottom = top * s.where_expression(0.78, 0.48, 0.85)
    opening = lens(u, v, half_width, top, bottom)

    socket = cover(ellipse(u, v + 0.05, 1.25 * half_width, top + 0.12), 0.16)
    canvas.paint(0.22 * socket, s.skin_times(0.70, 0.56, 0.56))
    white = cover(opening, s.px)
    canvas.paint(white, s.rgb(0.97, 0.97, 0.97), part)
    canvas.paint(0.35 * white * cover(v + 0.35 * top, 0.10), s.rgb(0.55, 0.55, 0.62))  # the lid's shadow

    radius = 0.130
    reach_x, reach_y = (half_width - radius).clamp_min(0.02), 0.35 * top
    iu, iv = u - 0.75 * s.n["gaze_x"] * reach_x, v + 0.1 * top - s.n["gaze_y"] * reach_y
    centre = torch.hypot(iu / eye.width.clamp_max(1), iv)
    canvas.paint(white * cover(centre - radius, s.px), s.look_up(IRIS, s.kind["iris"]))
    canvas.paint(white * cover((centre - radius).abs() - 0.012, 1.2 * s.px) * 0.6, s.rgb(0.08, 0.06, 0.07))
    canvas.paint(white * cover(centre - 0.058, s.px), s.rgb(0.04, 0.03, 0.04))
    glint = torch.hypot(iu + 0.045, iv + 0.045) - 0.038
    canvas.paint(0.95 * white * cover(glint, s.px), s.rgb(1.0, 1.0, 1.0))

    lid = arch_stroke(u, v, 1.06 * half_width, top, 0.036)
    canvas.paint(cover(lid, s.px), s.skin_times(0.22, 0.16, 0.16), part)
    lower = arch_stroke(u, v, 0.9 * half_width, -bottom, 0.012)
    canvas.paint(0.45 * cover(lower, 1.5 * s.px), s.skin_times(0.45, 0.33, 0.33))
    crease = arch_stroke(u, v + 0.065, 0.95 * half_width, top, 0.012)
    canvas.paint(0.5 * cover(crease, 1.5 * s.px), s.skin_times(0.55, 0.42, 0.42))


def paint_nose(canvas: Canvas, s: Figure) -> None:
    """Bridge in half shadow, wings, a bright tip and nostrils."""
    nose, width = s.nose, 0.145 + 0.055 * s.t["nose_width"]
    bridge = s.place(0.0, 0.0, out=0.06)
    u, v = s.u - nose.x, s.v - nose.y
    dark_side = -s.n["light_x"].sign()

    flank = segment(s.u, s.v, bridge.x + 0.07 * dark_side, bridge.y, nose.x + 0.75 * width * dark_side, nose.y)
    canvas.paint(0.42 * cover(flank - 0.035, 0.10), s.skin_times(0.70, 0.56, 0.54))
    wings = torch.minimum(ellipse(u, v + 0.01, width, 0.085), ellipse(u, v + 0.02, 0.09, 0.115))
    canvas.paint(0.85 * cover(wings - 0.02, 0.05), s.skin_times(0.72, 0.56, 0.53))
    tip = ellipse(u, v + 0.045, 0.86 * width, 0.085)
    canvas.paint(cover(tip, 0.05), s.skin_times(1.0, 0.95, 0.92))
    ridge = segment(s.u, s.v, bridge.x, bridge.y, nose.x, nose.y - 0.08) - 0.03
    canvas.paint(0.35 * cover(ridge, 0.09), (s.skin * 1.12).clamp(0, 1))
    canvas.paint(0.6 * cover(torch.hypot(u - 0.02 * s.n["light_x"], v + 0.07) - 0.03, 0.07), (s.skin * 1.2).clamp(0, 1))
    for side in (-1, 1):
        nostril = ellipse(u - side * 0.5 * width, v - 0.035, 0.30 * width, 0.03)
        canvas.paint(0.85 * cover(nostril, s.px), s.skin_times(0.38, 0.24, 0.22))
    body = torch.minimum(ellipse(u, v, 1.1 * width, 0.10), segment(s.u, s.v, bridge.x, bridge.y, nose.x, nose.y) - 0.07)
    canvas.label(cover(body, s.px), Part.NOSE)


def paint_mouth(canvas: Canvas, s: Figure) -> None:
    """Lips, and the opening between them with teeth or tongue."""
    mouth, half_width, lift = s.mouth, s.mouth_half_width, s.mouth_lift
    u = s.u - mouth.x
    t = (u / half_width).clamp(-1.3, 1.3)
    v = s.v - mouth.y + lift * (t * t - 0.5)
    upper = 0.055 + 0.028 * s.t["lip_fullness"]
    lower = 0.075 + 0.035 * s.t["lip_fullness"]
    above, below = 0.4 * s.mouth_open, 0.6 * s.mouth_open

    under = ellipse(u, s.v - mouth.y - below - lower - 0.09, 0.6 * half_width, 0.05)
    canvas.paint(0.35 * cover(under, 0.12), s.skin_times(0.68, 0.54, 0.52))
    canvas.paint(cover(lens(u, v, half_width, upper + above, 0.02), s.px), s.lips * 0.86, Part.UPPER_LIP)
    canvas.paint(cover(lens(u, v, half_width, 0.0, lower + below), s.px), s.lips, Part.LOWER_LIP)
    shine = ellipse(u, v - below - 0.55 * lower, 0.4 * half_width, 0.35 * lower)
    canvas.paint(0.35 * cover(shine, 0.06), (s.lips * 1.25 + 0.08).clamp(0, 1))
    line = arch_stroke(u, v, 0.94 * half_width, 0.0, 0.020)
    canvas.paint(0.85 * cover(line, s.px) * (s.mouth_open == 0), s.lips * 0.35)

    opening = lens(u, v, 0.90 * half_width, above, below + 1e-3)
    inside = cover(opening, s.px) * (s.mouth_open > 0)
    canvas.paint(inside, s.rgb(0.28, 0.05, 0.07), Part.MOUTH)
    tongue = ellipse(u, v - below, 0.55 * half_width, 0.5 * below + 1e-3)
    canvas.paint(inside * cover(tongue, 2 * s.px) * s.where_expression(0, 0, 1), s.rgb(0.78, 0.32, 0.34))
    teeth = v - above * s.where_expression(0.0, 0.75, -0.45)
    canvas.paint(inside * cover(teeth, s.px), s.rgb(0.97, 0.96, 0.93))
