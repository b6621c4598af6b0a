"""The caption of a picture, word by word: the decoder reads the patches."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.decoding import generate
from mmjax.errors import ConfigError
from mmjax.evaluators.captioning import Captioning as CaptionJudge
from mmjax.evaluators.captioning import Judge, is_exact
from mmjax.losses.language import next_token_loss, token_accuracy
from mmjax.models.forward import Forward
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Captioning(Task):
    """Next-token loss on the drawn captions; greedy captions as predictions.

    Attributes:
      label_smoothing: share of the target spread over the vocabulary.
      judge: "module:function" of (caption, record) -> bool that says whether a caption is right, for sets that can
        know it.
    """

    label_smoothing: float = 0.0
    judge: str = ""

    packs: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder", "decoder"})

    def check(self, where: str) -> None:
        if self.judge and ":" not in self.judge:
            raise ConfigError(f"{where}.judge: found '{self.judge}', expected 'module:function'.")

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "text"})

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        batch, segments = forward.batch, forward.segments("text")
        ids = batch["text"].reshape(-1, batch["text"].shape[-1])
        if segments is None:
            valid = batch["text_valid"] & batch["valid"][:, None]
            given = batch["text_mask"].reshape(ids.shape)
            mask = (batch["text_mask"] & valid[..., None]).reshape(ids.shape)
        else:  # the first token of a row is predicted by no other
            given, mask = None, (segments > 0) & (segments == jnp.roll(segments, 1, axis=1))
        logits = forward.decode(ids, given, forward.memory(), segments=segments).logits
        smoothing = self.label_smoothing if forward.train else 0.0
        return {
            "loss": next_token_loss(logits, ids, mask, label_smoothing=smoothing),
            "token_accuracy": token_accuracy(logits, ids, mask),
        }

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        ids = generate(forward.model, forward.params, forward.memory(), length=forward.batch["text"].shape[-1])
        return {"ids": ids}

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        captions = [processor.tokenizer.decode(ids) for ids in outputs["ids"]]
        return {**outputs, "caption": np.array(captions, dtype=object)}

    def evaluator(self, processor: Any, train: Any) -> CaptionJudge:
        return CaptionJudge(self.name, train=train, judge=self._judge() if self.judge else None)

    def _judge(self) -> Judge:
        module, _, name = self.judge.partition(":")
        return getattr(importlib.import_module(module), name)

    def mistakes(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool]]:
        lines = [(f"({text})", None) for text in record.get("texts", ())[:1]]
        return [(outputs["caption"][row], False), *lines]

    def said(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> dict[str, Any]:
        """Right: as the judge says, else one of the picture's captions. Badness of a wrong one: nats a token of the
        reference where the outputs have `nll`, else 1.
        """
        caption = outputs["caption"][row]
        line: dict[str, Any] = {"caption": caption}
        if record.get("texts"):
            right = bool((self._judge() if self.judge else is_exact)(caption, record))
            nll, tokens = outputs["nll"][row] if "nll" in outputs else (1.0, 1.0)
            badness = 0.0 if right else float(nll) / max(float(tokens), 1.0)
            line |= {"truth": record["texts"], "right": float(right), "badness": badness}
        return line

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        caption = outputs["caption"][row]
        right = self._judge()(caption, record) if self.judge and "texts" in record else None
        truth = [(f"({record['texts'][0]})", None)] if record.get("texts") and not right else []
        return [(caption, right), *truth]
