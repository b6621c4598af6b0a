"""The loop. There is only this one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmjax import assemble
from mmjax.experiment import Config
from mmjax.metrics import Progress
from mmjax.run import Run

PREEMPTED = 75

Watch = Callable[[int, Mapping[str, float]], None]


def train(config: Config, mapping: Mapping[str, Any], workdir: Path, watch: Watch | None = None) -> int:
    """Trains to the last step of the config, resuming from the workdir's latest checkpoint. Returns the exit code.

    Args:
      mapping: the plain config that the user gave: it is saved, so that eval and predict can lay overrides on it.
      watch: called with (step, figures) after each evaluation and its save; what it raises ends the run.

    Raises:
      ConfigError: a bad config or data, or the workdir of another run. Diverged: no finite gradient any more.
    """
    run = Run(config, mapping, workdir)
    step, state = run.begin()
    plan = run.plan.at(step)
    if step >= plan.total_steps or run.asks_to_stop(step):
        print(f"{workdir}: already trained to step {step} of {plan.total_steps}. Nothing to do.")
        run.finish(step)
        return 0
    run.announce(step)
    if step == 0 and config.eval.start and run.data.validation:
        run.evaluate(0, state)
    step_function, pending = run.step_function(plan), None
    with _StopSignal() as stop, run.feed(step) as feed, Progress(step, plan.total_steps, run.rows_a_step) as bar:
        while step < plan.total_steps:
            step += 1
            if step > plan.stop:
                plan = plan.next
                state, step_function = assemble.enter(plan, state), run.step_function(plan)
            batch, row_sums = feed.take()
            state, out = step_function(state, batch)
            if pending:  # the metrics of the step before are read while this one runs
                run.log(*pending, bar)
            pending = step, out, row_sums
            bar.advance(feed.waited)
            last = step == plan.total_steps
            stopping = stop.asked and not last
            judging = run.judges_at(step) and not stopping
            if judging or last or stopping or step % run.save_every == 0:
                run.log(*pending, bar)
                pending = None
                with bar.paused():
                    figures = run.evaluate(step, state) if judging else None
                    run.save(step, state, figures)
                    if watch and judging:
                        run.checkpoints.wait()
                        watch(step, figures)
            if stopping:
                run.checkpoints.close()
                print(
                    f"stopped by {stop.name}: saved step {step} of {plan.total_steps}. "
                    "The same command goes on from there."
                )
                return PREEMPTED
            if judging and run.asks_to_stop(step):
                early, best = config.train.early_stop, config.checkpoint.best
                print(f"step {step}: {early.patience} evaluations without a better {best}; the run ends here.")
                break
    state = None  # makes room for the best checkpoint's
    run.finish(step)
    print(f"done: {step} steps. {workdir}/curves.png, {workdir}/eval, {workdir}/checkpoints")
    return 0


class _StopSignal:
    """Remembers SIGTERM or SIGINT until the step's end; a second one ends the process at once, as any does outside."""

    def __enter__(self) -> _StopSignal:
        self.asked, self.name = False, ""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        self.asked, self.name = True, signal.Signals(number).name
        signal.signal(number, signal.SIG_DFL)
