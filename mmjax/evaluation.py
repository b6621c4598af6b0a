"""Runs every task's evaluator over whole sets: each row once, whatever their number."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from mmjax.evaluators import Figure
from mmjax.experiment import Config
from mmjax.feed import Feed
from mmjax.metrics import add, progress
from mmjax.models.forward import Forward
from mmjax.models.multimodal import Multimodal
from mmjax.train_step import nested

_BASELINE_ROWS = 200_000  # of the training set, that a baseline (most frequent answer, ...) is counted on


@dataclass(frozen=True)
class Result:
    """What one set gave.

    Attributes:
      figures: the tasks' figures, each with baseline and interval.
      losses: {task/metric: value} of the tasks' loss functions in evaluation mode.
      panel: items for the picture panel.
    """

    figures: list[Figure]
    losses: dict[str, float]
    panel: list[report.PanelItem]

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
                forward = Forward(self.model, nested(params), batch, jax.random.key(0), train=False)
                losses = {f"{n}/{k}": v for n, t in tasks.items() for k, v in t.loss(forward).items()}
                return losses, {n: t.predict(forward) for n, t in tasks.items()}

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

    def run(self, name: str, stream: str, source: Source, params: Mapping[str, jax.Array]) -> Result:
        """Evaluates one set with flat `params`. Baselines are fitted on the training set of its stream; where there is
        none, as of an imported model, on the set itself.
        """
        tasks = self.config.tasks_of(stream)
        if stream not in self.train:
            print(f"{name}: no config.data.train; baselines are fitted on this very set.")
        judges = {n: t.evaluator(self.processor, self.train.get(stream, source)) for n, t in tasks.items()}
        pipeline, sums, panel = self.pipeline(stream, source), {}, []
        step = self._step(stream)
        with Feed({stream: pipeline}, self.mesh, 0, pipeline.steps) as feed:
            for _ in progress(range(pipeline.steps), f"evaluate {name}", unit="batch"):
                batch = feed.take()[0][stream]
                losses, outputs = jax.device_get(step(params, batch))
                small = jax.device_get({k: v for k, v in batch.items() if k not in ("image", "image_grid")})
                records = [source.annotations(int(row)) for row in small["row"]]
                sums = add(sums, losses)
                readable = {n: t.readable(outputs[n], self.processor) for n, t in tasks.items()}
                for n, judge in judges.items():
                    judge.update(readable[n], small, records)
                if not panel:
                    pictures = jax.device_get({k: batch[k] for k in ("image", "image_grid") if k in batch})
                    panel = self._panel(tasks, readable, small, pictures, records)
        if len(pipeline.bad):
            bad = f"{len(pipeline.bad)} of {len(source)} rows cannot be read ({pipeline.bad.summary()})"
            print(f"{name}: {bad}; the figures are of the others.")
        return Result(
            [figure for judge in judges.values() for figure in judge.figures()],
            {k: float(v / max(w, 1e-9)) for k, (v, w) in sums.items()},
            panel,
        )

    def _panel(
        self, tasks: Any, readable: Any, batch: Any, pictures: Mapping[str, np.ndarray], records: list[Any]
    ) -> list[report.PanelItem]:
        items = []
        texts = [r.get("texts", []) for r in records]
        for row in np.flatnonzero(batch["valid"])[: self.config.eval.examples]:
            lines = []
            for n, task in tasks.items():
                lines += task.describe({**batch, **readable[n], "texts": texts}, int(row), records[row])
            items.append(report.PanelItem(picture_of(pictures, row), lines))
        return items


def write_results(workdir: Path, results: Mapping[str, Result], step: int) -> str:
    """Writes eval/<set>.json and eval/<set>.png; returns the tables as text."""
    folder = workdir / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for name, result in results.items():
        report.write_json(folder / f"{name}.json", result.figures, {"set": name, "step": step, "losses": result.losses})
        if result.panel:
            report.panel(folder / f"{name}.png", result.panel)
        tables.append(f"{name} (step {step})\n{report.table(result.figures)}")
    return "\n\n".join(tables)
