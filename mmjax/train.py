"""The loop. There is only this one.

workdir/config.json      the resolved config            workdir/checkpoints/   Orbax, latest and best
workdir/metrics.jsonl    a line every log_every steps   workdir/eval/          figures and picture panels
workdir/curves.png       loss and figures over steps    workdir/events.*       TensorBoard
workdir/bad_records.jsonl   rows that could not be read
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from mmjax import assemble, report, sharding, summary
from mmjax.checkpoint import Checkpointer
from mmjax.config import differences, plain
from mmjax.data.processor import Processor
from mmjax.doctor import versions
from mmjax.duration import steps as duration
from mmjax.errors import ConfigError
from mmjax.evaluation import Evaluation, judge_sets
from mmjax.experiment import Config
from mmjax.feed import Feed
from mmjax.metrics import MetricWriter, Progress
from mmjax.train_step import Objective, State, make_train_step

PREEMPTED = 75
# What may change between a run and its continuation: nothing that alters the data, the model or an update.
_MAY_CHANGE = ("eval.", "checkpoint.", "mesh.", "train.log_every", "train.steps", "train.epochs", "train.examples",
               "data.threads", "data.check_overlap", "data.test", "data.eval", "train.max_bad_steps")  # fmt: skip


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
    latest = checkpoints.latest_step()
    if latest is None:
        processor = assemble.fit_processor(config, data)
    else:
        processor = Processor.from_json(checkpoints.read_json(latest, "processor"))
    model = assemble.build_model(config, processor)
    plan = assemble.make_plan(config, model, data, mesh)
    pipelines = assemble.train_pipelines(config, data, processor, mesh, workdir / "bad_records.jsonl")
    meta = {"config": plain(config), "mapping": plain(mapping), "fingerprint": data.fingerprint,
            "frozen": list(plan.frozen), "versions": versions()}  # fmt: skip
    if latest is None:
        state = assemble.initial_state(config, model, plan)
    else:
        _check_continuation(checkpoints.read_json(latest, "meta"), meta, config, processor, data)
        latest, state = checkpoints.restore_latest(plan.abstract)
    start = int(latest or 0)
    if start >= plan.total_steps:
        print(f"{workdir}: already trained to step {start} of {plan.total_steps}. Nothing to do.")
        return 0
    print(summary.run_table(config, plan, data, processor))
    (workdir / "config.json").write_text(json.dumps(meta["config"], indent=1))

    batch_size = config.data.batch_size(config.first_stream)
    rows = len(data.train[config.first_stream])
    in_steps = lambda text: duration(text, total=plan.total_steps, batch_size=batch_size, rows=rows)  # noqa: E731
    save_every, eval_every = (
        max(1, in_steps(config.checkpoint.every)),
        in_steps(config.eval.every) if config.eval.every else 0,
    )
    step_fn = sharding.jit(
        mesh,
        make_train_step(_objective(config, model), plan.tx, seed=config.train.seed, ema=config.train.ema),
        donate_argnums=0,
        out_shardings=(plan.shardings, sharding.replicated(mesh)),
    )
    evaluation = Evaluation(config, model, processor, mesh, data.train)
    writer = MetricWriter(workdir, active=jax.process_index() == 0)
    writer.truncate_after(start)
    stop = _StopSignal()

    def evaluate(step: int, state: State) -> dict[str, float]:
        return _evaluate(evaluation, data, state, step, workdir, writer)

    def save(step: int, state: State, figures: dict[str, float] | None) -> None:
        position = {"seed": config.train.seed, "step": step, "fingerprint": data.fingerprint}
        writer.flush()
        checkpoints.save(step, state, position, meta, processor.to_json(), figures)

    if start == 0 and config.eval.start and data.validation:
        evaluate(0, state)

    pending: tuple[int, Any, dict[str, str]] | None = None
    with Feed(pipelines, mesh, start, plan.total_steps) as feed, Progress(start, plan.total_steps, batch_size) as bar:
        for step in range(start + 1, plan.total_steps + 1):
            batch, row_sums = feed.take()
            state, out = step_fn(state, batch)
            if pending:  # the metrics of the step before are read while this one runs
                _log(pending, config, plan, pipelines, writer, bar)
            pending = (step, out, row_sums)
            bar.advance(feed.waited)
            last = step == plan.total_steps
            stopping = stop.asked and not last
            at_eval = bool(data.validation) and not stopping and (last or (eval_every and step % eval_every == 0))
            if at_eval or last or stopping or step % save_every == 0:
                _log(pending, config, plan, pipelines, writer, bar)
                pending = None
                with bar.paused():
                    figures = evaluate(step, state) if at_eval else None
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
    checkpoints.close()
    writer.close()
    for stream, pipeline in pipelines.items():
        if len(pipeline.bad):
            print(
                f"train/{stream}: {len(pipeline.bad)} of {len(pipeline.source)} rows could not be read "
                f"({pipeline.bad.summary()}): {workdir}/bad_records.jsonl"
            )
    report.curves(workdir / "curves.png", workdir / "metrics.jsonl")
    print(f"done: {plan.total_steps} steps. {workdir}/curves.png, {workdir}/eval, {workdir}/checkpoints")
    return 0


def dry_run(config: Config) -> int:
    """Prints parameters, sharding, batch, FLOPs a step and compiled memory.

    Allocates nothing on a device and trains nothing.
    """
    from mmjax.flops import count, memory_table

    mesh = sharding.make_mesh(config.mesh)
    data = assemble.open_data(config)
    processor = assemble.fit_processor(config, data)
    model = assemble.build_model(config, processor)
    plan = assemble.make_plan(config, model, data, mesh)
    print(summary.run_table(config, plan, data, processor))
    batch = {
        stream: {
            k: jax.ShapeDtypeStruct((p.batch_size, *v.shape[1:]), v.dtype, sharding=sharding.batch_sharding(mesh))
            for k, v in next(p.batches(0, 1)).items()
        }
        for stream, p in assemble.train_pipelines(config, data, processor, mesh).items()
    }
    step = make_train_step(_objective(config, model), plan.tx, seed=config.train.seed, ema=config.train.ema)
    print(summary.sharding_table(plan))
    print(summary.batch_table(batch))
    with sharding.on_mesh(mesh):
        flops = count(step, plan.abstract, batch)
    compiled = sharding.jit(
        mesh, step, donate_argnums=0, out_shardings=(plan.shardings, sharding.replicated(mesh))
    ).lower(plan.abstract, batch).compile()  # fmt: skip
    print(f"FLOPs a step: {flops / 1e9:,.2f} G in all, {flops / mesh.size / 1e9:,.2f} G a device")
    print(
        "compiled memory a device: " + ", ".join(f"{k} {v / 2**20:,.1f} MiB" for k, v in memory_table(compiled).items())
    )
    return 0


def _objective(config: Config, model: Any) -> Objective:
    return Objective(model, {s: config.tasks_of(s) for s in config.data.streams}, config.train.accumulate)


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
        writer.scalars(step, {**values, "lr": float(plan.schedule(step - 1)), **bar.throughput(), "rows": row_sums})


def _evaluate(
    evaluation: Evaluation, data: assemble.Data, state: State, step: int, workdir: Path, writer: MetricWriter
) -> dict[str, float]:
    """Figures of all validation sets by name; prints the tables, writes them and the panels."""
    params = {**(state["ema"] or state["params"]), **state["frozen"]}
    results = judge_sets(evaluation, data.validation, params, workdir / "eval", step)
    figures = {}
    for name, result in results.items():
        figures.update({f"{name}/{k}": v for k, v in result.scalars().items()})
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
        if not k.startswith(_MAY_CHANGE) and not k.endswith("max_bad_fraction")  # what is tolerated moves no row
    }
    changed.update({f"data ({k})": v for k, v in differences(saved["fingerprint"], now["fingerprint"]).items()})
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
