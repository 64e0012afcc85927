"""Photos: what detectors and recognisers take, from the host's images or from a file of any form."""

from __future__ import annotations

import math
import stat
import warnings
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import LikenessError, logger

if TYPE_CHECKING:
    from PIL.Image import Image

log = logger(__name__)
GREY = 0.5  # behind transparent pixels
_SUFFIXES = "png apng jpg jpeg jpe jfif mpo webp bmp tif tiff gif avif heic heif hif"
PICTURE_SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
MOST_PIXELS = 25_000_000  # of a photo in memory, 75 MB; larger ones are made smaller while they are decoded
_ANIMATED = ("GIF", "PNG", "WEBP", "TIFF", "AVIF")  # not phones' JPEG, whose further images are of the same moment
LARGEST_FILE = 178_956_970  # pixels; Pillow refuses more by default, and hosts that lift its limit have none


def to_photos(images: torch.Tensor) -> list[np.ndarray]:
    """Images (B, H, W, C) float 0..1 as a list of B photos (H, W, 3) uint8 RGB; the input is never changed.

    C is 1 (grey, repeated), 3 (RGB) or 4 (RGBA, composed on mid grey, so that hidden colours cannot be taken for a
    face). Values outside 0..1 are clamped with one warning. NaN, infinity, an empty batch and other shapes raise
    `LikenessError`. Like the peers' code, values are truncated to integers, so a photo gives the embedding it
    always gave.
    """
    if images.ndim == 3:
        images = images[None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise LikenessError(
            f"The image has shape {tuple(images.shape)}, not (batch, height, width, 1, 3 or 4): connect an IMAGE."
        )
    if 0 in images.shape:
        raise LikenessError("The batch of images is empty: connect at least one photo.")
    photos, clamped = [], False
    for number, image in enumerate(images, 1):
        pixels = image.detach().float().cpu()
        if not torch.isfinite(pixels).all():
            raise LikenessError(
                f"Photo {number} holds values that are not numbers (NaN or infinite): check the node that made it, "
                "often a VAE in half precision."
            )
        clamped = clamped or bool(pixels.min() < -1e-3) or bool(pixels.max() > 1 + 1e-3)
        pixels = pixels.clamp(0, 1)
        if pixels.shape[-1] == 4:
            colour, alpha = pixels[..., :3], pixels[..., 3:]
            pixels = colour * alpha + GREY * (1 - alpha)
        if pixels.shape[-1] == 1:
            pixels = pixels.expand(-1, -1, 3)
        # The small addend undoes float32's rounding of n/255, which would truncate to n - 1.
        photos.append((pixels * 255 + 1e-3).to(torch.uint8).contiguous().numpy())
    if clamped:
        log.warning("Images with values outside 0..1 were clamped; check the node that made them.")
    return photos


# --- from files


@dataclass(frozen=True, eq=False)
class PhotoFile:
    """An image file as everything in the pack sees it."""

    rgb: np.ndarray  # (H, W, 3) uint8, transparent parts on mid grey, at most `MOST_PIXELS`
    alpha: np.ndarray | None  # (H, W) uint8, 255 where the image is opaque; None where nothing is transparent
    is_animated: bool = False  # it has further frames or pages, which nobody sees
    taken: datetime | None = None  # when, by the camera's clock


def read_photo(path: Path) -> np.ndarray:
    """The photo in a file, (H, W, 3) uint8 RGB; see `read_photo_file`."""
    return read_photo_file(path).rgb


def read_photo_file(path: Path) -> PhotoFile:
    """The photo in a file of any form Pillow reads, turned as the camera was held. The only reader of the pack.

    Transparent parts are composed on mid grey, as `to_photos` does, so that hidden colours are never judged. Greys of
    16 bits and floats (0..1, 0..255 or 0..65535, told by their largest value) are scaled to 8 bits, which Pillow's own
    conversion would clip. Of animations the first frame counts. A photo of more than `MOST_PIXELS` is made smaller
    while it is decoded. HEIC is read where `pillow-heif` is installed.

    Raises LikenessError with one sentence naming the file for what is missing, damaged, cut short, too large, no
    image, or no file at all (a folder, a pipe).
    """
    from PIL import Image

    name = _called(path)
    try:
        _require_regular(path, name)
        with path.open("rb") as file:
            is_heic = _is_heic(file.read(12))
        if is_heic:
            _register_heic(name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large photos are made smaller below
            opened = Image.open(path)
        with opened as picture:
            if picture.width * picture.height > LARGEST_FILE:
                raise _too_large(name)
            is_animated = _is_animated(picture)
            return replace(_decoded(picture, name), is_animated=is_animated, taken=_taken(picture))
    except LikenessError:
        raise
    except FileNotFoundError as error:
        raise LikenessError(f"The image {name} does not exist: check its name.") from error
    except PermissionError as error:
        raise LikenessError(
            f"The image {name} cannot be read for lack of permission: change its permissions."
        ) from error
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except MemoryError as error:
        raise LikenessError(f"There is not enough memory to read {name}: make the image smaller.") from error
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        raise LikenessError(
            f"{name} cannot be read as an image, because it is damaged, truncated or another kind of file: replace it."
        ) from error


NEARLY_OPAQUE = 250  # of 255: what some editors leave of an opaque image


def read_mask_file(path: Path) -> np.ndarray:
    """The mask in an image file, (H, W) uint8, 255 on what is meant.

    Where parts of the image are transparent, its opacity is the mask, whatever the paint's colour; else what is
    bright. Raises LikenessError like `read_photo_file`, and for a mask in black and white that is partly transparent,
    because nobody can tell which of the two is meant.
    """
    picture = read_photo_file(path)
    if picture.alpha is None:
        return np.ascontiguousarray(picture.rgb.max(2))
    if picture.alpha.min() > NEARLY_OPAQUE:  # transparency that nobody sees is not a mask
        return np.ascontiguousarray(picture.rgb.max(2))
    if 0 < picture.alpha.min() == picture.alpha.max():
        raise LikenessError(
            f"The mask {_called(path)} is equally transparent everywhere, so its alpha channel carries no mask: save "
            "it without transparency."
        )
    paint = picture.rgb[picture.alpha > 0]
    white, black = (paint.min(1) > 223).mean() if len(paint) else 0.0, (paint.max(1) < 32).mean() if len(paint) else 0.0
    if min(white, black) > 0.01 and white + black > 0.95:
        raise LikenessError(
            f"The mask {_called(path)} is black and white and partly transparent, so it contains two different masks: "
            "save it without transparency."
        )
    return picture.alpha


def _called(path: Path) -> str:
    """How messages name a file: with its folder, because many people have a `1.jpg`."""
    return repr("/".join(part for part in (path.parent.name, path.name) if part))


def _require_regular(path: Path, name: str) -> None:
    """Pipes would be waited for without end, and devices have no end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise LikenessError(f"{name} is a folder, not an image: name the images in it.")
    if not stat.S_ISREG(mode):
        raise LikenessError(f"{name} is a pipe or a device, not an image file: name a file.")


def _too_large(name: str) -> LikenessError:
    return LikenessError(
        f"The image {name} is too large, more than {LARGEST_FILE // 1_000_000} megapixels: make it smaller."
    )


def _is_heic(head: bytes) -> bool:
    """Phones give such files any suffix."""
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1")


def _register_heic(name: str) -> None:
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
    except ImportError:
        raise LikenessError(
            f"{name} is a HEIC image, which needs the package pillow-heif: install it (pip install pillow-heif), or "
            "save the image as JPEG."
        ) from None
    register_heif_opener()


def _is_animated(picture: Image) -> bool:
    try:
        return picture.format in _ANIMATED and bool(getattr(picture, "is_animated", False))
    except Exception:  # a damaged second frame costs nothing
        return False


_EXIF, _TAKEN = 0x8769, 0x9003  # the part of EXIF that holds the time of the image, and its tag


def _taken(picture: Image) -> datetime | None:
    """When the camera says that it took the image; None where it says nothing that can be read."""
    try:
        return datetime.strptime(str(picture.getexif().get_ifd(_EXIF).get(_TAKEN, "")).strip(), "%Y:%m:%d %H:%M:%S")
    except Exception:  # damaged EXIF raises whatever it is stumbled over
        return None


def _decoded(picture: Image, name: str) -> PhotoFile:
    size = _bounded(*picture.size)
    drafted = size != picture.size and picture.draft(None, size)  # JPEG decodes to a half, a quarter or an eighth
    picture.load()
    if not drafted:
        size = _bounded(*picture.size)  # Pillow turns TIFFs while it loads them
    orientation = _orientation(picture)
    eight_bits = _in_8_bits(picture, name)
    if eight_bits.size != size:
        eight_bits = eight_bits.resize(size, reducing_gap=2.0)
    return _composed(_upright(eight_bits, orientation))


def _bounded(width: int, height: int) -> tuple[int, int]:
    """The size of a photo of at most `MOST_PIXELS`: the same for a photo and its mask, upright or lying."""
    if width * height <= MOST_PIXELS:
        return width, height
    scale = math.sqrt(MOST_PIXELS / (width * height))
    return max(int(width * scale), 1), max(int(height * scale), 1)


def _orientation(picture: Image) -> int:
    """EXIF's, 1 to 8; a damaged EXIF costs the turn, not the photo."""
    from PIL import ExifTags

    try:
        return int(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1


def _upright(picture: Image, orientation: int) -> Image:
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    return picture.transpose(turns[orientation]) if orientation in turns else picture


def _in_8_bits(picture: Image, name: str) -> Image:
    """Any mode as one that can be resized: L, RGB, RGBA or CMYK. No copy is made of what is one already."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _scaled(np.asarray(picture), name)
    if picture.mode == "RGBA" or (picture.mode in ("L", "RGB", "CMYK") and "transparency" not in picture.info):
        return picture
    has_alpha = picture.mode in ("LA", "PA", "La", "RGBa") or "transparency" in picture.info
    return picture.convert("RGBA" if has_alpha else "RGB")


def _scaled(values: np.ndarray, name: str) -> Image:
    """Grey values (H, W) of more than 8 bits, or floats, as L."""
    from PIL import Image

    largest = values.max(initial=0)
    if not np.isfinite(largest) or np.isnan(values.min(initial=0)):
        raise LikenessError(f"The image {name} holds values that are not numbers (NaN or infinite): make it again.")
    if len(values) and values.max() <= 0 and values.min() < 0:
        raise LikenessError(f"The image {name} holds nothing above zero: save it with values from 0 to white.")
    if values.dtype.kind == "f":
        white = 1.0 if largest <= 2 else 255.0 if largest <= 256 else 65535.0  # 2: highlights above white
    else:
        white = 65535.0 if largest <= 65535 else 2.0**31 - 1
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):  # rows; the whole in floats would be many times the image
        rows = values[start : start + 256].astype(np.float64) * (255 / white)
        grey[start : start + 256] = (rows.clip(0, 255) + 0.5).astype(np.uint8)
    return Image.fromarray(grey)


def _composed(picture: Image) -> PhotoFile:
    from PIL import Image

    if picture.mode != "RGBA":
        return PhotoFile(np.array(picture.convert("RGB")), None)
    alpha = np.array(picture.getchannel("A"))
    if alpha.min() == 255:
        return PhotoFile(np.array(picture.convert("RGB")), None)
    grey = int(GREY * 255)
    ground = Image.new("RGBA", picture.size, (grey, grey, grey, 255))
    ground.alpha_composite(picture)
    return PhotoFile(np.array(ground.convert("RGB")), alpha)
