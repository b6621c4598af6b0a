"""`mmjax merge`: a trained workdir as one that needs nothing else: its weights as the model is applied to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from mmjax.checkpoint import write_once
from mmjax.config import plain
from mmjax.errors import ConfigError
from mmjax.experiment import from_mapping
from mmjax.trained import open_trained

# Of the config: how the weights were trained. `out` only holds the outcome.
_OF_TRAINING = ("init", "adapt", "optimizer", "stages")


def merge(workdir: Path, checkpoint: str, overrides: Mapping[str, str], out: Path) -> int:
    """Writes `out`, a workdir that eval, predict and init.path read: LoRA merged into its kernels, the moving average
    in place of the parameters, what a checkpoint leaves to its base inside. It cannot be trained on in place.
    """
    if other := next((key for key in overrides if not key.startswith(("mesh", "init.path"))), ""):
        raise ConfigError(f"--config.{other}: weights are merged as they are. Here only mesh and init.path may be set.")
    if (out / "checkpoints").exists():
        raise ConfigError(f"--out: '{out}' is a workdir already. Expected a new folder.")
    trained = open_trained(workdir, checkpoint, overrides)
    mapping = {k: v for k, v in trained.workdir.meta["mapping"].items() if k not in _OF_TRAINING}
    mapping["train"] = {**mapping["train"], "ema": 0.0}
    meta = {**trained.workdir.meta, "mapping": mapping, "config": plain(from_mapping(mapping)), "base": None,
            "merged": {"path": str(workdir.absolute()), "step": trained.step}}  # fmt: skip
    state = {"params": dict(trained.params), "frozen": {}, "ema": {}}
    items = trained.workdir.item("data"), meta, trained.workdir.item("processor")
    write_once(out / "checkpoints", trained.step, state, *items)
    (out / "config.json").write_text(json.dumps(meta["config"], indent=1))
    print(f"{out}: {len(trained.params)} parameters of {workdir}, step {trained.step}")
    return 0
