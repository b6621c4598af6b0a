"""`mmjax tune`: a search for hyper-parameters with Optuna; each trial is a run with a workdir of its own.

    DIR/tune.db          Optuna's storage (SQLite)      DIR/trials/003/      a trial's workdir
    DIR/tune.txt         the table of trials            DIR/tune.png         history, and each value against the metric

A trial's value is the best that the metric had in any of its evaluations; a trial that stands below the median of the
others' at as many evaluations is given up. The same command goes on where a killed one ended: the trial that was on
is marked as failed, and is taken up again from its last checkpoint as a new one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmjax import report
from mmjax.checkpoint import NoSuchFigure, direction
from mmjax.config import plain
from mmjax.errors import ConfigError
from mmjax.experiment import load
from mmjax.metrics import read_lines
from mmjax.table import columns

if TYPE_CHECKING:
    import optuna

_HOPELESS = 3  # trials in a row that fail at the start: then it is not the values
_BEFORE_PRUNING = 4  # trials that are always run to their end


@dataclass(frozen=True)
class Dimension:
    """One key that is searched.

    Attributes:
      key: of the config, as `optimizer.lr`.
      kind: "log" or "uniform" (floats from low to high), "int", or "choice".
      choices: texts as they would be given on the command line.
    """

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """From `KEY=log:LOW:HIGH`, `KEY=uniform:LOW:HIGH`, `KEY=int:LOW:HIGH` or `KEY=A,B,C`."""
        key, equals, space = text.partition("=")
        kind, _, ends = space.partition(":")
        expected = "expected KEY=log:1e-4:1e-2, KEY=uniform:0:0.5, KEY=int:2:8 or KEY=A,B,C"
        if not (key and equals and space):
            raise ConfigError(f"--space: found '{text}', {expected}.")
        if kind not in ("log", "uniform", "int"):
            choices = tuple(choice.strip() for choice in space.split(","))
            if len(set(choices)) < 2 or not all(choices):
                raise ConfigError(f"--space {key}: found '{space}', {expected}; two choices or more.")
            return cls(key, "choice", choices=choices)
        try:
            low, high = map(int if kind == "int" else float, ends.split(":"))
        except ValueError:
            raise ConfigError(f"--space {key}: found '{space}', {expected}.") from None
        if not low < high or kind == "log" and low <= 0:
            raise ConfigError(
                f"--space {key}: found {low} to {high}, expected a lower end{' above 0' * (kind == 'log')}."
            )
        return cls(key, kind, low, high)

    def suggest(self, trial: optuna.Trial) -> str:
        """The trial's value as on the command line: what is trained is what is printed."""
        if self.kind == "choice":
            return trial.suggest_categorical(self.key, self.choices)
        if self.kind == "int":
            return str(trial.suggest_int(self.key, int(self.low), int(self.high)))
        return f"{trial.suggest_float(self.key, self.low, self.high, log=self.kind == 'log'):.6g}"

    def first(self) -> str:
        """A value, to see whether the config takes the key."""
        return self.choices[0] if self.choices else f"{self.low:g}"


class Given(Exception):
    """A trial that is given up."""


def tune(
    file: str, overrides: Mapping[str, str], workdir: Path, space: Sequence[str], trials: int, metric: str = ""
) -> int:
    """Searches until `trials` trials are done, prints the table and the best command, and returns the exit code.

    metric: the figure to better, as `validation/vqa/accuracy`; "" is the config's `checkpoint.best`. Less is better
      where `checkpoint.best_mode` says so, or the figure's name (see `CheckpointConfig`).
    """
    dimensions = [Dimension.parse(text) for text in space]
    config, mapping = load(file, {**overrides, **{d.key: d.first() for d in dimensions}})
    metric = metric or config.checkpoint.best
    if not metric:
        raise ConfigError("--metric: missing, and the config has no checkpoint.best. As in validation/vqa/accuracy.")
    if trials < 1:
        raise ConfigError(f"--trials: found {trials}, expected 1 or more.")
    if twice := {d.key for d in dimensions if [e.key for e in dimensions].count(d.key) > 1}:
        raise ConfigError(f"--space: '{twice.pop()}' is given twice.")
    workdir.mkdir(parents=True, exist_ok=True)
    with _alone(workdir):
        search = _Search(file, {**overrides, "checkpoint.best": metric}, workdir, dimensions, metric)
        search.open(direction(metric, config.checkpoint.best_mode), config.train.seed, plain(load(file, overrides)[1]))
        code = search.run(trials)
        search.report()
    return code or (0 if search.any_good() else 1)


