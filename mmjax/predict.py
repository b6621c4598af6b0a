"""Captions, answers, rankings and classes for single pictures. Needs no TensorFlow: pictures take the PIL path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import report, sharding
from mmjax.data.image_files import PictureError
from mmjax.errors import ConfigError
from mmjax.models.forward import Forward
from mmjax.tasks import Task
from mmjax.train_step import nested
from mmjax.trained import Trained, open_trained


def predict(
    workdir: Path,
    checkpoint: str,
    overrides: Mapping[str, str],
    images: Sequence[Path],
    *,
    question: str | None = None,
    labels: Sequence[str] = (),
    out: Path | None = None,
) -> int:
    """Prints what every task of the workdir that can says about each picture; `out` draws it."""
    for path in images:
        if not path.is_file():
            raise ConfigError(f"--image: no file '{path}'.")
    trained = open_trained(workdir, checkpoint, overrides)
    pictures = [read(path, trained) for path in images]
    lines = answer(trained, pictures, question=question, labels=labels)
    for path, said in zip(images, lines, strict=True):
        print(f"{path}")
        for text in said:
            print(f"  {text}")
    if out:
        items = [report.PanelItem(p, [(t, None) for t in s]) for p, s in zip(pictures, lines, strict=True)]
        report.panel(out, items)
        print(f"written: {out}")
    return 0


def read(path: Path, trained: Trained) -> np.ndarray:
    """A picture file as the model sees it in evaluation: uint8 [H, W, 3]."""
    try:
        return trained.processor.image_pil(path.read_bytes())
    except (OSError, PictureError) as error:
        raise ConfigError(f"--image: '{path}' is not a picture that can be read ({error}).") from error


def answer(
    trained: Trained, pictures: Sequence[np.ndarray], *, question: str | None, labels: Sequence[str]
) -> list[list[str]]:
    """Lines for each of B pictures, as `read` gives them. Raises ConfigError where no task of the run can answer the
    request.
    """
    tasks = trained.config.tasks
    if question and not any({"question", "chat"} & t.features for t in tasks.values()):
        raise ConfigError(f"--question: this run has no task that answers questions. It has {', '.join(tasks)}.")
    if labels and not any(hasattr(t, "embed") for t in tasks.values()):
        raise ConfigError(f"--labels: this run has no contrastive task to rank texts with. It has {', '.join(tasks)}.")
    lines: list[list[str]] = [[] for _ in pictures]
    for task in tasks.values():
        batch = _batch(trained, task, pictures, question, labels)
        if batch is None:
            continue
        said = _say(trained, task, batch, labels)
        for row, texts in enumerate(said):
            lines[row] += texts
    if not any(lines):
        raise ConfigError("nothing to say: give --question for answers, or --labels to rank texts.")
    return lines


def _batch(
    trained: Trained, task: Task, pictures: Sequence[np.ndarray], question: str | None, labels: Sequence[str]
) -> dict[str, np.ndarray] | None:
    """The batch that a task needs, or None where what it needs was not asked."""
    processor, rows = trained.processor, len(pictures)
    batch: dict[str, Any] = {
        **processor.pictures(pictures),
        "valid": np.ones(rows, bool),
        "image_key": np.arange(rows, dtype=np.int32),
    }
    if hasattr(task, "embed"):
        if not labels:
            return None
        ids, mask = processor.encode(labels, processor.length)
        batch |= {"text": np.repeat(ids[None], rows, 0), "text_mask": np.repeat(mask[None], rows, 0)}
        keys = np.repeat(np.arange(len(labels), dtype=np.int32)[None], rows, 0)
        return batch | {"text_valid": np.ones((rows, len(labels)), bool), "text_key": keys}
    if "question" in task.features:
        if not question:
            return None
        ids, mask = processor.encode([question], processor.question_length)
        batch |= {"question": np.repeat(ids[None], rows, 0), "question_mask": np.repeat(mask[None], rows, 0)}
        batch |= {"question_valid": np.ones((rows, 1), bool)}
        answer_shape = (rows, 1, processor.answer_length)
        return batch | {"answer_text": np.zeros(answer_shape, np.int32), "answer_mask": np.zeros(answer_shape, bool)}
    if "chat" in task.features:
        if not question:
            return None
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        asked = [{"id": "--question", "messages": [turn]}] * rows
        return batch | processor.conversations(asked, pictures=False, reply=True)
    if "text" in task.features:
        if task.couples_rows:  # matching judges given pairs; there is none here
            return None
        return batch | {"text": np.zeros((rows, 1, processor.length), np.int32)}
    return batch


def _say(trained: Trained, task: Task, batch: Mapping[str, np.ndarray], labels: Sequence[str]) -> list[list[str]]:
    def run(params: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        forward = Forward(trained.model, nested(params), batch, train=False)
        return task.predict(forward), forward.scale() if hasattr(task, "embed") else ()

    outputs, scale = jax.device_get(sharding.jit(trained.mesh, run)(trained.params, dict(batch)))
    if hasattr(task, "embed"):
        similar = np.einsum("be,bke->bk", outputs["image_embedding"], outputs["text_embedding"])
        logits = similar * np.exp(scale[0]) + scale[1]
        share = np.exp(logits - logits.max(-1, keepdims=True))
        share /= share.sum(-1, keepdims=True)
        order = np.argsort(-similar, axis=-1)
        return [[f"{share[b, k]:6.1%}  {labels[k]}" for k in order[b]] for b in range(len(similar))]
    readable = task.readable(outputs, trained.processor)
    if "answer" in readable:
        return [[f"answer: {row[0]}"] for row in readable["answer"]]
    return [[text for text, _ in task.describe(readable, row, {})] for row in range(len(batch["valid"]))]
