"""Layouts: torch's own arithmetic on its tensor is ours on our arrays, and back to the bit."""

import jax
import numpy as np
import pytest

from mmjax.models.patch_encoder import patchify
from mmjax.pretrained.layouts import CONV1D, JOINED, LINEAR, SAME, Patches, Positions, Same

LAYOUTS = [
    (SAME, [(5,)], (5,)),
    (Same(theirs=(1, 1, -1)), [(5,)], (1, 1, 5)),
    (Same(theirs=(1,)), [()], (1,)),
    (Same(theirs=(-1, 4)), [(2, 3, 4)], (6, 4)),
    (LINEAR, [(3, 5)], (5, 3)),
    (LINEAR, [(3, 6), (3, 2), (3, 2)], (10, 3)),
    (JOINED, [(6,), (2,), (2,)], (10,)),
    (CONV1D, [(3, 4), (3, 4), (3, 4)], (3, 12)),
    (Patches(2), [(12, 7)], (7, 3, 2, 2)),
    (Positions(), [(1, 1, 4), (2, 3, 4)], (7, 4)),
    (Positions(leading=True), [(1, 1, 4), (2, 3, 4)], (1, 7, 4)),
]


@pytest.mark.parametrize(("layout", "ours", "theirs"), LAYOUTS)
def test_there_and_back_is_the_same_bits(layout, ours, theirs):
    tensor = np.random.default_rng(0).standard_normal(theirs).astype(np.float32)
    assert tuple(layout.their_shape(ours)) == theirs
    arrays = layout.to_ours(tensor, ours)
    assert [a.shape for a in arrays] == ours
    np.testing.assert_array_equal(layout.to_theirs(arrays), tensor)


def test_parts_of_a_fused_tensor_lie_in_order():
    tensor = np.arange(30.0).reshape(10, 3)
    query, key, value = LINEAR.to_ours(tensor, [(3, 6), (3, 2), (3, 2)])
    np.testing.assert_array_equal(query, tensor[:6].T)
    np.testing.assert_array_equal(key, tensor[6:8].T)
    np.testing.assert_array_equal(value, tensor[8:].T)
    cls, grid = Positions().to_ours(np.arange(14.0).reshape(7, 2), [(1, 1, 2), (2, 3, 2)])
    assert cls.tolist() == [[[0, 1]]] and grid[1, 0].tolist() == [8, 9]


def test_a_patch_kernel_is_torchs_convolution():
    rng = np.random.default_rng(0)
    weight, image = rng.standard_normal((5, 3, 4, 4)), rng.standard_normal((1, 8, 12, 3))
    (kernel,) = Patches(4).to_ours(weight, [(48, 5)])
    ours = np.asarray(patchify(jax.numpy.asarray(image), 4)) @ kernel
    for i, (row, column) in enumerate(np.ndindex(2, 3)):
        patch = image[0, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4]
        np.testing.assert_allclose(ours[0, i], np.einsum("ochw,hwc->o", weight, patch), rtol=1e-4, atol=1e-5)
