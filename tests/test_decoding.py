"""Generation with a cache against decoding the whole text again for each token; sampling; likelihoods."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import decoding
from mmjax.config import build
from mmjax.decoding import generate, rank, score
from mmjax.errors import ConfigError
from mmjax.generation_config import GenerationConfig
from mmjax.models.decoder import DecoderConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, Tokens, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.next_token import choose

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
        drawn = choose(logits, jax.random.split(jax.random.key(0), 4000), GenerationConfig(**options))
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
        generate(model, params, seen(), GenerationConfig(temperature=1.0), length=2)


def test_score_is_a_log_probability_over_all_continuations():
    model, params = make()
    pairs = jnp.array([[1, a, b] for a in range(9) for b in range(9)])
    memory = Tokens(jnp.repeat(seen(1).x, 81, 0))
    scores = score(model, params, pairs, jnp.ones(pairs.shape, bool), memory)
    assert float(jnp.sum(jnp.exp(scores))) == pytest.approx(1.0, abs=1e-4)
    short = score(model, params, pairs[:1], jnp.array([[1, 1, 0]], bool), Tokens(memory.x[:1]))
    assert float(short[0]) == pytest.approx(float(jax.nn.logsumexp(scores[:9])), abs=1e-4)


def test_beams_are_the_best_of_all_texts_where_they_hold_them_all():
    """Nine beams of two tokens, penalty 0: every first token is a beam, so the best text of all must be found."""
    model, params = make()
    config = GenerationConfig(num_beams=9, length_penalty=0.0)
    got = np.asarray(jax.jit(lambda p: generate(model, p, seen(), config, length=2, eos=-1))(params))
    pairs = jnp.array([[1, a, b] for a in range(9) for b in range(9)])
    memory = jax.tree.map(lambda x: jnp.repeat(x, 81, 0), seen())
    scores = score(model, params, jnp.tile(pairs, (2, 1)), jnp.ones((162, 3), bool), memory).reshape(2, 81)
    np.testing.assert_array_equal(got, np.asarray(pairs)[np.argmax(scores, 1), 1:])


@functools.cache
def written(beams=False, **options):
    """Texts [4, 6] of two memories, two prompts each, as a function of nothing else."""
    model, params = make()
    prompt = jnp.array([[1, 5, 0], [0, 1, 4], [1, 6, 3], [1, 7, 7]])
    mask = jnp.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 1, 1]], bool)
    config = GenerationConfig(**options)

    @jax.jit
    def run(params, memory):
        if beams:
            read = decoding._read(model, params, memory, prompt, mask, 6, False)
            return decoding._by_beams(model, params, read, config, 6, 2, 0)
        return generate(
            model, params, memory, config, length=6, prefix_ids=prompt, prefix_mask=mask,
            rng=jax.random.key(5),
        )  # fmt: skip

    return np.asarray(run(params, seen()))


def test_a_single_beam_is_greedy():
    np.testing.assert_array_equal(written(beams=True, early_stopping=True), written())


def test_draws_depend_on_seed_and_row_alone():
    model, params = make()
    config = GenerationConfig(temperature=1.0)
    draw = jax.jit(
        lambda memory, rows, config=config: generate(
            model, params, memory, config, length=6, rng=jax.random.key(5), rows=rows
        )
    )
    memory = seen(4)
    all_rows = np.asarray(draw(memory, jnp.arange(4)))
    some = jax.tree.map(lambda x: x[jnp.array([3, 1])], memory)
    np.testing.assert_array_equal(draw(some, jnp.array([3, 1])), all_rows[[3, 1]])
    other = GenerationConfig(temperature=1.0, seed=1)
    assert (np.asarray(jax.jit(lambda m: draw.__wrapped__(m, jnp.arange(4), other))(memory)) != all_rows).any()


def test_forced_words_begin_every_text_and_are_read():
    model, params = make()
    free = jax.jit(lambda p: generate(model, p, seen(), length=4))
    told = jax.jit(lambda p: generate(model, p, seen(), length=4, forced=(5, 7)))
    asked = jnp.broadcast_to(jnp.array([1, 5, 7]), (2, 3))
    prompted = jax.jit(lambda p: generate(model, p, seen(), length=4, prefix_ids=asked))
    got = np.asarray(told(params))
    np.testing.assert_array_equal(got[:, :2], [[5, 7]] * 2)
    np.testing.assert_array_equal(got[:, 2:], prompted(params))
    assert (got[:, 2:] != np.asarray(free(params))).any()


@pytest.mark.parametrize("config", [GenerationConfig(), GenerationConfig(num_beams=3)])
def test_decoding_is_one_loop_without_a_second_reading_of_memory_or_prompt(config):
    model, params = make()
    traced = jax.make_jaxpr(lambda p, m: generate(model, p, m, config, length=6))(params, seen())
    loops = [e for e in traced.jaxpr.eqns if e.primitive.name == "while"]
    assert len(loops) == 1
    # A layer: four products with weights and two of attention over the text, two and two over the memory, two of the
    # MLP; then the head. Keys and values of the memory would be two more.
    assert str(loops[0].params["body_jaxpr"]).count("= dot_general") == 2 * (4 + 2 + 2 + 2 + 2) + 1


@pytest.mark.parametrize("at_once", [2, 16])
def test_ranks_of_a_list_are_the_likelihoods_of_its_texts(at_once):
    model, params = make()
    ids = jnp.array([[1, 5, 2, 0], [1, 5, 7, 2], [1, 3, 2, 0], [1, 8, 4, 2], [1, 6, 6, 2]])
    mask = jnp.array([[1, 1, 1, 0], [1] * 4, [1, 1, 1, 0], [1] * 4, [1] * 4], bool)
    got = jax.jit(lambda p: rank(model, p, ids, mask, seen(), at_once=at_once))(params)
    memory = jax.tree.map(lambda x: jnp.repeat(x, 5, 0), seen())
    slow = score(model, params, jnp.tile(ids, (2, 1)), jnp.tile(mask, (2, 1)), memory).reshape(2, 5)
    np.testing.assert_allclose(got, slow, rtol=1e-5, atol=1e-5)
    # The three whose first token is likeliest, and among equal first tokens the first of the list.
    few = np.asarray(jax.jit(lambda p: rank(model, p, ids, mask, seen(), candidates=3, at_once=at_once))(params))
    logits = model.apply({"params": params}, jnp.ones((2, 1), jnp.int32), None, seen(), method="decode").logits[:, 0]
    for row in range(2):
        first = np.asarray(logits)[row, np.asarray(ids[:, 1])]
        kept = np.argsort(-first, kind="stable")[:3]
        np.testing.assert_allclose(few[row, kept], slow[row, kept], rtol=1e-5, atol=1e-5)
        assert np.isneginf(np.delete(few[row], kept)).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_beams": 0}, "num_beams: found 0"),
        ({"top_p": 0.0, "temperature": 1.0}, "top_p: found 0"),
        ({"top_k": 5}, "top_k and top_p change nothing at temperature 0"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature: beams are not drawn"),
        ({"length_penalty": 2.0}, "length_penalty and early_stopping are for beams"),
        ({"length": 3, "min_length": 4}, "min_length: found 4, expected up to length"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: found 0"),
    ],
)
def test_settings_that_do_nothing_or_cannot_be_are_errors(options, says):
    with pytest.raises(ConfigError, match=says):
        build(GenerationConfig, options, "config.tasks.captioning.generation")
