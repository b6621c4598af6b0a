"""Questions about a picture, answered as a class over the training answers or as generated text."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice, share
from mmjax.decoding import forced_ids, generate, rank
from mmjax.decoding import score as likelihood_of
from mmjax.errors import ConfigError
from mmjax.evaluators.answer_rules import accuracy as score
from mmjax.evaluators.figure import Both, Evaluator
from mmjax.evaluators.language import NextToken, token_counts
from mmjax.evaluators.vqa import VQA as AnswerJudge
from mmjax.generation_config import GenerationConfig
from mmjax.losses.classification import accuracy, cross_entropy
from mmjax.losses.language import foreseen, next_token_loss, token_accuracy
from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec
from mmjax.models.transformer import Tokens
from mmjax.tasks.task import SumWeight, Task

_MOST_QUESTIONS = 4096  # about a picture: a question's draws are its own, however many stand beside it


@dataclass(frozen=True, kw_only=True)
class VQA(Task):
    """All questions drawn for a picture share its encoding: text [B*K, L] is fused with patches [B, N].

    Attributes:
      answer: "class" (softmax over the answer list), "generate" (the decoder writes it), or "rank" (trained like
        "generate"; the answer is the one of the list that the decoder finds likeliest, as in BLIP).
      generation: how answers are written.
      candidates: with "rank", answers that are scored in full for each question: those whose first token is likeliest;
        0 is all.
      label_smoothing: share of the target spread over classes or vocabulary.
    """

    answer: str = choice("class", "generate", "rank")
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    candidates: int = 128
    label_smoothing: float = share()

    def check(self, where: str) -> None:
        if self.answer != "generate" and self.generation != GenerationConfig():
            raise ConfigError(f"{where}.generation: nothing is written with answer '{self.answer}'. Leave it out.")
        if self.candidates < 0:
            raise ConfigError(f"{where}.candidates: found {self.candidates}, expected 1 or more, or 0 for all.")

    def choosing(self) -> VQA:
        """The task as it answers from the processor's list, each scored in full: for one whose decoder writes."""
        return dataclasses.replace(self, answer="rank", candidates=0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(
            {"patch_encoder", "text_encoder", "fusion"} | ({"decoder"} if self.answer != "class" else set())
        )

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "question", "answer" if self.answer == "class" else "answer_text"})

    def heads(self, processor: Any) -> Sequence[HeadSpec]:
        return (HeadSpec(self.name, len(processor.answers), "fused"),) if self.answer == "class" else ()

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        batch = forward.batch
        valid = (batch["question_valid"] & batch["valid"][:, None]).reshape(-1)
        smoothing = self.label_smoothing if forward.train else 0.0
        fused = forward.fuse("question")
        if self.answer == "class":
            labels = jnp.where(valid, batch["answer"].reshape(-1), -1)
            logits = forward.head(self.name, fused.pooled)
            return {
                "loss": cross_entropy(logits, labels, label_smoothing=smoothing),
                "accuracy": accuracy(logits, labels),
            }
        given = self._given(forward)
        return {
            "loss": next_token_loss(*given, label_smoothing=smoothing),
            "token_accuracy": token_accuracy(*given),
        }

    @staticmethod
    def targets(batch: Mapping[str, Any]) -> tuple[Any, Any]:
        """The tokens of real answers after their bos: ids and mask [B, K, L - 1]."""
        return batch["answer_text"][..., 1:], (batch["answer_mask"] & batch["question_valid"][..., None])[..., 1:]

    def _given(self, forward: Forward) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Logits, ids and mask of the batch's answers, [B * K, L, V] and [B * K, L]."""
        batch = forward.batch
        length = batch["answer_text"].shape[-1]
        valid = (batch["question_valid"] & batch["valid"][:, None]).reshape(-1)
        ids, given = batch["answer_text"].reshape(-1, length), batch["answer_mask"].reshape(-1, length)
        return forward.decode(ids, given, forward.fuse("question").tokens).logits, ids, given & valid[:, None]

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        shape = forward.batch["question_valid"].shape
        fused = forward.fuse("question")
        if self.answer == "class":
            logits = forward.head(self.name, fused.pooled).reshape(*shape, -1)
            return {"class": jnp.argmax(logits, -1), "confidence": jnp.max(jax.nn.softmax(logits), -1)}
        known = foreseen(*self._given(forward), shape[0])
        length = forward.batch["answer_text"].shape[-1]
        if self.answer == "rank":
            ids, mask = forward.processor.tokenizer.encode(forward.processor.answers, length)  # as training had them
            likelihood = rank(
                forward.model, forward.params, jnp.asarray(ids), jnp.asarray(mask), fused.tokens,
                candidates=self.candidates,
            )  # fmt: skip
            sure = jnp.max(jax.nn.softmax(likelihood), -1).reshape(shape)
            return {"class": jnp.argmax(likelihood, -1).reshape(shape), "confidence": sure, **known}
        row = forward.batch.get("row", jnp.arange(shape[0]))
        ids = generate(
            forward.model,
            forward.params,
            fused.tokens,
            self.generation,
            length=length,
            forced=forced_ids(self.generation, forward.processor),
            rng=forward.rng(self.name),
            rows=(row[:, None] * _MOST_QUESTIONS + jnp.arange(shape[1])).reshape(-1),
        )
        sure = jnp.exp(self._likelihood(forward, ids, fused.tokens)).reshape(shape)
        return {"ids": ids.reshape(*shape, -1), "confidence": sure, **known}

    @staticmethod
    def _likelihood(forward: Forward, ids: jax.Array, memory: Tokens) -> jax.Array:
        """[R] log p of written answers [R, L], their eos included."""
        own = forward.model.tokens
        before = jnp.cumsum(ids == own.eos, 1) - (ids == own.eos)  # how many eos came before
        ids = jnp.pad(ids, ((0, 0), (1, 0)), constant_values=own.bos)
        mask = jnp.pad(before == 0, ((0, 0), (1, 0)), constant_values=True)
        return likelihood_of(forward.model, forward.params, ids, mask, memory)

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        if self.answer != "generate":
            answers = np.array(processor.answers, dtype=object)[outputs["class"]]
        else:
            flat = outputs["ids"].reshape(-1, outputs["ids"].shape[-1])
            answers = np.empty(len(flat), dtype=object)
            answers[:] = [processor.tokenizer.decode(ids) for ids in flat]
            answers = answers.reshape(outputs["ids"].shape[:-1])
        return {**outputs, "answer": answers}

    def evaluator(self, processor: Any, train: Any) -> Evaluator:
        judge = AnswerJudge(self.name, train=train)
        if self.answer == "class":
            return judge
        counts = token_counts(train, processor, "answer_text", self.targets)
        return Both(judge, NextToken(self.name, counts, self.targets))

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        return self._lines(outputs, row, record)[:3]

    def mistakes(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool]]:
        return [(text, False) for text, right in self._lines(outputs, row, record) if right is False][:3]

    def said(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> dict[str, Any]:
        """Badness: the largest confidence in an answer that is wrong."""
        asked = record.get("qa", ())
        answers = [str(a) for a in outputs["answer"][row][: len(asked)]]
        sure = outputs["confidence"][row][: len(asked)]
        line: dict[str, Any] = {"question": [qa["question"] for qa in asked], "answer": answers, "confidence": sure}
        truths = [qa.get("answers", ()) for qa in asked]
        scores = [score(answer, truth) if truth else None for answer, truth in zip(answers, truths, strict=True)]
        if any(s is not None for s in scores):
            worst = max(p * (1 - s) for p, s in zip(sure, scores, strict=True) if s is not None)
            right = float(np.mean([s for s in scores if s is not None]))
            line |= {"truth": truths, "right": right, "badness": float(worst)}
        return line

    def _lines(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool | None]]:
        lines = []
        for qa, answer in zip(record.get("qa", ()), outputs["answer"][row], strict=False):
            truth = qa.get("answers", ())
            right = score(str(answer), truth) >= 0.5 if truth else None
            asked = qa["question"] if qa["question"].endswith("?") else f"{qa['question']}:"  # a statement to judge
            lines.append((f"{asked} {answer}" + (f" ({truth[0]})" if right is False else ""), right))
        return lines
