import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.losses.classification import accuracy, cross_entropy, sigmoid_cross_entropy

ROWS, CLASSES = 6, 5
LOGITS = np.random.default_rng(0).normal(size=(ROWS, CLASSES)).astype(np.float32) * 3
LABELS = np.array([0, 4, -1, 2, 2, 1])
VALID = np.array([True, True, True, True, False, True])


def test_uniform_logits_cost_log_of_the_number_of_classes():
    for smoothing in (0.0, 0.1):
        loss, weight = cross_entropy(jnp.full((4, 7), 2.5), jnp.arange(4), label_smoothing=smoothing)
        np.testing.assert_allclose(loss / weight, np.log(7), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_value_and_gradient_equal_the_one_hot_formula(smoothing):
    counted = VALID & (LABELS >= 0)

    def dense(logits):
        targets = optax.smooth_labels(jax.nn.one_hot(LABELS, CLASSES), smoothing)
        return (optax.softmax_cross_entropy(logits, targets) * counted).sum()

    ours = lambda logits: cross_entropy(logits, LABELS, VALID, label_smoothing=smoothing)[0]  # noqa: E731
    np.testing.assert_allclose(ours(LOGITS), dense(LOGITS), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(ours)(LOGITS), jax.grad(dense)(LOGITS), atol=1e-6)
    assert cross_entropy(LOGITS, LABELS, VALID)[1] == counted.sum() == 4


def test_rows_without_label_or_validity_change_nothing_even_when_not_finite():
    spoilt = LOGITS.copy()
    spoilt[2], spoilt[4] = np.inf, np.nan
    assert cross_entropy(spoilt, LABELS, VALID) == cross_entropy(LOGITS, LABELS, VALID)
    gradient = jax.grad(lambda x: cross_entropy(x, LABELS, VALID)[0])(LOGITS)
    assert not np.asarray(gradient)[[2, 4]].any()


def test_accuracy_counts_labelled_valid_rows_only():
    right = sum(int(np.argmax(LOGITS[i]) == LABELS[i]) for i in (0, 1, 3, 5))
    assert accuracy(LOGITS, LABELS, VALID) == (right, 4)
    assert accuracy(np.eye(3), np.array([0, 1, -1])) == (2, 2)


def test_sigmoid_equals_the_two_logarithms_and_takes_soft_targets():
    targets = np.random.default_rng(1).random((ROWS, CLASSES))
    p = 1 / (1 + np.exp(-LOGITS.astype(np.float64)))
    terms = -(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(axis=1)
    loss, weight = sigmoid_cross_entropy(LOGITS, targets, VALID)
    np.testing.assert_allclose(loss, terms[VALID].sum(), rtol=1e-6)
    assert weight == 5
    assert np.isfinite(sigmoid_cross_entropy(np.full((1, 2), 1e4), np.array([[0, 1]]))[0])


def test_bf16_logits_are_summed_in_float32():
    logits = jnp.asarray(LOGITS, jnp.bfloat16)
    loss, weight = cross_entropy(logits, LABELS)
    assert loss.dtype == weight.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(logits.astype(jnp.float32), LABELS)[0], rtol=1e-6)
