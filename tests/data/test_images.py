"""Pictures: the TensorFlow and the PIL path agree; boxes follow torchvision's law; a row's draws are its own."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.config import build
from mmjax.data.images import Augment, ImageSettings, centre_box, draws, image_pil, image_tf, random_box, readable
from mmjax.data.order import row_keys
from mmjax.errors import ConfigError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges, gradients and grain, [height, width, 3] uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 150 / width, y * 150 / height, 150 * ((x // 7 + y // 5) % 2)], -1)
    return np.clip(50 + base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def by_tf(data: bytes, settings: ImageSettings) -> np.ndarray:
    from mmjax.data.images import size_of

    data = readable(data)
    return image_tf(data, centre_box(*size_of(data), settings), None, settings, None).numpy()


def agree(pictures: list[bytes], settings: ImageSettings) -> None:
    differences = []
    for data in pictures:
        ours, truth = by_tf(data, settings), image_pil(data, settings)
        assert ours.shape == truth.shape == (settings.size, settings.size, 3)
        assert ours.dtype == truth.dtype == np.uint8
        differences.append(np.abs(ours.astype(int) - truth).reshape(-1))
    differences = np.concatenate(differences)
    if settings.method == "bilinear":
        assert differences.max() <= 1
    else:
        assert (differences > 1).mean() < 1e-3 and differences.max() <= 15


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["squash", "crop"])
def test_pil_and_tensorflow_give_the_same_picture(method, resize):
    settings = ImageSettings(size=32, resize=resize, method=method)
    jpeg, png = encode(photo(71, 100), "JPEG", quality=90), encode(photo(100, 64), "PNG")
    agree([jpeg, png, encode(photo(20, 24), "PNG")], settings)  # the last is enlarged


def test_pil_and_tensorflow_agree_on_unusual_files():
    settings = ImageSettings(size=32, method="bilinear")
    rgb = Image.fromarray(photo(60, 48))
    alpha = rgb.copy()
    alpha.putalpha(Image.fromarray(photo(60, 48)[..., 0]))
    pictures = [
        encode(rgb.convert("L"), "JPEG"),
        encode(rgb.convert("L"), "PNG"),
        encode(rgb.convert("P"), "PNG"),
        encode(alpha, "PNG"),
        encode(alpha.convert("LA"), "PNG"),
        encode(rgb, "JPEG", progressive=True),
        encode(rgb, "BMP"),
        encode(rgb, "GIF"),
        encode(rgb, "WEBP"),
        encode(rgb, "TIFF"),
    ]
    agree(pictures, settings)


def test_pil_and_tensorflow_agree_on_real_photos():
    folders = [SHARED / "flickr8k_native" / "images", SHARED / "coco_mini" / "train2017"]
    photos = [p for folder in folders if folder.is_dir() for p in sorted(folder.rglob("*.jpg"))[:8]]
    if not photos:
        pytest.skip("needs ../shared/data/flickr8k_native and coco_mini")
    for method in ("bilinear", "bicubic"):
        agree([p.read_bytes() for p in photos], ImageSettings(size=64, resize="crop", method=method))


def test_crop_is_the_central_square_and_squash_the_whole():
    assert centre_box(100, 60, ImageSettings(resize="crop")) == (20, 0, 60, 60)
    assert centre_box(60, 101, ImageSettings(resize="crop")) == (0, 20, 60, 60)
    assert centre_box(60, 101, ImageSettings(resize="squash")) == (0, 0, 60, 101)


def keys(count: int) -> np.ndarray:
    return row_keys(0, np.zeros(count, np.int64), np.arange(count))


def test_random_boxes_have_the_areas_and_aspects_asked_for():
    augment = Augment(crop_area=(0.25, 0.5), crop_aspect=(0.5, 2.0))
    numbers = draws(keys(4000), 4, augment, np.ones(4000, bool))
    boxes = np.array([random_box(400, 400, d, augment) for d in numbers])
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= 400).all() and (left + w <= 400).all()
    area, aspect = h * w / 160_000, np.log(w / h)
    assert 0.245 < area.min() < 0.26 and 0.49 < area.max() < 0.505
    assert abs(area.mean() - 0.375) < 0.01
    assert abs(aspect.mean()) < 0.04 and abs(aspect.min() + np.log(2)) < 0.03
    assert abs(np.corrcoef(area, aspect)[0, 1]) < 0.06
    assert abs((top / (400 - h + 1e-9)).mean() - 0.5) < 0.03


def test_a_box_that_never_fits_falls_back_to_the_centre():
    augment = Augment(crop_area=(0.9, 1.0), crop_aspect=(0.75, 1.333))
    numbers = draws(keys(1), 4, augment, np.ones(1, bool))[0]
    assert random_box(10, 200, numbers, augment) == (0, (200 - 13) // 2, 10, 13)
    assert random_box(200, 12, numbers, augment) == ((200 - 16) // 2, 0, 16, 12)


def test_draws_of_a_row_do_not_depend_on_its_batch():
    augment = Augment(crop_area=(0.5, 1.0), flip=True, brightness=0.2, contrast=0.3)
    whole = draws(keys(64), 4, augment, np.ones(64, bool))
    assert np.array_equal(draws(keys(64)[[40, 3]], 4, augment, np.ones(2, bool)), whole[[40, 3]])
    assert 0.8 <= whole[:, 1].min() < whole[:, 1].max() <= 1.2
    assert 0.7 <= whole[:, 2].min() < whole[:, 2].max() <= 1.3
    assert 15 < whole[:, 0].sum() < 49  # half of 64
    assert not draws(keys(64), 4, augment, np.zeros(64, bool))[:, 0].any()


def test_augmentation_flips_and_scales_as_drawn():
    settings = ImageSettings(size=24, method="bilinear")
    data = encode(photo(48, 48), "PNG")
    plain = by_tf(data, settings).astype(float)
    augment = Augment(flip=True, brightness=0.5, contrast=0.5)
    box = np.array([0, 0, 48, 48], np.int32)

    def changed(flip, brightness, contrast):
        draw = np.zeros(25, np.float32)
        draw[:3] = flip, brightness, contrast
        return image_tf(data, box, draw, settings, augment).numpy().astype(float)

    assert np.abs(changed(0, 1, 1) - plain).max() <= 1
    assert np.array_equal(changed(1, 1, 1), changed(0, 1, 1)[:, ::-1])
    assert np.abs(changed(0, 0.5, 1) - plain / 2).max() <= 1
    grey = (plain @ [0.299, 0.587, 0.114]).mean()
    assert np.abs(changed(0, 1, 0.5) - (grey + (plain - grey) / 2)).max() <= 1.5


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (ImageSettings, {"size": 0}, "w.size: found 0"),
        (ImageSettings, {"std": [0.5, 0.0, 0.5]}, "w.std: found"),
        (Augment, {"crop_area": [0.9, 0.2]}, "w.crop_area: found"),
        (Augment, {"brightness": 2.0}, "w.brightness: found 2.0"),
    ],
)
def test_impossible_settings_are_refused(kind, value, message):
    with pytest.raises(ConfigError, match=message):
        build(kind, value, "w")
