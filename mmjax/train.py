"""The loop. There is only this one.

workdir/config.json      the resolved config            workdir/checkpoints/   Orbax, latest and best
workdir/metrics.jsonl    a line every log_every steps   workdir/eval/          figures and picture panels
workdir/curves.png       loss and figures over steps    workdir/events.*       TensorBoard
workdir/bad_records.jsonl   rows that could not be read
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax import assemble, initialisation, report, sharding, summary
from mmjax.checkpoint import Checkpointer
from mmjax.config import differences, plain
from mmjax.data.processor import Processor
from mmjax.doctor import versions
from mmjax.duration import steps as duration
from mmjax.errors import ConfigError
from mmjax.evaluation import Evaluation, Result, judge_sets
from mmjax.experiment import Config
from mmjax.feed import Feed
from mmjax.metrics import MetricWriter, Progress
from mmjax.train_step import Objective, State, make_train_step
from mmjax.workdir import Workdir

PREEMPTED = 75
# What may change between a run and its continuation: nothing that alters the data, the model or an update.
_MAY_CHANGE = ("eval.", "checkpoint.", "mesh.", "train.log_every", "train.steps", "train.epochs", "train.examples",
               "data.threads", "data.check_overlap", "data.test", "data.eval", "train.max_bad_steps",
               "init.path")  # fmt: skip


Watch = Callable[[int, Mapping[str, float]], None]


class Diverged(Exception):
    """Too many steps in a row without a finite gradient."""


def train(config: Config, mapping: Mapping[str, Any], workdir: Path, watch: Watch | None = None) -> int:
    """Trains to the last step of the config, resuming from the workdir's latest checkpoint. Returns the exit code.

    Args:
      mapping: the plain config that the user gave: it is saved, so that eval and predict can lay overrides on it.
      watch: called with (step, figures) after each evaluation and its save; what it raises ends the run.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = sharding.make_mesh(config.mesh)
    data = assemble.open_data(config)
    checkpoints = Checkpointer(workdir / "checkpoints", config.checkpoint)
    latest, history = checkpoints.latest_step(), []
    saved = None if latest is None else checkpoints.read_json(latest, "meta")
    source = initialisation.source_of(initialisation.pinned(config.init, saved and saved.get("base")))
    base = source and source.identity
    built = dataclasses.replace(config, init=initialisation.pinned(config.init, base))
    if latest is None:
        processor = assemble.fit_processor(built, data)
    else:
        processor = Processor.from_json(checkpoints.read_json(latest, "processor"))
    built = assemble.prepared(built, processor)
    model = assemble.build_model(built, processor)
    pipelines = assemble.train_pipelines(config, data, processor, mesh, workdir / "bad_records.jsonl")
    first = plan = assemble.make_plan(built, model, data, mesh, pipelines)
    meta = {"config": plain(config), "mapping": plain(mapping), "fingerprint": data.fingerprint,
            "base": base, "versions": versions()}  # fmt: skip
    if latest is None:
        state = assemble.initial_state(built, model, plan)
        if source is not None and jax.process_index() == 0:
            source.carry(workdir)
    else:
        _check_continuation(saved, meta, config, processor, data)
        latest, state = checkpoints.restore_latest(lambda step: first.at(step).stored(first.at(step).abstract))
        plan = first.at(latest)
        state = assemble.complete(built, plan, state)
        history = [tuple(entry) for entry in checkpoints.read_json(latest, "data").get("history", ())]
    start = int(latest or 0)
    evaluation = Evaluation(config, model, processor, mesh, data.train)
    best, early = config.checkpoint, config.train.early_stop
    asks_to_stop = lambda: not plan.next and early.asks([v for s, v in history if s > plan.start], best.best_mode)  # noqa: E731

    def show_best(end: int) -> None:
        """Leaves the figures of the best checkpoint in eval/, where that is not the last one."""
        chosen = checkpoints.best_step()
        shown = {_evaluated_step(workdir, name) for name in data.validation}
        if chosen in (None, end) or shown == {chosen}:
            return
        kept, wanted = (
            Workdir(workdir, str(chosen), base_path=config.init.path),
            first.layout.abstract(first.layout.merged),
        )
        kinds = {"": kept.read(wanted)} | ({"_raw": kept.read(wanted, average=False)} if config.train.ema else {})
        kept.close()
        print(f"\nThe best checkpoint is that of step {chosen}; its figures are the run's:")
        _evaluate(evaluation, data, kinds, chosen, workdir, None)

    if start >= plan.total_steps or asks_to_stop():
        print(f"{workdir}: already trained to step {start} of {plan.total_steps}. Nothing to do.")
        show_best(start)
        checkpoints.close()
        return 0
    print(summary.run_table(built, first, data, processor, pipelines))
    (workdir / "config.json").write_text(json.dumps(meta["config"], indent=1))

    batch_size = pipelines[config.first_stream].rows_a_step
    rows = len(data.train[config.first_stream])
    in_steps = lambda text: duration(text, total=plan.total_steps, batch_size=batch_size, rows=rows)  # noqa: E731
    save_every, eval_every = (
        max(1, in_steps(config.checkpoint.every)),
        in_steps(config.eval.every) if config.eval.every else 0,
    )
    writer = MetricWriter(workdir, active=jax.process_index() == 0)
    writer.truncate_after(start)
    stop = _StopSignal()

    def evaluate(step: int, state: State) -> dict[str, float]:
        return _evaluate(evaluation, data, _kinds(config, plan, state), step, workdir, writer)

    def save(step: int, state: State, figures: dict[str, float] | None) -> None:
        position = {"seed": config.train.seed, "step": step, "fingerprint": data.fingerprint, "history": history}
        writer.flush()
        checkpoints.save(step, plan.stored(state), position, meta, processor.to_json(), figures)

    if start == 0 and config.eval.start and data.validation:
        evaluate(0, state)

    pending: tuple[int, Any, dict[str, str]] | None = None
    shapes = math.prod(pipeline.shapes for pipeline in pipelines.values())
    step_fn = _step_function(built, model, plan, shapes)
    with Feed(pipelines, mesh, start, plan.total_steps) as feed, Progress(start, plan.total_steps, batch_size) as bar:
        for step in range(start + 1, plan.total_steps + 1):
            if step > plan.stop:
                plan = plan.next
                state, step_fn = assemble.enter(plan, state), _step_function(built, model, plan, shapes)
            batch, row_sums = feed.take()
            state, out = step_fn(state, batch)
            if pending:  # the metrics of the step before are read while this one runs
                _log(pending, config, first, pipelines, writer, bar)
            pending = (step, out, row_sums)
            bar.advance(feed.waited)
            last = step == plan.total_steps
            stopping = stop.asked and not last
            at_eval = bool(data.validation) and not stopping and (last or (eval_every and step % eval_every == 0))
            if at_eval or last or stopping or step % save_every == 0:
                _log(pending, config, first, pipelines, writer, bar)
                pending = None
                with bar.paused():
                    figures = evaluate(step, state) if at_eval else None
                    if figures and best.best in figures:
                        history.append((step, figures[best.best]))
                    save(step, state, figures)
                    if watch and figures is not None:
                        checkpoints.wait()
                        watch(step, figures)
            if stopping:
                checkpoints.close()
                print(
                    f"stopped by {stop.name}: saved step {step} of {plan.total_steps}. "
                    "The same command goes on from there."
                )
                return PREEMPTED
            if at_eval and asks_to_stop():
                print(f"step {step}: {early.patience} evaluations without a better {best.best}; the run ends here.")
                break
    checkpoints.wait()
    state = None  # makes room
    show_best(step)
    checkpoints.close()
    writer.close()
    for stream, pipeline in pipelines.items():
        if len(pipeline.bad):
            print(
                f"train/{stream}: {len(pipeline.bad)} of {len(pipeline.source)} rows could not be read "
                f"({pipeline.bad.summary()}): {workdir}/bad_records.jsonl"
            )
    report.curves(workdir / "curves.png", workdir / "metrics.jsonl")
    print(f"done: {step} steps. {workdir}/curves.png, {workdir}/eval, {workdir}/checkpoints")
    return 0


