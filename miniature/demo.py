"""The zero-download demonstration: a drawn person nobody was trained on, from four photos to portraits of that person.

python -m likeness.miniature.demo                   somebody new
python -m likeness.miniature.demo --photos FOLDER   the person of these photos (of this world)
python -m likeness.miniature.demo --comfyui         the images are made by the real ComfyUI
"""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tqdm import tqdm

from ..checks import check_number
from ..errors import LikenessError
from ..evaluation.report import Setting, report
from ..evaluation.table import Record
from ..faces.identity import Identity
from ..faces.photo_list import photos_among
from ..faces.sheet import read_photos
from ..storage import check_folder, write_new, write_whole
from .models.world import World, load_world
from .study.measuring import DEMO_PEOPLE, StudySubject, measure_subject, subjects

PROMPTS = (
    "a photo of a person wearing a red shirt in the forest",
    "a photo of a smiling person wearing a blue sweater on the beach",
    "a photo of a person wearing glasses and a black suit in the city",
    "a watercolor painting of a person wearing a green shirt in the mountains",
    "a photo of a surprised person wearing an orange hat and a white shirt in the snow",
    "a night photo of a person wearing a purple suit on a stage",
)
WITHOUT, WITH = "without", "FaceID"
_OTHERS = range(DEMO_PEOPLE.stop, DEMO_PEOPLE.stop + 12)  # whom the likeness is compared with
PictureBatches = torch.Tensor  # (prompts, H, W, 3) RGB 0..1


def somebody(world: World, number: int) -> StudySubject:
    """A person never drawn for training; LikenessError when there is none of that number."""
    if not 0 <= number < len(DEMO_PEOPLE):
        raise LikenessError(f"There is no person number {number}: choose one from 0 to {len(DEMO_PEOPLE) - 1}.")
    return subjects(world, [DEMO_PEOPLE[number]])[0]


def subject_of(world: World, folder: Path) -> StudySubject:
    """The person of a folder's photos; LikenessError when there is no folder or no image in it.

    The photos that are given are also those that judge: there are no others.
    """
    if not folder.is_dir():
        raise LikenessError(f"'{folder}' is not a folder: name one with photos of one person.")
    found = photos_among([folder])
    for sentence in found.not_used:
        print(f"not used: {sentence}")
    photos = read_photos(found.photos)
    return StudySubject(folder.resolve().name, photos, photos, world)


def paint(world: World, identity: Identity, seed: int) -> dict[str, PictureBatches]:
    """Every prompt without and with the identity, from the same noise."""
    seeds = list(range(seed, seed + len(PROMPTS)))
    embedding = identity.mean_embedding()[None]
    made = {}
    for method, condition in ((WITHOUT, None), (WITH, embedding)):
        with tqdm(desc=f"portraits {method}", unit="step") as bar:

            def progress(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            made[method] = world.portraits(PROMPTS, seeds, condition, progress=progress)
    return made


def demo(
    photos: Annotated[Path | None, typer.Option(help="A folder with photos of one person of this world.")] = None,
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    person: Annotated[int, typer.Option(help="Which of the people that no network was trained on.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the first image's noise.")] = 1,
    comfyui: Annotated[bool, typer.Option(help="Make the images in the real ComfyUI.")] = False,
) -> None:
    """From a few photos to portraits, with a report of how much they show the person."""
    try:
        run_demo(photos, out, person, seed, comfyui)
    except LikenessError as error:
        print(f"likeness: {error}", file=sys.stderr)
        sys.exit(1)


def run_demo(photos: Path | None, out: Path, person: int, seed: int, comfyui: bool) -> list[Record]:
    """`demo`, with its errors as exceptions; returns what was measured."""
    check_number(seed, "--seed", 0, 2**63)
    check_folder(out, "--out")
    world = load_world()
    subject = subject_of(world, photos) if photos else somebody(world, person)
    for remark in subject.identity.outliers:
        print(remark)
    if comfyui:
        from .demo_comfyui import paint_in_comfyui

        made = paint_in_comfyui(subject.given, PROMPTS, seed)
    else:
        made = paint(world, subject.identity, seed)
    seeds = range(seed, seed + len(PROMPTS))
    others = subjects(world, _OTHERS)
    records = [
        record
        for method, pictures in made.items()
        for record in measure_subject(world, method, subject, pictures, PROMPTS, seeds, others)
    ]
    pictures = _save_pictures(out, subject, made)
    file = write_new(out, subject.name, ".safetensors", subject.identity.write)
    setting = Setting(
        title="From a few photos to portraits",
        judge=world.judge.name,
        reference=WITHOUT,
        photos={subject.name: [name for name in pictures if name.startswith("photos/")]},
        repeat=f"python -m likeness.miniature.demo --seed {seed}" + (f" --person {person}" if not photos else ""),
    )
    report(records, pictures, out, setting)
    print(f"\nlook at  {out / 'sheet.png'}\nread     {out / 'report.md'}")
    print(f"identity {file} (biometric data: share it only with the person's consent)")
    return records


def _save_pictures(out: Path, subject: StudySubject, made: dict[str, PictureBatches]) -> dict[str, torch.Tensor]:
    """Every photo and image as PNG below `out`; what was saved, by name."""
    from PIL import Image

    pictures = {f"photos/{i + 1}.png": photo for i, photo in enumerate(subject.given)}
    for method, images in made.items():
        pixels = (images.numpy() * 255 + 0.5).astype(np.uint8)
        pictures |= {f"{method}/{subject.name}-{i + 1}.png": picture for i, picture in enumerate(pixels)}
    for name, picture in pictures.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(out / name, partial(Image.fromarray(picture).save, format="png"))
    return {name: torch.from_numpy(picture).float() / 255 for name, picture in pictures.items()}


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(demo)
    app()
