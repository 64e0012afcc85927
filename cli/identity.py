"""`likeness identity`: a person from photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LikenessError, one_line
from ..storage import check_folder, check_name, write_new
from . import opening

if TYPE_CHECKING:
    import numpy as np


def identity(
    photos: Annotated[list[Path] | None, typer.Argument(help="Photos of one person, or folders of them.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the identity file and the contact sheet.")] = Path(
        "demo"
    ),
    name: Annotated[str, typer.Option("--name", help="What to call the person; names the files too.")] = "person",
    faces: Annotated[
        str, typer.Option("--faces", help="dlib or sface (free for any use), a pack such as buffalo_l, or mtcnn.")
    ] = "auto",
    sample: Annotated[bool, typer.Option("--sample", help="Use the photo that comes with the pack.")] = False,
) -> None:
    """Find the person in photos, save the identity, and show what was seen on a contact sheet.

    Photos that cannot be read or show no face are named and left out.
    """
    from ..faces.found import IfNone, Rule, find_faces, identity_of
    from ..faces.select import Choice
    from ..faces.sheet import contact_sheet, sample_photos

    check_name(name, "--name")
    if not photos and not sample:
        raise LikenessError("There are no photos: name some files or folders, or use --sample.")
    check_folder(out, "--out")
    names, pictures = _readable(photos) if photos else (["the sample"], sample_photos())
    if_none = IfNone.SKIP if len(pictures) > 1 else IfNone.ERROR  # for a single one, why there is none is told
    found = find_faces(opening.open_faces(faces), pictures, Rule(Choice.LARGEST, if_none=if_none))
    person, left_out = identity_of(found, name)
    sheet = write_new(out, name, ".png", lambda part: contact_sheet(found, person).save(part, format="PNG"))
    path = write_new(out, name, ".safetensors", person.write)
    for remark in (*left_out, *person.outliers):
        print(one_line(remark))
    if left_out or person.outliers:
        print("The photos: " + ", ".join(f"{number} {file}" for number, file in enumerate(names, 1)))
    print(f"{len(person)} photo(s) analysed by {found.analysis_name}, {found.count} faces in all.")
    print(f"contact sheet: {one_line(sheet)}")
    print(f"identity file: {one_line(path)} (biometric data: share it only with the person's consent)")


def _readable(paths: Sequence[Path]) -> tuple[list[str], list[np.ndarray]]:
    """Names and pixels of the photos that can be read; a sentence about everything else is printed."""
    from ..faces.photo_list import photos_among
    from ..faces.photos import read_photo

    among = photos_among(paths)
    names, pictures, reasons = [], [], list(among.not_used)
    for path in among.photos:
        try:
            pictures.append(read_photo(path))
            names.append(one_line(path.name))
        except LikenessError as error:
            reasons.append(str(error))
    for reason in reasons:
        print(f"not used: {one_line(reason)}")
    if not pictures:
        raise LikenessError(f"No photo can be used ({reasons[-1]}): name other files.")
    return names, pictures