def dry_run(config: Config) -> int:
    """Prints parameters, sharding, batch, FLOPs a step and compiled memory.

    Allocates nothing on a device and trains nothing.
    """
    mesh = sharding.make_mesh(config.mesh)
    data = assemble.open_data(config)
    processor = assemble.fit_processor(config, data)
    config = assemble.prepared(config, processor)
    model = assemble.build_model(config, processor)
    pipelines = assemble.train_pipelines(config, data, processor, mesh)
    plan = assemble.make_plan(config, model, data, mesh, pipelines)
    print(summary.run_table(config, plan, data, processor, pipelines))
    batch = {
        stream: {
            k: jax.ShapeDtypeStruct((p.batch_size, *v.shape[1:]), v.dtype, sharding=sharding.batch_sharding(mesh))
            for k, v in next(p.batches(0, 1)).items()
        }
        for stream, p in pipelines.items()
    }
    print(summary.sharding_table(plan))
    print(summary.batch_table(batch))
    for stage in plan.stages:
        _dry_step(config, model, stage, batch)
    return 0


def _dry_step(config: Config, model: Any, plan: assemble.Plan, batch: Any) -> None:
    """FLOPs and memory of a stage's step."""
    from mmjax.flops import count, memory_table

    mesh = plan.layout.mesh
    with sharding.on_mesh(mesh):
        flops = count(_update(config, model, plan), plan.abstract, batch)
    compiled = _step_function(config, model, plan).lower(plan.abstract, batch).compile()
    if plan.name:
        print(f"stage {plan.name}, steps {plan.start + 1} to {plan.stop}:")
    print(f"FLOPs a step: {flops / 1e9:,.2f} G in all, {flops / mesh.size / 1e9:,.2f} G a device")
    print(
        "compiled memory a device: " + ", ".join(f"{k} {v / 2**20:,.1f} MiB" for k, v in memory_table(compiled).items())
    )


