"""Generation with a cache against decoding the whole text again for each token; sampling; likelihoods."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.decoding import generate, next_token, score
from mmjax.models.decoder import DecoderConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, Tokens, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig

SMALL = {"width": 8, "depth": 2, "heads": 2, "mlp_dim": 8}


@functools.cache
def make(memory="cross_attention", position="learned"):
    """A model whose logits are wide apart, so that greedy choices are no ties, and follow what was written."""
    decoder = DecoderConfig(**SMALL, memory=memory, position=position, length=32, kv_heads=1)
    config = ModelConfig(patch_encoder=PatchEncoderConfig(**SMALL, patch=4), decoder=decoder)
    model = Multimodal(config, (4, 4), tokens=TokenIds(vocab_size=9))
    params = jax.jit(lambda key: nn.unbox(initialise(model, key)))(jax.random.key(0))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    scales = [1.5 if v.ndim > 1 else 0.1 for v in leaves]  # large biases would make every token the same
    moved = [v + s * jax.random.normal(k, v.shape) for v, s, k in zip(leaves, scales, keys, strict=True)]
    return model, treedef.unflatten(moved)


def seen(rows=2):
    mask = jnp.arange(3) < jnp.array([[3], [2], [1], [3]])[:rows]
    return Tokens(jax.random.normal(jax.random.key(3), (rows, 3, 8)), mask)


def slowly(model, params, memory, prompt, mask, length):
    """The likeliest next token of the whole text, again and again: no cache."""
    decode = jax.jit(lambda ids, mask: model.apply({"params": params}, ids, mask, memory, method="decode").logits)
    ids, written = prompt, []
    done = np.zeros(len(prompt), bool)
    at = np.max(np.where(mask, np.arange(prompt.shape[1]), 0), 1)
    for _ in range(length):
        pad = ((0, 0), (0, prompt.shape[1] + length - ids.shape[1]))
        logits = np.asarray(decode(np.pad(ids, pad), np.pad(mask, pad)))
        token = np.where(done, model.tokens.pad, np.argmax(logits[np.arange(len(ids)), at], -1))
        mask = np.concatenate([mask, ~done[:, None]], 1)
        done = done | (token == model.tokens.eos)
        ids = np.concatenate([ids, token[:, None]], 1)
        at = np.full(len(ids), ids.shape[1] - 1)
        written.append(token)
    return np.stack(written, 1)


@pytest.mark.parametrize("memory", ["cross_attention", "gated_cross_attention", "prefix"])
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_cached_generation_equals_decoding_without_cache(memory, position):
    model, params = make(memory, position)
    # Three prompts for each of two pictures, padded on the right, on the left and not at all.
    prompt = np.array([[1, 5, 0], [0, 1, 4], [1, 6, 3], [1, 7, 7], [1, 0, 0], [1, 8, 5]])
    mask = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0], [1, 1, 1]], bool)
    fast = jax.jit(
        lambda p, m: generate(model, p, m, length=6, prefix_ids=jnp.asarray(prompt), prefix_mask=jnp.asarray(mask))
    )
    got = np.asarray(fast(params, seen()))
    np.testing.assert_array_equal(got, slowly(model, params, seen(), prompt, mask, 6))
    assert len(np.unique(got)) > 2  # a model that repeats itself would prove nothing


@pytest.mark.parametrize("memory", ["cross_attention", "gated_cross_attention", "prefix"])
def test_logits_by_a_cache_in_pieces_equal_those_of_the_whole_text(memory):
    model, params = make(memory, "rope")
    ids, mask = jax.random.randint(jax.random.key(7), (4, 6), 3, 9), jnp.ones((4, 6), bool).at[1, 2].set(False)
    decode = functools.partial(model.apply, {"params": params}, method="decode")

    @jax.jit
    def in_pieces(memory):
        cache = model.apply({"params": params}, 4, 6, memory, method="start_cache")
        pieces = []
        for start, stop in ((0, 3), (3, 4), (4, 6)):
            given = memory if start == 0 else None
            out = decode(ids[:, start:stop], mask[:, start:stop], given, cache=cache)
            cache, pieces = out.cache, [*pieces, out.logits]
        return jnp.concatenate(pieces, 1)

    whole = jax.jit(lambda memory: decode(ids, mask, memory).logits)(seen())
    largest = float(jnp.max(jnp.abs(whole)))
    np.testing.assert_allclose(in_pieces(seen())[mask], whole[mask], rtol=0, atol=1e-5 * largest)


def test_rows_are_padded_after_their_end_and_the_loop_stops_when_all_are_done():
    model, params = make()
    free = np.asarray(generate(model, params, seen(), length=6, eos=-1))
    eos = int(free[0, 1])
    ids = np.asarray(generate(model, params, seen(), length=6, eos=eos))
    for row, whole in zip(ids, free, strict=True):
        end = np.flatnonzero(whole == eos)
        stop = end[0] + 1 if len(end) else 6
        np.testing.assert_array_equal(row, np.r_[whole[:stop], np.zeros(6 - stop)])


def test_sampling_follows_temperature_top_k_and_top_p():
    logits = jnp.broadcast_to(jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05])), (4000, 4))

    def share(**options):
        drawn = next_token(logits, jax.random.key(0), **options)
        return np.bincount(np.asarray(drawn), minlength=4) / 4000

    np.testing.assert_allclose(share(temperature=1.0), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    squares = np.array([0.25, 0.09, 0.0225, 0.0025])
    np.testing.assert_allclose(share(temperature=0.5), squares / squares.sum(), atol=0.03)
    np.testing.assert_allclose(share(temperature=1.0, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(share(temperature=1.0, top_p=0.7), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(share(temperature=1.0, top_p=0.01), [1, 0, 0, 0])
    np.testing.assert_allclose(share(), [1, 0, 0, 0])


def test_drawing_without_a_key_is_an_error():
    model, params = make()
    with pytest.raises(ValueError, match="temperature > 0 needs rng"):
        generate(model, params, seen(), length=2, temperature=1.0)


def test_score_is_a_log_probability_over_all_continuations():
    model, params = make()
    pairs = jnp.array([[1, a, b] for a in range(9) for b in range(9)])
    memory = Tokens(jnp.repeat(seen(1).x, 81, 0))
    scores = score(model, params, pairs, jnp.ones(pairs.shape, bool), memory)
    assert float(jnp.sum(jnp.exp(scores))) == pytest.approx(1.0, abs=1e-4)
    short = score(model, params, pairs[:1], jnp.array([[1, 1, 0]], bool), Tokens(memory.x[:1]))
    assert float(short[0]) == pytest.approx(float(jax.nn.logsumexp(scores[:9])), abs=1e-4)
