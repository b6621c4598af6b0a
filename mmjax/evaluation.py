"""Runs every task's evaluator over whole sets: each row once, whatever their number."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax import report, sharding
from mmjax.data.packed import make_pipeline
from mmjax.data.pipeline import Pipeline
from mmjax.data.processor import Processor, picture_of
from mmjax.data.sources import Source, at_most
from mmjax.errors import ConfigError
from mmjax.evaluators import Figure
from mmjax.evaluators.figure import pages
from mmjax.evaluators.frozen_features import FrozenFeatures
from mmjax.experiment import Config
from mmjax.feed import Feed
from mmjax.metrics import add, divide, progress
from mmjax.models.forward import Forward
from mmjax.models.multimodal import Multimodal
from mmjax.predictions import PredictionFile, UniqueIds
from mmjax.tasks import Task
from mmjax.train_step import nested

PROBE = "probe"  # figures of `eval.probe`
_BASELINE_ROWS = 200_000  # of the training set, that a baseline (most frequent answer, ...) is counted on


@dataclass(frozen=True)
class Result:
    """What one set gave.

    Attributes:
      figures: the tasks' figures, each with baseline and interval.
      losses: {task/metric: value} of the tasks' loss functions in evaluation mode.
      panel: items for the picture panel.
      worst: {task: items for the panel of its worst rows, the worst first}.
      pages: {name: text or picture} of what else the evaluators have to show ("vqa.confusion.png").
    """

    figures: list[Figure]
    losses: dict[str, float]
    panel: list[report.PanelItem]
    worst: dict[str, list[report.PanelItem]] = field(default_factory=dict)
    pages: dict[str, str | np.ndarray] = field(default_factory=dict)

    def scalars(self) -> dict[str, float]:
        """{task/metric: value}: what metrics.jsonl and the choice of the best checkpoint see."""
        return {**self.losses, **{f.name: f.value for f in self.figures}}


class Evaluation:
    """Compiled once a stream and used for every set of that stream, during training and after it."""

    def __init__(
        self, config: Config, model: Multimodal, processor: Processor, mesh: Mesh, train: Mapping[str, Source]
    ):
        self.config, self.model, self.processor, self.mesh = config, model, processor, mesh
        self.train = {stream: at_most(source, _BASELINE_ROWS) for stream, source in train.items()}
        self._steps: dict[str, Callable[..., Any]] = {}

    def _step(self, stream: str) -> Callable[..., Any]:
        if stream not in self._steps:
            tasks = self.config.tasks_of(stream)

            def step(params: Mapping[str, jax.Array], batch: Mapping[str, jax.Array]) -> Any:
                forward = Forward(self.model, nested(params), batch, jax.random.key(0), processor=self.processor)
                losses = {f"{n}/{k}": v for n, t in tasks.items() for k, v in t.loss(forward).items()}
                features = {PROBE: {"features": forward.image().pooled}} if self.config.eval.probe else {}
                return losses, {n: t.predict(forward) for n, t in tasks.items()} | features

            self._steps[stream] = sharding.jit(self.mesh, step, out_shardings=sharding.replicated(self.mesh))
        return self._steps[stream]

    def pipeline(self, stream: str, source: Source) -> Pipeline:
        """Every row of the source once, in batches of `eval.batch_size`."""
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        train = self.config.data.of_stream(stream)
        size = self.config.eval.batch_size or train.batch_size * max(1, train.pack_rows)
        size = -(-min(size, len(source)) // ways) * ways
        return make_pipeline(
            source,
            self.processor,
            self.config.features_of(stream),
            batch_size=size,
            seed=self.config.train.seed,
            train=False,
            rows=sharding.local_rows(self.mesh, size),
            threads=self.config.data.threads,
            max_bad_fraction=self.config.data.max_bad_fraction,
        )

    def run(
        self,
        name: str,
        stream: str,
        source: Source,
        params: Mapping[str, jax.Array],
        predictions: Path | None = None,
    ) -> Result:
        """Evaluates one set with flat `params`; what is said of each row goes into the file `predictions`.

        Baselines are fitted on the training set of its stream; where there is none, as of an imported model, on the set
        itself.
        """
        tasks = self.config.tasks_of(stream)
        if stream not in self.train:
            if self.config.eval.probe:
                raise ConfigError("config.eval.probe: is fitted on config.data.train, which is empty. Name a set.")
            print(f"{name}: no config.data.train; baselines are fitted on this very set.")
        judges = {n: t.evaluator(self.processor, self.train.get(stream, source)) for n, t in tasks.items()}
        if self.config.eval.probe:
            judges[PROBE] = self._probe(stream, params)
        pipeline, sums, panel = self.pipeline(stream, source), {}, []
        step, named = self._step(stream), UniqueIds()
        worst = {n: _Worst(self.config.eval.examples) for n in tasks}
        lines = PredictionFile(predictions) if predictions and jax.process_index() == 0 else None
        with Feed({stream: pipeline}, self.mesh, 0, pipeline.steps) as feed:
            for _ in progress(range(pipeline.steps), f"evaluate {name}", unit="batch"):
                batch = feed.take()[0][stream]
                losses, outputs = jax.device_get(step(params, batch))
                small = jax.device_get({k: v for k, v in batch.items() if k not in ("image", "image_grid")})
                valid = np.flatnonzero(small["valid"])
                records = [source.annotations(int(row)) for row in small["row"]]
                for row in valid:
                    records[row] = named(records[row])
                sums = add(sums, losses)
                readable = outputs | {n: t.readable(outputs[n], self.processor) for n, t in tasks.items()}
                for n, judge in judges.items():
                    judge.update(readable[n], small, records)
                images = _Images(batch)
                texts = {"texts": [r.get("texts", []) for r in records]}
                outputs = {n: {**small, **readable[n], **texts} for n in tasks}
                if not panel:
                    panel = self._panel(tasks, outputs, images, valid, records)
                for row in map(int, valid):
                    said = {n: t.said(outputs[n], row, records[row]) for n, t in tasks.items()}
                    for n, task in tasks.items():
                        if worst[n].takes(said[n].get("badness", 0.0)):
                            shown = task.mistakes(outputs[n], row, records[row])
                            item = report.PanelItem(images[row], shown, records[row]["id"])
                            worst[n].add(said[n]["badness"], item)
                    if lines:
                        lines.add(records[row], said)
        if len(pipeline.bad):
            bad = f"{len(pipeline.bad)} of {len(source)} rows cannot be read ({pipeline.bad.summary()})"
            print(f"{name}: {bad}; the figures are of the others.")
        figures = [figure for judge in judges.values() for figure in judge.figures()]
        if lines:
            lines.finish(figures)
        return Result(
            figures,
            divide(sums),
            panel,
            {n: rows.items() for n, rows in worst.items()},
            {f"{n}.{page}": shown for n, judge in judges.items() for page, shown in pages(judge).items()},
        )

    def _probe(self, stream: str, params: Mapping[str, jax.Array]) -> FrozenFeatures:
        """Fitted on the pooled features of the stream's training set, each picture as evaluation sees it."""
        pooled = sharding.jit(
            self.mesh,
            lambda params, batch: Forward(self.model, nested(params), batch).image().pooled,
            out_shardings=sharding.replicated(self.mesh),
        )
        source, judge = self.train[stream], FrozenFeatures(PROBE)
        pipeline = self.pipeline(stream, source)

        def batches() -> Iterator[Any]:
            with Feed({stream: pipeline}, self.mesh, 0, pipeline.steps) as feed:
                for _ in progress(range(pipeline.steps), f"features of {stream}", unit="batch"):
                    batch = feed.take()[0][stream]
                    features = jax.device_get(pooled(params, batch))
                    small = jax.device_get({k: batch[k] for k in ("row", "valid")})
                    yield features, small, [source.annotations(int(row)) for row in small["row"]]

        judge.fit(batches())
        return judge

    def _panel(
        self, tasks: Mapping[str, Task], outputs: Any, images: _Images, valid: np.ndarray, records: list[Any]
    ) -> list[report.PanelItem]:
        items = []
        for row in map(int, valid[: self.config.eval.examples]):
            lines = [line for n, task in tasks.items() for line in task.describe(outputs[n], row, records[row])]
            items.append(report.PanelItem(images[row], lines))
        return items


