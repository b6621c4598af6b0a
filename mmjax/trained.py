"""A trained workdir, opened again: its config, processor, model and parameters; and its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.sharding import Mesh

from mmjax import assemble, sharding
from mmjax.checkpoint import CheckpointConfig, Checkpointer
from mmjax.config import merge, nest
from mmjax.data.processor import Processor
from mmjax.data.sources import Source
from mmjax.errors import ConfigError
from mmjax.evaluation import Evaluation, judge_sets
from mmjax.experiment import Config, from_mapping
from mmjax.models.multimodal import Multimodal

_MAY_CHANGE = ("data", "eval", "mesh")


@dataclass(frozen=True)
class Trained:
    """Attributes:
    params: flat {name: array}: the moving average where there is one.
    step: of the checkpoint that was read.
    """

    config: Config
    processor: Processor
    model: Multimodal
    mesh: Mesh
    params: Mapping[str, jax.Array]
    step: int


def open_trained(workdir: Path, checkpoint: str, overrides: Mapping[str, str]) -> Trained:
    """Reads `checkpoint` ("best", "latest" or a step) of a workdir. Overrides may change only data, eval and mesh."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        raise ConfigError(f"--workdir: no checkpoints below '{workdir}'. Expected the workdir of an 'mmjax train' run.")
    for key in overrides:
        if key.split(".")[0] not in _MAY_CHANGE:
            raise ConfigError(f"--config.{key}: fixed by training. Here only {', '.join(_MAY_CHANGE)} may be changed.")
    checkpoints = Checkpointer(folder, CheckpointConfig(), read_only=True)
    step = _step(checkpoints, checkpoint, workdir)
    meta = checkpoints.read_json(step, "meta")
    config = from_mapping(merge(meta["mapping"], nest(overrides)))
    processor = Processor.from_json(checkpoints.read_json(step, "processor"))
    model = assemble.build_model(config, processor)
    mesh = sharding.make_mesh(config.mesh)
    placed = assemble.layout(model, mesh)
    shapes = {n: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=placed.shardings[n]) for n, s in placed.shapes.items()}
    frozen = set(meta["frozen"])
    wanted = {
        "ema" if config.train.ema else "params": {n: s for n, s in shapes.items() if n not in frozen},
        "frozen": {n: s for n, s in shapes.items() if n in frozen},
    }
    state = checkpoints.restore_partial(step, {k: v for k, v in wanted.items() if v})
    params = {name: leaf for part in state.values() for name, leaf in part.items()}
    checkpoints.close()
    return Trained(config, processor, model, mesh, params, step)


def _step(checkpoints: Checkpointer, wanted: str, workdir: Path) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise ConfigError(f"--workdir: '{workdir}/checkpoints' holds no complete checkpoint yet.")
    if wanted == "best":
        return checkpoints.best_step() or steps[-1]
    if wanted == "latest":
        return steps[-1]
    if not wanted.isdigit() or int(wanted) not in steps:
        raise ConfigError(f"--checkpoint: found '{wanted}', expected 'best', 'latest' or one of {steps}.")
    return int(wanted)


def sets_to_judge(config: Config, data: assemble.Data) -> Mapping[str, tuple[str, Source]]:
    """{name: (stream, source)} of `data.eval`, else `data.test`, else the validation sets."""
    group = next((g for g in ("eval", "test") if getattr(config.data, g)), "validation")
    sets = data.validation if group == "validation" else assemble.open_sets(config, group)
    if not sets:
        raise ConfigError("config.data: no eval, test or validation set. Name one: --config.data.eval.path=PATH.")
    return sets


def evaluate(workdir: Path, checkpoint: str, overrides: Mapping[str, str]) -> int:
    """Evaluates `data.eval`, else `data.test`, else the validation sets.

    Prints the tables and writes workdir/eval/*.json and *.png.
    """
    trained = open_trained(workdir, checkpoint, overrides)
    config = trained.config
    data = assemble.open_data(config)
    sets = sets_to_judge(config, data)
    evaluation = Evaluation(config, trained.model, trained.processor, trained.mesh, data.train)
    judge_sets(evaluation, sets, trained.params, workdir / "eval", trained.step)
    print(f"\nwritten: {', '.join(str(workdir / 'eval' / f'{name}.json') for name in sets)}")
    return 0
