"""Zero-shot classification: the class whose text is nearest to the picture (CLIP; Radford et al., 2021, sec. 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.classification import Accuracy
from mmjax.evaluators.figure import Figure, Record


def average_prompts(embeddings: np.ndarray) -> np.ndarray:
    """Mean over the prompts of a class, back to unit length. [C, P, E] -> [C, E] float32."""
    mean = np.asarray(embeddings, np.float32).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


class ZeroShot:
    """`task/zero_shot_accuracy` from outputs `image_embedding` [B, E] and batch `label` [B]; chance is the baseline."""

    def __init__(self, task: str, *, labels: Sequence[str], class_embedding: np.ndarray):
        """class_embedding: [C, E], unit length, in the order of `labels` (see `average_prompts`)."""
        if len(class_embedding) != len(labels):
            raise ConfigError(
                f"{task}: {len(class_embedding)} class embeddings for {len(labels)} labels. Expected one each."
            )
        self.task = task
        self.class_embedding = np.asarray(class_embedding, np.float32)
        self._accuracy = Accuracy(task, labels=labels)

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        nearest = (np.asarray(outputs["image_embedding"], np.float32) @ self.class_embedding.T).argmax(axis=1)
        self._accuracy.update({"class": nearest}, batch, annotations)

    def figures(self) -> list[Figure]:
        (figure,) = self._accuracy.figures()
        return [Figure(**{**vars(figure), "name": f"{self.task}/zero_shot_accuracy"})]

    def per_class(self) -> list[tuple[str, int, float]]:
        """(label, how many pictures, accuracy on them), the most frequent first."""
        return self._accuracy.per_class()
