import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.models.attention import attend

B, NQ, NK, H, D = 2, 5, 7, 4, 3


def qkv(kv_heads=H, dtype=jnp.float32, length=NQ):
    generator = np.random.default_rng(0)
    shapes = (B, length, H, D), (B, NK, kv_heads, D), (B, NK, kv_heads, D)
    return [jnp.asarray(generator.normal(size=shape), dtype) for shape in shapes]


def naive(q, k, v, mask=None, bias=0.0, scale=D**-0.5):
    """Row by row in float64."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    shape = (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
    mask = np.broadcast_to(True if mask is None else mask, shape)
    bias = np.broadcast_to(np.asarray(bias, np.float64), shape)
    out = np.zeros_like(q)
    for b, h, i in np.ndindex(*shape[:3]):
        keys = np.flatnonzero(mask[b, h, i])
        if not keys.size:
            continue
        group = h * k.shape[2] // q.shape[2]
        logits = scale * k[b, keys, group] @ q[b, i, h] + bias[b, h, i, keys]
        weights = np.exp(logits - logits.max())
        out[b, i, h] = weights / weights.sum() @ v[b, keys, group]
    return out


def repeated(q, k, v, mask):
    """Keys repeated, plain einsums, autodiff: a second truth for gradients where no row is empty."""
    k, v = (jnp.repeat(a, q.shape[2] // a.shape[2], axis=2) for a in (k, v))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, logits, -1e9)), v)


PADDING = (np.arange(NK) < np.array([[3], [NK]]))[:, None, None, :]
CAUSAL = np.tril(np.ones((NQ, NK), bool), NK - NQ)
MASKS = {"none": None, "padding": PADDING, "causal": CAUSAL, "both": PADDING & CAUSAL}


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_equals_row_by_row_numpy(mask, kv_heads):
    args = qkv(kv_heads)
    np.testing.assert_allclose(attend(*args, mask=MASKS[mask]), naive(*args, MASKS[mask]), atol=2e-6)


def test_bias_and_scale_enter_the_logits():
    args = qkv(2)
    bias = np.random.default_rng(1).normal(size=(H, NQ, NK)).astype(np.float32)
    np.testing.assert_allclose(attend(*args, bias=bias, scale=0.3), naive(*args, bias=bias, scale=0.3), atol=2e-6)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_gradients_equal_autodiff_with_repeated_keys(kv_heads):
    args, g = qkv(kv_heads), qkv()[0]
    found = jax.vjp(lambda *a: attend(*a, mask=PADDING), *args)[1](g)
    want = jax.vjp(lambda *a: repeated(*a, PADDING), *args)[1](g)
    for x, y in zip(found, want, strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_row_that_may_read_nothing_is_zero_with_zero_gradient(dtype):
    args = qkv(2, dtype)
    mask = np.ones((B, 1, NQ, NK), bool)
    mask[0] = False  # all rows of the first example
    mask[1, :, 2] = False  # one row of the second
    bias = jnp.zeros((B, H, NQ, NK))
    out, backward = jax.vjp(lambda *a: attend(*a[:3], mask=mask, bias=a[3]), *args, bias)
    assert out.dtype == dtype
    assert not np.asarray(out[0], np.float32).any() and not np.asarray(out[1, 2], np.float32).any()
    assert np.asarray(out[1, 1], np.float32).all()
    dq, dk, dv, dbias = (np.asarray(a, np.float32) for a in backward(jnp.ones_like(out)))
    assert all(np.isfinite(a).all() for a in (dq, dk, dv, dbias))
    assert not any(a[0].any() for a in (dq, dk, dv, dbias))
    assert not dq[1, 2].any() and not dbias[1, :, 2].any()
    assert dq[1, 1].any() and dk[1].any() and dv[1].any()


def test_masked_keys_change_nothing_however_large():
    q, k, v = qkv()
    junk = jnp.where(PADDING[:, 0, 0, :, None, None], k, 1e30)
    np.testing.assert_array_equal(attend(q, junk, v, mask=PADDING), attend(q, k, v, mask=PADDING))


def test_bf16_stays_near_float32_and_returns_bf16():
    args = qkv(2, jnp.bfloat16, length=NQ)
    out = attend(*args, mask=PADDING)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), naive(*args, PADDING), atol=2**-6)


def test_key_heads_that_do_not_divide_raise():
    q, k, v = qkv(3)
    with pytest.raises(ConfigError, match="3 key heads for 4 query heads"):
        attend(q, k, v)
