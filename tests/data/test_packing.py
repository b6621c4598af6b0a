"""Packing on the host: the grid of a picture, patches, who lies with whom, arrays of packed rows, buckets."""

import io
from fractions import Fraction
from math import ceil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mmjax.data.image_files import examine
from mmjax.data.images import ImageSettings
from mmjax.data.packing import (
    Row,
    bucket,
    check_compiled,
    cut_to_bucket,
    fit_grid,
    make_room,
    native_image,
    pack,
    packed_arrays,
    patch_arrays,
)
from mmjax.errors import ConfigError
from mmjax.models.patch_encoder import patchify


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


def encoded(height, width):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_is_resized_to_its_grid_as_pil_does():
    data = encoded(30, 50)
    got = native_image(examine(data, 10**6), ImageSettings(), 4, 16)
    assert got.shape == (12, 20, 3)
    want = Image.open(io.BytesIO(data)).resize((20, 12), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(got, np.asarray(want))
    part = native_image(examine(data, 10**6), ImageSettings(), 4, 16, box=(0, 10, 30, 30))
    assert part.shape == (16, 16, 3)


def test_host_and_device_cut_the_same_patches():
    pictures = [
        np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i, shape in enumerate([(8, 12, 3), (4, 4, 3)])
    ]
    one = patch_arrays([[pictures[0]], []], 4, 8)
    np.testing.assert_array_equal(one["image"][0, :6], patchify(pictures[0][None], 4)[0])
    np.testing.assert_array_equal(one["image_position"][0, :6], [(r, c) for r in range(2) for c in range(3)])
    assert one["image_grid"].tolist() == [[2, 3], [0, 0]] and one["image_mask"].sum(1).tolist() == [6, 0]
    both = patch_arrays([pictures], 4, 8, pictures=3)
    assert both["image_segment"][0].tolist() == [1, 1, 1, 1, 1, 1, 2, 0]
    assert both["image_grid"][0].tolist() == [[2, 3], [1, 1], [0, 0]]
    np.testing.assert_array_equal(both["image"][0, 6], pictures[1].reshape(-1))
    with pytest.raises(ConfigError, match="found 2 pictures of 7 patches in sequence 0, expected up to 1 of 8"):
        patch_arrays([pictures], 4, 8)


def test_every_row_is_packed_once_within_all_budgets():
    random = np.random.default_rng(0)
    sizes = np.stack([random.integers(1, 60, 500), random.integers(0, 3, 500)], 1)
    sequences = pack(sizes, (64, 4), rows=6, window=200)
    np.testing.assert_array_equal(np.sort(np.concatenate(sequences)), np.arange(500))
    for rows in sequences:
        assert (sizes[rows].sum(0) <= (64, 4)).all() and len(rows) <= 6
        assert len(set(rows // 200)) == 1 and (np.diff(rows) > 0).all()
    again = pack(sizes, (64, 4), rows=6, window=200)
    assert all(np.array_equal(a, b) for a, b in zip(sequences, again, strict=True))


def test_packing_fills_nearly_all_of_the_budget():
    lengths = np.random.default_rng(0).integers(5, 60, 1000)
    assert lengths.sum() / (128 * len(pack(lengths, 128, rows=32))) > 0.98
    assert [s.tolist() for s in pack(np.array([5, 4, 3, 2]), 7, rows=8)] == [[0, 3], [1, 2]]
    with pytest.raises(ConfigError, match=r"row 1: found a size of \[9\], expected up to \[7\].*\(1 of 3 rows"):
        pack(np.array([5, 9, 3]), 7, rows=8)


def row(*ids, target=None, pictures=0):
    return Row(np.array(ids, np.int32), np.ones(len(ids), bool) if target is None else np.array(target), pictures)


def test_packed_arrays_hold_the_rows_and_teach_no_first_token():
    sequences = [[row(1, 5, 2), row(1, 7, 8, 2, target=[0, 0, 1, 1], pictures=2)], [row(1, 2, pictures=1)]]
    batch = packed_arrays(sequences, "text", length=8, rows=3, pictures=2, pad=9)
    assert batch["text"].tolist() == [[1, 5, 2, 1, 7, 8, 2, 9], [1, 2, 9, 9, 9, 9, 9, 9]]
    assert batch["text_segment"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["text_target"].astype(int).tolist() == [[0, 1, 1, 0, 0, 1, 1, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert batch["text_valid"].tolist() == [[True, True, False], [True, False, False]]
    assert batch["image_row"].tolist() == [[2, 2], [1, 0]]
    with pytest.raises(ConfigError, match="found 7 tokens, 2 rows and 2 pictures in sequence 0, expected up to 6, 3"):
        packed_arrays(sequences, "text", length=6, rows=3, pictures=2)


def test_placeholders_make_room_for_each_picture():
    wide = make_room(row(1, 3, 6, 3, 2), 3, [2, 3])
    assert wide.ids.tolist() == [1, 3, 3, 6, 3, 3, 3, 2] and wide.pictures == 2
    assert wide.target.astype(int).tolist() == [1, 0, 0, 1, 0, 0, 0, 1]
    with pytest.raises(ConfigError, match="found 1 <image> placeholders in a row of 2 pictures"):
        make_room(row(1, 3, 2), 3, [2, 3])


def test_random_lengths_compile_a_version_a_bucket_and_no_more():
    buckets, random = (8, 16, 32), np.random.default_rng(0)
    assert [bucket(n, buckets) for n in (1, 8, 9, 32)] == [8, 8, 16, 32]

    @jax.jit
    def step(ids, mask):
        return jnp.sum(ids * mask)

    for length in random.integers(1, 33, 40):
        mask = np.arange(32) < np.array([[[length]], [[1]]])
        batch = {"text": random.integers(4, 99, (2, 1, 32)), "text_mask": mask, "row": np.arange(2)}
        cut = cut_to_bucket(batch, "text", buckets)
        assert int(step(cut["text"], cut["text_mask"])) == (batch["text"] * mask).sum()
        assert cut["row"] is batch["row"]
    assert check_compiled(step, at_most=len(buckets)) == 3
    with pytest.raises(RuntimeError, match="step: compiled 3 versions, expected at most 2"):
        check_compiled(step, at_most=2)
    with pytest.raises(ConfigError, match="found a length of 33, expected up to 32"):
        bucket(33, buckets)
