"""Art styles: what becomes of a finished image. Every style keeps the tones that tell people apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .canvas import Canvas
from .shapes import smoothstep
from .shots import Style


@dataclass(frozen=True)
class Sheet:
    """Some finished images of one style, and what a draughtsman knows about them."""

    rgb: Tensor  # (B, 3, H, W)
    parts: Tensor  # (B, H, W) uint8
    person: Tensor  # (B, H, W) coverage
    x: Tensor  # (1, H, W) in [-1, 1]
    y: Tensor

    @property
    def grey(self) -> Tensor:
        """Luminance, (B, 1, H, W)."""
        weights = torch.tensor([0.299, 0.587, 0.114], dtype=self.rgb.dtype, device=self.rgb.device).view(1, 3, 1, 1)
        return (self.rgb * weights).sum(1, keepdim=True)


def _blur(picture: Tensor, radius: float) -> Tensor:
    """A binomial blur, `radius` in 64ths of the frame's width."""
    for _ in range(max(1, round(radius * picture.shape[-1] / 64))):
        picture = F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return picture


def _edges(picture: Tensor) -> Tensor:
    """How much the image changes within a 64th of its width, (B, 1, H, W)."""
    step = max(1, picture.shape[-1] // 64)
    around = F.pad(picture, (step, step, step, step), mode="replicate")
    across = around[..., step:-step, 2 * step :] - around[..., step:-step, : -2 * step]
    down = around[..., 2 * step :, step:-step] - around[..., : -2 * step, step:-step]
    return torch.hypot(across, down).amax(1, keepdim=True)


def _paper(sheet: Sheet, red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue], dtype=sheet.rgb.dtype, device=sheet.rgb.device).view(1, 3, 1, 1)


def _photo(sheet: Sheet) -> Tensor:
    corner = smoothstep(1.0, 1.6, torch.hypot(sheet.x, sheet.y))[:, None]
    return sheet.rgb * (1 - 0.22 * corner)


def _pencil(sheet: Sheet) -> Tensor:
    """Graphite on paper. Tone is kept, since it alone tells hair and skin apart here."""
    person = sheet.person[:, None]
    hatch = 0.5 + 0.5 * torch.cos((sheet.x + sheet.y)[:, None] * 50.0)
    dark = (1 - sheet.grey) * torch.lerp(torch.full_like(person, 0.60), torch.full_like(person, 1.0), person)
    contour = smoothstep(0.15, 0.6, _edges(person))
    lines = smoothstep(0.15, 0.8, _edges(sheet.grey)) * (0.25 + 0.30 * person)
    ink = dark * (0.84 + 0.16 * hatch) + torch.maximum(0.55 * contour, lines)
    return torch.lerp(_paper(sheet, 0.97, 0.96, 0.93), _paper(sheet, 0.15, 0.15, 0.18), ink.clamp(0, 1))


def _pop_art(sheet: Sheet) -> Tensor:
    """Few loud colours, dots behind, black contours."""
    person = sheet.person[:, None]
    grey = sheet.grey
    loud = (grey + 1.45 * (sheet.rgb - grey)).clamp(0, 1)
    steps = 5.0
    level = loud * steps
    whole = torch.floor(level)
    loud = (whole + smoothstep(0.35, 0.65, level - whole)) / steps
    cell = 2 / 16
    dots = torch.hypot(sheet.x % cell - cell / 2, sheet.y % cell - cell / 2)[:, None]
    dotted = torch.where(person > 0.5, loud, loud * 0.55 + 0.45)
    dotted = torch.lerp(dotted, dotted * _paper(sheet, 1.0, 0.55, 0.75), (1 - person) * smoothstep(0.055, 0.03, dots))
    contour = smoothstep(0.15, 0.6, _edges(person))
    line = 0.85 * torch.maximum(contour, smoothstep(0.4, 0.9, _edges(grey)) * person)
    return torch.lerp(dotted, _paper(sheet, 0.06, 0.04, 0.08), line)


def _night(sheet: Sheet) -> Tensor:
    """Blue darkness around a person whom a warm lamp keeps at half light or more."""
    person = sheet.person[:, None]
    dark = sheet.rgb * _paper(sheet, 0.36, 0.42, 0.68) + _paper(sheet, 0.0, 0.01, 0.06)
    lamp = smoothstep(1.5, 0.1, torch.hypot(sheet.x + 0.35, sheet.y + 0.1))[:, None]
    lit = sheet.rgb * torch.lerp(_paper(sheet, 0.50, 0.54, 0.82), _paper(sheet, 1.0, 0.86, 0.72), lamp)
    rim = smoothstep(0.0, 0.5, _blur(1 - person, 3.0)) * person
    lit = lit + rim * _paper(sheet, 0.10, 0.18, 0.42)
    return torch.lerp(dark, lit, person)


def _watercolour(sheet: Sheet) -> Tensor:
    """Thin washes that pool at their edges, fading into the paper."""
    paper = _paper(sheet, 0.99, 0.98, 0.95)
    person = sheet.person[:, None]
    wash = torch.lerp(_blur(sheet.rgb, 3.0), _blur(sheet.rgb, 0.5), person)
    pooled = wash - 0.30 * smoothstep(0.15, 0.8, _edges(wash)) * wash
    grain = (
        0.022
        * torch.cos(sheet.x * 23 + 3 * torch.sin(sheet.y * 11))
        * torch.cos(sheet.y * 19 + 2 * torch.sin(sheet.x * 13))
    )
    radius = torch.hypot(sheet.x, 0.9 * sheet.y) + 0.06 * torch.sin(7 * torch.atan2(sheet.y, sheet.x)) + grain
    fade = torch.lerp(smoothstep(1.05, 0.75, radius)[:, None] * 0.75, torch.full_like(person, 0.92), person)
    fade = fade * smoothstep(1.32, 1.12, radius)[:, None]
    return torch.lerp(paper, (pooled + grain[:, None]).clamp(0, 1), fade)


_RENDERINGS: dict[Style, Callable[[Sheet], Tensor]] = {
    Style.PHOTO: _photo,
    Style.PENCIL: _pencil,
    Style.POP_ART: _pop_art,
    Style.NIGHT: _night,
    Style.WATERCOLOUR: _watercolour,
}


def apply_styles(canvas: Canvas, style: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The canvas' images in the `Style` numbers (B,) given, (B, 3, H, W) in 0..1; `x`, `y` is the grid (1, H, W)."""
    result = canvas.rgb.clone()
    for kind, rendering in _RENDERINGS.items():
        rows = (style == kind).nonzero().flatten()
        if len(rows):
            result[rows] = rendering(Sheet(canvas.rgb[rows], canvas.parts[rows], canvas.person[rows], x, y))
    return result.clamp(0, 1)