@contextmanager
def _alone(workdir: Path) -> Iterator[None]:
    """Only one process searches in a folder: another's running trial would look like a killed one."""
    with (workdir / "tune.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"--workdir: another 'mmjax tune' is searching in '{workdir}'.") from None
        yield


class _Search:
    def __init__(self, file: str, overrides: dict[str, str], workdir: Path, dimensions: list[Dimension], metric: str):
        self.file, self.overrides, self.workdir, self.metric = file, overrides, workdir, metric
        self.dimensions, self.seed = dimensions, 0

    def open(self, mode: str, seed: int, mapping: Mapping[str, Any]) -> None:
        """The study in the workdir, or a new one. Raises ConfigError where it is a study of something else."""
        try:
            import optuna
        except ImportError:
            raise ConfigError("needs Optuna, which is not installed. pip install 'mmjax[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.seed = seed
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.workdir / 'tune.db'}",
            study_name="tune",
            load_if_exists=True,
            direction="maximize" if mode == "max" else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_BEFORE_PRUNING),
        )
        now = {"config": mapping, "metric": self.metric, "mode": mode, "space": [str(d) for d in self.dimensions]}
        now = json.loads(json.dumps(now))
        before = self.study.user_attrs.get("request", now)
        if changed := [key for key in now if before.get(key) != now[key]]:
            raise ConfigError(
                f"--workdir: '{self.workdir}' holds a search with another {', '.join(changed)}. Use another folder, or "
                "the same command to go on."
            )
        self.study.set_user_attr("request", now)
        self._take_up_killed()

    def _take_up_killed(self) -> None:
        from optuna.trial import TrialState

        waiting = {t.user_attrs.get("folder") for t in self.study.get_trials(states=[TrialState.WAITING])}
        for trial in self.study.get_trials(states=[TrialState.RUNNING]):
            folder = trial.user_attrs.get("folder")
            if folder and folder not in waiting:
                self.study.enqueue_trial(trial.params, user_attrs={"folder": folder})
                print(f"trial {trial.number} was killed; it goes on as another, in {self.workdir}/trials/{folder}.")
            self.study.tell(trial.number, state=TrialState.FAIL)

    def finished(self) -> list[optuna.trial.FrozenTrial]:
        """The trials that ended, one for each workdir: not those that were taken up again as others."""
        last = {trial.user_attrs["folder"]: trial for trial in self.study.trials if "folder" in trial.user_attrs}
        return [trial for trial in last.values() if trial.state.is_finished()]

    def any_good(self) -> bool:
        """Whether a trial has ended with a value."""
        return any(trial.value is not None for trial in self.finished())

    def run(self, trials: int) -> int:
        import optuna

        from mmjax import train
        from mmjax.run import Diverged

        while len(self.finished()) < trials:
            # A seed for each trial: a search that goes on suggests what an unbroken one would have.
            self.study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(self.study.trials))
            trial = self.study.ask()
            if "folder" not in trial.user_attrs:
                trial.set_user_attr("folder", f"{trial.number:03d}")
            values = {d.key: d.suggest(trial) for d in self.dimensions}
            said = ", ".join(f"{key}={value}" for key, value in values.items())
            print(f"\ntrial {trial.number}, {len(self.finished()) + 1} of {trials}: {said}", flush=True)
            folder = self.workdir / "trials" / trial.user_attrs["folder"]
            state, note = optuna.trial.TrialState.COMPLETE, ""
            try:
                config, mapping = load(self.file, {**self.overrides, **values})
                code = train.train(config, mapping, folder, watch=self._watch(trial, folder))
                if code == train.PREEMPTED:
                    return code
            except (Given, Diverged) as error:
                state, note = optuna.trial.TrialState.PRUNED, str(error)
            except NoSuchFigure as error:
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise ConfigError(f"--metric: {error}") from error
            except ConfigError as error:
                state, note = optuna.trial.TrialState.FAIL, str(error)
            except Exception:  # it is not for its values that a trial has no memory or no disk left
                self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
                raise
            finally:
                _after_a_run()
            self._tell(trial, folder, state, note)
        return 0

    def _tell(self, trial: optuna.Trial, folder: Path, state: optuna.trial.TrialState, note: str) -> None:
        from optuna.trial import TrialState

        values = self._values(folder)
        if state == TrialState.COMPLETE and not values:
            raise NoSuchFigure(f"--metric: '{self.metric}' is in no evaluation of '{folder}'. Expected eval.every.")
        if note:
            trial.set_user_attr("note", note)
            print(f"trial {trial.number}: {note}", file=sys.stderr)
        best = max if self.study.direction.name == "MAXIMIZE" else min
        self.study.tell(trial, best(values) if state == TrialState.COMPLETE else None, state=state)
        failed = [t.user_attrs.get("note", "") for t in self.finished() if t.state == TrialState.FAIL]
        if len(failed) == len(self.finished()) >= _HOPELESS:
            raise ConfigError(f"all of the first {len(failed)} trials failed. The last: {failed[-1]}")

    def _values(self, folder: Path) -> list[float]:
        """The metric at each evaluation of a run after its first step."""
        path = folder / "metrics.jsonl"
        lines = read_lines(path) if path.is_file() else []
        return [line[self.metric] for line in lines if line["step"] > 0 and line.get(self.metric) is not None]

    def _watch(self, trial: optuna.Trial, folder: Path) -> Callable[[int, Mapping[str, float]], None]:
        """Reports every evaluation to Optuna, and ends the run where Optuna gives the trial up."""

        def watch(step: int, figures: Mapping[str, float]) -> None:
            values = self._values(folder)  # with those of before a kill
            reported = self.study.trials[trial.number].intermediate_values
            for count, value in enumerate(values, 1):
                if count not in reported:
                    trial.report(value, count)
            if trial.should_prune():
                raise Given(
                    f"given up at step {step}: {values[-1]:.4g} is below the median after {len(values)} evaluations"
                )

        return watch

    def report(self) -> None:
        """Prints and writes the table, draws the plot, and says the best command."""
        from optuna.trial import TrialState

        ended = self.finished()
        done = [trial for trial in ended if trial.state == TrialState.COMPLETE]
        sign = -1 if self.study.direction.name == "MAXIMIZE" else 1
        ranked = sorted(done, key=lambda trial: sign * trial.value) + [t for t in ended if t not in done]
        keys = [d.key for d in self.dimensions]
        rows = [("trial", self.metric, "state", "evaluations", "minutes", *keys, "workdir")]
        for trial in ranked:
            value = "" if trial.value is None else f"{trial.value:.4f}"
            minutes = f"{trial.duration.total_seconds() / 60:.1f}" if trial.duration else ""
            told = (value, trial.state.name.lower(), str(len(trial.intermediate_values)), minutes)
            texts = [_text(trial.params.get(key)) for key in keys]
            rows.append((str(trial.number), *told, *texts, f"trials/{trial.user_attrs['folder']}"))
        parts = [columns(rows, "><<>>" + "<" * (len(keys) + 1))]
        importances = self._importances(done)
        if importances:
            parts.append("importance: " + ", ".join(f"{key} {share:.2f}" for key, share in importances.items()))
        if done:
            given = {**self.overrides, **{d.key: _text(ranked[0].params[d.key]) for d in self.dimensions}}
            flags = " ".join(shlex.quote(f"--config.{key}={value}") for key, value in given.items())
            parts.append(f"best: mmjax train --config {self.file} --workdir {self.workdir}/best {flags}")
        text = "\n\n".join(parts)
        (self.workdir / "tune.txt").write_text(text + "\n", "utf-8")
        print(f"\n{text}")
        if done:
            points = [(trial.number, trial.value, trial.params) for trial in sorted(done, key=lambda t: t.number)]
            logs = {d.key for d in self.dimensions if d.kind == "log"}
            draw(self.workdir / "tune.png", self.metric, points, keys, logs, importances, larger=sign < 0)
            print(f"written: {self.workdir}/tune.txt, {self.workdir}/tune.png")

    def _importances(self, done: Sequence[Any]) -> dict[str, float]:
        """{key: share of the metric's variance that it explains} (fANOVA); empty with few trials, or no variance."""
        if len(done) < 4 or len({trial.value for trial in done}) < 2:
            return {}
        from optuna.importance import get_param_importances

        return get_param_importances(self.study)


