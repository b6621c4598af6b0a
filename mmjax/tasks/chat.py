"""Conversations about a picture: the decoder learns the assistant's turns (LLaVA: Liu et al., 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data.chat import words_in
from mmjax.decoding import generate
from mmjax.errors import ConfigError
from mmjax.evaluators.chat import Chat as ChatJudge
from mmjax.evaluators.chat import fit_baseline
from mmjax.losses.classification import cross_entropy_terms
from mmjax.losses.language import next_token_loss, token_accuracy
from mmjax.models.forward import Forward
from mmjax.tasks.task import SumWeight, Task


class Conversation(NamedTuple):
    """ids, mask, supervised: [B, L]; segments: of packed ones, in place of the mask. placed: ids hold an `<image>` for
    every token of the memory.
    """

    ids: jax.Array
    mask: jax.Array | None
    supervised: jax.Array
    segments: jax.Array | None = None
    placed: bool = False


@dataclass(frozen=True, kw_only=True)
class Chat(Task):
    """Next-token loss on the supervised tokens; the greedy reply in place of the last assistant's turn as prediction.

    A decoder with memory "prefix" reads the picture where its part stands in the conversation (before all, where the
    tokenizer has no `<image>`); one with cross-attention reads it from every token.

    Attributes:
      label_smoothing: share of the target spread over the vocabulary.
      reply_length: longest reply in tokens.
    """

    label_smoothing: float = 0.0
    reply_length: int = 32

    packs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder", "decoder"})

    def check(self, where: str) -> None:
        if self.reply_length < 1:
            raise ConfigError(f"{where}.reply_length: found {self.reply_length}, expected 1 or more tokens.")

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "chat"})

    def _conversation(self, forward: Forward) -> Conversation:
        batch, segments, image = forward.batch, forward.segments("chat"), forward.model.tokens.image
        if segments is not None:
            return Conversation(batch["chat"], None, batch["chat_supervised"], segments)
        parts = tuple(batch[name] for name in ("chat", "chat_mask", "chat_supervised"))
        if forward.model.config.decoder.memory != "prefix" or image < 0:
            return Conversation(*parts)
        return Conversation(*widen(*parts, image, forward.memory().x.shape[1]), placed=True)

    def _logits(self, forward: Forward, talk: Conversation) -> jax.Array:
        memory, placed = forward.memory(), talk.placed
        return forward.decode(talk.ids, talk.mask, memory, segments=talk.segments, placed=placed).logits

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
        """reply_ids [B, reply_length] in place of the last turn of the assistant that is not cut off, its turn number
        `turn` [B]; and of all given turns nll (nats) and hits, summed over their tokens [B].
        """
        talk = self._conversation(forward)
        logits, wanted, counts = self._logits(forward, talk)[:, :-1], talk.ids[:, 1:], talk.supervised[:, 1:]
        start, turn = last_turn(talk.supervised)
        told = jnp.arange(talk.ids.shape[1]) < start[:, None]
        reply = generate(
            forward.model,
            forward.params,
            forward.memory(),
            length=self.reply_length,
            prefix_ids=talk.ids,
            prefix_mask=talk.mask & told,
            placed=talk.placed,
        )
        return {
            "reply_ids": reply,
            "turn": turn,
            "nll": jnp.sum(jnp.where(counts, cross_entropy_terms(logits, wanted), 0.0), 1),
            "hits": jnp.sum(counts & (jnp.argmax(logits, -1) == wanted), 1),
        }

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        replies = [processor.tokenizer.decode(ids) for ids in outputs["reply_ids"]]
        return {**outputs, "reply": np.array(replies, dtype=object)}

    def evaluator(self, processor: Any, train: Any) -> ChatJudge:
        return ChatJudge(self.name, fit_baseline(train, processor))

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
