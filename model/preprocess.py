"""The one way from the bytes of an image file to the pixels that a network sees."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

MAXIMUM_PIXELS = 178_956_970
"""Images of more pixels are refused: twice Pillow's limit of suspicion, where Pillow itself refuses them."""
# Checked here, before any pixel is decoded; Pillow's own check would also warn on stderr below it.
Image.MAX_IMAGE_PIXELS = None

FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        GifImagePlugin.GifImageFile,
        TiffImagePlugin.TiffImageFile,
        WebPImagePlugin.WebPImageFile,
    )
)
"""Pillow reads many more, some by starting other programs (EPS runs Ghostscript): photos need none of them. Imported
above, because Pillow's own lazy loading of them is not safe in threads."""

DRAFT_SCALE = 2
"""JPEG's scaled decoding may shrink an image to this many times the network's input, never below."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of an EXIF orientation upright; 1 is upright."""

TURNED = (5, 6, 7, 8)
"""The orientations whose stored width is the upright image's height."""


class DecodeError(Exception):
    """The bytes are no readable image.

    Attributes:
        code: ``empty``, ``not_an_image``, ``truncated``, ``too_large`` or ``corrupt``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Preprocessed(NamedTuple):
    """Pixels for the network, uint8[size, size, 3] in RGB, and the upright image's own width and height in pixels."""

    pixels: npt.NDArray[np.uint8]
    width: int
    height: int


def decode_image(encoded: bytes) -> Image.Image:
    """Decode an image file wholly, at full size.

    Args:
        encoded: bytes of a JPEG, PNG, BMP, GIF (first frame), TIFF or WebP file.

    Returns:
        An upright image (EXIF orientation honoured) in mode RGB.

    Raises:
        DecodeError: the bytes are no image, or one that is cut or corrupt.
    """
    return _decode(encoded, None)[0]


def preprocess(encoded: bytes, size: int) -> Preprocessed:
    """Decode an image file and resize it to the network's square input.

    The resize is bilinear with a support that grows with the reduction, so that it averages over every source pixel
    and thin cracks of large photos fade rather than vanish. The aspect ratio is not kept: training does the same.

    Args:
        encoded: bytes of an image file.
        size: side of the square in pixels.

    Raises:
        DecodeError: as :func:`decode_image`.
    """
    image, width, height = _decode(encoded, size)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return Preprocessed(np.asarray(image), width, height)


def brightness(pixels: npt.NDArray[np.uint8]) -> float:
    """Mean of all pixels and channels, in [0, 255]."""
    return float(pixels.mean(dtype=np.float64))


def encode_thumbnail(pixels: npt.NDArray[np.uint8]) -> bytes:
    """JPEG of pixels uint8[height, width, 3], for a report."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def _decode(encoded: bytes, size: int | None) -> tuple[Image.Image, int, int]:
    if not encoded:
        raise DecodeError("empty", "the file is empty")
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded), formats=FORMATS)
        width, height = image.size
        if width * height > MAXIMUM_PIXELS:
            raise DecodeError("too_large", f"{width} x {height} pixels are more than {MAXIMUM_PIXELS:,}")
        if size is not None:
            image.draft("RGB", (DRAFT_SCALE * size, DRAFT_SCALE * size))
        image.load()
        orientation = _orientation(image)
        image = _to_rgb(image)
        if orientation in UPRIGHT:
            image = image.transpose(UPRIGHT[orientation])
    except UnidentifiedImageError:
        raise DecodeError("not_an_image", "the bytes are no image of a known format") from None
    except Image.DecompressionBombError as error:
        raise DecodeError("too_large", _one_line(error)) from None
    except DecodeError:
        raise
    except Exception as error:
        # Pillow's decoders raise a dozen kinds of errors on damaged bytes, SyntaxError and struct.error among them.
        code = "truncated" if "truncated" in str(error).lower() else "corrupt"
        raise DecodeError(code, _one_line(error)) from None
    return (image, height, width) if orientation in TURNED else (image, width, height)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 where there is none; Pillow has turned TIFF images upright already."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        # The metadata is damaged, the pixels are not. Pillow raises SyntaxError, struct.error and others here.
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit greys to 255 rather than scaling them.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
