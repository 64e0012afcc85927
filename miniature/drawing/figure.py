"""From traits and pose to geometry and colours: where everything on a drawn person is, before anything is painted.

Lengths are in half heads: 0 is the middle of the face, +1 the chin, -1 the crown, at any pose. Angles are radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .canvas import Extent
from .looks import CUTS, HAIR, SKIN
from .people import KINDS, TRAITS, HairStyle, People
from .shapes import rotate, smoothstep, superellipse
from .shots import HEAD_HALF_HEIGHT, LIMITS, Clothing, Expression, Shots


@dataclass(frozen=True)
class Feature:
    """Where a feature of the face appears once the head has turned: its place and its foreshortening."""

    x: Tensor
    y: Tensor
    width: Tensor


class Figure:
    """A batch of people in their poses: lengths and colours, (B, 1, 1) and (B, 3, 1, 1), and the grid to draw on."""

    def __init__(self, people: People, shots: Shots, size: int, device: torch.device) -> None:
        self.device = device
        self.people, self.shots = people, shots
        self.t = {name: self.column(people.traits[:, i]) for i, name in enumerate(TRAITS)}
        self.kind = {name: torch.as_tensor(people.kinds[:, i], device=device) for i, name in enumerate(KINDS)}
        self.n = {name: self.column(shots.nuisance[:, i]) for i, name in enumerate(LIMITS)}
        self.hat = self.column(shots.hat >= 0)

        self.size, self.pixel = size, 2 / size
        self.scale = HEAD_HALF_HEIGHT + self.n["size"]
        self.cx, self.cy = self.n["shift_x"], self.n["shift_y"] - 0.02
        self.px = self.pixel / self.scale  # a pixel in half heads
        axis = torch.arange(size, device=device)
        self.look_at(axis.view(1, size, 1), axis.view(1, 1, size))
        self.mouth_open = self.where_expression(0.0, 0.13, 0.30)

    def look_at(self, ys: Tensor, xs: Tensor) -> None:
        """Lay the grid over these pixels: rows (B, H, 1) and columns (B, 1, W)."""
        self.x, self.y = (xs + 0.5) * self.pixel - 1, (ys + 0.5) * self.pixel - 1
        # Body frame: upright, following the head. Head frame: turned by the roll.
        self.bx, self.by = (self.x - self.cx) / self.scale, (self.y - self.cy) / self.scale
        self.u, self.v = rotate(self.bx, self.by, self.n["roll"])
        for name in ("head", "hair_outline", "face_opening"):  # what was computed on another grid
            self.__dict__.pop(name, None)

    def window(self, rows: Tensor, at: Feature, reach_u: float, reach_v: float) -> Extent:
        """The pixels within that reach of a feature, at any roll and size; `rows` says which images."""
        turn, largest = LIMITS["roll"], HEAD_HALF_HEIGHT + LIMITS["size"]
        half = [largest * reach / self.pixel for reach in (reach_u + turn * reach_v, reach_v + turn * reach_u)]
        width, height = (min(self.size, 2 * math.ceil(h) + 2) for h in half)
        centre = self.to_pixels(at.x, at.y).round().long()
        left = (centre[:, 0] - width // 2).clamp(0, self.size - width)
        top = (centre[:, 1] - height // 2).clamp(0, self.size - height)
        return Extent(rows, top, left, height, width)

    def column(self, values) -> Tensor:
        """Numbers per image as (B, 1, 1) float32."""
        return torch.as_tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    def look_up(self, table: dict, index: Tensor) -> Tensor:
        """Rows of a table by its keys' numbers: (B, 3, 1, 1) for colours."""
        rows = torch.tensor([table[key] for key in sorted(table)], device=self.device)
        return rows[index.clamp_min(0)].view(-1, 3, 1, 1)

    def cut(self, name: str) -> Tensor:
        """One length of everybody's hair style."""
        rows = torch.tensor([getattr(CUTS[key], name) for key in HairStyle], device=self.device)
        return rows[self.kind["hair_style"]].view(-1, 1, 1)

    def where_kind(self, name: str, value: int) -> Tensor:
        """1 for whom that categorical trait has that value, else 0."""
        return (self.kind[name] == value).float().view(-1, 1, 1)

    def where_expression(self, neutral: float, smiling: float, surprised: float) -> Tensor:
        values = {Expression.NEUTRAL: neutral, Expression.SMILING: smiling, Expression.SURPRISED: surprised}
        return self.column([values[Expression(int(e))] for e in self.shots.expression])

    def where_clothing(self, clothing: Clothing) -> Tensor:
        return self.column(self.shots.clothing == int(clothing))

    def place(self, x: Tensor | float, y: Tensor | float, out: float = 0.0) -> Feature:
        """A point of the frontal face on the turned head, an ellipsoid; `out` is how far it stands out (the nose)."""
        yaw, pitch = self.n["yaw"], self.n["pitch"]
        x, y = torch.as_tensor(x, device=self.device), torch.as_tensor(y, device=self.device)
        depth = 0.62 * torch.sqrt((1 - x * x - 0.5 * y * y).clamp_min(0.15)) + out
        width = (torch.cos(yaw) - 0.6 * torch.sin(yaw) * x / depth).clamp(0.55, 1.2)
        return Feature(
            x * torch.cos(yaw) + depth * torch.sin(yaw), y * torch.cos(pitch) + depth * torch.sin(pitch), width
        )

    def to_pixels(self, u: Tensor, v: Tensor) -> Tensor:
        """Points of the head frame, each (B, 1, 1), as pixel coordinates (B, 2)."""
        bx, by = rotate(u, v, -self.n["roll"])
        point = torch.cat([self.cx + self.scale * bx, self.cy + self.scale * by], dim=-1)[:, 0]
        return (point + 1) / self.pixel - 0.5

    # Colours

    @cached_property
    def skin(self) -> Tensor:
        ramp = torch.tensor(SKIN, device=self.device)
        at = (self.t["skin_tone"].flatten() + 1) / 2 * (len(SKIN) - 1)
        low = at.long().clamp(0, len(SKIN) - 2)
        tone = torch.lerp(ramp[low], ramp[low + 1], (at - low)[:, None]).view(-1, 3, 1, 1)
        hue = torch.tensor([0.02, -0.015, -0.06], device=self.device).view(1, 3, 1, 1)
        return (tone + hue * self.t["skin_hue"][:, None]).clamp(0, 1)

    def skin_times(self, red: float, green: float, blue: float) -> Tensor:
        """The skin in another light."""
        return (self.skin * self.rgb(red, green, blue)).clamp(0, 1)

    @cached_property
    def hair(self) -> Tensor:
        return (self.look_up(HAIR, self.kind["hair_colour"]) * (1 + 0.16 * self.t["hair_shade"][:, None])).clamp(0, 1)

    @cached_property
    def lips(self) -> Tensor:
        return torch.lerp(self.skin_times(0.86, 0.62, 0.62), self.rgb(0.72, 0.22, 0.26), 0.45)

    def rgb(self, red: float, green: float, blue: float) -> Tensor:
        return torch.tensor([red, green, blue], device=self.device).view(1, 3, 1, 1)

    # The head's outline

    @cached_property
    def face_width(self) -> Tensor:
        return 0.775 + 0.11 * self.t["face_width"]

    @cached_property
    def chin(self) -> Tensor:
        return 0.99 + 0.11 * self.t["chin_length"] + 0.25 * (self.mouth_open - 0.15).clamp_min(0)

    @cached_property
    def head(self) -> Tensor:
        """Distance to the outline of face and skull."""
        v0 = -0.05
        taper = 1 - (0.17 - 0.14 * self.t["jaw_width"]) * smoothstep(0.0, 1.1, self.v)
        u = (self.u - 0.16 * self.n["yaw"] * smoothstep(0.0, 1.0, self.v)) / taper
        power = torch.where(self.v < v0, 2.15, 2.35 + 0.5 * self.t["jaw_square"])
        return superellipse(u, self.v - v0, self.face_width, torch.where(self.v < v0, 0.93, self.chin - v0), power)

    # Hair

    @cached_property
    def hair_reach(self) -> Tensor:
        """How much the hair stands off, as a factor: volume is a trait, and a hat presses it down."""
        return 1 + 0.38 * self.t["hair_volume"]

    @cached_property
    def hair_outline(self) -> Tensor:
        """Distance to the outline of all hair, the face included."""
        v0 = -0.12
        rx = self.face_width + 0.02 + self.cut("side") * self.hair_reach * (1 - 0.35 * self.hat)
        top = 0.87 + self.cut("top") * self.hair_reach * (1 - self.hat)
        below = self.cut("end") * (1 + 0.12 * self.t["hair_volume"]) - v0
        lower = self.v >= v0
        distance = superellipse(
            self.u,
            self.v - v0,
            rx,
            torch.where(lower, below, top),
            torch.where(lower, self.cut("hem"), torch.tensor(2.2, device=self.device)),
        )
        angle = torch.atan2(self.u, -(self.v - v0))
        wave = torch.cos(angle * self.cut("bumps") + 3 * self.t["hair_shade"])
        spikes = torch.asin(0.98 * wave) * 0.64  # a triangle wave
        spiky = self.where_kind("hair_style", HairStyle.SPIKY) * smoothstep(0.1, -0.5, self.v)
        wave = torch.lerp(wave, spikes, spiky)
        return distance - self.cut("bump") * wave * torch.where(
            lower, 1 - 0.4 * self.where_kind("hair_style", HairStyle.SPIKY), 1.0
        )

    @cached_property
    def face_opening(self) -> Tensor:
        """Distance to what the front hair leaves free."""
        brow = self.place(0.0, self.cut("hairline") + 0.09 * self.t["hairline"])
        centre = 0.40
        slanted = self.v + self.cut("parting") * (self.u - brow.x)
        dy = (slanted - centre).clamp_max(0)
        half_width = self.cut("opening") * self.face_width
        return superellipse(self.u - 0.6 * brow.x, dy, half_width, centre - brow.y, self.cut("square"))

    # Features

    @cached_property
    def eyes(self) -> tuple[Feature, Feature]:
        x = 0.35 + 0.055 * self.t["eye_distance"]
        y = 0.03 + 0.06 * self.t["eye_level"]
        return self.place(-x, y), self.place(x, y)

    @cached_property
    def brows(self) -> tuple[Feature, Feature]:
        above = 0.27 + 0.045 * self.t["brow_level"] + self.where_expression(0.0, 0.02, 0.13)
        left, right = self.eyes
        return Feature(left.x - 0.02, left.y - above, left.width), Feature(right.x + 0.02, right.y - above, right.width)

    @cached_property
    def nose(self) -> Feature:
        return self.place(0.0, 0.34 + 0.06 * self.t["nose_length"], out=0.16)

    @cached_property
    def mouth(self) -> Feature:
        return self.place(0.0, 0.645 + 0.045 * self.t["mouth_level"] + 0.08 * (self.chin - 0.99))

    @cached_property
    def mouth_half_width(self) -> Tensor:
        return (0.26 + 0.065 * self.t["mouth_width"]) * self.where_expression(1.0, 1.28, 0.72) * self.mouth.width

    @cached_property
    def mouth_lift(self) -> Tensor:
        """How far the corners stand above the middle of the mouth."""
        return self.where_expression(0.035, 0.15, -0.02)
