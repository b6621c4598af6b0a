import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.losses.classification import accuracy, balanced, cross_entropy, mixed, sigmoid_cross_entropy

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


def test_row_weights_give_the_weighted_mean_of_the_terms():
    weights = np.array([1.0, 3.0, 9.0, 0.5, 9.0, 2.0])
    loss, weight = cross_entropy(LOGITS, LABELS, VALID, weights=weights)
    terms = np.log(np.exp(LOGITS.astype(np.float64)).sum(-1)) - LOGITS[np.arange(ROWS), np.maximum(LABELS, 0)]
    rows = [0, 1, 3, 5]
    np.testing.assert_allclose(loss / weight, np.average(terms[rows], weights=weights[rows]), rtol=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    y = np.repeat([0, 1, 2], [5, 1, 14])
    np.testing.assert_allclose(balanced([5, 1, 14]), compute_class_weight("balanced", classes=np.arange(3), y=y))
    assert balanced([2, 0, 2]) == (1.0, 0.0, 1.0)


def test_mixed_rows_are_sums_with_the_row_before():
    x, shares = np.arange(12.0).reshape(3, 2, 2), np.array([1.0, 0.25, 0.5])
    out = mixed(x, shares)
    np.testing.assert_allclose(out[0], x[0])
    np.testing.assert_allclose(out[1], 0.25 * x[1] + 0.75 * x[0])
    np.testing.assert_allclose(out[2], 0.5 * (x[2] + x[1]))
