import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mmjax.losses.contrastive import positives_from_keys, sigmoid_contrastive, softmax_contrastive

B, K, E = 5, 2, 8
M = B * K
RANDOM = np.random.default_rng(0)
OWNER = np.repeat(np.arange(B), K)


def unit(shape):
    x = RANDOM.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


IMAGE, TEXT = unit((B, E)), unit((M, E))
IMAGE_VALID = np.array([True, True, False, True, True])
TEXT_VALID = IMAGE_VALID[OWNER] & (np.arange(M) != 7)
POSITIVES = (np.arange(B)[:, None] == OWNER) | (RANDOM.random((B, M)) < 0.1)


def sigmoid_by_pairs(image, text, scale, bias):
    total = 0.0
    for i in np.flatnonzero(IMAGE_VALID):
        for t in np.flatnonzero(TEXT_VALID):
            z = 1 if POSITIVES[i, t] else -1
            total += np.log1p(np.exp(-z * (scale * np.dot(image[i], text[t]) + bias)))
    return total, IMAGE_VALID.sum()


def softmax_by_rows(logits):
    """Mean over pictures and mean over texts of -mean over positives of log p."""
    means = []
    for x, right in ((logits, POSITIVES), (logits.T, POSITIVES.T)):
        rows, columns = (IMAGE_VALID, TEXT_VALID) if x is logits else (TEXT_VALID, IMAGE_VALID)
        losses = []
        for i in np.flatnonzero(rows):
            p = np.exp(x[i]) * columns
            if (right[i] & columns).any():
                losses.append(-np.log(p / p.sum(), where=columns, out=np.zeros_like(p))[right[i] & columns].mean())
        means.append(np.mean(losses))
    return np.mean(means)


@pytest.mark.parametrize("chunk", [0, 1, 3, 10, 64])
def test_sigmoid_equals_a_loop_over_pairs(chunk):
    got = sigmoid_contrastive(
        IMAGE, TEXT, scale=7.0, bias=-2.0, positives=POSITIVES, image_valid=IMAGE_VALID, text_valid=TEXT_VALID,
        chunk=chunk,
    )  # fmt: skip
    np.testing.assert_allclose(got, sigmoid_by_pairs(IMAGE.astype(float), TEXT.astype(float), 7.0, -2.0), rtol=1e-6)


