"""A picture's class, or all that is in it, from its pooled patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice
from mmjax.evaluators import Evaluator
from mmjax.evaluators.classification import Accuracy
from mmjax.evaluators.mean_average_precision import MeanAveragePrecision
from mmjax.losses.classification import accuracy, cross_entropy, sigmoid_cross_entropy
from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """The labels of the training set.

    Attributes:
      labels: "one" a picture (softmax over the classes), or "many" (a yes or no for each class: sigmoid).
      label_smoothing: share of the target spread over all classes; with "many", over yes and no.
    """

    labels: str = choice("one", "many")
    label_smoothing: float = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder"})

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "label" if self.labels == "one" else "labels"})

    def heads(self, processor: Any) -> Sequence[HeadSpec]:
        return (HeadSpec(self.name, len(processor.labels), "image"),)

    def _logits(self, forward: Forward) -> jax.Array:
        return forward.head(self.name, forward.image().pooled)

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        logits, batch = self._logits(forward), forward.batch
        smoothing = self.label_smoothing if forward.train else 0.0
        if self.labels == "many":
            targets = batch["labels"] * (1.0 - smoothing) + smoothing / 2
            return {"loss": sigmoid_cross_entropy(logits, targets, batch["valid"] & batch["labels_valid"])}
        labels = jnp.where(batch["valid"], batch["label"], -1)
        return {
            "loss": cross_entropy(logits, labels, label_smoothing=smoothing),
            "accuracy": accuracy(logits, labels),
        }

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        logits = self._logits(forward)
        if self.labels == "many":
            return {"probability": jax.nn.sigmoid(logits)}
        return {"class": jnp.argmax(logits, -1), "probability": jnp.max(jax.nn.softmax(logits), -1)}

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        if self.labels == "many":
            names, found = np.array(processor.labels, dtype=object), np.empty(len(outputs["probability"]), dtype=object)
            for row, p in enumerate(outputs["probability"]):
                order = np.argsort(-p)[: np.sum(p >= 0.5)]
                found[row] = dict(zip(names[order], p[order], strict=True))
            return {**outputs, "found": found}
        return {**outputs, "class_name": np.array([processor.labels[i] for i in outputs["class"]], dtype=object)}

    def evaluator(self, processor: Any, train: Any) -> Evaluator:
        if self.labels == "many":
            return MeanAveragePrecision(self.name, labels=processor.labels)
        return Accuracy(self.name, labels=processor.labels, train=train)

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        if self.labels == "many":
            found = outputs["found"][row]
            right = set(found) == set(record["labels"]) if "labels" in record else None
            return [(", ".join(f"{name} ({p:.0%})" for name, p in found.items()) or "none of the classes", right)]
        name = outputs["class_name"][row]
        truth = record.get("label")
        return [(f"{name} ({outputs['probability'][row]:.0%})", None if truth is None else name == truth)]

    def mistakes(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool]]:
        truth = record.get("label") if self.labels == "one" else ", ".join(record.get("labels", ()))
        return [(f"{text}, is {truth}", False) for text, _ in super().mistakes(outputs, row, record)]

    def said(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> dict[str, Any]:
        """Of one class: badness is the probability of a wrong one. Of many: the error of the worst class above 0.5."""
        p = outputs["probability"][row]
        if self.labels == "many":
            line: dict[str, Any] = {"labels": outputs["found"][row]}
            if "labels" in record:
                error = float(np.max(np.abs(outputs["labels"][row] - p)))
                right = set(outputs["found"][row]) == set(record["labels"])
                line |= {"truth": record["labels"], "right": float(right), "badness": error if error > 0.5 else 0.0}
            return line
        line = {"label": outputs["class_name"][row], "probability": p}
        if (truth := record.get("label")) is not None:
            right = line["label"] == truth
            line |= {"truth": truth, "right": float(right), "badness": 0.0 if right else float(p)}
        return line
