import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses.language import next_token_loss, next_token_loss_chunked, token_accuracy

B, L, D, V = 3, 8, 4, 11
RANDOM = np.random.default_rng(0)
IDS = RANDOM.integers(0, V, (B, L))
MASK = np.arange(L) < np.array([[8], [5], [2]])
HIDDEN = RANDOM.normal(size=(B, L, D)).astype(np.float32)
EMBEDDING = RANDOM.normal(size=(V, D)).astype(np.float32)
LOGITS = HIDDEN @ EMBEDDING.T


def token_by_token(logits, smoothing):
    total, count, right = 0.0, 0, 0
    for b in range(B):
        for t in range(1, L):
            if MASK[b, t]:
                logp = logits[b, t - 1] - np.log(np.exp(logits[b, t - 1]).sum())
                total -= (1 - smoothing) * logp[IDS[b, t]] + smoothing * logp.mean()
                right += np.argmax(logp) == IDS[b, t]
                count += 1
    return total, count, right


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_a_loop_over_tokens(smoothing):
    total, count, right = token_by_token(LOGITS.astype(np.float64), smoothing)
    loss, weight = next_token_loss(LOGITS, IDS, MASK, label_smoothing=smoothing)
    np.testing.assert_allclose(loss, total, rtol=1e-6)
    assert weight == count == 12
    assert token_accuracy(LOGITS, IDS, MASK) == (right, count)


def test_uniform_logits_cost_log_of_the_vocabulary():
    loss, weight = next_token_loss(jnp.zeros((B, L, V)), IDS, MASK)
    np.testing.assert_allclose(loss / weight, np.log(V), rtol=1e-6)


def test_the_last_position_and_padding_change_nothing():
    spoilt_logits, spoilt_ids = LOGITS.copy(), IDS.copy()
    spoilt_logits[:, -1], spoilt_logits[1, 4:], spoilt_logits[2, 1:] = np.nan, np.nan, np.nan
    spoilt_ids[~MASK] = -100
    assert next_token_loss(spoilt_logits, spoilt_ids, MASK) == next_token_loss(LOGITS, IDS, MASK)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_chunked_equals_dense_in_value_and_gradients(chunk, smoothing):
    def dense(hidden, embedding):
        return next_token_loss(hidden @ embedding.T, IDS, MASK, label_smoothing=smoothing)[0]

    def chunked(hidden, embedding):
        return next_token_loss_chunked(hidden, embedding, IDS, MASK, chunk, label_smoothing=smoothing)[0]

    wanted, wanted_gradients = jax.value_and_grad(dense, (0, 1))(HIDDEN, EMBEDDING)
    got, gradients = jax.jit(jax.value_and_grad(chunked, (0, 1)))(HIDDEN, EMBEDDING)
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    for ours, theirs in zip(gradients, wanted_gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())
    assert next_token_loss_chunked(HIDDEN, EMBEDDING, IDS, MASK, chunk)[1] == 12


def test_chunked_never_holds_all_logits():
    def step(hidden, embedding):
        return next_token_loss_chunked(hidden, embedding, ids, mask, 16)[0]

    length, vocabulary = 257, 1000
    ids, mask = np.zeros((2, length), int), np.ones((2, length), bool)
    shapes = jax.ShapeDtypeStruct((2, length, D), jnp.float32), jax.ShapeDtypeStruct((vocabulary, D), jnp.float32)
    compiled = jax.jit(jax.grad(step, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2 * length * vocabulary * 4 / 2
