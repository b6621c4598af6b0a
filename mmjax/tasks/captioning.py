"""The caption of a picture, word by word: the decoder reads the patches."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import share
from mmjax.decoding import forced_ids, generate
from mmjax.errors import ConfigError
from mmjax.evaluators.captioning import Captioning as CaptionJudge
from mmjax.evaluators.captioning import Judge, is_exact
from mmjax.evaluators.figure import Both, Evaluator
from mmjax.evaluators.language import NextToken, token_counts
from mmjax.generation_config import GenerationConfig
from mmjax.losses.language import foreseen, next_token_loss, token_accuracy
from mmjax.models.forward import Forward
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Captioning(Task):
    """Next-token loss on the drawn captions; captions written as `generation` says as predictions.

    Attributes:
      generation: how captions are written.
      label_smoothing: share of the target spread over the vocabulary.
      judge: "module:function" of (caption, record) -> bool that says whether a caption is right, for sets that can
        know it.
    """

    generation: GenerationConfig = field(default_factory=GenerationConfig)
    label_smoothing: float = share()
    judge: str = ""

    packs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder", "decoder"})

    def check(self, where: str) -> None:
        if self.judge and ":" not in self.judge:
            raise ConfigError(f"{where}.judge: found '{self.judge}', expected 'module:function'.")

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    @staticmethod
    def targets(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The tokens of real captions after their bos: ids and mask [B, K, L - 1]."""
        return batch["text"][..., 1:], (batch["text_mask"] & batch["text_valid"][..., None])[..., 1:]

    def _given(self, forward: Forward) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits, ids and mask of the batch's captions, [B * K, L, V] and [B * K, L]; packed, [B, L, V] and [B, L]."""
        batch, segments = forward.batch, forward.segments("text")
        ids = batch["text"].reshape(-1, batch["text"].shape[-1])
        if segments is None:
            valid = batch["text_valid"] & batch["valid"][:, None]
            given = batch["text_mask"].reshape(ids.shape)
            mask = (batch["text_mask"] & valid[..., None]).reshape(ids.shape)
        else:  # the first token of a row is predicted by no other
            given, mask = None, (segments > 0) & (segments == jnp.roll(segments, 1, axis=1))
        return forward.decode(ids, given, forward.memory(), segments=segments).logits, ids, mask

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        given = self._given(forward)
        smoothing = self.label_smoothing if forward.train else 0.0
        return {
            "loss": next_token_loss(*given, label_smoothing=smoothing),
            "token_accuracy": token_accuracy(*given),
        }

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        """ids [B, length] of a caption; where the batch has captions, how well they are foreseen (`foreseen`)."""
        batch = forward.batch
        ids = generate(
            forward.model,
            forward.params,
            forward.memory(),
            self.generation,
            length=batch["text"].shape[-1],
            forced=forced_ids(self.generation, forward.processor),
            rng=forward.rng(self.name),
            rows=batch.get("row"),
        )
        known = foreseen(*self._given(forward), len(ids)) if "text_mask" in batch else {}
        return {"ids": ids, **known}

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        captions = [processor.tokenizer.decode(ids) for ids in outputs["ids"]]
        return {**outputs, "caption": np.array(captions, dtype=object)}

    def evaluator(self, processor: Any, train: Any) -> Evaluator:
        counts = token_counts(train, processor, "text", self.targets)
        captions = CaptionJudge(self.name, train=train, judge=self._judge() if self.judge else None)
        return Both(captions, NextToken(self.name, counts, self.targets))

    def _judge(self) -> Judge:
        module, _, name = self.judge.partition(":")
        return getattr(importlib.import_module(module), name)

    def mistakes(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool]]:
        lines = [(f"({text})", None) for text in record.get("texts", ())[:1]]
        return [(outputs["caption"][row], False), *lines]

    def said(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> dict[str, Any]:
        """Right: as the judge says, else one of the picture's captions. Badness of a wrong one: nats a token of the
        given captions.
        """
        caption = outputs["caption"][row]
        line: dict[str, Any] = {"caption": caption}
        if record.get("texts"):
            right = bool((self._judge() if self.judge else is_exact)(caption, record))
            tokens = max(1, np.sum(self.targets(outputs)[1][row]))
            badness = 0.0 if right else float(outputs["nll"][row]) / float(tokens)
            line |= {"truth": record["texts"], "right": float(right), "badness": badness}
        return line

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        caption = outputs["caption"][row]
        right = self._judge()(caption, record) if self.judge and "texts" in record else None
        truth = [(f"({record['texts'][0]})", None)] if record.get("texts") and not right else []
        return [(caption, right), *truth]