def _update(config: Config, model: Any, plan: assemble.Plan) -> Any:
    tasks = {stream: config.tasks_of(stream) for stream in config.data.streams}
    objective = Objective(model, tasks, config.train.accumulate, config.adapt.scale)
    return make_train_step(objective, plan.tx, seed=config.train.seed, ema=config.train.ema)


def _step_function(config: Config, model: Any, plan: assemble.Plan, shapes: int = 1) -> Any:
    """The update of a stage, compiled at its first call, and for each of the `shapes` that batches have; the state that
    it is given is used up.
    """
    mesh = plan.layout.mesh
    laid = plan.shardings, sharding.replicated(mesh)
    return sharding.jit(mesh, _update(config, model, plan), versions=shapes, donate_argnums=0, out_shardings=laid)


def _log(
    pending: tuple[int, Any, dict[str, str]],
    config: Config,
    plan: Any,
    pipelines: Mapping[str, Any],
    writer: MetricWriter,
    bar: Progress,
) -> None:
    step, out, row_sums = pending
    out = jax.device_get(out)
    values = {k: float(v / max(w, 1e-9)) for k, (v, w) in out["metrics"].items()}
    bar.show(values["loss"])
    if int(out["bad_in_a_row"]):
        print(
            f"step {step}: the loss or the gradient is not finite; the step is skipped "
            f"({int(out['skipped'])} so far). Rows: {row_sums}"
        )
    if int(out["bad_in_a_row"]) >= config.train.max_bad_steps:
        raise Diverged(
            f"step {step}: {config.train.max_bad_steps} steps in a row without a finite gradient. Lower optimizer.lr."
        )
    if step % config.train.log_every == 0 or step == plan.total_steps:
        for stream, pipeline in pipelines.items():
            values |= {f"share/{stream}/{name}": share for name, share in pipeline.shares(step).items()}
            values |= {f"bad_records/{stream}": float(len(pipeline.bad))} if len(pipeline.bad) else {}
        stage = plan.at(step)
        rate = float(stage.schedule(step - 1 - stage.start))
        writer.scalars(step, {**values, "lr": rate, **bar.throughput(), "rows": row_sums})


def _kinds(config: Config, plan: assemble.Plan, state: State) -> dict[str, Mapping[str, jax.Array]]:
    """The weights that are judged, by the suffix of the set's name: the run's own; beside an average, the raw ones."""
    kinds = {"": assemble.weights(config, plan, state)}
    if config.train.ema:
        kinds["_raw"] = assemble.weights(config, plan, state, average=False)
    return kinds


def _evaluated_step(workdir: Path, name: str) -> int | None:
    """Of which step eval/<name>.json is."""
    file = workdir / "eval" / f"{name}.json"
    return json.loads(file.read_text())["step"] if file.is_file() else None


def _evaluate(
    evaluation: Evaluation,
    data: assemble.Data,
    kinds: Mapping[str, Mapping[str, jax.Array]],
    step: int,
    workdir: Path,
    writer: MetricWriter | None,
) -> dict[str, float]:
    """Figures of all validation sets by name, with each kind of weights: {suffix of the set's name: parameters}.

    Prints the tables, and writes them and the panels into eval/, and as curves through the writer.
    """
    results: dict[str, Result] = {}
    for kind, params in kinds.items():
        sets = {name + kind: where for name, where in data.validation.items()}
        results |= judge_sets(evaluation, sets, params, workdir / "eval", step)
    figures = {}
    for name, result in results.items():
        figures.update({f"{name}/{k}": v for k, v in result.scalars().items()})
    if writer:
        writer.scalars(step, figures)
        for name, result in results.items():
            if result.panel:
                writer.image(step, f"{name}/predictions", report.draw_panel(result.panel))
    return figures


def _check_continuation(
    saved: Mapping[str, Any], now: Mapping[str, Any], config: Config, processor: Processor, data: assemble.Data
) -> None:
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


class _StopSignal:
    """Remembers SIGTERM or SIGINT until the step's end; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked, self.name = False, ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _: Any) -> None:
        self.asked, self.name = True, signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
