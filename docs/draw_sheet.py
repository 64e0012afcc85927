"""Draws the image on top of the READMEs: `python docs/draw_sheet.py`.

Eight people of the miniature world whom no network was trained on, in the order of their numbers: two of the four
photos that are given, an image of the prompt alone, the same with the identity, and two further prompts with it.
Nothing is picked by hand.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from likeness.miniature.models.world import World, load_world
from likeness.miniature.study.measuring import DEMO_PEOPLE, subjects

PICTURES = Path(__file__).parent / "pictures"
PEOPLE = DEMO_PEOPLE[:8]
PROMPTS = (
    "a photo of a person wearing a red shirt in the forest",
    "a photo of a smiling person wearing a blue sweater on the beach",
    "a watercolor painting of a person wearing a green shirt in the mountains",
)
GAP = 6


def rows_of(world: World) -> list[Tensor]:
    """Rows of images (people, H, W, 3), RGB 0..1."""
    people = subjects(world, PEOPLE)
    embeddings = torch.stack([subject.identity.mean_embedding() for subject in people])
    photos = [torch.from_numpy(np.stack([subject.given[i] for subject in people])).float() / 255 for i in range(2)]
    seeds = range(len(people))
    made = [world.portraits(prompt, seeds, embeddings) for prompt in PROMPTS]
    return [*photos, world.portraits(PROMPTS[0], seeds), *made]


def main() -> None:
    """Draw the rows below each other, a person in each column."""
    from PIL import Image

    padded = [torch.nn.functional.pad(row, (0, 0, 0, GAP, 0, GAP), value=1.0) for row in rows_of(load_world())]
    page = torch.cat([torch.cat(list(row), 1) for row in padded])[:-GAP, :-GAP]
    pixels = (page.clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(pixels).save(PICTURES / "people.jpg", quality=90)


if __name__ == "__main__":
    main()
