"""Zero-shot classification: the class whose text is nearest to the picture (CLIP; Radford et al., 2021, sec. 3.1)."""

from __future__ import annotations

import numpy as np

from mmjax.data.templates import Template
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows


def average_prompts(embeddings: np.ndarray) -> np.ndarray:
    """Mean over the prompts of a class, back to unit length. [C, P, E] -> [C, E] float32."""
    mean = np.asarray(embeddings, np.float32).mean(axis=1)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


class ZeroShot:
    """`task/zero_shot_accuracy` on sets whose captions are their class names in words; chance is the baseline.

    Such a set has a template like `prompt="a photo of a {label}."` (`data/templates.py`). Its classes are those that
    its rows have; the text of a class is the mean over the wordings. No such row: no figure.

    Reads outputs `image_embedding` [B, E], `text_embedding` [B, K, E] (unit length), batch `text_valid` and the
    annotations' `label` and `prompt`. Keeps the embeddings of the pictures and of the classes.
    """

    def __init__(self, task: str):
        self.task = task
        self._images: list[np.ndarray] = []
        self._records: list[Record] = []
        self._classes: dict[str, np.ndarray] = {}

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        for row, record in valid_rows(batch, annotations):
            label, prompt = record.get("label"), record.get("prompt", "")
            if label and prompt and Template.parse(prompt, self.task).names_only_the_label:
                self._images.append(np.asarray(outputs["image_embedding"][row], np.float32))
                self._records.append({k: record[k] for k in ("id", "key", "label") if k in record})
                if label not in self._classes:
                    wordings = outputs["text_embedding"][row][batch["text_valid"][row]]
                    self._classes[label] = average_prompts(wordings[None])[0]

    def figures(self) -> list[Figure]:
        if not self._records:
            return []
        names = sorted(self._classes)
        nearest = (np.stack(self._images) @ np.stack([self._classes[n] for n in names]).T).argmax(axis=1)
        tally = Tally(f"chance, 1 of {len(names)}")
        for i, record in zip(nearest, self._records, strict=True):
            tally.add(record, names[i] == record["label"], 1 / len(names))
        return [tally.figure(f"{self.task}/zero_shot_accuracy")]