@pytest.mark.parametrize("chunk", [3, 5])
def test_chunked_sigmoid_has_the_gradients_of_the_dense_one(chunk):
    def loss(image, text, scale, bias, chunk):
        masks = {"positives": POSITIVES, "image_valid": IMAGE_VALID, "text_valid": TEXT_VALID}
        return sigmoid_contrastive(image, text, scale=scale, bias=bias, chunk=chunk, **masks)[0]

    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)), static_argnums=4)
    for ours, theirs in zip(
        gradients(IMAGE, TEXT, 7.0, -2.0, chunk), gradients(IMAGE, TEXT, 7.0, -2.0, 0), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_softmax_equals_a_loop_over_rows():
    loss, weight = softmax_contrastive(
        IMAGE, TEXT, scale=7.0, positives=POSITIVES, image_valid=IMAGE_VALID, text_valid=TEXT_VALID
    )
    np.testing.assert_allclose(loss / weight, softmax_by_rows(7.0 * IMAGE.astype(float) @ TEXT.T), rtol=1e-6)
    assert weight == 4


def test_softmax_on_the_diagonal_is_clip():
    logits = 10 * IMAGE @ TEXT[:B].T
    loss, weight = softmax_contrastive(IMAGE, TEXT[:B], scale=10.0, positives=np.eye(B, dtype=bool))
    both = -(np.diag(jax.nn.log_softmax(logits, 0)) + np.diag(jax.nn.log_softmax(logits, 1))) / 2
    np.testing.assert_allclose(loss / weight, both.mean(), rtol=1e-6)


def test_embeddings_that_are_all_alike_cost_log_of_the_batch():
    same = np.ones((B, E), np.float32) / np.sqrt(E)
    loss, weight = softmax_contrastive(same, same, scale=10.0, positives=np.eye(B, dtype=bool))
    np.testing.assert_allclose(loss / weight, np.log(B), rtol=1e-6)


def test_sigmoid_starts_at_a_known_value():
    # Zhai et al., 2023: scale 10, bias -10, orthogonal pairs: every negative costs log(1 + e^-10), a positive 10 more.
    loss, weight = sigmoid_contrastive(
        np.eye(8)[:4], np.eye(8)[4:], scale=10.0, bias=-10.0, positives=np.eye(4, dtype=bool)
    )
    np.testing.assert_allclose(loss / weight, 4 * np.log1p(np.exp(-10)) + 10, rtol=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_invalid_rows_change_neither_value_nor_gradient(loss):
    def value(image, text):
        masks = {"positives": POSITIVES, "image_valid": IMAGE_VALID, "text_valid": TEXT_VALID}
        if loss == "softmax":
            return softmax_contrastive(image, text, scale=7.0, **masks)[0]
        return sigmoid_contrastive(image, text, scale=7.0, bias=-2.0, **masks)[0]

    spoilt_image, spoilt_text = IMAGE.copy(), TEXT.copy()
    spoilt_image[~IMAGE_VALID], spoilt_text[~TEXT_VALID] = 1.0, -1.0
    assert value(IMAGE, TEXT) == value(spoilt_image, spoilt_text)
    image_gradient, text_gradient = jax.grad(value, (0, 1))(IMAGE, TEXT)
    assert not np.asarray(image_gradient)[~IMAGE_VALID].any() and not np.asarray(text_gradient)[~TEXT_VALID].any()
    assert np.isfinite(image_gradient).all() and np.isfinite(text_gradient).all()


def test_an_empty_batch_costs_nothing_and_has_no_nan():
    nothing = np.zeros(B, bool)
    for loss in (
        lambda x: softmax_contrastive(x, TEXT, scale=7.0, positives=POSITIVES, image_valid=nothing),
        lambda x: sigmoid_contrastive(x, TEXT, scale=7.0, bias=0.0, positives=POSITIVES, image_valid=nothing),
    ):
        with jax.debug_nans(True):
            assert loss(IMAGE) == (0, 0)
            assert not np.asarray(jax.grad(lambda x, loss=loss: loss(x)[0])(IMAGE)).any()


def test_positives_are_the_pairs_that_some_row_says():
    random = np.random.default_rng(3)
    for _ in range(20):
        image_key, text_key = random.integers(0, 4, B) * 1000, random.integers(-6, 6, M)
        text_valid = random.random(M) < 0.8
        wanted = np.zeros((B, M), bool)
        for i in range(B):
            for j in range(M):
                said = (image_key[OWNER] == image_key[i]) & (text_key == text_key[j]) & text_valid
                wanted[i, j] = said.any()
        got = np.asarray(jax.jit(positives_from_keys)(image_key, OWNER, text_key, text_valid))
        np.testing.assert_array_equal(got, wanted)


def test_a_caption_shared_by_two_pictures_is_right_for_both():
    positives = positives_from_keys(np.array([1, 2, 3]), np.array([0, 1, 2]), np.array([7, 7, 8]))
    np.testing.assert_array_equal(positives, [[1, 1, 0], [1, 1, 0], [0, 0, 1]])


def test_a_batch_split_over_four_devices_gives_the_same_loss_and_gradients():
    if jax.device_count() < 4:
        pytest.skip("needs four devices (tests/conftest.py makes eight)")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    image, text = unit((8, E)), unit((16, E))
    keys = np.array([0, 1, 2, 0, 4, 5, 6, 7]), np.repeat(np.arange(8), 2), RANDOM.integers(0, 12, 16)

    def losses(image, text, image_key, row, text_key):
        pairs = positives_from_keys(image_key, row, text_key)
        dense = sigmoid_contrastive(image, text, scale=3.0, bias=-1.0, positives=pairs)[0]
        chunked = sigmoid_contrastive(image, text, scale=3.0, bias=-1.0, positives=pairs, chunk=4)[0]
        return dense + 2 * chunked + 3 * softmax_contrastive(image, text, scale=3.0, positives=pairs)[0]

    step = jax.jit(jax.value_and_grad(losses, (0, 1)))
    alone = step(image, text, *keys)
    split = step(*jax.device_put((image, text, *keys), NamedSharding(mesh, PartitionSpec("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), alone, split)
