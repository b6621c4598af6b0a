"""Pictures in their own aspect: the grid, the resize, patches and back."""

import io
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from PIL import Image

from mmjax.data.image_files import examine
from mmjax.data.images import Augment, ImageSettings, draws, evaluation_image, random_box, training_image
from mmjax.data.patches import cut, fit_grid, joined
from mmjax.errors import ConfigError
from mmjax.models.patch_encoder import Patches, patchify

NATIVE = ImageSettings(size=16, aspect="native", tokens=16, patch=4)


def finest_grid(height, width, budget):
    """The slow truth: every scale at which a side is whole patches, in exact fractions."""
    scales = [Fraction(n, side) for side in (height, width) for n in range(1, budget + 1)]
    best = max(s for s in scales if ceil(s * height) * ceil(s * width) <= budget)
    return ceil(best * height), ceil(best * width)


def test_the_grid_is_the_finest_that_keeps_the_aspect_within_the_budget():
    random = np.random.default_rng(0)
    for height, width, budget in random.integers(1, [700, 700, 80], (60, 3)).tolist():
        assert fit_grid(height, width, budget) == finest_grid(height, width, budget), (height, width, budget)
    assert fit_grid(64, 64, 64) == (8, 8) and fit_grid(1, 5000, 16) == (1, 16)


def test_the_grid_is_that_of_the_siglip2_processor():
    rule = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    for height, width in [(1080, 1920), (480, 640), (333, 500), (100, 100), (39, 300), (2000, 30)]:
        theirs = rule.get_image_size_for_max_num_patches(height, width, 16, 256)
        assert fit_grid(height, width, 256) == (theirs[0] // 16, theirs[1] // 16)


def encoded(height, width, kind="PNG"):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def test_a_picture_is_resized_to_its_grid_as_pil_does():
    data = encoded(30, 50)
    got = evaluation_image(examine(data, 10**6), NATIVE)
    assert got.shape == (12, 20, 3)
    want = Image.open(io.BytesIO(data)).resize((20, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(got, np.asarray(want))


def test_a_drawn_box_is_seen_in_its_own_aspect_and_mirrored():
    data, augment = encoded(30, 50), Augment(crop_area=(0.2, 0.6), crop_aspect=(0.5, 2.0), flip=True)
    draw = draws(np.arange(8, dtype=np.uint64), 1, augment)
    shapes = set()
    for one in draw:
        got = training_image(examine(data, 10**6), one, NATIVE, augment)
        top, left, height, width = random_box(30, 50, one, augment)
        box = Image.open(io.BytesIO(data)).crop((left, top, left + width, top + height))
        rows, columns = fit_grid(height, width, 16)
        want = np.asarray(box.resize((columns * 4, rows * 4), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(got, want[:, ::-1] if one[0] else want)
        shapes.add(got.shape)
    assert len(shapes) > 2 and 0 < draw[:, 0].sum() < 8


def test_the_fast_way_gives_pictures_of_the_same_size():
    data = encoded(300, 500, "JPEG")
    for augment in (Augment(), Augment(crop_area=(0.3, 1.0))):
        draw = draws(np.arange(4, dtype=np.uint64), 1, augment)
        for one in draw:
            exact, fast = (
                training_image(examine(data, 10**6), one, ImageSettings(**vars(NATIVE) | {"train_path": path}), augment)
                for path in ("exact", "fast")
            )
            assert exact.shape == fast.shape
            assert np.abs(exact.astype(int) - fast).mean() < 4  # of noise; photos: test_images


def test_host_and_device_cut_the_same_patches_and_they_join_again():
    pictures = [
        np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        for i, shape in enumerate([(8, 12, 3), (4, 4, 3), (0, 0, 3)])
    ]
    batch = cut(pictures, 4, 8)
    assert batch["image"].shape == (3, 8, 48) and batch["image_grid"].tolist() == [[2, 3], [1, 1], [0, 0]]
    np.testing.assert_array_equal(batch["image"][0, :6], patchify(pictures[0][None], 4)[0])
    assert not batch["image"][0, 6:].any() and not batch["image"][2].any()
    for i, picture in enumerate(pictures):
        np.testing.assert_array_equal(joined(batch["image"][i], batch["image_grid"][i]), picture)
    patches = Patches(batch["image"], batch["image_grid"])
    assert patches.mask.sum(1).tolist() == [6, 1, 0] and bool(patches.mask[0, :6].all())
    assert np.stack(patches.positions, -1)[0, :6].tolist() == [[r, c] for r in range(2) for c in range(3)]


def test_what_does_not_count_for_a_picture_is_an_error():
    with pytest.raises(ConfigError, match="c.tokens: found 9, expected 0 with aspect 'square'"):
        ImageSettings(tokens=9).check("c")
    with pytest.raises(ConfigError, match="c.patch: found 8, expected 0 with aspect 'square'"):
        ImageSettings(patch=8).check("c")
    with pytest.raises(ConfigError, match="c.resize: found 'crop', but a native picture is seen whole"):
        ImageSettings(aspect="native", resize="crop").check("c")
    assert ImageSettings(size=24, aspect="native").for_patches(8, "c").tokens == 9
    with pytest.raises(ConfigError, match="c.patch: found 4, but config.model.patch_encoder.patch is 8"):
        NATIVE.for_patches(8, "c")
