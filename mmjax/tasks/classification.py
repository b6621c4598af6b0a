"""A picture's class, or all that is in it, from its pooled patches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.config import choice, share
from mmjax.errors import ConfigError, did_you_mean
from mmjax.evaluators import Evaluator
from mmjax.evaluators.classification import Accuracy
from mmjax.evaluators.mean_average_precision import MeanAveragePrecision
from mmjax.losses.classification import accuracy, balanced, cross_entropy, mixed, sigmoid_cross_entropy
from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec
from mmjax.models.patch_encoder import normalise
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Classification(Task):
    """The labels of the training set.

    Attributes:
      labels: "one" a picture (softmax over the classes), or "many" (a yes or no for each class: sigmoid).
      label_smoothing: share of the target spread over all classes; with "many", over yes and no.
      class_weights: how much rows of each class count in training: "balanced" (N / (C n_c)), or {label: weight}, 1 for
        a label left out. Only with "one".
      mixup: alpha of the Beta distribution of shares at which pictures and targets are mixed in training; 0 is off. The
        mixed pictures are encoded for this task alone, beside those of other tasks on its stream.
    """

    labels: str = choice("one", "many")
    label_smoothing: float = share()
    class_weights: Any = ""
    mixup: float = 0.0

    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder"})

    def check(self, where: str) -> None:
        weights = self.class_weights
        if weights and self.labels == "many":
            raise ConfigError(f"{where}.class_weights: found {weights!r}, expected none with labels='many'.")
        if isinstance(weights, str) and weights not in ("", "balanced"):
            raise ConfigError(f"{where}.class_weights: found '{weights}', expected 'balanced' or {{label: weight}}.")
        if weights and not isinstance(weights, (str, Mapping)):
            raise ConfigError(f"{where}.class_weights: found {weights!r}, expected 'balanced' or {{label: weight}}.")
        if isinstance(weights, Mapping):
            for label, weight in weights.items():
                if not isinstance(weight, (int, float)) or weight < 0:
                    raise ConfigError(f"{where}.class_weights: '{label}' has {weight!r}, expected a number from 0 up.")
        if self.mixup < 0:
            raise ConfigError(f"{where}.mixup: found {self.mixup}, expected 0 or more.")

    def prepared(self, processor: Any) -> Classification:
        """`class_weights` becomes a number a class, in the order of the head."""
        if not self.class_weights or isinstance(self.class_weights, tuple):
            return self
        if self.class_weights == "balanced":
            return dataclasses.replace(self, class_weights=balanced(processor.label_counts))
        given = {str(label): float(weight) for label, weight in self.class_weights.items()}
        for label in given:
            if label not in processor.labels:
                near = did_you_mean(label, processor.labels)
                raise ConfigError(f"config.tasks.{self.name}.class_weights: no label '{label}'.{near}")
        weights = tuple(given.get(label, 1.0) for label in processor.labels)
        return dataclasses.replace(self, class_weights=weights)

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"image", "label" if self.labels == "one" else "labels"})

    def heads(self, processor: Any) -> Sequence[HeadSpec]:
        return (HeadSpec(self.name, len(processor.labels), "image"),)

    def _logits(self, forward: Forward) -> jax.Array:
        return forward.head(self.name, forward.image().pooled)

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        if self.labels == "many":
            return self._loss_of_many(forward)
        batch, train = forward.batch, forward.train
        labels = jnp.where(batch["valid"], batch["label"], -1)
        smoothing = self.label_smoothing if train else 0.0
        weights = jnp.ones(labels.shape)
        if train and self.class_weights:
            weights = jnp.asarray(self.class_weights, jnp.float32)[jnp.maximum(labels, 0)]
        if not (train and self.mixup):
            logits = self._logits(forward)
            loss = cross_entropy(logits, labels, label_smoothing=smoothing, weights=weights)
            return {"loss": loss, "accuracy": accuracy(logits, labels)}
        logits, shares = self._mixed_logits(forward, labels >= 0)
        parts = [(labels, shares * weights), (jnp.roll(labels, 1), (1.0 - shares) * jnp.roll(weights, 1))]
        parts = [cross_entropy(logits, wanted, label_smoothing=smoothing, weights=w) for wanted, w in parts]
        return {"loss": tuple(map(sum, zip(*parts, strict=True))), "accuracy": accuracy(logits, labels)}

    def _loss_of_many(self, forward: Forward) -> dict[str, SumWeight]:
        batch, smoothing = forward.batch, self.label_smoothing if forward.train else 0.0
        valid = batch["valid"] & batch["labels_valid"]
        targets = batch["labels"] * (1.0 - smoothing) + smoothing / 2
        if not (forward.train and self.mixup):
            return {"loss": sigmoid_cross_entropy(self._logits(forward), targets, valid)}
        logits, shares = self._mixed_logits(forward, valid)
        return {"loss": sigmoid_cross_entropy(logits, mixed(targets, shares), valid)}

    def _mixed_logits(self, forward: Forward, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits [B, C] of pictures each mixed with the one before it, and shares [B] of their own part. A row is whole
        where one of the two has no target.
        """
        shares = jax.random.beta(forward.rng(f"{self.name}/mixup"), self.mixup, self.mixup, valid.shape)
        shares = jnp.where(valid & jnp.roll(valid, 1), shares, 1.0)
        model, image = forward.model, forward.batch["image"]
        if image.ndim != 4:
            raise ConfigError(f"config.tasks.{self.name}.mixup: takes one picture of one size a row.")
        batch = {**forward.batch, "image": mixed(normalise(image, model.mean, model.std), shares)}
        return self._logits(Forward(model, forward.params, batch, forward.rng("mixup"), train=True)), shares

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
