"""Conversations about a picture: the decoder learns the assistant's turns (LLaVA: Liu et al., 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import share
from mmjax.data.chat import words_in
from mmjax.decoding import forced_ids, generate
from mmjax.evaluators.language import NextToken, token_counts
from mmjax.generation_config import GenerationConfig
from mmjax.losses.language import foreseen, next_token_loss, token_accuracy
from mmjax.models.forward import Forward
from mmjax.tasks.task import SumWeight, Task

_REPLY = 32  # tokens of a reply, where the config does not say


class Conversation(NamedTuple):
    """ids, mask, supervised: [B, L]; segments: of packed ones, in place of the mask. placed: ids hold an `<image>` for
    every token of the memory. both_ways: [B, L], what stands before the first answer, where the decoder reads it so.
    """

    ids: jax.Array
    mask: jax.Array | None
    supervised: jax.Array
    segments: jax.Array | None = None
    placed: bool = False
    both_ways: jax.Array | None = None


@dataclass(frozen=True, kw_only=True)
class Chat(Task):
    """Next-token loss on the supervised tokens; a reply in place of the last assistant's turn as prediction.

    A decoder with memory "prefix" reads the picture where its part stands in the conversation (before all, where the
    tokenizer has no `<image>`); one with cross-attention reads it from every token. All that stands before the first
    answer is read both ways with `prefix_attention` "prompt" (PaliGemma).

    Attributes:
      generation: how replies are written; `generation.length` is 32 tokens where it is 0.
      label_smoothing: share of the target spread over the vocabulary.
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    label_smoothing: float = share()

    packs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder", "decoder"})

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "chat"})

    @staticmethod
    def targets(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """What of a conversation is learnt: ids and mask [B, L - 1]."""
        return batch["chat"][:, 1:], batch["chat_supervised"][:, 1:]

    def _conversation(self, forward: Forward) -> Conversation:
        batch, segments, image = forward.batch, forward.segments("chat"), forward.model.tokens.image
        if segments is not None:
            return Conversation(batch["chat"], None, batch["chat_supervised"], segments)
        parts = tuple(batch[name] for name in ("chat", "chat_mask", "chat_supervised"))
        decoder = forward.model.config.decoder
        placed = decoder.memory == "prefix" and image >= 0
        ids, mask, supervised = widen(*parts, image, forward.memory().x.shape[1]) if placed else parts
        asked = jnp.cumsum(supervised, 1) == 0
        both_ways = mask & asked if decoder.prefix_attention == "prompt" else None
        return Conversation(ids, mask, supervised, placed=placed, both_ways=both_ways)

    def _logits(self, forward: Forward, talk: Conversation) -> jax.Array:
        how = {"segments": talk.segments, "placed": talk.placed, "prefix": talk.both_ways}
        return forward.decode(talk.ids, talk.mask, forward.memory(), **how).logits

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        talk = self._conversation(forward)
        logits = self._logits(forward, talk)
        targets = talk.supervised
        if talk.segments is None:  # packed, only valid rows have a text
            targets &= forward.batch["valid"][:, None]
        smoothing = self.label_smoothing if forward.train else 0.0
        return {
            "loss": next_token_loss(logits, talk.ids, targets, label_smoothing=smoothing),
            "token_accuracy": token_accuracy(logits, talk.ids, targets),
        }

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        """reply_ids [B, length] in place of the last turn of the assistant that is not cut off, its turn number `turn`
        [B]; and of all given turns nll (nats) and hits, summed over their tokens [B].
        """
        talk = self._conversation(forward)
        start, turn = last_turn(talk.supervised)
        told = jnp.arange(talk.ids.shape[1]) < start[:, None]
        reply = generate(
            forward.model,
            forward.params,
            forward.memory(),
            self.generation,
            length=_REPLY,
            prefix_ids=talk.ids,
            prefix_mask=talk.mask & told,
            prefix_full=False if talk.both_ways is None else talk.both_ways,
            forced=forced_ids(self.generation, forward.processor),
            placed=talk.placed,
            rng=forward.rng(self.name),
            rows=forward.batch.get("row"),
        )
        known = foreseen(self._logits(forward, talk), talk.ids, talk.supervised, len(reply))
        return {"reply_ids": reply, "turn": turn, **known}

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        replies = [processor.tokenizer.decode(ids) for ids in outputs["reply_ids"]]
        return {**outputs, "reply": np.array(replies, dtype=object)}

    def evaluator(self, processor: Any, train: Any) -> NextToken:
        return NextToken(self.name, token_counts(train, processor, "chat", self.targets), self.targets)

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        """The question with the reply, right where it is the very answer; else the answer as a line of its own."""
        reply, turn, messages = outputs["reply"][row], int(outputs["turn"][row]), record.get("messages", ())
        said = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        at = said[turn - 1] if turn and said else len(messages)
        asked, answer = words_in(messages[:at], "user"), words_in(messages[at : at + 1])
        right = True if answer and " ".join(answer[0].lower().split()) == reply.lower() else None
        truth = [(f"({answer[0]})", None)] if answer and not right else []
        return [(" ".join([*asked[-1:], reply]), right), *truth]


def widen(
    ids: jax.Array, mask: jax.Array, supervised: jax.Array, image: int, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Each row's one `image` id becomes `count` of them: [B, L] -> [B, L + count - 1].

    A row without one is padded at its end.
    """
    rows, length = ids.shape
    here = ids == image
    at = jnp.where(here.any(1), jnp.argmax(here, 1), length + count)[:, None]
    place = jnp.arange(length + count - 1)[None]
    source = jnp.where(place < at, place, jnp.maximum(at, place - count + 1))
    real, source = source < length, jnp.minimum(source, length - 1)
    ids, mask, supervised = (jnp.take_along_axis(x, source, 1) for x in (ids, mask, supervised))
    return ids, mask & real, supervised & real


def last_turn(supervised: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, L] -> [B], [B] int32: where the last stretch of True begins (L where there is none); how many there are."""
    first = supervised & ~jnp.pad(supervised, ((0, 0), (1, 0)))[:, :-1]
    at = jnp.max(jnp.where(first, jnp.arange(supervised.shape[1]), -1), 1)
    return jnp.where(at < 0, supervised.shape[1], at), jnp.sum(first, 1, dtype=jnp.int32)
