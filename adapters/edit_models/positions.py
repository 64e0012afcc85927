"""Where the tokens of text, target and references lie: the position ids of which a DiT makes its rotations.

Each row is (frame, row, column) of one token, for FLUX.2 (frame, row, column, text). The order is the host's: text,
target, references. A reference's frame tells it from the target and from the others; how its grid lies over the
target's is what a model was trained on.

    scheme            text l    target             reference k = 1, 2, …
    origin (Krea 2)   0         (0, i, j)          (k, i, j)
    centred (Krea 2)  0         (0, i, j)          (k, i + max(0, (t_h − g_h)/2), j + max(0, (t_w − g_w)/2))
    flux2             (…, l)    (0, i, j, 0)       (10 k, i, j, 0)
    qwen              s + l     (0, i − ⌈t_h/2⌉, j − ⌈t_w/2⌉)    (k, i − ⌈g_h/2⌉, j − ⌈g_w/2⌉)

with s the greatest of ⌊h/2⌋, ⌊w/2⌋ over target and references. FLUX.1 has a diagonal (`uxo`), and Kontext's `offset`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..effects import Cells

FLUX2_STEP = 10  # frames between references


class Ids(NamedTuple):
    """Position ids of one call. text: (L, axes); image: (T + R, axes), the target's first. float32."""

    text: Tensor
    image: Tensor

    @property
    def all(self) -> Tensor:
        """(L + T + R, axes)"""
        return torch.cat([self.text, self.image])


def tokens_of(cells: Cells, patch: int) -> tuple[int, int]:
    """Rows and columns of tokens; a half one counts as a whole."""
    return -(-cells[0] // patch), -(-cells[1] // patch)


def _grid(frame: float, size: tuple[int, int], top: float = 0.0, left: float = 0.0, axes: int = 3) -> Tensor:
    rows, columns = size
    ids = torch.zeros(rows, columns, axes)
    ids[..., 0] = frame
    ids[..., 1] = torch.arange(rows).unsqueeze(1) + top
    ids[..., 2] = torch.arange(columns) + left
    return ids.flatten(0, 1)


def origin(text: int, target: Cells, references: Sequence[Cells], patch: int = 2) -> Ids:
    """Every grid from 0; the host's `index` for Krea 2 and FLUX.1."""
    grids = [_grid(k, tokens_of(cells, patch)) for k, cells in enumerate((target, *references))]
    return Ids(torch.zeros(text, 3), torch.cat(grids))


def centred(text: int, target: Cells, references: Sequence[Cells], patch: int = 2) -> Ids:
    """Krea 2 Identity Edit v1.2: smaller references in the middle of the target, halves kept."""
    t_h, t_w = tokens_of(target, patch)
    grids = [_grid(0, (t_h, t_w))]
    for k, (g_h, g_w) in enumerate((tokens_of(cells, patch) for cells in references), 1):
        grids.append(_grid(k, (g_h, g_w), max(0, t_h - g_h) / 2, max(0, t_w - g_w) / 2))
    return Ids(torch.zeros(text, 3), torch.cat(grids))


def flux2(text: int, target: Cells, references: Sequence[Cells], patch: int = 1) -> Ids:
    """FLUX.2: the text counts on an axis of its own, references are ten frames apart."""
    words = torch.zeros(text, 4)
    words[:, 3] = torch.arange(text)
    grids = [_grid(FLUX2_STEP * k, tokens_of(c, patch), axes=4) for k, c in enumerate((target, *references))]
    return Ids(words, torch.cat(grids))


def qwen(text: int, target: Cells, references: Sequence[Cells], patch: int = 2) -> Ids:
    """Qwen-Image-Edit as its own code has it; the host's differ for odd grids and for large references."""
    sizes = [tokens_of(cells, patch) for cells in (target, *references)]
    grids = [_grid(k, (h, w), -(h - h // 2), -(w - w // 2)) for k, (h, w) in enumerate(sizes)]
    start = max(max(h // 2, w // 2) for h, w in sizes)
    return Ids((start + torch.arange(text, dtype=torch.float32)).unsqueeze(1).repeat(1, 3), torch.cat(grids))


def uxo(text: int, target: Cells, references: Sequence[Cells], patch: int = 2) -> Ids:
    """USO and UNO on FLUX.1: references go on along the diagonal, behind the target."""
    t_h, t_w = tokens_of(target, patch)
    grids, y, x = [_grid(0, (t_h, t_w))], 0, 0
    for cells in references:
        grids.append(
            _grid(0, tokens_of(cells, patch), t_h + (y + patch // 2) // patch, t_w + (x + patch // 2) // patch)
        )
        y, x = y + cells[0], x + cells[1]
    return Ids(torch.zeros(text, 3), torch.cat(grids))


def offset(text: int, target: Cells, references: Sequence[Cells], patch: int = 2) -> Ids:
    """Kontext on FLUX.1: one frame, in which references lie beside or below each other, whichever keeps it squarer."""
    grids, height, width = [_grid(0, tokens_of(target, patch))], 0, 0
    for h, w in references:
        y, x = (0, width) if h + height > w + width else (height, 0)
        grids.append(_grid(1, tokens_of((h, w), patch), (y + patch // 2) // patch, (x + patch // 2) // patch))
        height, width = max(height, h + y), max(width, w + x)
    return Ids(torch.zeros(text, 3), torch.cat(grids))
