"""`mmjax import`: a Hugging Face folder -> a workdir with a checkpoint of step 0, which every other command reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.config import merge, nest, plain
from mmjax.errors import ConfigError
from mmjax.pretrained.family import Described
from mmjax.pretrained.processing import chat_template
from mmjax.tasks import Task

_BATCH = 32  # rows of a batch in `mmjax eval`


def import_folder(path: str, workdir: Path, overrides: Mapping[str, str]) -> int:
    """Writes workdir/config.json, the checkpoint of step 0 and workdir/origin. Overrides are as of train: they may
    change the pictures' size, add tokens, lay out the mesh; a setting that contradicts the weights is an error.
    """
    from mmjax import assemble, initialisation, sharding
    from mmjax.checkpoint import write_once
    from mmjax.data.processor import Processor
    from mmjax.doctor import versions
    from mmjax.experiment import from_mapping
    from mmjax.inheritance import inherit
    from mmjax.pretrained.folder import open_folder
    from mmjax.workdir import source_of

    if (workdir / "checkpoints").exists():
        raise ConfigError(f"--workdir: '{workdir}' holds a run already. Expected a new folder.")
    folder = open_folder(path, "import")
    whole = {
        "data": {},
        "init": {"path": path},
        "tasks": tasks_of(folder.described, bool(chat_template(folder))),
        "train": {"steps": 1},
        "eval": {"batch_size": _BATCH},
    }
    mapping = inherit(merge(whole, nest(overrides)))
    config = from_mapping(mapping)
    source = source_of(config.init, config.processor.tokenizer.path, config.data.root)
    start = initialisation.processor_start(config, source)
    processor = Processor.fit(config.processor, [], frozenset(), start=start)
    initialisation.check_processor(config, source, processor)
    model = assemble.build_model(config, processor)
    placed = assemble.layout(model, sharding.make_mesh(config.mesh))
    found = initialisation.match(config.init, source, placed.shapes)
    params = assemble.initial_params(config, model, placed)
    print(found.text(path, placed.shapes))
    source.carry(workdir)
    # From here on the workdir stands by itself: nothing is read from the folder any more.
    mapping = {k: v for k, v in mapping.items() if k != "init"}
    meta = {"config": plain(from_mapping(mapping)), "mapping": plain(mapping), "fingerprint": {}, "base": None,
            "imported": source.identity, "versions": versions()}  # fmt: skip
    (workdir / "config.json").write_text(json.dumps(meta["config"], indent=1))
    position = {"seed": config.train.seed, "step": 0, "fingerprint": {}, "history": []}
    write_once(workdir / "checkpoints", 0, {"params": params, "frozen": {}}, position, meta, processor.to_json())
    tasks = ", ".join(config.tasks) or "none that can be run by itself"
    print(f"written: {workdir} (tasks: {tasks})")
    return 0


def tasks_of(described: Described, talks: bool) -> dict[str, dict[str, Any]]:
    """What such a model can do as it is: {task: its settings}. talks: the folder says how conversations are written."""
    has = set(described.model)
    has |= {"contrastive"} if described.contrastive and {"patch_encoder", "text_encoder"} <= has else set()
    wanted: dict[str, dict[str, Any]] = (
        {"contrastive": {"loss_kind": described.contrastive}} if described.contrastive else {}
    )
    wanted |= {name: {} for name in described.heads}
    wanted |= {"captioning": {}} if "text_encoder" not in has else {}
    wanted |= {"chat": {}} if talks and "image" in described.token_ids else {}
    made = {name: Task.from_config(settings, f"config.tasks.{name}") for name, settings in wanted.items()}
    return {name: wanted[name] for name, task in made.items() if task.needs <= has}
