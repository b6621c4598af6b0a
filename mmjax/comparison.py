"""Before against after: two models on the same rows, each figure with the interval of its change and a paired test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mmjax.data.sets import DataConfig
from mmjax.data.sources import Source
from mmjax.errors import ConfigError
from mmjax.evaluation import Evaluation, Result, judge_sets
from mmjax.evaluators import Figure
from mmjax.evaluators.intervals import by_cluster, mcnemar, quantiles, resample, swap_test
from mmjax.predictions import read_figures
from mmjax.table import columns
from mmjax.tasks import Task

_TESTS = "p: McNemar's exact test (*) where a row is right or wrong, else 10,000 random swaps of before and after."


@dataclass(frozen=True)
class Change:
    """One figure of two models.

    Attributes:
      before, after: the figures over the `rows` that both have judged.
      rows: pictures, or what else is drawn together.
      interval: 95 % paired bootstrap interval of after - before; None where the figure is no ratio over rows.
      p: that the change is chance; None where there is no test of it.
      test: "mcnemar", "swaps" or "".
    """

    before: Figure
    after: Figure
    rows: int
    interval: tuple[float, float] | None = None
    p: float | None = None
    test: str = ""

    def cells(self) -> tuple[str, ...]:
        """Figure, before, after, change with its interval, p, baseline, rows."""
        after, unit = self.after, " %" if self.after.percent else ""
        change = after.signed(after.value - self.before.value)
        if self.interval:
            change += f" ({after.signed(self.interval[0])} to {after.signed(self.interval[1])})"
        p = "" if self.p is None else ("<0.001" if self.p < 0.001 else f"{self.p:.3f}")
        values = (after.text(self.before.value) + unit, after.text(after.value) + unit)
        return (after.name, *values, change, p + "*" * (self.test == "mcnemar"), after.cells()[3], f"{self.rows:,}")

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        after = self.after
        return {
            "before": self.before.value,
            "after": after.value,
            "difference": after.value - self.before.value,
            "interval": self.interval and list(self.interval),
            "p": self.p,
            "test": self.test,
            "baseline": after.baseline,
            "baseline_name": after.baseline_name,
            "rows": self.rows,
        }


def changes(before: Sequence[Figure], after: Sequence[Figure], where: str = "") -> list[Change]:
    """The figures that both have, in the order of `after`; rows are paired by their ids.

    Raises ConfigError, with `where`, when no figure or no row is on both sides.
    """
    old = {figure.name: figure for figure in before}
    pairs = [(old[figure.name], figure) for figure in after if figure.name in old]
    if not pairs:
        raise ConfigError(
            f"{where}: no figure in common. Before has {', '.join(old)}; after has {', '.join(f.name for f in after)}."
        )
    return [_change(a, b, where) for a, b in pairs]


def _change(before: Figure, after: Figure, where: str) -> Change:
    a, b = before.scores, after.scores
    if a is None or b is None:
        return Change(before, after, after.n)
    _, i, j = np.intersect1d(a.ids, b.ids, return_indices=True)
    if not len(i):
        raise ConfigError(f"{where}: {after.name}: no row in common ('{a.ids[0]}', ... and '{b.ids[0]}', ...).")
    columns = np.stack([a.weights[i], a.sums[i], b.weights[j], b.sums[j]], axis=1)
    columns = by_cluster(columns, b.units[j])
    totals = columns.sum(axis=0)
    values = [float(s.value(totals[k + 1], totals[k])) for s, k in ((a, 0), (b, 2))]
    drawn = resample(columns)
    interval = quantiles(b.value(drawn[:, 3], drawn[:, 2]) - a.value(drawn[:, 1], drawn[:, 0]))
    p, test = _test(columns)
    same = len(i) == len(b.ids)  # else the baseline is of other rows
    figures = dataclasses.replace(before, value=values[0]), dataclasses.replace(after, value=values[1])
    figures = figures if same else tuple(dataclasses.replace(f, baseline=None, baseline_name="") for f in figures)
    return Change(*figures, len(columns), interval, p, test)


def _test(columns: np.ndarray) -> tuple[float | None, str]:
    weight, before, other, after = columns.T
    if not np.array_equal(weight, other):  # other tokens are counted: the rows' sums are not of the same thing
        return None, ""
    if np.all(weight == 1) and np.isin(columns, (0, 1)).all():
        return mcnemar(before, after), "mcnemar"
    return swap_test(after - before), "swaps"


def table(sets: Mapping[str, Sequence[Change]]) -> str:
    """A table a set, and a line on the tests."""
    head = ("figure", "before", "after", "difference (95 %)", "p", "baseline", "rows")
    tables = [
        f"{name}: before against after\n{columns([head, *(c.cells() for c in found)], '<>>>><>')}"
        for name, found in sets.items()
    ]
    return "\n\n".join([*tables, _TESTS])


def write_json(path: Path, sets: Mapping[str, Sequence[Change]]) -> None:
    """Writes {set: {task/metric: {before, after, difference, interval, p, test, baseline, baseline_name, rows}}}."""
    told = {name: {change.after.name: change.as_json() for change in found} for name, found in sets.items()}
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")


def before_and_after(
    evaluation: Evaluation,
    sets: Mapping[str, tuple[str, Source]],
    before: Mapping[str, jax.Array],
    after: Mapping[str, jax.Array],
    folder: Path,
    step: int,
) -> None:
    """Judges one model with two sets of flat parameters on {name: (stream, source)}, and prints the comparison.

    `folder` (a run's eval/) gets what `judge_sets` writes of `after`, before/ that of `before`, and comparison.json.
    """
    old = judge_sets(evaluation, sets, before, folder / "before", 0)
    _conclude(old, judge_sets(evaluation, sets, after, folder, step), folder)


def compare_run(workdir: Path, overrides: Mapping[str, str], data: DataConfig | None = None) -> int:
    """A run's best parameters against those that it began with, on `data.eval`, else `data.test`, else validation.

    data: names the sets; None is the run's own, with overrides.
    """
    from mmjax import assemble
    from mmjax.trained import open_trained, sets_to_judge

    trained = open_trained(workdir, "best", overrides)
    config = dataclasses.replace(trained.config, data=data or trained.config.data)
    opened = assemble.open_data(config)
    evaluation = Evaluation(config, trained.model, trained.processor, trained.mesh, opened.train)
    begun, sets = trained.before(), sets_to_judge(config, opened)
    before_and_after(evaluation, sets, begun.params, trained.params, workdir / "eval", trained.step)
    return 0


def _conclude(before: Mapping[str, Result], after: Mapping[str, Result], folder: Path) -> None:
    found = {name: changes(before[name].figures, result.figures, name) for name, result in after.items()}
    write_json(folder / "comparison.json", found)
    print(f"\n{table(found)}\nwritten: {folder / 'comparison.json'}")


def compare(before: Path | None, after: Path, overrides: Mapping[str, str]) -> int:
    """`mmjax compare`: two prediction files of `mmjax eval`, or two workdirs, judged on the sets that `after` names.

    Without `before`: the workdir `after` against what it began with.
    """
    if before is None:
        return compare_run(after, overrides)
    for flag, path in (("--before", before), ("--after", after)):
        if not path.exists():
            raise ConfigError(f"{flag}: no file or folder '{path}'.")
    if before.is_dir() != after.is_dir():
        raise ConfigError(
            f"--before, --after: found '{before}' and '{after}', expected two workdirs or two jsonl files."
        )
    if after.is_dir():
        return _compare_runs(before, after, overrides)
    if overrides:
        raise ConfigError(f"--config.{next(iter(overrides))}: prediction files are compared as they are. Leave it out.")
    print(table({after.stem: changes(read_figures(before), read_figures(after), f"{before}, {after}")}))
    return 0


def _writes_as(new: Task, old: Task) -> Task:
    """`old`, whose texts are written as those of `new`: else a change of the beams would look like one of the model."""
    same = hasattr(new, "generation") and hasattr(old, "generation")
    return dataclasses.replace(old, generation=new.generation) if same else old


def _compare_runs(before: Path, after: Path, overrides: Mapping[str, str]) -> int:
    from mmjax import assemble
    from mmjax.trained import open_trained, sets_to_judge

    new = open_trained(after, "best", overrides)
    old = open_trained(before, "best", {k: v for k, v in overrides.items() if k.split(".")[0] in ("eval", "mesh")})
    data = assemble.open_data(new.config)
    sets = sets_to_judge(new.config, data)
    shared = {n: _writes_as(new.config.tasks[n], t) for n, t in old.config.tasks.items() if n in new.config.tasks}
    if not shared:
        raise ConfigError(f"--before: it has the tasks {', '.join(old.config.tasks)}, none of those of --after.")
    # The old model sees the new one's sets, in the stream of the same name or else in its first.
    streams = {
        stream: stream if stream in old.config.data.streams else old.config.first_stream
        for stream in {*data.train, *(stream for stream, _ in sets.values())}
    }
    size = new.config.eval.batch_size or new.config.data.batch_size(new.config.first_stream)
    judged = dataclasses.replace(old.config.eval, batch_size=size)  # wrong pairs of matching lie in one batch
    told = dataclasses.replace(old.config, tasks=shared, eval=judged)
    first = {streams[stream]: source for stream, source in reversed(data.train.items())}
    judge = Evaluation(told, old.model, old.processor, old.mesh, first)
    moved = {name: (streams[stream], source) for name, (stream, source) in sets.items()}
    folder = after / "eval"
    results = judge_sets(judge, moved, old.params, folder / "before", old.step)
    judge = Evaluation(new.config, new.model, new.processor, new.mesh, data.train)
    _conclude(results, judge_sets(judge, sets, new.params, folder, new.step), folder)
    return 0
