"""What a picture file holds: whether it is whole, how large, which way up; and its pixels.

`examine` judges a JPEG or PNG by its structure, without decoding it. `decode` gives all pixels by PIL; `decode_box` the
same of a box, and `decode_region` those of a region reduced, by TensorFlow's JPEG operation: PIL has no counterpart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

CAUSES = ("empty", "not a picture", "truncated", "damaged", "too large", "unsupported")
# Not EPS, which PIL hands to Ghostscript, and not the formats without a signature, which claim any bytes.
_FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # the tag of Exif
_SIZES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # the JPEG markers that give the size, SOF0 to SOF15
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
_RATIOS = (8, 4, 2)  # reductions that a JPEG can be decoded at
_RIM = 2  # pixels that the colours of a JPEG's region reach beyond it: interpolated from samples of two pixels each
_SPARE = 1.5  # what a reduced picture must have over the size wanted: mean difference 1.2 of 255 at 1.5, 2.0 at 1


class PictureError(Exception):
    """A file that is no readable picture. `cause` is one of CAUSES, `detail` what is wrong with this file."""

    def __init__(self, cause: str, detail: str):
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A picture file, its pixels still encoded.

    Attributes:
      data: the file.
      height, width: in pixels, the right way up.
      orientation: of Exif, 1 to 8; 1 is upright as stored.
      croppable: a JPEG, upright, grey or RGB in 8 bits: `decode_region` reads it.
    """

    data: bytes
    height: int
    width: int
    orientation: int = 1
    croppable: bool = False


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, imported when it is first needed, without its start-up notes and without the accelerators."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # input has no matrix products; the option only prints a note
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # a program that already uses TensorFlow's devices keeps them
        tf.config.set_visible_devices([], "GPU")
    return tf


@functools.cache
def _pil() -> Any:
    """PIL.Image, without its warning of large pictures: `examine` refuses them by a limit of ours."""
    from PIL import Image

    Image.init()  # its readers are registered now, not by the first threads that need one
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    return Image


def examine(data: bytes, max_pixels: int) -> Picture:
    """Judges a file by its structure. Raises PictureError where it is no whole picture of at most `max_pixels`.

    What only decoding shows (pixels that do not decompress) is left to `decode`.
    """
    if not data:
        raise PictureError("empty", "0 bytes")
    read = _jpeg if data.startswith(b"\xff\xd8\xff") else _png if data.startswith(_PNG) else _other
    stored = read(data)
    if stored.height * stored.width > max_pixels:
        raise PictureError("too large", f"{stored.width} x {stored.height} pixels, more than {max_pixels}")
    if not stored.height * stored.width:
        raise PictureError("damaged", f"{stored.width} x {stored.height} pixels")
    if stored.orientation < 5:
        return stored
    return dataclasses.replace(stored, height=stored.width, width=stored.height)


def _jpeg(data: bytes) -> Picture:
    """Walks the segments up to the pixels. In the pixels FF D9 stands for nothing but their end (ITU-T T.81, B.1.1)."""
    at, size, orientation, plain = 2, None, 1, False
    while True:
        at = data.find(b"\xff", at)
        while data[at + 1 : at + 2] == b"\xff":  # fill bytes
            at += 1
        if at < 0 or at + 4 > len(data):
            raise PictureError("truncated", f"{len(data)} bytes, which end before the pixels")
        marker = data[at + 1]
        if marker in _ALONE:
            at += 2
            continue
        if marker == 0xD9:
            raise PictureError("damaged", "its end comes before any pixels")
        start, stop = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if stop > len(data):
            raise PictureError("truncated", f"{len(data)} bytes, which end before the pixels")
        if marker in _SIZES and stop - start >= 6:
            size = data[start + 1 : start + 3], data[start + 3 : start + 5]
            plain = data[start] == 8 and data[start + 5] in (1, 3)  # bits, components
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", start):
            orientation = _exif_orientation(data[start + 6 : stop])
        at = stop
        if marker == 0xDA:
            break
    if size is None:
        raise PictureError("damaged", "it does not give its size")
    if data.rfind(b"\xff\xd9", at) < 0:
        raise PictureError("truncated", f"{len(data)} bytes, without the end of the pixels")
    height, width = (int.from_bytes(side, "big") for side in size)
    return Picture(data, height, width, orientation, plain and orientation == 1)


def _png(data: bytes) -> Picture:
    """Walks the chunks to the last and checks their sums (the checksum of the pixels is one that PIL passes over)."""
    at, size, orientation = len(_PNG), None, 1
    view = memoryview(data)
    while True:
        body = at + 8
        stop = body + int.from_bytes(data[at : at + 4], "big")
        if stop + 4 > len(data):
            raise PictureError("truncated", f"{len(data)} bytes, without the last chunk")
        kind = data[at + 4 : body]
        if zlib.crc32(view[at + 4 : stop]) != int.from_bytes(data[stop : stop + 4], "big"):
            raise PictureError("damaged", f"wrong checksum of the chunk {kind!r} at byte {at}")
        if kind == b"IHDR" and stop - body >= 8:
            size = int.from_bytes(data[body + 4 : body + 8], "big"), int.from_bytes(data[body : body + 4], "big")
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[body:stop])
        elif kind == b"IEND":
            break
        at = stop + 4
    if size is None:
        raise PictureError("damaged", "it does not give its size")
    return Picture(data, *size, orientation)


