"""A picture file -> [H, W, 3] uint8: which part of the picture is seen, resized, and changed in training.

Evaluation and prediction take one way, training the same one (`exact`) or a quicker one (`fast`). No TensorFlow but to
decode regions of JPEGs in training. Measured: BUILD_NOTES.md.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from mmjax.config import choice
from mmjax.data.image_files import Picture, decode, decode_box, decode_region, examine
from mmjax.data.order import uniforms
from mmjax.data.patches import fit_grid
from mmjax.data.resampling import Box, reach, resize
from mmjax.errors import ConfigError

_TRIES = 10  # boxes drawn before falling back to the centre, as in torchvision
_BOMB = 178_956_970  # pixels above which PIL itself refuses


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """What the model sees of a picture.

    Attributes:
      size: side in pixels; the batch holds [B, size, size, 3] uint8. Learned positions are made for it. width: 0, or
        another than the height, `size`.
      aspect: "square" pictures of `size`; or "native": each in its own aspect (SigLIP 2's NaFlex), resized to the
        finest grid of whole patches within `tokens`. The batch then holds patches (`patches.py`).
      tokens: most patches of a native picture; 0 takes as many as the square one has.
      patch: side of these in pixels: that of the model's patch encoder, which a config fills in.
      resize: "squash" the whole picture (SigLIP, ViT), or "crop": the short side becomes `short_side` (0: `size`), then
        the central square is cut out (CLIP; DINOv2 cuts 224 out of 256). A native picture is seen whole.
      method: interpolation, always antialiased.
      train_path: "exact" reads training pictures as evaluation does, to PIL's bit; "fast" decodes JPEGs only where the
        box is, reduced where it allows, and resizes in 16 bits (mean difference of photos 0.5 to 0.7 of 255).
      max_pixels: larger pictures are refused as bad records.
      mean, std: of each channel in units of 1 (not 255); the patch encoder normalises with them.
    """

    size: int = 64
    width: int = 0
    short_side: int = 0
    aspect: str = choice("square", "native")
    tokens: int = 0
    patch: int = 0
    resize: str = choice("squash", "crop")
    method: str = choice("bicubic", "bilinear")
    train_path: str = choice("exact", "fast")
    max_pixels: int = _BOMB
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def check(self, where: str) -> None:
        if self.size < 1:
            raise ConfigError(f"{where}.size: found {self.size}, expected the side of the picture in pixels.")
        if self.resize == "crop" and self.width not in (0, self.size):
            raise ConfigError(f"{where}.width: found {self.width}, but resize 'crop' cuts out a square of {self.size}.")
        if self.short_side and (self.resize != "crop" or self.short_side < self.size):
            raise ConfigError(
                f"{where}.short_side: found {self.short_side}, expected {self.size} or more with resize 'crop', else 0."
            )
        native = self.aspect == "native"
        if native and self.width not in (0, self.size):
            raise ConfigError(f"{where}.width: found {self.width}, but a native picture has its own. Leave it out.")
        if self.tokens < 0 or (self.tokens or self.patch) and not native:
            name, expected = ("patch", 0) if self.patch and not native else ("tokens", "0 or more" if native else 0)
            raise ConfigError(
                f"{where}.{name}: found {getattr(self, name)}, expected {expected} with aspect '{self.aspect}'. "
                "It counts for 'native' only."
            )
        if native and self.resize != "squash":
            raise ConfigError(
                f"{where}.resize: found '{self.resize}', but a native picture is seen whole. Leave it out."
            )
        if min(self.std) <= 0:
            raise ConfigError(f"{where}.std: found {self.std}, expected positive numbers.")
        if not 0 < self.max_pixels <= _BOMB:
            raise ConfigError(f"{where}.max_pixels: found {self.max_pixels}, expected 1 to {_BOMB} (PIL's own limit).")

    @property
    def sides(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.size, self.width or self.size

    def for_patches(self, patch: int, where: str) -> ImageSettings:
        """The same with `patch` and `tokens` filled in, for a model whose patches are that large."""
        if self.aspect == "square":
            return self
        if self.patch not in (0, patch):
            raise ConfigError(
                f"{where}.patch: found {self.patch}, but config.model.patch_encoder.patch is {patch}. Leave it out."
            )
        return dataclasses.replace(self, patch=patch, tokens=self.tokens or (self.size // patch) ** 2)

    @property
    def pixels(self) -> int:
        """Of a picture in the batch, its padding included."""
        return math.prod(self.sides) if self.aspect == "square" else self.tokens * self.patch**2

    def shape(self, height: float, width: float) -> tuple[int, int]:
        """Height and width in pixels at which the model sees a box of a picture."""
        if self.aspect == "square":
            return self.sides
        rows, columns = fit_grid(int(height), int(width), self.tokens)
        return rows * self.patch, columns * self.patch


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


def draws(keys: np.ndarray, purpose: int, augment: Augment) -> np.ndarray:
    """The random numbers of pictures' augmentation: rows of numbers that `random_box` and `training_image` read.

    Made for a whole batch at once: for one picture at a time they would cost as much as a fifth of its resizing.

    Args:
      keys: [B] uint64 of `order.row_keys`.

    Returns:
      [B, 5 + 2 * tries] float32: flip, brightness factor, contrast factor, top and left in [0, 1), areas, aspects.
    """
    u = uniforms(keys, purpose, 5 + 2 * _TRIES)
    low, high = augment.crop_area
    first, last = np.log(augment.crop_aspect)
    u[:, 0] = (u[:, 0] < 0.5) & augment.flip
    u[:, 1] = 1 + augment.brightness * (2 * u[:, 1] - 1)
    u[:, 2] = 1 + augment.contrast * (2 * u[:, 2] - 1)
    u[:, 5 : 5 + _TRIES] = low + (high - low) * u[:, 5 : 5 + _TRIES]
    u[:, 5 + _TRIES :] = np.exp(first + (last - first) * u[:, 5 + _TRIES :])
    return u.astype(np.float32)


def evaluation_box(height: int, width: int, settings: ImageSettings) -> Box:
    """The part of a picture (top, left, height, width in its pixels) that evaluation looks at.

    For "crop" as the CLIP processor counts: the long side is rounded down to whole pixels, then what is left over is
    halved and rounded down.
    """
    if settings.resize == "squash":
        return 0.0, 0.0, float(height), float(width)
    size, short = settings.size, min(height, width)
    target = settings.short_side or size
    scales = height / (target * height // short), width / (target * width // short)
    top, left = ((target * side // short - size) // 2 * s for side, s in zip((height, width), scales, strict=True))
    return top, left, size * scales[0], size * scales[1]


def random_box(height: int, width: int, draw: np.ndarray, augment: Augment) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) of one row of `draws`: RandomResizedCrop of torchvision, `get_params`.

    The first of ten boxes that fits; else the central box whose aspect is the picture's, held within `crop_aspect`.
    """
    draw = draw.tolist()
    for area, aspect in zip(draw[5 : 5 + _TRIES], draw[5 + _TRIES :], strict=True):
        area *= height * width
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return math.floor(draw[3] * (height - h + 1)), math.floor(draw[4] * (width - w + 1)), h, w
    low, high = augment.crop_aspect
    h, w = height, width
    if width < low * height:
        h = min(height, max(1, round(width / low)))
    elif width > high * height:
        w = min(width, max(1, round(height * high)))
    return (height - h) // 2, (width - w) // 2, h, w


def evaluation_image(picture: Picture, settings: ImageSettings) -> np.ndarray:
    """-> [H, W, 3] uint8, as the Hugging Face processors' PIL backend has it. Raises PictureError."""
    box = evaluation_box(picture.height, picture.width, settings)
    return resize(decode(picture), box, settings.shape(*box[2:]), settings.method)


def training_image(picture: Picture, draw: np.ndarray, settings: ImageSettings, augment: Augment) -> np.ndarray:
    """-> [H, W, 3] uint8, changed as drawn. Raises PictureError.

    A native picture is the drawn box in the box's aspect.

    Args:
      draw: one row of `draws`.
    """
    if augment.crops:
        box = random_box(picture.height, picture.width, draw, augment)
    else:
        box = evaluation_box(picture.height, picture.width, settings)
    shape = settings.shape(*box[2:])
    fast = settings.train_path == "fast"
    if fast and picture.croppable:
        region = box if augment.crops else _around(box, picture, shape, settings.method)
        scale = min(have / want for have, want in zip(region[2:], shape, strict=True))
        pixels, ratio, (top, left) = decode_region(picture, region, min(region[2:]) / scale)
        box = box[0] / ratio - top, box[1] / ratio - left, box[2] / ratio, box[3] / ratio
    elif augment.crops:  # cut out first, as torchvision does: the filter does not read beyond the box
        pixels, box = decode_box(picture, box), (0, 0, *box[2:])
    else:
        pixels = decode(picture)
    x = resize(pixels, box, shape, settings.method, fast=fast)
    return changed(x, draw, augment)


def _around(box: Box, picture: Picture, shape: tuple[int, int], method: str) -> tuple[int, int, int, int]:
    """The whole pixels of a picture that the filter reads to resize a box."""
    around = [reach(length, size, method) for length, size in zip(box[2:], shape, strict=True)]
    top, left = (max(math.floor(box[i]) - around[i], 0) for i in (0, 1))
    bottom, right = (math.ceil(box[i] + box[i + 2]) + around[i] for i in (0, 1))
    return top, left, min(bottom, picture.height) - top, min(right, picture.width) - left


def changed(x: np.ndarray, draw: np.ndarray, augment: Augment) -> np.ndarray:
    """Brightness, contrast about the mean grey, and mirroring. x: [H, W, 3] uint8."""
    if augment.brightness or augment.contrast:
        y = x.astype(np.float32)
        if augment.brightness:
            y = np.clip(y * draw[1], 0, 255)
        if augment.contrast:
            grey = (y.mean((0, 1), np.float64) @ (0.299, 0.587, 0.114)).astype(np.float32)
            y = grey + (y - grey) * draw[2]
        x = np.clip(np.rint(y), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(x[:, ::-1]) if augment.flip and draw[0] > 0 else x


def image_pil(data: bytes, settings: ImageSettings) -> np.ndarray:
    """Encoded picture -> [H, W, 3] uint8 as in evaluation. Raises PictureError."""
    return evaluation_image(examine(data, settings.max_pixels), settings)
