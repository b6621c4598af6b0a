"""`mmjax import`: a Hugging Face folder -> a workdir with a checkpoint of step 0, which every other command reads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.config import merge, nest, plain
from mmjax.errors import ConfigError
from mmjax.pretrained.family import Described
from mmjax.pretrained.folder import Folder
from mmjax.pretrained.processing import PICTURES, VOCABULARIES
from mmjax.pretrained.tensor_files import ToWrite, write_tensors

ORIGIN = "origin"  # folder of a workdir: what came along of a Hugging Face folder beside its parameters
_ALONG = ("config.json", "generation_config.json", "chat_template*", *PICTURES, "tokenizer_config.json",
          "special_tokens_map.json", "added_tokens.json", *VOCABULARIES)  # fmt: skip
_BATCH = 32  # rows of a batch in `mmjax eval`


def import_folder(path: str, workdir: Path, overrides: Mapping[str, str]) -> int:
    """Writes workdir/config.json, the checkpoint of step 0 and workdir/origin. Overrides are as of train: they may
    change the pictures' size, add tokens, lay out the mesh; a setting that contradicts the weights is an error.
    """
    from mmjax import assemble, initialisation, sharding
    from mmjax.checkpoint import CheckpointConfig, Checkpointer
    from mmjax.data.processor import Processor
    from mmjax.doctor import versions
    from mmjax.experiment import from_mapping
    from mmjax.pretrained.source import Published

    if (workdir / "checkpoints").exists():
        raise ConfigError(f"--workdir: '{workdir}' holds a run already. Expected a new folder.")
    source = Published(path, "import")
    whole = {
        "data": {},
        "init": {"path": path},
        "tasks": tasks_of(source.folder.described),
        "train": {"steps": 1},
        "eval": {"batch_size": _BATCH},
    }
    mapping = initialisation.inherit(merge(whole, nest(overrides)))
    config = from_mapping(mapping)
    start = initialisation.processor_start(config, source)
    processor = Processor.fit(config.processor, [], frozenset(), start=start)
    initialisation.check_processor(config, source, processor)
    model = assemble.build_model(config, processor)
    placed = assemble.layout(model, sharding.make_mesh(config.mesh))
    found = initialisation.match(config.init, source, placed.shapes)
    params = assemble.initial_params(config, model, placed)
    print(found.text(path, placed.shapes))
    keep_origin(source.folder, workdir)
    # From here on the workdir stands by itself: nothing is read from the folder any more.
    mapping = {k: v for k, v in mapping.items() if k != "init"}
    meta = {"config": plain(from_mapping(mapping)), "mapping": plain(mapping), "fingerprint": {}, "base": None,
            "imported": source.identity, "versions": versions()}  # fmt: skip
    (workdir / "config.json").write_text(json.dumps(meta["config"], indent=1))
    checkpoints = Checkpointer(workdir / "checkpoints", CheckpointConfig(asynchronous=False))
    position = {"seed": config.train.seed, "step": 0, "fingerprint": {}, "history": []}
    checkpoints.save(0, {"params": params, "frozen": {}}, position, meta, processor.to_json(), force=True)
    checkpoints.close()
    tasks = ", ".join(config.tasks) or "none that can be run by itself"
    print(f"written: {workdir} (tasks: {tasks})")
    return 0


def tasks_of(described: Described) -> dict[str, dict[str, Any]]:
    """What such a model can do as it is: {task: its settings}."""
    from mmjax.tasks.task import KINDS

    tasks: dict[str, dict[str, Any]] = {}
    if described.contrastive and {"patch_encoder", "text_encoder"} <= described.model.keys():
        tasks["contrastive"] = {"loss_kind": described.contrastive}
    tasks |= {name: {} for name in described.heads if name in KINDS}
    if {"patch_encoder", "decoder"} <= described.model.keys():
        tasks["captioning"] = {}
    return tasks


def keep_origin(folder: Folder, workdir: Path) -> None:
    """Copies what an export gives back as it came: configs, vocabulary, chat template, and the tensors set aside."""
    target = workdir / ORIGIN
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in sorted({file for pattern in _ALONG for file in folder.path.glob(pattern)}):
        if file.is_file():
            shutil.copyfile(file, target / file.name)
    aside = {key: folder.tensors[key] for key in folder.aside}
    if aside:
        write_tensors(target, [ToWrite(k, t.dtype, t.shape, t.map) for k, t in aside.items()])
    # Which tensors there were tells a family the names and the optional parts of this very release.
    (target / "keys.json").write_text(json.dumps(sorted(folder.tensors), indent=0) + "\n")
