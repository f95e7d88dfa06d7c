"""A picture from anywhere, as RGB pixels of one size: the only place that opens picture files.

A file is judged before it is decoded: few formats, bounded pixels. What comes out is upright (EXIF), opaque (on white)
and 8 bits deep, whatever went in; of an animated picture it is the first frame.
"""

import contextlib
import os
import struct
import warnings
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vit.files import is_damage, url_hint

Picture = Any  # a path, a PIL image, or a uint8 array (H, W, 3) or (H, W)

# A decoder is reachable only if it is listed here, and only for a picture of this many pixels.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 25_000_000
MIN_SHARE = 1 / 20  # of a picture that must be left when it is cut to shape
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos")

_ALLOWED_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"BM")
_OTHER_STARTS = {
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"8BPS": "Photoshop",
    b"%PDF": "PDF",
    b"PK\3\4": "ZIP",
    b"<svg": "SVG",
    b"<?xm": "XML or SVG",
    b"<!DO": "HTML",
    b"<htm": "HTML",
}


def picture_to_tensor(
    picture: Picture,
    size: tuple[int, int],
    *,
    interpolation: str = "bicubic",
    crop: float = 1.0,
    squash: bool = False,
    channels: int = 3,
) -> Tensor:
    """Any picture as a uint8 tensor (channels, *size): resized with antialiasing until it covers `size`, its middle cut
    out.

    Args:
        interpolation: "bicubic", "bilinear" or "lanczos".
        crop: share of the sides that is left when the margin, too, is cut off, in (0, 1].
        squash: the whole picture is squeezed into the shape of `size` before that, rather than cut.
        channels: 3 for RGB, 1 for gray.

    Raises:
        FileNotFoundError, ValueError: as `open_picture`; or the picture is empty, or so long and thin that little would
            be left.
        TypeError: a kind of input that is no picture.
    """
    if interpolation not in INTERPOLATIONS or not 0 < crop <= 1:
        raise ValueError(
            f"interpolation={interpolation!r} must be one of {', '.join(INTERPOLATIONS)}, and crop={crop!r} in (0, 1]"
        )
    if channels not in (1, 3):
        raise ValueError(f"channels={channels!r} must be 3 for RGB or 1 for gray; pass a tensor for anything else")
    name, image = str(picture) if isinstance(picture, (str, Path)) else "the picture", _as_image(picture)
    if 0 in image.size:
        raise ValueError(f"{name} is empty: it has {image.height}x{image.width} pixels (height x width)")
    scale = min(image.height / size[0], image.width / size[1])
    height, width = scale * size[0], scale * size[1]  # of the part that is kept, in pixels of the picture
    if squash:
        height, width = image.height, image.width
    if height * width < MIN_SHARE * image.height * image.width:
        raise ValueError(
            f"{name} is too long and thin: cut to {size[0]}x{size[1]} pixels (height x width), less than "
            f"{MIN_SHARE:.0%} of its {image.height}x{image.width} would be left"
        )
    height, width = crop * height, crop * width
    top, left = (image.height - height) / 2, (image.width - width) / 2
    # Rounding must not put the box outside of the picture, not even by the last digit of a float.
    box = (max(left, 0), max(top, 0), min(left + width, image.width), min(top + height, image.height))
    image = image.resize((size[1], size[0]), Image.Resampling[interpolation.upper()], box=box)
    pixels = np.atleast_3d(np.array(image if channels == 3 else image.convert("L")))  # (H, W, channels)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # (channels, H, W)


def _as_image(picture: Picture) -> Image.Image:
    """Any picture, RGB and upright."""
    if isinstance(picture, (str, Path)):
        return open_picture(picture)
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or (picture.ndim != 2 and picture.shape[2:] not in ((3,), (1,))):
            batch = "; a batch goes in as torch.from_numpy(images), (B, C, H, W)" if picture.ndim == 4 else ""
            raise TypeError(f"an array must be uint8 (H, W, 3) or (H, W), got {picture.dtype} {picture.shape}{batch}")
        picture = Image.fromarray(picture.squeeze(2) if picture.shape[2:] == (1,) else picture)
    elif not isinstance(picture, Image.Image):
        batch = "; of tensors make a batch by torch.stack(images)" if isinstance(picture, Tensor) else ""
        raise TypeError(f"a picture must be a path, a PIL image or a uint8 array, got {type(picture).__name__}{batch}")
    return _to_rgb(picture)


def open_picture(source: str | Path | BinaryIO, name: str = "the picture") -> Image.Image:
    """The picture in a file, RGB and upright.

    Args:
        source: a path, or a binary file that can seek.
        name: what errors call a binary file; a path is called by itself.

    Raises:
        FileNotFoundError: there is no file at the path.
        ValueError: the file is empty, damaged, too large or of another format; the message says which.
    """
    if isinstance(source, (str, Path)):
        source = os.path.expanduser(source)
        if not os.path.isfile(source):
            raise FileNotFoundError(f"there is no file at {source}{url_hint(source)}")
        with open(source, "rb") as file:
            return open_picture(file, str(source))
    start = source.read(12)
    source.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, and about sizes that are refused right here
            image = Image.open(source, formats=FORMATS)
            if image.width * image.height <= MAX_PIXELS:
                return _to_rgb(image)
        reason = f"it has {image.width}x{image.height} pixels, and at most {MAX_PIXELS:,} are read"
    except Image.DecompressionBombError:
        reason = f"it has far more than the {MAX_PIXELS:,} pixels that are read"
    except UnidentifiedImageError:
        reason = _describe(start)
    except Exception as error:
        if not is_damage(error):
            raise
        reason = f"it is damaged or cut off ({error})"
    raise ValueError(f"{name} cannot be read: {reason}; allowed: {', '.join(FORMATS)}")


def _to_rgb(image: Image.Image) -> Image.Image:
    # Damaged EXIF data turns nothing; PIL raises all of these for it, and only sometimes.
    with contextlib.suppress(SyntaxError, struct.error, ValueError, TypeError, KeyError):
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))  # PIL would clip at 255 instead
    if image.mode in ("I", "F"):
        raise ValueError(
            f"the picture's mode is {image.mode}, whose range of values is unknown: convert it to 8 bits first"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _describe(start: bytes) -> str:
    """What a file is that no allowed decoder recognizes, from its first bytes."""
    if not start:
        return "it is empty"
    if start.startswith(_ALLOWED_STARTS):
        return "it is damaged or cut off"
    if start[4:8] == b"ftyp":
        return f"it is a {start[8:12].decode('ascii', 'replace').strip().upper()} file"
    kind = next((kind for known, kind in _OTHER_STARTS.items() if start.startswith(known)), None)
    return f"it is a {kind} file" if kind else f"it is no known picture (it starts with {start!r})"
