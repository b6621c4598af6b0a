"""Writing text: generation with a cache in one `lax.while_loop`, and the likelihood of given texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import beam_search
from mmjax.generation_config import GREEDY, GenerationConfig
from mmjax.models.multimodal import Multimodal
from mmjax.models.transformer import Cache, Tokens
from mmjax.next_token import adjusted, choose

if TYPE_CHECKING:
    from mmjax.data.processor import Processor


def forced_ids(config: GenerationConfig, processor: Processor) -> np.ndarray:
    """Ids [F] int32 of `config.prefix`, F >= 0."""
    if not config.prefix:
        return np.zeros(0, np.int32)
    return np.array(processor.tokenizer.tokens([processor.cleaned(config.prefix)])[0], np.int32)


class _Prompt(NamedTuple):
    """ids, mask: [B, P], padded on the left; logits: [B, V] of the token after them, and the cache that holds them."""

    ids: jax.Array
    mask: jax.Array
    logits: jax.Array
    cache: Cache


def generate(
    model: Multimodal,
    params: Mapping[str, Any],
    memory: Tokens | None = None,
    config: GenerationConfig = GREEDY,
    *,
    length: int = 0,
    bos: int | None = None,
    eos: int | None = None,
    pad: int | None = None,
    prefix_ids: jax.Array | None = None,
    prefix_mask: jax.Array | None = None,
    prefix_full: bool | jax.Array = False,
    forced: Sequence[int] | np.ndarray = (),
    placed: bool = False,
    rng: jax.Array | None = None,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Token ids [B, F + length] int32 that follow the prompt: forced, then ... eos pad pad. Ends when all rows have.

    Pure, to be jitted by the caller with everything but arrays static. bos, eos, pad: the model's where None. The
    prompt and the memory are read once; the beams of a row share its memory.

    Args:
      memory: [Bm, N, D], Bm dividing B.
      length: most tokens to write; `config.length` goes before it.
      prefix_ids, prefix_mask: [B, P], the prompt, bos included; padding may stand anywhere. None: bos alone, a row a
        memory row.
      prefix_full: the prompt is read both ways (PaliGemma); [B, P] bool: these tokens of it.
      forced: ids [F] that every text begins with.
      placed: the prompt holds the `<image>` placeholders (see `Decoder`).
      rng: key of the draws at a temperature above 0. Row i draws by (rng, config.seed, rows[i]) alone.
      rows: [B] int; None counts them.
    """
    if config.temperature > 0 and rng is None:
        raise ValueError("generate: temperature > 0 needs rng.")
    if prefix_ids is None and memory is None:
        raise ValueError("generate: neither memory nor prefix_ids; the number of rows is unknown.")
    own, length = model.tokens, config.length or length
    bos, eos, pad = (own.bos if bos is None else bos, own.eos if eos is None else eos, own.pad if pad is None else pad)
    if prefix_ids is None:
        prefix_ids = jnp.full((memory.x.shape[0], 1), bos, jnp.int32)
    if prefix_mask is None:
        prefix_mask = jnp.ones(prefix_ids.shape, bool)
    both_ways = None if prefix_full is False else jnp.pad(prefix_mask & prefix_full, ((0, 0), (0, len(forced))))
    begun = jnp.broadcast_to(jnp.asarray(forced, jnp.int32), (len(prefix_ids), len(forced)))
    prefix_ids = jnp.concatenate([prefix_ids, begun], 1)
    prefix_mask = jnp.concatenate([prefix_mask, jnp.ones(begun.shape, bool)], 1)
    prompt = _read(model, params, memory, prefix_ids, prefix_mask, length, placed, both_ways)
    if config.num_beams > 1:
        written = _by_beams(model, params, prompt, config, length, eos, pad)
    else:
        keys = None
        if config.temperature > 0:
            rows = jnp.arange(len(prefix_ids)) if rows is None else rows
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(rng, config.seed), rows)
        written = _one_by_one(model, params, prompt, config, length, eos, pad, keys)
    return jnp.concatenate([begun, written], 1)


