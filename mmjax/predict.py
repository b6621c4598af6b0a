"""Captions, answers, rankings and classes for pictures of a user's. Needs no TensorFlow: pictures take the PIL path.

One picture or a million: batches of one shape, pictures read ahead by threads, a line of JSON a picture as soon as its
batch is done. A second run of the same command goes on after the last line that is whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax import report, sharding
from mmjax.config import plain
from mmjax.data.answers import normalise
from mmjax.data.buckets import rounded
from mmjax.data.image_files import PictureError
from mmjax.data.requests import Pictures, open_requests
from mmjax.data.sources import Record, Source
from mmjax.errors import ConfigError
from mmjax.metrics import progress
from mmjax.models.forward import Forward
from mmjax.predictions import Results, UniqueIds
from mmjax.tasks import Task
from mmjax.train_step import nested
from mmjax.trained import Trained, open_trained


@dataclass(frozen=True)
class Request:
    """What is asked of every picture.

    Attributes:
      question: in place of the source's own questions; "" keeps those.
      labels: texts to rank.
      answers: what a decoder may answer: the likeliest of them, in place of what it would write.
    """

    question: str = ""
    labels: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    def record(self, record: Record) -> Record:
        """The record with what is asked of it."""
        asked = [{"question": self.question, "answers": []}] if self.question else record.get("qa", [])
        return {**record, "qa": asked}


def predict(
    workdir: Path,
    checkpoint: str,
    overrides: Mapping[str, str],
    *,
    images: Sequence[Path] = (),
    source: str = "",
    root: str = "",
    request: Request,
    out: Path | None = None,
    panel: Path | None = None,
) -> int:
    """Says what every task of the workdir that can says of each picture, and returns the exit code.

    Args:
      images: picture files; what is said of them is printed, and each must be readable.
      source: or a folder, a jsonl, any set. A picture that cannot be read becomes a line with `error`.
      root: where relative pictures of the source are looked for.
      out: the lines as JSON; those that it already holds are not made again. Needed with `source`.
      panel: a PNG of the first pictures with what is said of them.
    """
    if bool(images) == bool(source):
        raise ConfigError("--image, --input: expected one of them: picture files, or a folder or file about pictures.")
    if source and out is None:
        raise ConfigError("--out: missing. With --input it names the file of results, as in --out results.jsonl.")
    if out and out.suffix != ".jsonl":
        raise ConfigError(f"--out: found '{out}', expected a name that ends in .jsonl. A panel of pictures is --panel.")
    for path in images:
        if not path.is_file():
            raise ConfigError(f"--image: no file '{path}'.")
    pictures = Pictures("--image", [(str(path), path) for path in images])
    trained = open_trained(workdir, checkpoint, overrides)
    talks = any("chat" in task.features for task in trained.config.tasks.values())  # one question at a time
    asked = open_requests(source, root, "--input", group=not talks) if source else pictures
    answers = Answers(trained, request, asked)
    manner = {key: value for key, value in overrides.items() if key.startswith("tasks.")}
    about = {"step": trained.step, "weights": trained.workdir.identity["sha256"], "source": asked.fingerprint}
    about |= {"processor": trained.processor.sha256, **manner, **plain(request)}
    results = Results(out, about)
    for line in answers.lines(asked, results.done):
        if images and "error" in line:
            raise ConfigError(f"--image: '{line['id']}' is not a picture that can be read ({line['error']}).")
        results.add(line)
        if images:
            print("\n  ".join([line["id"], *words(line)]))
    results.close()
    if out:
        failed = f"; {results.failed} pictures cannot be read" if results.failed else ""
        print(f"{out}: {len(results.done)} of {len(asked)} rows{failed}.")
    if panel:
        items = []
        for line in results.first(trained.config.eval.examples):
            picture = answers.picture(asked[line["row"]])
            items.append(report.PanelItem(picture, [(text, None) for text in words(line)], line["id"]))
        report.panel(panel, items)
        print(f"written: {panel}")
    return 0


class Answers:
    """A trained model and what is asked of it, compiled for each power of two of a batch's questions."""

    def __init__(self, trained: Trained, request: Request, source: Source):
        self._trained, self._request = trained, request
        counts = [len(request.record(source.annotations(i)).get("qa", ())) for i in range(len(source))]
        self._questions = max(counts, default=0)  # the most of a picture; a batch has room for those of its own
        self._processor = trained.processor
        if request.answers:
            self._processor = dataclasses.replace(trained.processor, answers=tuple(map(normalise, request.answers)))
        self.tasks = self._able()
        ways = trained.mesh.shape["data"] * trained.mesh.shape["fsdp"]
        size = trained.config.eval.batch_size or trained.config.data.batch_size(trained.config.first_stream)
        self.batch_size = -(-min(size, len(source)) // ways) * ways

        def run(params: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
            forward = Forward(trained.model, nested(params), batch, processor=self._processor)
            outputs = {name: task.predict(forward) for name, task in self.tasks.items()}
            return outputs, forward.scale() if any(map(_ranks, self.tasks.values())) else ()

        self._run = sharding.jit(trained.mesh, run)

    def _able(self) -> dict[str, Task]:
        """The tasks that can answer the request. Raises ConfigError where there is none for a part of it."""
        tasks, names = self._trained.config.tasks, ", ".join(self._trained.config.tasks)
        if self._request.question and not any({"question", "chat"} & t.features for t in tasks.values()):
            raise ConfigError(f"--question: this run has no task that answers questions. It has {names}.")
        if self._request.labels and not any(map(_ranks, tasks.values())):
            raise ConfigError(f"--labels: this run has no contrastive task to rank texts with. It has {names}.")
        if self._request.answers:
            choosing = {n: t.choosing() for n, t in tasks.items() if hasattr(t, "choosing") and "decoder" in t.needs}
            tasks = {**tasks, **choosing}
            if not choosing:
                raise ConfigError(f"--answers: this run has no vqa task whose decoder could choose. It has {names}.")
        able = {}
        for name, task in tasks.items():
            asks = bool({"question", "chat"} & task.features)
            # Matching judges given pairs; there is none here.
            can = bool(self._request.labels) if _ranks(task) else not task.couples_rows
            if can and (self._questions or not asks):
                able[name] = task
        if not able:
            raise ConfigError("nothing to say: give --question for answers, or --labels to rank texts.")
        return able

    def picture(self, record: Record) -> np.ndarray:
        """[H, W, 3] uint8 as the model sees it in evaluation. Raises PictureError or OSError."""
        if not record.get("image"):
            raise PictureError("no picture", "the row has none")
        return self._trained.processor.image_pil(record["image"])

    def lines(self, source: Source, done: Set[str]) -> Iterator[dict[str, Any]]:
        """{"id", "row", task: what it says} or {"id", "row", "error"} for every row whose id is not in `done`."""
        named, wanted = UniqueIds(), []
        for row in range(len(source)):
            record = named(source.annotations(row))
            if record["id"] not in done:
                wanted.append((row, record))
        starts = range(0, len(wanted), self.batch_size)
        with ThreadPoolExecutor(max(self._trained.config.data.threads, 1)) as pool:
            submit = partial(pool.submit, self._read, source)
            ahead = [submit(*one) for one in wanted[: self.batch_size]]
            for start in progress(starts, "predict", unit="batch"):
                batch, after = [future.result() for future in ahead], start + self.batch_size
                ahead = [submit(*one) for one in wanted[after : after + self.batch_size]]
                yield from self._answer(batch)

    def _read(self, source: Source, row: int, record: Record) -> tuple[int, Record, np.ndarray | str]:
        try:
            return row, record, self.picture(source[row])
        except (OSError, PictureError, ConfigError) as error:
            return row, record, f"no file '{error.filename}'" if isinstance(error, FileNotFoundError) else str(error)

    def _answer(self, rows: list[tuple[int, Record, np.ndarray | str]]) -> Iterator[dict[str, Any]]:
        good = [entry for entry in rows if not isinstance(entry[2], str)]
        said = iter(self._say(*map(list, zip(*good, strict=True))) if good else ())
        for row, record, picture in rows:
            told = {"error": picture} if isinstance(picture, str) else next(said)
            yield {"id": record["id"], "row": row, **told}

    def _say(self, rows: list[int], records: list[Record], pictures: list[np.ndarray]) -> list[dict[str, Any]]:
        records = [self._request.record(record) for record in records]
        batch = self._batch(rows, records, pictures)
        outputs, scale = jax.device_get(self._run(self._trained.params, batch))
        said: list[dict[str, Any]] = [{} for _ in records]
        for name, task in self.tasks.items():
            if _ranks(task):
                shares = _shares(outputs[name], scale)
                for row, line in enumerate(said):
                    order = np.argsort(-shares[row], kind="stable")
                    line[name] = {"ranking": [[self._request.labels[k], shares[row, k]] for k in order]}
                continue
            readable = {**batch, **task.readable(outputs[name], self._processor)}
            for row, (line, record) in enumerate(zip(said, records, strict=True)):
                if record["qa"] or not {"question", "chat"} & task.features:
                    told = {**record, **_talk(record)} if "chat" in task.features else record
                    line[name] = {k: v for k, v in task.said(readable, row, told).items() if k != "badness"}
        return said

    def _batch(self, rows: list[int], records: list[Record], pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Filled up to the one batch size with rows that are not valid."""
        processor, empty = self._trained.processor, self.batch_size - len(records)
        asked = [{"id": r["id"], "qa": r["qa"], "texts": self._request.labels} for r in records] + [{}] * empty
        features = frozenset().union(*(task.features for task in self.tasks.values()))
        most = max((len(record["qa"]) for record in records), default=0)
        questions = rounded(max(most, 1), max(self._questions, 1))
        counts = {"captions": max(len(self._request.labels), 1), "questions": questions}
        keys = np.zeros(self.batch_size, np.uint64)
        batch = processor.arrays(asked, keys, features - {"image", "chat"}, train=False, **counts)
        if "chat" in features:
            talks = [_talk(record) for record in asked]
            batch |= processor.conversations(talks, pictures=False, reply=True)
        return batch | {
            **processor.pictures([*pictures, *[None] * empty]),
            "image_key": np.arange(self.batch_size, dtype=np.int32),
            "valid": np.arange(self.batch_size) < len(records),
            "row": np.array([*rows, *[0] * empty], np.int32),
        }


def words(line: Mapping[str, Any]) -> list[str]:
    """A line of results as lines of text, for people."""
    texts = []
    for said in line.values():
        if not isinstance(said, Mapping):
            continue
        if "ranking" in said:
            texts += [f"{share:6.1%}  {label}" for label, share in said["ranking"]]
        elif "answer" in said:
            asked = said["question"] if len(said["question"]) > 1 else ["answer:"]
            texts += [f"{question} {answer}" for question, answer in zip(asked, said["answer"], strict=True)]
        elif "value" in said:
            texts.append(f"{said['value']:.4g}")
        elif "probability" in said:
            texts.append(f"{said['label']} ({said['probability']:.0%})")
        elif "labels" in said:
            texts.append(", ".join(f"{name} ({p:.0%})" for name, p in said["labels"].items()) or "none of the classes")
        else:
            texts += [said["caption"]] if "caption" in said else said["said"]
    return texts


def _ranks(task: Task) -> bool:
    return hasattr(task, "embed")


def _shares(outputs: Mapping[str, np.ndarray], scale: tuple[Any, Any]) -> np.ndarray:
    """[B, K]: softmax over the texts of the contrastive logits."""
    logits = np.einsum("be,bke->bk", outputs["image_embedding"], outputs["text_embedding"]) * np.exp(scale[0])
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _talk(record: Record) -> Record:
    """The first question as a turn of the user's about the picture."""
    question = next((qa["question"] for qa in record.get("qa", ())), "")
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return {"id": record.get("id", ""), "messages": [{"role": "user", "content": content}]}
