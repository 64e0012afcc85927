"""Draws people. Every shape is a signed distance on the pixel grid, laid over the picture back to front.

    people = split_people("test", 4)
    pictures = render(people, draw_shots(range(4)), size=128)

Lengths are in half heads: 0 is the middle of the face, +1 the chin, -1 the crown, at any pose. Angles are radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..errors import LikenessError
from ..faces.parsing import Part
from .backgrounds import paint_scenes
from .canvas import Canvas, Window
from .people import KINDS, TRAITS, HairColour, HairStyle, Iris, Mark, People
from .shapes import arch_stroke, box, cover, ellipse, lens, rotate, segment, smoothstep, superellipse
from .shots import HEAD_HALF_HEIGHT, LIMITS, Clothing, Colour, Expression, Shots
from .styles import apply_styles

SIZES = (64, 128)  # smallest and largest side in pixels

_SKIN = ((1.0, 0.87, 0.78), (0.95, 0.76, 0.61), (0.82, 0.60, 0.43), (0.60, 0.40, 0.27), (0.38, 0.24, 0.16))
_HAIR: dict[HairColour, tuple[float, float, float]] = {
    HairColour.BLACK: (0.10, 0.09, 0.11),
    HairColour.BROWN: (0.31, 0.19, 0.11),
    HairColour.CHESTNUT: (0.49, 0.25, 0.14),
    HairColour.RED: (0.66, 0.15, 0.08),
    HairColour.GINGER: (0.88, 0.44, 0.13),
    HairColour.BLOND: (0.93, 0.77, 0.40),
    HairColour.GREY: (0.54, 0.55, 0.58),
    HairColour.WHITE: (0.93, 0.92, 0.89),
}
_IRIS: dict[Iris, tuple[float, float, float]] = {
    Iris.DARK: (0.14, 0.08, 0.06),
    Iris.BROWN: (0.47, 0.26, 0.11),
    Iris.GREEN: (0.25, 0.55, 0.28),
    Iris.BLUE: (0.18, 0.47, 0.85),
    Iris.GREY: (0.52, 0.58, 0.62),
}
_CLOTH: dict[Colour, tuple[float, float, float]] = {
    Colour.RED: (0.82, 0.15, 0.17),
    Colour.ORANGE: (0.96, 0.50, 0.10),
    Colour.YELLOW: (0.97, 0.84, 0.20),
    Colour.GREEN: (0.18, 0.58, 0.30),
    Colour.BLUE: (0.16, 0.36, 0.80),
    Colour.PURPLE: (0.52, 0.23, 0.68),
    Colour.WHITE: (0.95, 0.95, 0.95),
    Colour.BLACK: (0.13, 0.13, 0.15),
}


@dataclass(frozen=True)
class Cut:
    """A hair style as lengths: how the hair stands off the skull and where it leaves the face free."""

    opacity: float = 1.0
    top: float = 0.12  # thickness over the crown
    side: float = 0.06  # thickness beside the temples
    end: float = 0.1  # height at which it ends
    hairline: float = -0.50  # height of the forehead's upper edge
    opening: float = 0.93  # half width of the free face, as a part of the face's
    square: float = 2.2  # roundness of the forehead's edge: 2 an arch, 5 a straight fringe
    hem: float = 3.0  # roundness of the hair's lower end
    parting: float = 0.0  # slope of the hairline
    bumps: float = 0.0  # how many curls or spikes around the head
    bump: float = 0.0  # how far they stand out
    strands: float = 1.0  # visibility of single strands
    crest: float = 0.0  # the mohawk's strip
    knot: float = 0.0  # the bun's radius


_CUTS: dict[HairStyle, Cut] = {
    HairStyle.BALD: Cut(opacity=0.0, top=0.0, side=0.0, end=-0.2),
    HairStyle.BUZZ: Cut(opacity=0.85, top=0.03, side=0.02, end=0.0, hairline=-0.56, opening=0.92, strands=0.0),
    HairStyle.SIDE_PARTING: Cut(top=0.20, side=0.08, end=0.12, hairline=-0.50, parting=0.34),
    HairStyle.SPIKY: Cut(top=0.17, side=0.06, end=0.08, hairline=-0.44, bumps=9, bump=0.17, opening=0.90),
    HairStyle.MOHAWK: Cut(opacity=0.4, top=0.02, side=0.01, end=0.0, hairline=-0.55, strands=0.0, crest=1.0),
    HairStyle.BUN: Cut(top=0.08, side=0.05, end=0.1, hairline=-0.57, opening=0.90, knot=0.30),
    HairStyle.AFRO: Cut(top=0.36, side=0.40, end=0.62, hairline=-0.46, hem=2.0, bumps=15, bump=0.05, strands=0.0),
    HairStyle.BOB: Cut(top=0.16, side=0.19, end=0.80, hairline=-0.24, opening=0.80, square=4.5, hem=6.0),
    HairStyle.CURLY: Cut(
        top=0.24, side=0.30, end=1.25, hairline=-0.40, opening=0.80, hem=3.5, bumps=11, bump=0.10, strands=0.4
    ),
    HairStyle.LONG: Cut(top=0.13, side=0.13, end=2.2, hairline=-0.60, opening=0.78, square=1.7, hem=7.0),
}


@dataclass(frozen=True)
class Pictures:
    """B portraits and all that is known about them. Coordinates are pixels, origin top left, pixel centres whole."""

    rgb: Tensor  # (B, H, W, 3) float32, 0..1, as ComfyUI's IMAGE
    face: Tensor  # (B, H, W) float32, 0..1: coverage of the visible face, features included, hair and hat excluded
    person: Tensor  # (B, H, W) float32, 0..1: coverage of head, neck and clothes
    parts: Tensor  # (B, H, W) uint8: values of `faces.Part`; a beard is skin, as in CelebAMask-HQ
    keypoints: Tensor  # (B, 5, 2) float32: image-left eye, image-right eye, nose, left and right corner of the mouth
    boxes: Tensor  # (B, 4) float32: x1, y1, x2, y2 of the face from hairline to chin
    people: People
    shots: Shots

    def __len__(self) -> int:
        return len(self.rgb)


@dataclass(frozen=True)
class Feature:
    """Where a feature of the face appears once the head has turned: its place and its foreshortening."""

    x: Tensor
    y: Tensor
    width: Tensor


class Sitter:
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

    def window(self, rows: Tensor, at: Feature, reach_u: float, reach_v: float) -> Window:
        """The pixels within that reach of a feature, at any roll and size; `rows` says which pictures."""
        turn, largest = LIMITS["roll"], HEAD_HALF_HEIGHT + LIMITS["size"]
        half = [largest * reach / self.pixel for reach in (reach_u + turn * reach_v, reach_v + turn * reach_u)]
        width, height = (min(self.size, 2 * math.ceil(h) + 2) for h in half)
        centre = self.to_pixels(at.x, at.y).round().long()
        left = (centre[:, 0] - width // 2).clamp(0, self.size - width)
        top = (centre[:, 1] - height // 2).clamp(0, self.size - height)
        return Window(rows, top, left, height, width)

    def column(self, values) -> Tensor:
        """Numbers per picture as (B, 1, 1) float32."""
        return torch.as_tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    def look_up(self, table: dict, index: Tensor) -> Tensor:
        """Rows of a table by its keys' numbers: (B, 3, 1, 1) for colours."""
        rows = torch.tensor([table[key] for key in sorted(table)], device=self.device)
        return rows[index.clamp_min(0)].view(-1, 3, 1, 1)

    def cut(self, name: str) -> Tensor:
        """One length of everybody's hair style."""
        rows = torch.tensor([getattr(_CUTS[key], name) for key in HairStyle], device=self.device)
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
        ramp = torch.tensor(_SKIN, device=self.device)
        at = (self.t["skin_tone"].flatten() + 1) / 2 * (len(_SKIN) - 1)
        low = at.long().clamp(0, len(_SKIN) - 2)
        tone = torch.lerp(ramp[low], ramp[low + 1], (at - low)[:, None]).view(-1, 3, 1, 1)
        hue = torch.tensor([0.02, -0.015, -0.06], device=self.device).view(1, 3, 1, 1)
        return (tone + hue * self.t["skin_hue"][:, None]).clamp(0, 1)

    def skin_times(self, red: float, green: float, blue: float) -> Tensor:
        """The skin in another light."""
        return (self.skin * self.rgb(red, green, blue)).clamp(0, 1)

    @cached_property
    def hair(self) -> Tensor:
        return (self.look_up(_HAIR, self.kind["hair_colour"]) * (1 + 0.16 * self.t["hair_shade"][:, None])).clamp(0, 1)

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


