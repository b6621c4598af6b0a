"""Picture bytes -> [H, W, 3] uint8: TensorFlow ops for training, PIL for prediction without TensorFlow.

Both decode exactly, cut out a box, and resize it with antialiasing; they agree within 1 of 255 (bilinear), or so for
99.9 % of the values (bicubic: PIL rounds between its two passes; so in TensorFlow too would give 100 %, at twice the
time: 2.2 against 1.2 ms for a picture of 160 pixels).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import math
import os
from typing import Any

import numpy as np

from mmjax.config import choice
from mmjax.data.order import uniforms
from mmjax.errors import ConfigError

_TRIES = 10  # boxes drawn before falling back to the centre, as in torchvision
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n")  # what TensorFlow decodes as PIL does; the rest goes through PIL first


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What the model sees of a picture.

    Attributes:
      size: side in pixels; the batch holds [B, size, size, 3] uint8.
      resize: "squash" the whole picture, or "crop" its central square.
      method: interpolation, always antialiased.
      mean, std: of each channel in units of 1 (not 255); the patch encoder normalises with them.
    """

    size: int = 64
    resize: str = choice("squash", "crop")
    method: str = choice("bicubic", "bilinear")
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def check(self, where: str) -> None:
        if self.size < 1:
            raise ConfigError(f"{where}.size: found {self.size}, expected the side of the picture in pixels.")
        if min(self.std) <= 0:
            raise ConfigError(f"{where}.std: found {self.std}, expected positive numbers.")


@dataclasses.dataclass(frozen=True)
class Augment:
    """Random changes of training pictures; the default is none.

    Attributes:
      crop_area: share of the picture's area that a random box covers, from and to; (1, 1) draws none.
      crop_aspect: width / height of the box, from and to, drawn evenly in the logarithm.
      flip: mirror half of the pictures, but never where a text of the picture says left or right.
      brightness, contrast: factors are drawn from 1 - x to 1 + x.
    """

    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (0.75, 1.333)
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 0.0

    def check(self, where: str) -> None:
        if not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
            raise ConfigError(f"{where}.crop_area: found {self.crop_area}, expected 0 < from <= to <= 1.")
        if not 0 < self.crop_aspect[0] <= self.crop_aspect[1]:
            raise ConfigError(f"{where}.crop_aspect: found {self.crop_aspect}, expected 0 < from <= to.")
        for name in ("brightness", "contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected 0 to 1.")

    @property
    def crops(self) -> bool:
        return self.crop_area != (1.0, 1.0)


@functools.cache
def tensorflow() -> Any:
    """TensorFlow, imported when it is first needed, without its start-up notes and without the accelerators."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # input has no matrix products; the option only prints a note
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):  # a program that already uses TensorFlow's devices keeps them
        tf.config.set_visible_devices([], "GPU")
    return tf


def draws(keys: np.ndarray, purpose: int, augment: Augment, flip: np.ndarray) -> np.ndarray:
    """The random numbers of a picture's augmentation: one row of numbers that `random_box` and `image_tf` read.

    Args:
      keys: [B] uint64 of `order.row_keys`.
      flip: [B] bool, where mirroring is allowed.

    Returns:
      [B, 5 + 2 * tries] float32: flip, brightness factor, contrast factor, top and left in [0, 1), areas, aspects.
    """
    u = uniforms(keys, purpose, 5 + 2 * _TRIES)
    low, high = augment.crop_area
    first, last = np.log(augment.crop_aspect)
    u[:, 0] = (u[:, 0] < 0.5) & flip & augment.flip
    u[:, 1] = 1 + augment.brightness * (2 * u[:, 1] - 1)
    u[:, 2] = 1 + augment.contrast * (2 * u[:, 2] - 1)
    u[:, 5 : 5 + _TRIES] = low + (high - low) * u[:, 5 : 5 + _TRIES]
    u[:, 5 + _TRIES :] = np.exp(first + (last - first) * u[:, 5 + _TRIES :])
    return u.astype(np.float32)


def centre_box(height: int, width: int, settings: ImageSettings) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) that evaluation looks at."""
    if settings.resize == "squash":
        return 0, 0, height, width
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def random_box(height: int, width: int, draw: np.ndarray, augment: Augment) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of one row of `draws`: RandomResizedCrop of torchvision, `get_params`.

    The first of ten boxes that fits; else the central box whose aspect is the picture's, held within `crop_aspect`.
    """
    draw = np.asarray(draw, np.float64)
    areas, aspects = draw[5 : 5 + _TRIES] * height * width, draw[5 + _TRIES :]
    heights, widths = np.rint(np.sqrt(areas / aspects)).astype(int), np.rint(np.sqrt(areas * aspects)).astype(int)
    fits = (heights > 0) & (heights <= height) & (widths > 0) & (widths <= width)
    if fits.any():
        h, w = int(heights[fits.argmax()]), int(widths[fits.argmax()])
        return math.floor(draw[3] * (height - h + 1)), math.floor(draw[4] * (width - w + 1)), h, w
    low, high = augment.crop_aspect
    h, w = height, width
    if width < low * height:
        h = min(height, max(1, round(width / low)))
    elif width > high * height:
        w = min(width, max(1, round(height * high)))
    return (height - h) // 2, (width - w) // 2, h, w


def image_pil(data: bytes, settings: ImageSettings) -> np.ndarray:
    """Encoded picture -> [size, size, 3] uint8, as in evaluation, without TensorFlow. PIL's errors pass through."""
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = centre_box(picture.height, picture.width, settings)
    method = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[settings.method]
    if (height, width) != (picture.height, picture.width):  # not `resize(box=)`: its filter reads beyond the box
        picture = picture.crop((left, top, left + width, top + height))
    return np.asarray(picture.resize((settings.size, settings.size), method), np.uint8)


def size_of(data: bytes) -> tuple[int, int]:
    """Encoded picture -> (height, width), from its header alone."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return picture.height, picture.width


def readable(data: bytes) -> bytes:
    """The same picture in a format that TensorFlow decodes: other formats (WebP, TIFF, ...) become PNG."""
    if data.startswith(_SIGNATURES):
        return data
    from PIL import Image

    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_tf(data: Any) -> Any:
    """String tensor -> [H, W, 3] uint8. The accurate DCT: TensorFlow's default is up to 7 of 255 off PIL."""
    tf = tensorflow()

    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_png(data, channels=3),
    )


def image_tf(data: Any, box: Any, draw: Any, settings: ImageSettings, augment: Augment | None) -> Any:
    """Encoded picture -> [size, size, 3] uint8 by TensorFlow ops.

    Args:
      data: scalar string.
      box: [4] int32: top, left, height, width in pixels; None for the whole picture.
      draw: a row of `draws`; read only where `augment` is given.
      augment: None in evaluation.
    """
    tf = tensorflow()

    picture = decode_tf(data)
    if box is not None:
        picture = picture[box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
    x = tf.image.resize(picture, (settings.size, settings.size), settings.method, antialias=True)
    if augment is not None and augment.brightness:
        x = tf.clip_by_value(x * draw[1], 0.0, 255.0)
    if augment is not None and augment.contrast:
        grey = tf.reduce_mean(tf.reduce_sum(x * tf.constant([0.299, 0.587, 0.114]), -1))
        x = grey + (x - grey) * draw[2]
    x = tf.cast(tf.clip_by_value(tf.round(x), 0.0, 255.0), tf.uint8)
    if augment is not None and augment.flip:
        x = tf.where(draw[0] > 0, tf.reverse(x, [1]), x)
    return tf.ensure_shape(x, (settings.size, settings.size, 3))
