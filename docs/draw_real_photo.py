"""Draws the real person's identity sheet on top of the READMEs: `python docs/draw_real_photo.py`.

The same image as `make demo FACES=real`: the astronaut (NASA), whose photo comes with the pack, and two photographs
of the White House that `make setup` brings; all three are in the public domain.
"""

from __future__ import annotations

from pathlib import Path

from likeness.evaluation.real_photo import draw_sheet, look, named_others
from likeness.faces.sheet import sample_photos

HERE = Path(__file__).parent
OTHERS = [HERE.parent / "build" / "photos" / f"{name}.jpg" for name in ("obama", "biden")]


def main() -> None:
    """Write `docs/pictures/real_photo.jpg`."""
    (photo,) = sample_photos()
    draw_sheet(look(photo, named_others(OTHERS))).save(HERE / "pictures" / "real_photo.jpg", quality=88)


if __name__ == "__main__":
    main()