def _other(data: bytes) -> Picture:
    with _opened(data) as picture:
        # A TIFF is turned by PIL itself, when it is loaded.
        orientation = 1 if picture.format == "TIFF" else picture.getexif().get(_ORIENTATION, 1)
        return Picture(data, picture.height, picture.width, orientation if orientation in range(1, 9) else 1)


def _exif_orientation(tiff: bytes) -> int:
    """The orientation in the first directory of an Exif block; 1 where it has none or is malformed, as viewers do."""
    order = {b"II*\0": "little", b"MM\0*": "big"}.get(tiff[:4])
    if order is None:
        return 1

    def number(at: int, size: int) -> int:
        return int.from_bytes(tiff[at : at + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        if number(entry, 2) == _ORIENTATION:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """The file opened by PIL; whatever PIL raises inside becomes a PictureError."""
    image = _pil()
    try:
        with image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            yield picture
    except PictureError:
        raise
    except image.UnidentifiedImageError:
        raise PictureError("not a picture", f"{len(data)} bytes that begin with {data[:8]!r}") from None
    except image.DecompressionBombError as error:
        raise PictureError("too large", str(error)) from error
    except Exception as error:  # PIL's readers raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PictureError("truncated" if "truncated" in reason else "damaged", reason) from error


def decode(picture: Picture) -> np.ndarray:
    """-> [height, width, 3] uint8, upright; of an animation the first picture. Raises PictureError.

    As the Hugging Face processors see it: transparency lies over white, CMYK is converted by PIL. 16 bits keep their
    upper 8, in grey as in colour (PIL alone would clip grey at 255).
    """
    with _opened(picture.data) as opened:
        return _upright(_rgb(opened), picture.orientation)


def _rgb(opened: Any) -> np.ndarray:
    if opened.mode == "F":
        raise PictureError("unsupported", "pixels are floating-point numbers")
    if opened.mode.startswith("I"):
        grey = np.clip(np.asarray(opened).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    if "transparency" in opened.info or opened.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        opened = opened.convert("RGBA")
        opened = _pil().alpha_composite(_pil().new("RGBA", opened.size, "white"), opened)
    return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes an orientation of Exif (CIPA DC-008, 4.6.4): 2 to 4 mirror and turn by 180 degrees, 5 to 8 swap sides."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    right = -1 if orientation in (2, 3, 6, 7) else 1
    return pixels[::down, ::right]


def decode_box(picture: Picture, box: tuple[int, int, int, int]) -> np.ndarray:
    """-> [height, width, 3] uint8: `decode(picture)` within a box, bit for bit. Raises PictureError.

    Of a croppable JPEG the rest is not decoded: three quarters of the time of PIL, which unpacks and packs besides.

    Args:
      box: top, left, height, width in whole pixels.
    """
    top, left, height, width = box
    if picture.croppable:
        up, before = min(top, _RIM), min(left, _RIM)
        below, after = min(picture.height - top, height + _RIM), min(picture.width - left, width + _RIM)
        with contextlib.suppress(PictureError):  # what the one refuses the other judges, as in evaluation
            pixels = _jpeg_region(picture, (top - up, left - before, up + below, before + after), 1)
            return pixels[up : up + height, before : before + width]
    return decode(picture)[top : top + height, left : left + width]


def decode_region(
    picture: Picture, region: tuple[int, int, int, int], size: float
) -> tuple[np.ndarray, int, tuple[int, int]]:
    """Decodes a region of a croppable JPEG, reduced by 2, 4 or 8 where its short side keeps 1.5 `size` or more.

    Args:
      region: top, left, height, width in pixels.
      size: what the short side becomes afterwards. Where that is less, colours that the file has at half the resolution
        are repeated, not interpolated: in the mean 0.3 of 255 once the picture is smaller.

    Returns:
      pixels [h, w, 3] uint8, the reduction, and (top, left) of the pixels in the reduced picture. Where the reduction
      does not divide the region, it is widened to whole reduced pixels.
    """
    top, left, height, width = region
    ratio = next((r for r in _RATIOS if min(height, width) >= r * _SPARE * size), 1)
    bottom, right = -(-(top + height) // ratio), -(-(left + width) // ratio)
    top, left = top // ratio, left // ratio
    smooth = min(height, width) <= size
    return _jpeg_region(picture, (top, left, bottom - top, right - left), ratio, smooth), ratio, (top, left)


def _jpeg_region(picture: Picture, region: tuple[int, int, int, int], ratio: int, smooth: bool = True) -> np.ndarray:
    """A region (top, left, height, width after the reduction) of a croppable JPEG; `smooth`: colours interpolated."""
    tf = tensorflow()
    try:
        pixels = tf.raw_ops.DecodeAndCropJpeg(
            contents=tf.constant(picture.data),  # left to the operation the conversions take three times as long
            crop_window=tf.constant(np.array(region, np.int32)),
            channels=3,
            ratio=ratio,
            fancy_upscaling=smooth,
            acceptable_fraction=1.0,  # the default, an int, makes TensorFlow raise and begin again
            dct_method="INTEGER_ACCURATE",  # the default is no quicker here, and up to 7 of 255 off
        )
    except tf.errors.InvalidArgumentError as error:
        raise PictureError("damaged", str(error).split(" [Op:")[0].splitlines()[0]) from error
    return np.asarray(memoryview(pixels))
