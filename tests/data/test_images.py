"""Pictures: equal to the Hugging Face processors; boxes follow torchvision's law; a row's draws are its own."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax.config import build
from mmjax.data.image_files import examine
from mmjax.data.images import (
    Augment,
    ImageSettings,
    draws,
    evaluation_box,
    evaluation_image,
    image_pil,
    random_box,
    training_image,
)
from mmjax.data.order import row_keys
from mmjax.errors import ConfigError

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"
GOLDENS = np.load(Path(__file__).parents[1] / "fixtures" / "image_processors.npz")
PROCESSORS = {
    "clip": ImageSettings(size=224, resize="crop", method="bicubic"),
    "siglip": ImageSettings(size=224, resize="squash", method="bicubic"),
    "vit": ImageSettings(size=224, resize="squash", method="bilinear"),
}
NONE = Augment()
LIMIT = 10**7


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture with edges, gradients and grain, [height, width, 3] uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    base = np.stack([x * 150 / width, y * 150 / height, 150 * ((x // 7 + y // 5) % 2)], -1)
    return np.clip(50 + base + rng.normal(0, 12, base.shape), 0, 255).astype(np.uint8)


def encode(pixels: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def keys(count: int) -> np.ndarray:
    return row_keys(0, np.zeros(count, np.int64), np.arange(count))


def drawn(count: int, augment: Augment) -> np.ndarray:
    return draws(keys(count), 4, augment)


@pytest.mark.parametrize("path", ["evaluation", "training"])
@pytest.mark.parametrize("processor", PROCESSORS)
def test_pictures_are_those_of_the_hugging_face_processor(processor, path):
    """tests/fixtures/make_image_processors.py made them. Equal here; the bounds are for other releases of Pillow."""
    settings = PROCESSORS[processor]
    names = [key.split("/")[1] for key in GOLDENS if key.startswith(f"{processor}/")]
    names = [name for name in names if name not in ("mean", "std")]
    assert len(names) >= 4
    for name in names:
        data = GOLDENS[f"file/{name}"].tobytes()
        if path == "evaluation":
            ours = image_pil(data, settings)
        else:
            ours = training_image(examine(data, LIMIT), drawn(1, NONE)[0], settings, NONE)
        assert ours.shape == (224, 224, 3) and ours.dtype == np.uint8
        difference = np.abs(ours[::3, ::3].astype(int) - GOLDENS[f"{processor}/{name}"]).max(-1)
        assert difference.max() <= (12 if settings.method == "bicubic" else 1), name
        assert (difference > 1).mean() <= 0.0005, name


def fast_difference(data: bytes, size: int, augment: Augment) -> float:
    """Mean over some draws of |fast - PIL bicubic|, in units of 1 of 255."""
    picture = examine(data, LIMIT)
    whole = Image.open(io.BytesIO(data)).convert("RGB")
    found = []
    for draw in drawn(4, augment):
        ours = training_image(picture, draw, ImageSettings(size=size, train_path="fast"), augment).astype(int)
        top, left, height, width = random_box(picture.height, picture.width, draw, augment)
        crop = whole.crop((left, top, left + width, top + height))
        found.append(np.abs(ours - np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))).mean())
    return np.mean(found)


@pytest.mark.parametrize("size", [20, 48, 90, 150])
def test_the_fast_path_is_within_two_of_255_of_pil(size):
    augment = Augment(crop_area=(0.3, 1.0))
    smooth = Image.fromarray(photo(90, 120)).resize((333, 250), Image.Resampling.BICUBIC)
    data = encode(np.asarray(smooth), "JPEG", quality=92)
    assert fast_difference(data, size, augment) < 2
    assert fast_difference(encode(np.asarray(smooth), "PNG"), size, augment) < 0.6


def test_the_fast_path_is_within_two_of_255_of_pil_on_real_photos():
    folders = [SHARED / "flickr8k_native" / "images", SHARED / "coco_mini" / "train2017"]
    photos = [p for folder in folders if folder.is_dir() for p in sorted(folder.rglob("*.jpg"))[:8]]
    if not photos:
        pytest.skip("needs ../shared/data/flickr8k_native and coco_mini")
    augment = Augment(crop_area=(0.5, 1.0))
    for size in (48, 96, 224):
        differences = [fast_difference(p.read_bytes(), size, augment) for p in photos]
        assert np.mean(differences) < 2, size


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("path", ["exact", "fast"])
def test_training_without_augmentation_sees_what_evaluation_sees(resize, path):
    settings = ImageSettings(size=64, resize=resize, train_path=path)
    smooth = np.asarray(Image.fromarray(photo(80, 60)).resize((200, 301), Image.Resampling.BICUBIC))
    for data in (encode(smooth, "JPEG", quality=92), encode(photo(40, 77), "PNG")):
        picture = examine(data, LIMIT)
        ours = training_image(picture, drawn(1, NONE)[0], settings, NONE).astype(int)
        difference = np.abs(ours - evaluation_image(picture, settings))
        assert difference.max() == 0 if path == "exact" else difference.mean() < 2


@pytest.mark.parametrize("path", ["exact", "fast"])
def test_a_turned_jpeg_is_cropped_where_it_is_seen(path):
    augment = Augment(crop_area=(0.2, 0.5))
    pixels = np.asarray(Image.fromarray(photo(60, 100)).resize((200, 120), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    stored = encode(np.ascontiguousarray(np.rot90(pixels)), "JPEG", exif=exif, quality=95, subsampling=0)
    upright = encode(pixels, "JPEG", quality=95, subsampling=0)
    settings = ImageSettings(size=32, train_path=path)
    for draw in drawn(4, augment):
        ours = training_image(examine(stored, LIMIT), draw, settings, augment).astype(int)
        assert np.abs(ours - training_image(examine(upright, LIMIT), draw, settings, augment)).mean() < 2


def test_the_exact_path_cuts_out_first_as_torchvision_does():
    augment = Augment(crop_area=(0.3, 0.9))
    data = encode(photo(80, 140), "JPEG", quality=90)
    whole = Image.open(io.BytesIO(data))
    for draw in drawn(6, augment):
        top, left, height, width = random_box(80, 140, draw, augment)
        truth = np.asarray(
            whole.crop((left, top, left + width, top + height)).resize((32, 32), Image.Resampling.BILINEAR)
        )
        ours = training_image(examine(data, LIMIT), draw, ImageSettings(size=32, method="bilinear"), augment)
        assert np.abs(ours.astype(int) - truth).max() <= 1


def test_crop_shortens_the_short_side_first_and_squash_takes_all():
    crop = ImageSettings(size=30, resize="crop")
    assert evaluation_box(90, 60, crop) == (7 * 2.0, 0.0, 60.0, 60.0)  # 45 x 30, of which rows 7 to 37
    top, left, height, width = evaluation_box(60, 101, crop)  # 30 x 50 (50.5)
    assert (top, height) == (0.0, 60.0) and left == pytest.approx(10 * 101 / 50) and width == pytest.approx(60.6)
    assert evaluation_box(60, 101, ImageSettings(resize="squash")) == (0, 0, 60, 101)


def test_random_boxes_have_the_areas_and_aspects_asked_for():
    augment = Augment(crop_area=(0.25, 0.5), crop_aspect=(0.5, 2.0))
    boxes = np.array([random_box(400, 400, d, augment) for d in drawn(4000, augment)])
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
    numbers = drawn(1, augment)[0]
    assert random_box(10, 200, numbers, augment) == (0, (200 - 13) // 2, 10, 13)
    assert random_box(200, 12, numbers, augment) == ((200 - 16) // 2, 0, 16, 12)


def test_draws_of_a_row_do_not_depend_on_its_batch():
    augment = Augment(crop_area=(0.5, 1.0), flip=True, brightness=0.2, contrast=0.3)
    whole = drawn(64, augment)
    assert np.array_equal(draws(keys(64)[[40, 3]], 4, augment), whole[[40, 3]])
    assert 0.8 <= whole[:, 1].min() < whole[:, 1].max() <= 1.2
    assert 0.7 <= whole[:, 2].min() < whole[:, 2].max() <= 1.3
    assert 15 < whole[:, 0].sum() < 49  # half of 64
    assert not drawn(64, Augment(crop_area=(0.5, 1.0)))[:, 0].any()


@pytest.mark.parametrize("path", ["exact", "fast"])
def test_augmentation_flips_and_scales_as_drawn(path):
    settings = ImageSettings(size=24, method="bilinear", train_path=path)
    picture = examine(encode(photo(48, 48), "PNG"), LIMIT)
    plain = evaluation_image(picture, settings).astype(float)
    augment = Augment(flip=True, brightness=0.5, contrast=0.5)
    off = 0 if path == "exact" else 2

    def changed(flip, brightness, contrast):
        draw = np.zeros(25, np.float32)
        draw[:3] = flip, brightness, contrast
        return training_image(picture, draw, settings, augment).astype(float)

    assert np.abs(changed(0, 1, 1) - plain).max() <= off
    assert np.array_equal(changed(1, 1, 1), changed(0, 1, 1)[:, ::-1])
    assert np.abs(changed(0, 0.5, 1) - plain / 2).max() <= 0.5 + off
    grey = (plain @ [0.299, 0.587, 0.114]).mean()
    assert np.abs(changed(0, 1, 0.5) - (grey + (plain - grey) / 2)).max() <= 0.6 + off


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (ImageSettings, {"size": 0}, "w.size: found 0"),
        (ImageSettings, {"std": [0.5, 0.0, 0.5]}, "w.std: found"),
        (ImageSettings, {"train_path": "quick"}, "w.train_path: found 'quick'"),
        (ImageSettings, {"max_pixels": 10**12}, "w.max_pixels: found 1000000000000"),
        (Augment, {"crop_area": [0.9, 0.2]}, "w.crop_area: found"),
        (Augment, {"brightness": 2.0}, "w.brightness: found 2.0"),
    ],
)
def test_impossible_settings_are_refused(kind, value, message):
    with pytest.raises(ConfigError, match=message):
        build(kind, value, "w")
