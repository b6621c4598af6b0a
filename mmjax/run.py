"""A training run, opened: what the loop works with, made once from a config and a workdir, new or to be gone on with.

workdir/config.json      the resolved config            workdir/checkpoints/   Orbax, latest and best
workdir/metrics.jsonl    a line every log_every steps   workdir/eval/          figures and picture panels
workdir/curves.png       loss and figures over steps    workdir/tensorboard/   the same for TensorBoard
workdir/bad_records.jsonl   rows that could not be read
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax import assemble, report, sharding, summary
from mmjax.checkpoint import Checkpointer, NoSuchFigure, direction
from mmjax.config import differences, plain
from mmjax.data.processor import Processor
from mmjax.doctor import versions
from mmjax.duration import steps as duration
from mmjax.errors import ConfigError, did_you_mean
from mmjax.evaluation import PROBE, Evaluation, Result, judge_sets
from mmjax.experiment import Config
from mmjax.feed import Feed
from mmjax.init_config import pinned
from mmjax.metrics import MetricWriter, Progress, divide
from mmjax.models.multimodal import Multimodal
from mmjax.train_step import Objective, State, make_train_step
from mmjax.workdir import Workdir, source_of

# What may change between a run and its continuation: nothing of the data, the model, the kind of update or the figure
# by which checkpoints are chosen. A longer or shorter run has another schedule from there on.
_MAY_CHANGE = ("eval.", "checkpoint.every", "checkpoint.keep", "checkpoint.asynchronous", "mesh.", "train.log_every",
               "train.steps", "train.epochs", "train.examples",
               "data.threads", "data.check_overlap", "data.test", "data.eval", "train.max_bad_steps",
               "init.path")  # fmt: skip

Params = Mapping[str, jax.Array]


class Diverged(Exception):
    """Too many steps in a row without a finite gradient."""


class Run:
    """Attributes:
    plan: of the first stage; `plan.at(step)` is that of a step.
    history: (step, figure `checkpoint.best`) of every evaluation so far.
    save_every, eval_every: in steps; eval_every is 0 where sets are judged at the end only.
    """

    def __init__(self, config: Config, mapping: Mapping[str, Any], workdir: Path):
        """Args as of `train`.

        Raises:
          ConfigError: the workdir holds a run with other data, another model or other updates.
        """
        workdir.mkdir(parents=True, exist_ok=True)
        self.config, self.workdir, self.history = config, workdir, []
        self.mesh = sharding.make_mesh(config.mesh)
        self.data = assemble.open_data(config)
        check_best(config, list(self.data.validation))
        self.checkpoints = Checkpointer(workdir / "checkpoints", config.checkpoint)
        self._latest = latest = self.checkpoints.latest_step()
        saved = None if latest is None else self.checkpoints.read_json(latest, "meta")
        self._source = source_of(pinned(config.init, saved and saved.get("base")))
        base = self._source and self._source.identity
        built = dataclasses.replace(config, init=pinned(config.init, base))
        if latest is None:
            self.processor = assemble.fit_processor(built, self.data)
        else:
            self.processor = Processor.from_json(self.checkpoints.read_json(latest, "processor"))
        self._built = built = assemble.prepared(built, self.processor)
        self.model = assemble.build_model(built, self.processor)
        bad_file = workdir / "bad_records.jsonl"
        self.pipelines = assemble.train_pipelines(config, self.data, self.processor, self.mesh, bad_file)
        self.plan = assemble.make_plan(built, self.model, self.data, self.mesh, self.pipelines)
        self._meta = {"config": plain(config), "mapping": plain(mapping), "fingerprint": self.data.fingerprint,
                      "base": base, "versions": versions()}  # fmt: skip
        if saved:
            _check_continuation(saved, self._meta, config)
        self._evaluation = Evaluation(config, self.model, self.processor, self.mesh, self.data.train)
        sizes = {"batch_size": self.rows_a_step, "rows": len(self.data.train[config.first_stream])}
        in_steps = lambda text: duration(text, total=self.plan.total_steps, **sizes)  # noqa: E731
        self.save_every = max(1, in_steps(config.checkpoint.every))
        self.eval_every = max(1, in_steps(config.eval.every)) if config.eval.every else 0
        self.writer: MetricWriter | None = None

    @property
    def rows_a_step(self) -> int:
        return self.pipelines[self.config.first_stream].rows_a_step

    def begin(self) -> tuple[int, State]:
        """(updates done, state): of the newest checkpoint that can be read, or as the run begins."""
        if self._latest is None:
            if self._source is not None and jax.process_index() == 0:
                self._source.carry(self.workdir)
            return 0, assemble.initial_state(self._built, self.model, self.plan)
        at = self.plan.at
        step, state = self.checkpoints.restore_latest(lambda step: at(step).stored(at(step).abstract))
        self.history = [tuple(entry) for entry in self.checkpoints.read_json(step, "data").get("history", ())]
        return int(step), assemble.complete(self._built, at(step), state)

    def announce(self, start: int) -> None:
        """Prints what will run, and opens the files of figures: what they hold of later steps is taken away."""
        print(summary.run_table(self._built, self.plan, self.data, self.processor, self.pipelines))
        (self.workdir / "config.json").write_text(json.dumps(self._meta["config"], indent=1))
        self.writer = MetricWriter(self.workdir, active=jax.process_index() == 0)
        self.writer.truncate_after(start)

    def feed(self, start: int) -> Feed:
        """The batches of the steps after `start`."""
        return Feed(self.pipelines, self.mesh, start, self.plan.total_steps)

    def step_function(self, plan: assemble.Plan) -> Callable[..., Any]:
        """`step_function` of this run, compiled once for each shape that its batches have."""
        return step_function(self._built, self.model, plan, math.prod(p.shapes for p in self.pipelines.values()))

    def judges_at(self, step: int) -> bool:
        """Whether the validation sets are judged after this step."""
        last = step == self.plan.total_steps
        return bool(self.data.validation) and bool(last or (self.eval_every and step % self.eval_every == 0))

    def evaluate(self, step: int, state: State) -> dict[str, float]:
        """{set/task/metric: value} of all validation sets; of step 0 it is no part of the history."""
        plan, config = self.plan.at(step), self.config
        kinds = {"": assemble.weights(config, plan, state)}
        if config.train.ema:
            kinds["_raw"] = assemble.weights(config, plan, state, average=False)
        figures = self._judge(kinds, step)
        self.checkpoints.check_best(figures)
        if step and config.checkpoint.best in figures:
            self.history.append((step, figures[config.checkpoint.best]))
        return figures

    def _judge(self, kinds: Mapping[str, Params], step: int) -> dict[str, float]:
        """Judges each kind of weights ({suffix of the set's name: parameters}): tables, files and panels in eval/, and
        curves while training goes on.
        """
        results: dict[str, Result] = {}
        for kind, params in kinds.items():
            sets = {name + kind: where for name, where in self.data.validation.items()}
            results |= judge_sets(self._evaluation, sets, params, self.workdir / "eval", step)
        figures = {f"{name}/{k}": v for name, result in results.items() for k, v in result.scalars().items()}
        if self.writer:
            self.writer.scalars(step, figures)
            for name, result in results.items():
                if result.panel:
                    self.writer.image(step, f"{name}/predictions", report.draw_panel(result.panel))
        return figures

    def asks_to_stop(self, step: int) -> bool:
        """Whether the last stage has gone on long enough without a better figure (`train.early_stop`)."""
        plan, best = self.plan.at(step), self.config.checkpoint
        mode = direction(best.best, best.best_mode)
        figures = [value for at, value in self.history if at > plan.start]
        return plan.next is None and self.config.train.early_stop.asks(figures, mode)

    def save(self, step: int, state: State, figures: Mapping[str, float] | None) -> None:
        """Saves in the background; `figures` are those of this step, where it was judged."""
        position = {"seed": self.config.train.seed, "step": step, "fingerprint": self.data.fingerprint,
                    "history": self.history}  # fmt: skip
        self.writer.flush()
        stored = self.plan.at(step).stored(state)
        self.checkpoints.save(step, stored, position, self._meta, self.processor.to_json(), figures)

    def log(self, step: int, out: Any, row_sums: Mapping[str, str], bar: Progress) -> None:
        """Reads the metrics of an update, and writes them where a line is due.

        Raises:
          Diverged: `train.max_bad_steps` updates in a row had no finite gradient.
        """
        config, out = self.config, jax.device_get(out)
        values = divide(out["metrics"])
        bar.show(values["loss"])
        in_a_row = int(out["bad_in_a_row"])
        if in_a_row:
            print(
                f"step {step}: the loss or the gradient is not finite; the step is skipped "
                f"({int(out['skipped'])} so far). Rows: {row_sums}"
            )
        if in_a_row >= config.train.max_bad_steps:
            raise Diverged(f"step {step}: {in_a_row} steps in a row without a finite gradient. Lower optimizer.lr.")
        if step % config.train.log_every == 0 or step == self.plan.total_steps:
            for stream, pipeline in self.pipelines.items():
                values |= {f"share/{stream}/{name}": share for name, share in pipeline.shares(step).items()}
                values |= {f"bad_records/{stream}": float(len(pipeline.bad))} if len(pipeline.bad) else {}
            stage = self.plan.at(step)
            rate = float(stage.schedule(step - 1 - stage.start))
            self.writer.scalars(step, {**values, "lr": rate, **bar.throughput(), "rows": row_sums})

    def finish(self, step: int) -> None:
        """Leaves the best checkpoint's figures in eval/, says what could not be read, and draws the curves."""
        self.checkpoints.wait()
        if self.writer:
            self.writer.close()
            self.writer = None
        self._show_best(step)
        self.checkpoints.close()
        for stream, pipeline in self.pipelines.items():
            if len(pipeline.bad):
                print(
                    f"train/{stream}: {len(pipeline.bad)} of {len(pipeline.source)} rows could not be read "
                    f"({pipeline.bad.summary()}): {self.workdir}/bad_records.jsonl"
                )
        if (self.workdir / "metrics.jsonl").is_file():
            report.curves(self.workdir / "curves.png", self.workdir / "metrics.jsonl")

    def _show_best(self, end: int) -> None:
        """The figures of the best checkpoint, where that is not the last one."""
        chosen = self.checkpoints.best_step()
        shown = {_judged_step(self.workdir, name) for name in self.data.validation}
        if chosen in (None, end) or shown == {chosen}:
            return
        kept = Workdir(self.workdir, str(chosen), base_path=self.config.init.path)
        wanted = self.plan.layout.abstract(self.plan.layout.merged)
        kinds = {"": kept.read(wanted)}
        if self.config.train.ema:
            kinds["_raw"] = kept.read(wanted, average=False)
        kept.close()
        print(f"\nThe best checkpoint is that of step {chosen}; its figures are the run's:")
        self._judge(kinds, chosen)


def check_best(config: Config, names: list[str]) -> None:
    """Whether `checkpoint.best` can be a figure of one of the validation sets, before anything is judged."""
    best = config.checkpoint.best
    if not best:
        return
    if not names:
        raise ConfigError(
            f"config.checkpoint.best: found '{best}', but nothing is judged: config.data.holdout is 0, and there is no "
            "config.data.validation. Set one of them, or leave it out."
        )
    names = [*names, *(f"{name}_raw" for name in names if config.train.ema)]
    name, _, figure = best.partition("/")
    task = figure.partition("/")[0]
    if name not in names:
        raise NoSuchFigure(
            f"config.checkpoint.best: found '{best}', but there is no set '{name}'. Expected SET/TASK/FIGURE with one "
            f"of {', '.join(names)}.{did_you_mean(name, names)}"
        )
    if task not in (tasks := [*config.tasks, *([PROBE] if config.eval.probe else [])]):
        raise NoSuchFigure(
            f"config.checkpoint.best: found '{best}', but there is no task '{task}'. Expected SET/TASK/FIGURE with "
            f"one of {', '.join(tasks)}.{did_you_mean(task, tasks)}"
        )


def update(config: Config, model: Multimodal, plan: assemble.Plan) -> Callable[..., Any]:
    """The pure update of a stage: (state, batch) -> (state, metrics)."""
    tasks = {stream: config.tasks_of(stream) for stream in config.data.streams}
    objective = Objective(model, tasks, config.train.accumulate, config.adapt.scale)
    return make_train_step(objective, plan.tx, seed=config.train.seed, ema=config.train.ema)


def step_function(config: Config, model: Multimodal, plan: assemble.Plan, shapes: int = 1) -> Any:
    """The update of a stage, compiled at its first call, and for each of the `shapes` that batches have; the state that
    it is given is used up.
    """
    mesh = plan.layout.mesh
    laid = plan.shardings, sharding.replicated(mesh)
    return sharding.jit(mesh, update(config, model, plan), versions=shapes, donate_argnums=0, out_shardings=laid)


def _judged_step(workdir: Path, name: str) -> int | None:
    """Of which step eval/<name>.json is."""
    file = workdir / "eval" / f"{name}.json"
    return json.loads(file.read_text())["step"] if file.is_file() else None


def _check_continuation(saved: Mapping[str, Any], now: Mapping[str, Any], config: Config) -> None:
    """A run goes on only with the data, model and updates that it began with."""
    changed = {
        k: v
        for k, v in differences(saved["config"], now["config"]).items()
        if not k.startswith(_MAY_CHANGE)
        and not k.endswith("max_bad_fraction")  # what is tolerated moves no row
        and ".generation." not in k
    }
    changed.update({f"data ({k})": v for k, v in differences(saved["fingerprint"], now["fingerprint"]).items()})
    old, new = saved.get("base"), now["base"]
    if (old and old["sha256"]) != (new and new["sha256"]):
        raise ConfigError(
            f"config.init.path: the run began with '{old and old['path']}' (sha256 {old and old['sha256'][:12]}), but "
            f"'{config.init.path}' now has {new and new['sha256'][:12]}. Expected the same weights."
        )
    if changed:
        lines = "\n".join(f"  config.{k}: was {old!r}, is {new!r}" for k, (old, new) in changed.items())
        raise ConfigError(
            f"--workdir holds a run with another config:\n{lines}\nUse another workdir, or the old values."
        )
    for key, (old, new) in differences(saved["config"], now["config"]).items():
        print(f"config.{key}: was {old!r}, goes on with {new!r}")
