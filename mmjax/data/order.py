"""Which row comes when, and every random choice about a row: pure functions of (seed, epoch, row) in NumPy.

There is no generator state to save: the data state of a run is its step. A choice about a row depends on nothing but
the run's seed, the epoch and the row's number, so not on the batch, the worker, the process or the order of reading.
"""

from __future__ import annotations

import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ROUNDS = 8  # with 4 rounds of RandomIndexShuffle neighbours were seen to stay neighbours; the cost is linear


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014): a bijection of uint64; an input bit moves half the output."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * _M1
        x = (x ^ (x >> np.uint64(27))) * _M2
        return x ^ (x >> np.uint64(31))


def _unsigned(x: np.ndarray | int) -> np.ndarray:
    return np.asarray(x, np.int64).astype(np.uint64)


def row_keys(seed: int, epochs: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """epochs, rows [B] int64 -> [B] uint64: the key of all random choices about a row in an epoch."""
    with np.errstate(over="ignore"):
        key = mix(_unsigned(seed) + _GOLDEN)
        key = mix(key + _unsigned(epochs) * _GOLDEN)
        return mix(key ^ mix(_unsigned(rows) + _GOLDEN))


def uniforms(keys: np.ndarray, purpose: int, count: int) -> np.ndarray:
    """keys [B] uint64 -> [B, count] float64 in [0, 1). Each `purpose` (a small number) has numbers of its own."""
    counter = (np.uint64(purpose) << np.uint64(32)) + np.arange(1, count + 1, dtype=np.uint64)
    with np.errstate(over="ignore"):
        bits = mix(keys[:, None] + counter * _GOLDEN)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(index: np.ndarray, n: int, seed: int, epoch: np.ndarray) -> np.ndarray:
    """Position -> row: a permutation of range(n) for each (seed, epoch), computed for single positions in O(1) memory.

    A Feistel network on pairs (left, right) of Z_a x Z_b with a * b just above n; a position that lands outside of
    range(n) walks on along its cycle until it is inside again (Black and Rogaway, 2002: generalised Feistel cipher).

    Args:
      index: [B] int64, positions in range(n).
      n: rows of the source, at least 1.
      seed: the run's seed.
      epoch: [B] int64 (or a scalar).

    Returns:
      [B] int64, rows in range(n).
    """
    shape = np.shape(index)
    x = _unsigned(index).reshape(-1)
    a = math.isqrt(n - 1) + 1
    a, b = np.uint64(a), np.uint64(-(-n // a))
    n = np.uint64(n)
    keys = row_keys(seed, np.broadcast_to(epoch, shape).reshape(-1), np.zeros_like(x, np.int64))
    x = _feistel(x, a, b, keys)
    outside = np.flatnonzero(x >= n)
    while outside.size:
        x[outside] = _feistel(x[outside], a, b, keys[outside])
        outside = outside[x[outside] >= n]
    return x.astype(np.int64).reshape(shape)


def _feistel(x: np.ndarray, a: np.uint64, b: np.uint64, keys: np.ndarray) -> np.ndarray:
    """A keyed bijection of range(a * b); x, keys [B] uint64, a and b below 2**32."""
    left, right = x // b, x % b
    half = np.uint64(32)
    with np.errstate(over="ignore"):
        for number in range(_ROUNDS):
            key = keys + np.uint64(number + 1) * _GOLDEN
            if number % 2:
                right = right + (((mix(left ^ mix(key)) >> half) * b) >> half)
                right = np.where(right >= b, right - b, right)
            else:
                left = left + (((mix(right ^ mix(key)) >> half) * a) >> half)
                left = np.where(left >= a, left - a, left)
    return left * b + right


def rows_at(step: int, batch: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of training step `step`: -> (rows [batch] int64, epochs [batch] int64). A batch may lie across epochs."""
    index = np.int64(step) * batch + np.arange(batch, dtype=np.int64)
    epochs = index // n
    return permute(index % n, n, seed, epochs), epochs
