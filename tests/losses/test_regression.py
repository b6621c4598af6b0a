import jax
import numpy as np
import optax

from mmjax.losses.regression import huber, squared

RNG = np.random.default_rng(0)
PREDICTED, WANTED = RNG.normal(size=(2, 9)).astype(np.float32) * 3
VALID = np.arange(9) != 4


def test_squared_and_huber_equal_optax_on_valid_rows():
    for delta in (0.5, 1.0, 4.0):
        loss, weight = huber(PREDICTED, WANTED, VALID, delta)
        np.testing.assert_allclose(
            loss, optax.losses.huber_loss(PREDICTED, WANTED, delta=delta)[VALID].sum(), rtol=1e-5
        )
        assert weight == 8
    loss, weight = squared(PREDICTED, WANTED, VALID)
    np.testing.assert_allclose(loss, ((PREDICTED - WANTED) ** 2)[VALID].sum(), rtol=1e-5)


def test_huber_pulls_with_delta_at_most_and_not_where_nothing_is_valid():
    gradient = jax.grad(lambda p: huber(p, WANTED, VALID, 0.5)[0])(PREDICTED)
    assert np.abs(gradient).max() == 0.5 and gradient[4] == 0
