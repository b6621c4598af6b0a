"""What a task is: which features it reads, which heads it wants, its loss, its prediction, and how it is judged."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from mmjax.config import build_dataclass
from mmjax.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.evaluators import Evaluator
    from mmjax.models.forward import Forward
from mmjax.models.multimodal import HeadSpec

SumWeight = tuple[jax.Array, jax.Array]
# `kind` -> module and class. A task of your own: kind="my_module:MyTask".
KINDS = {
    "contrastive": "mmjax.tasks.contrastive:Contrastive",
    "matching": "mmjax.tasks.matching:Matching",
    "captioning": "mmjax.tasks.captioning:Captioning",
    "vqa": "mmjax.tasks.vqa:VQA",
    "classification": "mmjax.tasks.classification:Classification",
    "regression": "mmjax.tasks.regression:Regression",
    "chat": "mmjax.tasks.chat:Chat",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Base of all tasks: a frozen dataclass of pure functions. The loop knows nothing else of a task.

    Attributes:
      name: its key in `config.tasks`; figures are named `name/metric`.
      weight: its share of the objective, weight * sum / total weight.
      stream: the data stream it reads; "" is the first one of `config.data.train`.
    """

    name: str = ""
    weight: float = 1.0
    stream: str = ""

    couples_rows: ClassVar[bool] = False  # the loss of one row depends on other rows of the batch
    packs: ClassVar[bool] = False  # its loss reads batches of packed rows (data/packing.py)
    needs: ClassVar[frozenset[str]] = frozenset()  # parts of the model: text_encoder, fusion, decoder, contrastive

    @staticmethod
    def from_config(value: Any, where: str) -> Task:
        """Builds the task that `kind` (default: the task's own name) names."""
        if isinstance(value, Task):
            return value
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: found {value!r}, expected a group of keys (kind, weight, stream, ...).")
        name = where.rpartition(".")[2]
        kind = value.get("kind", name)
        path = KINDS.get(kind, kind)
        if ":" not in path:
            raise ConfigError(
                f"{where}.kind: no task '{kind}'.{did_you_mean(kind, KINDS)} Expected one of {', '.join(KINDS)}, or "
                f"'module:Class' for a task of your own."
            )
        module, _, attribute = path.partition(":")
        cls = getattr(importlib.import_module(module), attribute)
        return build_dataclass(cls, {"name": name, **{k: v for k, v in value.items() if k != "kind"}}, where)

    @property
    def features(self) -> frozenset[str]:
        """Which features of the batch it reads."""
        raise NotImplementedError

    def heads(self, processor: Processor) -> Sequence[HeadSpec]:
        """Heads that the model must build for it."""
        return ()

    def prepared(self, processor: Processor) -> Task:
        """The task as training uses it: with what it must know of the training set."""
        return self

    def loss(self, forward: Forward) -> dict[str, SumWeight]:
        """{name: (sum, weight)} over the batch; the key `loss` is minimised, the others are logged."""
        raise NotImplementedError

    def predict(self, forward: Forward) -> dict[str, jax.Array]:
        """Arrays [B, ...] from which `readable` makes the answers."""
        raise NotImplementedError

    def readable(self, outputs: dict[str, np.ndarray], processor: Processor) -> dict[str, np.ndarray]:
        """Host side: ids -> strings. Adds to the outputs what the evaluator reads."""
        return outputs

    def evaluator(self, processor: Processor, train: Any) -> Evaluator:
        """Judges the predictions; `train` is the training source, from which baselines are fitted."""
        raise NotImplementedError

    def describe(
        self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]
    ) -> list[tuple[str, bool | None]]:
        """Lines for the picture panel: (text, right or wrong or None)."""
        return []

    def mistakes(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> list[tuple[str, bool]]:
        """Lines for the panel of the worst rows: what is wrong."""
        return [(text, False) for text, right in self.describe(outputs, row, record) if right is False]

    def said(self, outputs: dict[str, np.ndarray], row: int, record: dict[str, Any]) -> dict[str, Any]:
        """What it says of a row, for a line of JSON.

        Where the record knows the truth, also `right`, a share, and `badness`: 0 where nothing is wrong, and the larger
        the worse, by which the worst rows are found.
        """
        lines = self.describe(outputs, row, record)
        judged = [float(right) for _, right in lines if right is not None]
        right = {"right": float(np.mean(judged)), "badness": 1 - float(np.mean(judged))} if judged else {}
        return {"said": [text for text, _ in lines], **right}
