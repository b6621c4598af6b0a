"""A picture's class from its pooled patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evaluators.classification import Accuracy
from mmjax.losses.classification import accuracy, cross_entropy
from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """Softmax over the labels of the training set.

    Attributes:
      label_smoothing: share of the target spread over all classes.
    """

    label_smoothing: float = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder"})

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "label"})

    def heads(self, processor: Any) -> Sequence[HeadSpec]:
        return (HeadSpec(self.name, len(processor.labels), "image"),)

    def _logits(self, forward: Forward) -> jax.Array:
        return forward.head(self.name, forward.image().pooled)

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        labels = jnp.where(forward.batch["valid"], forward.batch["label"], -1)
        logits = self._logits(forward)
        smoothing = self.label_smoothing if forward.train else 0.0
        return {
            "loss": cross_entropy(logits, labels, label_smoothing=smoothing),
            "accuracy": accuracy(logits, labels),
        }

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        logits = self._logits(forward)
        return {"class": jnp.argmax(logits, -1), "probability": jnp.max(jax.nn.softmax(logits), -1)}

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        return {**outputs, "class_name": np.array([processor.labels[i] for i in outputs["class"]], dtype=object)}

    def evaluator(self, processor: Any, train: Any) -> Accuracy:
        return Accuracy(self.name, labels=processor.labels, train=train)

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        name = outputs["class_name"][row]
        truth = record.get("label")
        return [(f"{name} ({outputs['probability'][row]:.0%})", None if truth is None else name == truth)]