def render(people: People, shots: Shots, size: int = 64, device: torch.device | str = "cpu") -> Pictures:
    """Draw person i of `people` as `shots` i says, `size` x `size` pixels. The same input gives the same picture.

    LikenessError for a size outside 64..128; ValueError when there are not as many people as shots.
    """
    if not SIZES[0] <= size <= SIZES[1]:
        raise LikenessError(
            f"The miniature world draws at {SIZES[0]} to {SIZES[1]} pixels, not {size}; choose a size in between."
        )
    if len(people) != len(shots):
        raise ValueError(f"{len(people)} people for {len(shots)} shots")
    sitter = Sitter(people, shots, size, torch.device(device))
    scene = torch.as_tensor(shots.scene, device=sitter.device)
    x, y = torch.broadcast_tensors(sitter.x, sitter.y)
    canvas = Canvas.on(paint_scenes(scene, x, y, sitter.n["backdrop"], sitter.pixel))
    paint_back_hair(canvas, sitter)
    with close_up(canvas, sitter, lambda s: s.place(0.0, 1.3), 9.0, 0.95) as (piece, s):
        paint_body(piece, s)
    paint_head(canvas, sitter)
    with close_up(canvas, sitter, lambda s: s.place(0.0, 0.1), 0.75, 0.75, people.marks() != Mark.NONE) as (piece, s):
        paint_marks(piece, s)
    for side in (-1, 1):
        with close_up(canvas, sitter, lambda s, side=side: s.eyes[side > 0], 0.38, 0.36) as (piece, s):
            paint_eye(piece, s, side)
    with close_up(canvas, sitter, lambda s: s.place(0.0, 0.2, out=0.1), 0.34, 0.52) as (piece, s):
        paint_nose(piece, s)
    with close_up(canvas, sitter, lambda s: s.place(0.0, 0.75), 1.05, 0.95, shots.beard) as (piece, s):
        paint_beard(piece, s)
    with close_up(canvas, sitter, lambda s: s.mouth, 0.50, 0.48) as (piece, s):
        paint_mouth(piece, s)
    paint_front_hair(canvas, sitter)
    for side in (-1, 1):
        with close_up(canvas, sitter, lambda s, side=side: s.brows[side > 0], 0.36, 0.24) as (piece, s):
            paint_brow(piece, s, side)
    with close_up(canvas, sitter, lambda s: s.place(0.0, 0.05), 1.10, 0.45, shots.glasses) as (piece, s):
        paint_glasses(piece, s)
    with close_up(canvas, sitter, lambda s: s.place(0.0, -0.75), 1.60, 0.70, shots.hat >= 0) as (piece, s):
        paint_hat(piece, s)
    paint_light(canvas, sitter)

    style = torch.as_tensor(shots.style, device=sitter.device)
    rgb = apply_styles(canvas, style, sitter.x.expand(1, size, size), sitter.y.expand(1, size, size))
    return Pictures(
        rgb=rgb.permute(0, 2, 3, 1).contiguous(),
        face=canvas.face,
        person=canvas.person,
        parts=canvas.parts,
        keypoints=find_keypoints(sitter),
        boxes=find_boxes(sitter),
        people=people,
        shots=shots,
    )


