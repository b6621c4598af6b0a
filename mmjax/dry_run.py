"""`mmjax train --dry_run`: what a run would be, worked out without allocating anything on a device."""

from __future__ import annotations

from typing import Any

import jax

from mmjax import assemble, sharding, summary
from mmjax.experiment import Config
from mmjax.run import check_best, step_function, update


def dry_run(config: Config) -> int:
    """Prints parameters, sharding, batch, FLOPs a step and compiled memory; trains nothing."""
    mesh = sharding.make_mesh(config.mesh)
    data = assemble.open_data(config)
    check_best(config, list(data.validation))
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
        flops = count(update(config, model, plan), plan.abstract, batch)
    compiled = step_function(config, model, plan).lower(plan.abstract, batch).compile()
    if plan.name:
        print(f"stage {plan.name}, steps {plan.start + 1} to {plan.stop}:")
    print(f"FLOPs a step: {flops / 1e9:,.2f} G in all, {flops / mesh.size / 1e9:,.2f} G a device")
    memory = ", ".join(f"{k} {v / 2**20:,.1f} MiB" for k, v in memory_table(compiled).items())
    print(f"compiled memory a device: {memory}")
