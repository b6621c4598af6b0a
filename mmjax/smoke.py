"""The smoke rule: any config made so small that it runs in seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmjax.config import plain
from mmjax.inheritance import run_sizes


def shrink(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The one smoke rule: small widths, depth 2, batches of 8, a step a stage; built-in sets in their smallest version.

    Retrieval searches the whole of such a set, for a gallery may be larger. What begins with weights keeps their sizes.
    Nothing else changes.
    """
    small = plain(mapping)
    given, model = small.get("init", {}), small.get("model", {})
    begun = run_sizes(given.get("path", ""))
    for tower in ("patch_encoder", "text_encoder", "fusion", "decoder"):
        part = model.get(tower)
        public = given.get(tower) or (given.get("path") and not begun and tower != "fusion")
        if public or not isinstance(part, dict) or part.get("name", "") == "none":
            continue  # public weights say their sizes themselves
        part.pop("size", None)
        part.update(begun.get(tower) or {"width": 32, "depth": 2, "heads": 2, "mlp_dim": 64})
    if model.get("embed_dim") and (begun or not given.get("path")):
        model["embed_dim"] = begun.get("embed_dim") or 32
    tokenizer = small.setdefault("processor", {}).setdefault("tokenizer", {})
    if not tokenizer.get("path"):
        tokenizer["vocab_size"] = 512
    _shrink_sources(small.get("data", {}))
    for task in small.get("tasks", {}).values():
        if "gallery" in task:
            task["gallery"] = 0
    train = small.setdefault("train", {})
    for key in ("epochs", "examples"):
        train.pop(key, None)
    stages = list(small.get("stages", {}).values())
    for stage in stages[:-1]:
        stage["length"] = "1 step"
    train.update({"steps": max(1, len(stages)), "log_every": 1})
    small.setdefault("optimizer", {})["warmup"] = "0 steps"
    return small


def _shrink_sources(node: Any) -> None:
    if not isinstance(node, dict):
        return
    if "batch_size" in node:
        node["batch_size"] = 8
    if isinstance(node.get("path"), str) and node["path"].startswith("tfds:scenes/"):
        node["path"] = re.sub(r"(_\d+train)?$", "_16train", node["path"], count=1)
    for value in node.values():
        _shrink_sources(value)