def render_batches(
    people: People, shots: Shots, size: int = 64, device: torch.device | str = "cpu", batch: int = 64
) -> Iterator[Pictures]:
    """`render` in portions that stay in the processor's cache: 64 is faster than 256 on a CPU, take more on a GPU."""
    for start in range(0, len(people), batch):
        rows = slice(start, start + batch)
        yield render(people[rows], shots[rows], size, device)


@contextmanager
def close_up(
    canvas: Canvas,
    sitter: Sitter,
    where: Callable[[Sitter], Feature],
    reach_u: float,
    reach_v: float,
    chosen: np.ndarray | None = None,
) -> Iterator[tuple[Canvas, Sitter]]:
    """Paint only near a feature, and only on the pictures `chosen` (bool, B): most of a face is smaller than the frame.

    Whatever is painted must end within the reach; a test compares with painting on the whole frame.
    """
    rows = np.arange(len(sitter.people)) if chosen is None else np.flatnonzero(chosen)
    piece = Sitter(sitter.people[rows], sitter.shots[rows], sitter.size, sitter.device)
    window = piece.window(torch.as_tensor(rows, device=sitter.device), where(piece), reach_u, reach_v)
    piece.look_at(window.ys, window.xs)
    cut = canvas.cut(window)
    yield cut, piece
    canvas.put(window, cut)


def paint_back_hair(canvas: Canvas, s: Sitter) -> None:
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


def paint_body(canvas: Canvas, s: Sitter) -> None:
    """Neck, shoulders and clothes, in the upright frame."""
    lean = -0.5 * s.n["roll"]
    x, y = s.bx - lean, s.by
    cloth = s.look_up(_CLOTH, torch.as_tensor(s.shots.clothing_colour, device=s.device))
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


def paint_head(canvas: Canvas, s: Sitter) -> None:
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


def paint_marks(canvas: Canvas, s: Sitter) -> None:
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


def paint_eye(canvas: Canvas, s: Sitter, side: int) -> None:
    """White, iris, pupil, glint and lids of one eye; `side` is -1 for the one on the left of the picture."""
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
    canvas.paint(white * cover(centre - radius, s.px), s.look_up(_IRIS, s.kind["iris"]))
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