def draw(
    path: Path,
    metric: str,
    points: Sequence[tuple[int, float, Mapping[str, Any]]],
    keys: Sequence[str],
    logs: set[str],
    importances: Mapping[str, float],
    *,
    larger: bool,
) -> None:
    """The metric over the trials with the best so far, and against each key that was searched, as PNG.

    points: (trial, value, {key: what it was}) in the order of the trials.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Page
    from matplotlib.ticker import NullFormatter

    page = Page(figsize=(4.2 * (1 + len(keys)), 3.6), layout="constrained")
    FigureCanvasAgg(page)
    axes = page.subplots(1, 1 + len(keys), sharey=True, squeeze=False)[0]
    numbers, values = [p[0] for p in points], np.array([p[1] for p in points])
    axes[0].plot(numbers, values, "o", color="#0969da", markersize=5)
    axes[0].step(numbers, (np.maximum if larger else np.minimum).accumulate(values), where="post", color=report.INK)
    axes[0].set_xlabel("trial (line: the best so far)")
    axes[0].set_ylabel(metric)
    for place, key in zip(axes[1:], keys, strict=True):
        shown = [p[2][key] for p in points]
        if isinstance(shown[0], str):
            names = sorted(set(shown))
            place.set_xticks(range(len(names)), names)
            shown = [names.index(name) for name in shown]
        place.scatter(shown, values, c=numbers, cmap="viridis", s=28)
        place.set_xlabel(key + (f" (importance {importances[key]:.2f})" if key in importances else ""))
        if key in logs:
            place.set_xscale("log")
            place.xaxis.set_minor_formatter(NullFormatter())
    for place in axes:
        place.grid(color="#e4e7ea", linewidth=0.8)
        place.set_axisbelow(True)
        place.spines[["top", "right"]].set_visible(False)
    page.savefig(path, dpi=110)


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


def _after_a_run() -> None:
    """Training keeps compiled programs; the next trial has other ones."""
    import jax

    jax.clear_caches()
