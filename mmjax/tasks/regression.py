"""A number about a picture (an age, a price, a count), from its pooled patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np

from mmjax.config import choice
from mmjax.data.survey import number
from mmjax.errors import ConfigError
from mmjax.evaluators.regression import Errors
from mmjax.losses.regression import huber, squared
from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec
from mmjax.tasks.task import SumWeight, Task


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """The labels of the training set, which are all numbers.

    It learns how many standard deviations of the training values a value is off their mean, so that the rate that fits
    does not depend on the unit, and the head, zero at the start, begins with the mean.

    Attributes:
      loss_kind: "squared" error, or "huber", which grows only linearly beyond `delta` standard deviations.
    """

    loss_kind: str = choice("squared", "huber")
    delta: float = 1.0

    needs: ClassVar[frozenset[str]] = frozenset({"patch_encoder"})
    features: ClassVar[frozenset[str]] = frozenset({"image", "value"})

    def check(self, where: str) -> None:
        if self.delta <= 0:
            raise ConfigError(f"{where}.delta: found {self.delta}, expected more than 0.")

    def heads(self, processor: Any) -> Sequence[HeadSpec]:
        return (HeadSpec(self.name, 1, "image"),)

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        batch = forward.batch
        valid = batch["valid"] & batch["value_valid"]
        predicted = self._predicted(forward)
        if self.loss_kind == "huber":
            return {"loss": huber(predicted, batch["value"], valid, self.delta)}
        return {"loss": squared(predicted, batch["value"], valid)}

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        return {"deviations": self._predicted(forward)}

    def _predicted(self, forward: Forward) -> jax.Array:
        return forward.head(self.name, forward.image().pooled)[:, 0]

    def readable(self, outputs: dict[str, np.ndarray], processor: Any) -> dict[str, np.ndarray]:
        mean, spread = processor.values
        return {**outputs, "value": mean + spread * np.asarray(outputs["deviations"], np.float64)}

    def evaluator(self, processor: Any, train: Any) -> Errors:
        return Errors(self.name, mean=processor.values[0])

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        truth = record.get("label")
        return [(f"{outputs['value'][row]:.4g}" + (f" ({truth})" if truth else ""), None)]

    def mistakes(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool]]:
        return [(text, False) for text, _ in self.describe(outputs, row, record)]

    def said(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> dict[str, Any]:
        """Badness: how far the value is off."""
        line: dict[str, Any] = {"value": outputs["value"][row]}
        if (truth := number(record.get("label") or "")) is not None:
            line |= {"truth": truth, "badness": abs(float(line["value"]) - truth)}
        return line
