"""A trained workdir, opened again: its config, processor, model and parameters; and its evaluation."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from mmjax import assemble, initialisation, sharding
from mmjax.config import merge, nest
from mmjax.data.processor import Processor
from mmjax.data.sources import Source
from mmjax.errors import ConfigError
from mmjax.evaluation import Evaluation, Result, judge_sets
from mmjax.experiment import Config, from_mapping
from mmjax.init_config import pinned
from mmjax.models.multimodal import Multimodal
from mmjax.table import columns
from mmjax.workdir import Workdir

_MAY_CHANGE = re.compile(r"(data|eval|mesh)(\.|$)|init\.path$|tasks\.[^.]+\.(generation(\.|$)|answer$|candidates$)")


@dataclass(frozen=True)
class Trained:
    """Attributes:
    params: flat {name: array}: the moving average where there is one, LoRA factors merged.
    step: of the checkpoint that was read.
    workdir: where the rest of it can be read.
    """

    config: Config
    processor: Processor
    model: Multimodal
    mesh: Mesh
    params: Mapping[str, jax.Array]
    step: int
    workdir: Workdir

    def raw(self) -> Mapping[str, jax.Array] | None:
        """The parameters without averaging; None where there is no average."""
        if not self.config.train.ema:
            return None
        return self.workdir.read(assemble.layout(self.model, self.mesh).abstract(self.params), average=False)

    def before(self) -> Trained:
        """The run before its first step: this model and processor with the parameters that it began with, which are
        those of `init.path` and, for what that lacks, those drawn by the seed.
        """
        config, base = self.config, self.workdir.base
        if made := next((how for how in ("imported", "merged") if how in self.workdir.meta), ""):
            raise ConfigError(
                f"'{self.workdir.path}' was {made}, not trained, and keeps nothing of what its weights began with. "
                "Name that with --before WORKDIR."
            )
        if base is not None:
            paths = base.identity.get("init") or {"path": base.identity["path"]}
            config = dataclasses.replace(config, init=dataclasses.replace(pinned(config.init, base.identity), **paths))
        params = assemble.initial_params(config, self.model, assemble.layout(self.model, self.mesh))
        return dataclasses.replace(self, config=config, params=params, step=0)

    def interpolated(self, share: float) -> Mapping[str, jax.Array]:
        """(1 - share) * base + share * trained (WiSE-FT: Wortsman et al., 2022); what did not come from the base, a
        fresh or grown head, as trained.
        """
        base = self.workdir.base
        if base is None:
            raise ConfigError("config.eval.interpolate: the run has no base, for it had no init.path.")
        found = initialisation.match(self.config.init, base, assemble.layout(self.model, self.mesh).shapes)
        begun, shared = self.before().params, {*found.taken, *found.adapted}
        return {n: (1 - share) * begun[n] + share * x if n in shared else x for n, x in self.params.items()}


def open_trained(workdir: Path, checkpoint: str, overrides: Mapping[str, str]) -> Trained:
    """Reads `checkpoint` ("best", "latest" or a step) of a workdir. Overrides may change only data, eval, mesh, how a
    task answers (generation, candidates, a decoder's answer), and init.path, where the base lies.
    """
    for key in overrides:
        if not _MAY_CHANGE.match(key):
            raise ConfigError(
                f"--config.{key}: fixed by training. Here only data, eval, mesh, tasks.NAME.generation, .answer and "
                ".candidates, and init.path may be changed."
            )
    kept = Workdir(workdir, checkpoint, base_path=overrides.get("init.path", ""))
    config = from_mapping(merge(kept.meta["mapping"], nest(overrides)))
    for name, task in from_mapping(kept.meta["mapping"]).tasks.items():
        if task.needs != config.tasks[name].needs:
            raise ConfigError(
                f"config.tasks.{name}.answer: found '{config.tasks[name].answer}', but the run was trained to answer "
                f"as '{task.answer}'. A decoder may answer by 'generate' or 'rank', a head by 'class' alone."
            )
    model = assemble.build_model(config, kept.processor)
    mesh = sharding.make_mesh(config.mesh)
    placed = assemble.layout(model, mesh)
    params = kept.read(placed.abstract(placed.shapes))
    return Trained(config, kept.processor, model, mesh, params, kept.step, kept)


def sets_to_judge(config: Config, data: assemble.Data) -> Mapping[str, tuple[str, Source]]:
    """{name: (stream, source)} of `data.eval`, else `data.test`, else the validation sets."""
    group = next((g for g in ("eval", "test") if getattr(config.data, g)), "validation")
    sets = data.validation if group == "validation" else assemble.open_sets(config, group)
    if not sets:
        raise ConfigError("config.data: no eval, test or validation set. Name one: --config.data.eval.path=PATH.")
    return sets


def evaluate(workdir: Path, checkpoint: str, overrides: Mapping[str, str]) -> int:
    """Evaluates `data.eval`, else `data.test`, else the validation sets.

    Prints the tables and writes workdir/eval/*.json and *.png. The weights without averaging, and those of
    `eval.interpolate`, are judged beside the run's own.
    """
    trained = open_trained(workdir, checkpoint, overrides)
    config = trained.config
    data = assemble.open_data(config)
    sets = sets_to_judge(config, data)
    evaluation = Evaluation(config, trained.model, trained.processor, trained.mesh, data.train)
    kinds = {"": lambda: trained.params}
    if config.train.ema:
        kinds["_raw"] = trained.raw
    kinds |= {f"_wise_{a:g}": lambda a=a: trained.interpolated(a) for a in config.eval.interpolate}
    results: dict[str, Result] = {}
    for kind, make in kinds.items():
        of_kind = {name + kind: where for name, where in sets.items()}
        results |= judge_sets(evaluation, of_kind, make(), workdir / "eval", trained.step)
    if len(kinds) > 1:
        print("\n" + "\n\n".join(_beside(name, {k: results[name + k] for k in kinds}) for name in sets))
    print(f"\nwritten: {', '.join(str(workdir / 'eval' / f'{name}.json') for name in results)}")
    return 0


def _beside(name: str, results: Mapping[str, Result]) -> str:
    """A row a kind of weights, a column a figure."""
    figures = [f.name for f in next(iter(results.values())).figures]
    rows = [(name, *figures)]
    for kind, result in results.items():
        cells = {f.name: f.cells()[1] for f in result.figures}
        rows.append((kind.strip("_").replace("_", " ") or "trained", *(cells[n] for n in figures)))
    return columns(rows)
