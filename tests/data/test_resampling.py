"""Resizing: equal to PIL, whatever the box; in 16 bits close to it, and flat areas stay flat."""

import numpy as np
import PIL
import pytest
from PIL import Image

from mmjax.data.resampling import reach, resize

METHODS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Hard edges down to one pixel, gradients and grain, [height, width, 3] uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 255 / width, y * 255 / height, 255 * ((x // 7 + y // 5) % 2)], -1)
    base += rng.normal(0, 12, base.shape)
    base[rng.random((height, width)) < 0.02] = 0
    return np.clip(base, 0, 255).astype(np.uint8)


def by_pil(pixels, box, size, method):
    top, left, height, width = box
    image = Image.fromarray(pixels)
    image = image.resize((size[1], size[0]), METHODS[method], (left, top, left + width, top + height))
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("shape", "size"),
    [((60, 90), (32, 32)), ((60, 90), (24, 48)), ((50, 80), (50, 40)), ((40, 90), (56, 56)), ((7, 300), (5, 9)),
     ((300, 1000), (3, 2)), ((1, 1), (4, 4)), ((3, 2), (3, 2)), ((90, 60), (48, 48)), ((120, 61), (48, 48)),
     ((40, 30), (36, 50))],
)  # fmt: skip
def test_resize_equals_pil_bit_for_bit(method, shape, size):
    pixels, box = picture(*shape), (0, 0, *shape)
    difference = np.abs(resize(pixels, box, size, method) - by_pil(pixels, box, size, method))
    height_first = shape[0] - size[0] > max(2 * (shape[1] - size[1]), 0)
    if height_first and int(PIL.__version__.split(".")[0]) < 13:  # begins with the width, and rounds between
        assert difference.max() <= (40 if method == "bicubic" else 1) and difference.mean() < 0.5
    else:
        assert difference.max() == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_box_between_pixels_reads_beyond_itself_as_in_pil(method):
    pixels = picture(70, 210)
    for box in ((10.25, 20.5, 40.5, 60.75), (0.0, 0.5, 69.75, 130.0), (33.0, 50.0, 8.0, 12.0)):
        ours = resize(pixels, box, (16, 16), method)
        assert np.array_equal(ours, by_pil(pixels, box, (16, 16), method))
        around = [reach(length, 16, method) for length in box[2:]]
        top, left = (max(int(box[i]) - around[i], 0) for i in (0, 1))
        bottom, right = (int(box[i] + box[i + 2]) + 1 + around[i] for i in (0, 1))
        part, moved = pixels[top:bottom, left:right], (box[0] - top, box[1] - left, *box[2:])
        assert np.array_equal(resize(part, moved, (16, 16), method), ours)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(90, 60), (60, 100), (20, 30), (500, 375)])
def test_the_fast_way_is_within_one_of_255_in_the_mean(method, shape):
    pixels, box = picture(*shape), (0, 0, *shape)
    difference = np.abs(resize(pixels, box, (48, 48), method, fast=True) - by_pil(pixels, box, (48, 48), method))
    assert difference.mean() < 1 and difference.max() < 24


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_flat_areas_keep_their_value(fast, method):
    for value in (0, 1, 127, 128, 254, 255):
        pixels = np.full((53, 31, 3), value, np.uint8)
        for size in ((20, 20), (70, 70), (7, 90)):
            assert (resize(pixels, (0, 0, 53, 31), size, method, fast=fast) == value).all()


@pytest.mark.parametrize("fast", [False, True])
def test_black_beside_white_overshoots_into_neither(fast):
    """Sums of 16 bits that left their range would turn black into white."""
    rng = np.random.default_rng(0)
    for shape in ((64, 64), (9, 200), (30, 30)):
        pixels = 255 * rng.integers(0, 2, (*shape, 1), np.uint8).repeat(3, -1)
        truth = by_pil(pixels, (0, 0, *shape), (25, 40), "bicubic")
        assert np.abs(resize(pixels, (0, 0, *shape), (25, 40), "bicubic", fast=fast) - truth).max() <= 40


def test_views_that_are_not_contiguous_are_read_right():
    pixels = picture(64, 80)
    mirrored = pixels[::-1, ::-1]
    box = (0, 0, 64, 80)
    for fast in (False, True):
        expected = resize(np.ascontiguousarray(mirrored), box, (30, 30), "bicubic", fast=fast)
        assert np.array_equal(resize(mirrored, box, (30, 30), "bicubic", fast=fast), expected)