def _read(
    model: Multimodal,
    params: Mapping[str, Any],
    memory: Tokens | None,
    ids: jax.Array,
    mask: jax.Array,
    length: int,
    placed: bool,
    both_ways: jax.Array | None = None,
) -> _Prompt:
    """The prompt through the decoder, into a cache with room for `length` tokens more. both_ways: [B, P] bool, tokens
    that those before them see too.
    """
    order = jnp.argsort(mask, axis=1, stable=True)  # padding first: every row's last token is in the last slot
    ids, mask = jnp.take_along_axis(ids, order, 1), jnp.take_along_axis(mask, order, 1)
    both_ways = None if both_ways is None else jnp.take_along_axis(both_ways, order, 1)
    in_front = None if placed else memory  # placeholders are slots of the prompt already
    variables = {"params": params}
    cache = model.apply(variables, len(ids), ids.shape[1] + length, in_front, method="start_cache")
    decoded = model.apply(variables, ids, mask, memory, cache=cache, prefix=both_ways, placed=placed, method="decode")
    # From the last hidden vector alone: the head over the whole prompt would be its largest product.
    logits = model.apply(variables, decoded.hidden[:, -1:], method="decoder_logits")[:, 0]
    return _Prompt(ids, mask, logits, decoded.cache)


def _next(
    model: Multimodal, params: Mapping[str, Any], token: jax.Array, real: jax.Array, cache: Cache
) -> tuple[jax.Array, Cache]:
    """Logits [R, V] after one token more [R]; one that is not real is seen by none."""
    decoded = model.apply({"params": params}, token[:, None], real[:, None], cache=cache, method="decode")
    return decoded.logits[:, 0], decoded.cache


def _text(prompt: _Prompt, length: int) -> jax.Array:
    """[B, P + length]: the prompt and free slots, V where there is no token."""
    none = prompt.logits.shape[1]
    ids = jnp.where(prompt.mask, prompt.ids, none)
    return jnp.pad(ids, ((0, 0), (0, length)), constant_values=none)


def _one_by_one(
    model: Multimodal,
    params: Mapping[str, Any],
    prompt: _Prompt,
    config: GenerationConfig,
    length: int,
    eos: int,
    pad: int,
    keys: jax.Array | None,
) -> jax.Array:
    """[B, length]: the likeliest token each time, or one that is drawn."""
    start = prompt.ids.shape[1]

    def write(text, logits, done, step):
        scores = adjusted(logits, text, start + step, step, config, eos)
        drawn = None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        token = jnp.where(done, pad, choose(scores, drawn, config))
        return text.at[:, start + step].set(token), token, done | (token == eos)

    def unfinished(state):
        step, _, _, done, _ = state
        return (step < length) & ~jnp.all(done)

    def go_on(state):
        step, text, token, done, cache = state
        logits, cache = _next(model, params, token, ~done, cache)
        return step + 1, *write(text, logits, done, step), cache

    first = write(_text(prompt, length), prompt.logits, jnp.zeros(len(prompt.ids), bool), jnp.int32(0))
    text = jax.lax.while_loop(unfinished, go_on, (jnp.int32(1), *first, prompt.cache))[1][:, start:]
    return jnp.where(text < prompt.logits.shape[1], text, pad)  # slots that were never reached


def _by_beams(
    model: Multimodal,
    params: Mapping[str, Any],
    prompt: _Prompt,
    config: GenerationConfig,
    length: int,
    eos: int,
    pad: int,
) -> jax.Array:
    """[B, length]: the best text of each row by beam search."""
    rows, start, count = *prompt.ids.shape, config.num_beams
    text = _text(prompt, 0)

    def extend(beams, logits, step):
        written = jnp.where(jnp.arange(length) < step, beams.ids.reshape(rows * count, length), logits.shape[-1])
        known = jnp.concatenate([jnp.repeat(text, count, 0), written], 1)
        log_probs = adjusted(jax.nn.log_softmax(logits), known, start + step, step, config, eos)
        return beam_search.extend(
            beams,
            log_probs.reshape(rows, count, -1),
            step,
            eos=eos,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
        )

    def unfinished(state):
        step, beams, _, _ = state
        return (step < length) & beam_search.unfinished(beams, early_stopping=config.early_stopping)

    def go_on(state):
        step, beams, parent, cache = state
        source = (jnp.arange(rows)[:, None] * count + parent).reshape(-1)
        token = beams.ids[:, :, step - 1].reshape(-1)
        logits, cache = _next(model, params, token, jnp.ones(len(token), bool), _rows_of(cache, source))
        return step + 1, *extend(beams, logits, step), cache

    cache = _rows_of(prompt.cache, jnp.repeat(jnp.arange(rows), count))
    first = extend(
        beam_search.start(rows, count, length, pad), jnp.repeat(prompt.logits, count, 0), jnp.zeros((), jnp.int32)
    )
    return jax.lax.while_loop(unfinished, go_on, (jnp.int32(1), *first, cache))[1].best_ids[:, 0]