class _Images:
    """The pictures of a batch, fetched from the device when the first of them is wanted."""

    def __init__(self, batch: Mapping[str, jax.Array]):
        self._batch, self._fetched = {k: batch[k] for k in ("image", "image_grid") if k in batch}, None

    def __getitem__(self, row: int) -> np.ndarray:
        if self._fetched is None:
            self._fetched = jax.device_get(self._batch)
        return np.array(picture_of(self._fetched, row))  # a view would keep the whole batch


class _Worst:
    """The `count` worst rows of a task; of equals the first."""

    def __init__(self, count: int):
        self._count, self._heap, self._seen = count, [], 0

    def takes(self, badness: float) -> bool:
        """Whether a row so bad is among the worst so far."""
        return badness > 0 and (len(self._heap) < self._count or bool(self._heap) and badness > self._heap[0][0])

    def add(self, badness: float, item: report.PanelItem) -> None:
        self._seen += 1
        change = heapq.heappush if len(self._heap) < self._count else heapq.heapreplace
        change(self._heap, (badness, -self._seen, item))

    def items(self) -> list[report.PanelItem]:
        """The worst first."""
        return [item for _, _, item in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def judge_sets(
    evaluation: Evaluation,
    sets: Mapping[str, tuple[str, Source]],
    params: Mapping[str, jax.Array],
    folder: Path,
    step: int,
) -> dict[str, Result]:
    """Evaluates {name: (stream, source)}, prints the tables, and writes what the results show into `folder`.

    SET.json has the figures, SET.jsonl the predictions, SET.png a panel of pictures, SET.TASK.worst.png the worst rows,
    SET.TASK.* the pages of the evaluators (`classes.txt`, `confusion.png`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    results, tables = {}, []
    for name, (stream, source) in sets.items():
        result = evaluation.run(name, stream, source, params, folder / f"{name}.jsonl")
        report.write_json(folder / f"{name}.json", result.figures, {"set": name, "step": step, "losses": result.losses})
        if result.panel:
            report.panel(folder / f"{name}.png", result.panel)
        for task, items in result.worst.items():
            file = folder / f"{name}.{task}.worst.png"
            file.unlink(missing_ok=True)  # of an evaluation before
            if items:
                report.panel(file, items)
        for page, shown in result.pages.items():
            report.write_page(folder / f"{name}.{page}", shown)
        tables.append(f"{name} (step {step})\n{report.table(result.figures)}")
        results[name] = result
    print("\n" + "\n\n".join(tables), flush=True)
    return results
