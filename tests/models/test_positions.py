"""Rotary and relative positions against their formulas."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.positions import positions_of, relative_bucket, rope_frequencies, rotate
from mmjax.models.transformer_config import TransformerConfig

CONFIG = TransformerConfig(width=16, heads=2, depth=1, position="rope", rope_theta=100.0).sized()


def test_rotary_scores_depend_on_the_distance_only():
    q, k = (jax.random.normal(jax.random.key(i), (1, 1, 1, 8)) for i in (0, 1))

    def score(i, j):
        turned = (rotate(v, jnp.array([[at]]), rope_frequencies(CONFIG)) for v, at in ((q, i), (k, j)))
        return float(jnp.sum(next(turned) * next(turned)))

    assert score(3, 1) == pytest.approx(score(9, 7), abs=1e-5)
    assert score(3, 1) != pytest.approx(score(3, 2), abs=1e-3)


def test_rotary_turns_the_halves_of_a_head_as_complex_numbers():
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 8))
    turned = rotate(jnp.asarray(x, jnp.float32), jnp.array([[0, 2, 7]]), rope_frequencies(CONFIG))
    for n, position in enumerate((0, 2, 7)):
        for i in range(4):
            want = complex(x[0, n, 1, i], x[0, n, 1, i + 4]) * np.exp(1j * position * 100.0 ** (-i / 4))
            assert complex(turned[0, n, 1, i], turned[0, n, 1, i + 4]) == pytest.approx(want, abs=1e-5)


def test_scaled_rotary_slows_what_turns_seldom():
    plain = rope_frequencies(CONFIG)
    linear = dataclasses.replace(CONFIG, rope_scaling="linear", rope_factor=4.0)
    np.testing.assert_allclose(rope_frequencies(linear), plain / 4, rtol=1e-6)
    llama = dataclasses.replace(
        CONFIG, rope_scaling="llama3", rope_factor=8.0, rope_low_factor=1.0, rope_high_factor=4.0, rope_length=8
    )
    turns = 8 * plain / (2 * math.pi)
    assert turns[0] < 4 and turns[0] > 1 > turns[1]  # one between, the others below
    between = (turns[0] - 1) / 3
    want = [plain[0] * (between + (1 - between) / 8), *(plain[1:] / 8)]
    np.testing.assert_allclose(rope_frequencies(llama), want, rtol=1e-6)
    fast = dataclasses.replace(llama, rope_length=1000)
    np.testing.assert_allclose(rope_frequencies(fast), plain, rtol=1e-6)  # more than four times: unchanged


@pytest.mark.parametrize(("buckets", "longest"), [(32, 128), (8, 20), (16, 12), (10, 9)])
@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets_equal_a_search_for_their_edges(buckets, longest, causal):
    share = buckets if causal else buckets // 2
    exact = share // 2
    # Bucket exact + k begins at exact * (longest / exact) ** (k / (share - exact)), in exact arithmetic.
    edges = [exact * (longest / exact) ** (k / (share - exact)) for k in range(share - exact)]

    def bucket(distance):
        after = 0 if causal or distance <= 0 else share
        far = max(0, -distance) if causal else abs(distance)
        if far < exact:
            return after + far
        return after + exact + sum(edge <= far * (1 + 1e-9) for edge in edges) - 1

    distances = list(range(-2 * longest, 2 * longest))
    got = relative_bucket(jnp.array(distances), buckets, longest, causal)
    assert got.tolist() == [bucket(d) for d in distances]
    assert max(got.tolist()) == buckets - 1


def test_positions_count_real_tokens_of_each_packed_row():
    mask = jnp.array([[0, 1, 1, 0, 1]], bool)
    assert positions_of((1, 5), mask).tolist() == [[0, 0, 1, 1, 2]]
    segments = jnp.array([[1, 1, 2, 2, 0]])
    assert positions_of((1, 5), segments > 0, segments=segments)[0, :4].tolist() == [0, 1, 0, 1]
