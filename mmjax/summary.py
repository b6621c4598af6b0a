"""What will run, in text, before it runs: data, parameters, layout, batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax

from mmjax.models import lora
from mmjax.optim import coverage_table
from mmjax.table import columns

if TYPE_CHECKING:
    from mmjax.assemble import Data, Plan
    from mmjax.data.pipeline import Pipeline
    from mmjax.data.processor import Processor
    from mmjax.experiment import Config


def run_table(config: Config, plan: Plan, data: Data, processor: Processor, pipelines: Mapping[str, Pipeline]) -> str:
    """Data sets, tasks, vocabulary, padding, mesh, steps, and the table of trained parameters."""
    lines = []
    for name, source in data.train.items():
        tasks = ", ".join(f"{n} x{t.weight:g}" for n, t in config.tasks_of(name).items())
        lines.append(
            f"train/{name}: {len(source):,} pictures of {source.name}; batch {config.data.batch_size(name)}; {tasks}"
        )
        if layout := pipelines[name].layout:
            lines.append(f"train/{name}: {layout.describe(pipelines[name].batch_size, config.train.seed)}")
    for name, (stream, source) in data.validation.items():
        lines.append(f"{name} (of {stream}): {len(source):,} pictures of {source.name}")
    lines.append(f"processor {processor.sha256[:12]}: {_processor(processor)}")
    mesh = ", ".join(f"{k}={v}" for k, v in plan.layout.mesh.shape.items())
    first = config.first_stream
    epochs = plan.total_steps * pipelines[first].rows_a_step / len(data.train[first])
    lines.append(f"mesh {mesh}; {plan.total_steps:,} steps ({epochs:,.1f} epochs)")
    if plan.match:
        lines.append(plan.match.text(str(config.init), plan.layout.shapes))
    factors = [n for n in plan.layout.shapes if lora.is_factor(n)]
    for stage in plan.stages:
        if stage.name:
            lines.append(f"stage {stage.name}: steps {stage.start + 1:,} to {stage.stop:,}")
        lines.append(coverage_table(stage.optimizer, plan.layout.shapes, factors))
        opt = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(stage.abstract["opt"]))
        lines.append(f"optimizer state {opt / 2**20:,.1f} MiB")
    return "\n".join(lines)


def _processor(processor: Processor) -> str:
    t, image = processor.tokenizer, processor.image
    seen = f"{' x '.join(map(str, dict.fromkeys(image.sides)))} px ({image.resize}, {image.method})"
    if image.aspect == "native":
        seen = f"native aspect within {image.tokens} patches of {image.patch} px ({image.method})"
    parts = [seen, f"{t.vocab_size:,} tokens"]
    parts += [f"{len(processor.answers)} answers"] if processor.answers else []
    parts += [f"{len(processor.labels)} labels"] if processor.labels else []
    return ", ".join(parts)


def sharding_table(plan: Plan) -> str:
    """A row a parameter: shape, spec, bytes a device. Layers of a stack that agree share a row."""
    rows: dict[tuple[str, ...], int] = {}
    for name, shape in plan.layout.shapes.items():
        spec = plan.layout.shardings[name].spec
        ways = math.prod(
            plan.layout.mesh.shape[a] for axes in spec if axes for a in ((axes,) if isinstance(axes, str) else axes)
        )
        short = "/".join("block_*" if part.startswith("block_") else part for part in name.split("/"))
        key = (
            short,
            str(tuple(shape.shape)),
            str(tuple(spec)),
            f"{math.prod(shape.shape) * shape.dtype.itemsize // ways:,}",
        )
        rows[key] = rows.get(key, 0) + 1
    header = ("parameter", "shape", "spec", "bytes/device", "layers")
    return columns([header, *((*key, str(count)) for key, count in rows.items())])


def batch_table(batch: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a feature of each stream: shape, type, layout."""
    rows = [("stream", "feature", "shape", "type", "spec")]
    for stream, features in batch.items():
        for name, value in features.items():
            rows.append((stream, name, str(tuple(value.shape)), str(value.dtype), str(tuple(value.sharding.spec))))
    return columns(rows)