def _rows_of(cache: Cache, source: jax.Array) -> Cache:
    """A cache whose row r is what row source[r] was. The memory is not touched: the rows that read it stay together."""
    own = ({name: layer[name][source] for name in ("k", "v")} for layer in cache.layers)
    layers = tuple(layer | moved for layer, moved in zip(cache.layers, own, strict=True))
    return cache._replace(layers=layers, valid=cache.valid[source])


def rank(
    model: Multimodal,
    params: Mapping[str, Any],
    ids: jax.Array,
    mask: jax.Array,
    memory: Tokens,
    *,
    candidates: int = 0,
    at_once: int = 16,
) -> jax.Array:
    """Log-likelihood [B, A] float32 of each of A texts as what follows the memory.

    BLIP's way to answer from a list (Li et al., 2022): with `candidates` below A, only so many texts a row are scored,
    those whose first token is likeliest; the others are -inf.

    Args:
      ids, mask: [A, L], `bos tokens eos pad`, L >= 2.
      memory: [B, N, D], read once for all texts.
      at_once: texts a row that are decoded together.
    """
    rows, (texts, length) = memory.x.shape[0], ids.shape
    bos = jnp.broadcast_to(ids[:1, :1], (rows, 1))
    prompt = _read(model, params, memory, bos, jnp.ones((rows, 1), bool), length - 2, placed=False)
    first = jax.nn.log_softmax(prompt.logits)[:, ids[:, 1]]  # [B, A]
    kept = min(candidates or texts, texts)
    chosen = jax.lax.top_k(first, kept)[1] if kept < texts else jnp.broadcast_to(jnp.arange(texts), (rows, texts))
    if length == 2:
        scores = jnp.take_along_axis(first, chosen, 1)
    else:
        at_once = min(at_once, kept)
        cache = _rows_of(prompt.cache, jnp.repeat(jnp.arange(rows), at_once))

        def tail(index):  # [B, at_once] texts -> log-likelihood after their first token
            given, real = ids[index].reshape(-1, length), mask[index].reshape(-1, length)
            decoded = model.apply({"params": params}, given[:, 1:-1], real[:, 1:-1], cache=cache, method="decode")
            chosen = jnp.take_along_axis(jax.nn.log_softmax(decoded.logits), given[:, 2:, None], -1)[..., 0]
            return jnp.sum(jnp.where(real[:, 2:], chosen, 0.0), -1).reshape(rows, at_once)

        pieces = -(-kept // at_once)
        padded = jnp.pad(chosen, ((0, 0), (0, pieces * at_once - kept)))
        tails = jax.lax.map(tail, padded.reshape(rows, pieces, at_once).swapaxes(0, 1))
        tails = tails.swapaxes(0, 1).reshape(rows, -1)[:, :kept]
        scores = jnp.take_along_axis(first, chosen, 1) + tails
    return jnp.full((rows, texts), -jnp.inf).at[jnp.arange(rows)[:, None], chosen].set(scores)


def score(
    model: Multimodal,
    params: Mapping[str, Any],
    ids: jax.Array,
    mask: jax.Array,
    memory: Tokens | None = None,
    *,
    placed: bool = False,
) -> jax.Array:
    """Log-likelihood [B] float32 of each text given its first token and the memory: the sum of log p(ids[t] | ids[:t])
    over real tokens.

    ids: [B, L] int32, `bos tokens eos pad`; mask: [B, L] bool; memory: [Bm, N, D], Bm dividing B.
    """
    logits = model.apply({"params": params}, ids, mask, memory, placed=placed, method="decode").logits[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(mask[:, 1:], chosen, 0.0), axis=-1)