def paint_brow(canvas: Canvas, s: Sitter, side: int) -> None:
    """Brows are hair, darker than the head's so that they show on every skin."""
    brow = s.brows[side > 0]
    colour = torch.lerp(s.hair * 0.55, s.skin_times(0.30, 0.20, 0.18), 0.3)
    u, v = rotate(s.u - brow.x, s.v - brow.y, side * (0.05 + 0.26 * s.t["brow_tilt"]))
    half_width = (0.235 + 0.02 * s.t["eye_size"]) * brow.width
    stroke = arch_stroke(u, v, half_width, 0.05, 0.046 + 0.025 * s.t["brow_thickness"])
    canvas.paint(cover(stroke, s.px) * canvas.face, colour, Part.LEFT_BROW if side > 0 else Part.RIGHT_BROW)


def paint_nose(canvas: Canvas, s: Sitter) -> None:
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


def paint_beard(canvas: Canvas, s: Sitter) -> None:
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


def paint_mouth(canvas: Canvas, s: Sitter) -> None:
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


def paint_front_hair(canvas: Canvas, s: Sitter) -> None:
    """The hair around the face, its shadow on the forehead, its strands and its gloss."""
    cap = torch.maximum(s.hair_outline, -s.face_opening)
    opacity = s.cut("opacity")
    dense = (opacity > 0.5).float()
    canvas.paint(0.45 * cover(cap - 0.05, 0.16) * canvas.face * dense, s.skin_times(0.55, 0.42, 0.40))

    angle = torch.atan2(s.u - 0.25 * s.cut("parting") * 2, -(s.v + 0.9)) * (s.v < 0.3) + s.u * 1.5
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


def paint_glasses(canvas: Canvas, s: Sitter) -> None:
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


def paint_hat(canvas: Canvas, s: Sitter) -> None:
    """A round hat with a ribbon and a brim, low enough to be seen and high enough to leave the brows free."""
    colour = s.look_up(_CLOTH, torch.as_tensor(s.shots.hat, device=s.device))
    u, v = s.u - 0.10 * s.n["yaw"], s.v - 0.15 * s.n["pitch"]
    width = s.face_width + 0.10
    line = -0.50 - 0.10 * (u / width) ** 2 * -1
    dome = torch.maximum(superellipse(u, v + 0.46, width, 0.66, 2.6), v - line)
    canvas.paint(0.45 * cover(v - line - 0.16, 0.14) * canvas.face, s.skin_times(0.50, 0.40, 0.40))
    fall = (0.80 + 0.28 * smoothstep(0.0, -0.35, dome))[:, None]
    canvas.paint(cover(dome, s.px), (colour * fall).clamp(0, 1), Part.HAT)
    ribbon = torch.maximum(dome, line - 0.20 - v)
    canvas.paint(cover(ribbon, s.px), colour * 0.45, Part.HAT)
    brim = lens(u, v - line - 0.02, width + 0.42, 0.05, 0.11)
    canvas.paint(cover(brim, s.px), (colour * 0.92 + 0.02).clamp(0, 1), Part.HAT)


def paint_light(canvas: Canvas, s: Sitter) -> None:
    """One light from the side over the person, then exposure and white balance over the whole picture."""
    towards = s.n["light_x"] * s.u / 0.9 - 0.45 * s.v
    canvas.shade(1 + 0.17 * torch.tanh(1.2 * towards), canvas.person)
    warm = s.n["warmth"][:, None] * s.rgb(1.0, 0.1, -1.0)
    canvas.rgb = (canvas.rgb * (1 + s.n["light_level"][:, None] + warm)).clamp(0, 1)


def find_keypoints(s: Sitter) -> Tensor:
    """The five points in pixels, (B, 5, 2)."""
    left, right = s.eyes
    corner = s.mouth.y - 0.5 * s.mouth_lift
    points = (
        (left.x, left.y),
        (right.x, right.y),
        (s.nose.x, s.nose.y),
        (s.mouth.x - s.mouth_half_width, corner),
        (s.mouth.x + s.mouth_half_width, corner),
    )
    return torch.stack([s.to_pixels(u, v) for u, v in points], dim=1)


def find_boxes(s: Sitter) -> Tensor:
    """A box around the face from mid-forehead to chin and from cheek to cheek, (B, 4) pixels."""
    forehead = torch.full_like(s.chin, -0.62)
    outline = (
        (-s.face_width, forehead * 0),
        (s.face_width, forehead * 0),
        (forehead * 0, forehead),
        (0.16 * s.n["yaw"], s.chin),
    )
    points = torch.stack([s.to_pixels(u, v) for u, v in outline], dim=1)
    return torch.cat([points.amin(1), points.amax(1)], dim=1)
