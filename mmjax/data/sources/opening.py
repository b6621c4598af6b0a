"""Opens whatever `config.data` names: finds its format, and puts its texts into a template where there is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmjax.data.ranges import path_of
from mmjax.data.sources import Source, SourceConfig, sniffing
from mmjax.data.templates import Templated
from mmjax.errors import ConfigError


def open_source(config: SourceConfig, where: str, base: str = "") -> Source:
    """Opens `config.path`, which starts at `base` if it is relative. `where` is the config path, for messages.

    Raises ConfigError before any step where the file is unreadable, nothing is said of its pictures, or more pictures
    are absent than `config.max_bad_fraction` allows.
    """
    if not config.path:
        raise ConfigError(f"{where}.path: empty. Expected a file or folder, or tfds:scenes/easy.")
    if "://" in config.path or "://" in base:
        path = path_of(config.path) if "://" in config.path else path_of(base) / config.path
    else:
        path = Path(config.path) if config.path.startswith("tfds:") else Path(base, config.path).expanduser()
    if config.root and path.exists():
        config = replace(config, root=str(_given_root(path, config.root, base, where)))
    if config.format == "auto":
        kind, path = sniffing.sniff(path, where)
    else:
        kind = sniffing.by_name(config.format, path, where)
    if config.fields and kind.NAME in ("coco", "vqav2", "easy_vqa", "conversations", "nlvr"):
        raise ConfigError(f"{where}.fields: given, but {kind.NAME} has names of its own. Leave it out.")
    if config.split and kind.NAME not in ("tfds", "parquet", "webdataset", "tfrecord", "coco"):
        raise ConfigError(
            f"{where}.split: found '{config.split}', but {kind.NAME} has no splits. Give the split's own file as path."
        )
    source = kind.open_source(path, config, where)
    if not len(source):
        raise ConfigError(f"{source.name}: no rows. {_why_empty(source)}")
    if config.prompt:
        source = Templated(source, config.prompt, f"{where}.prompt")
    return source


def _why_empty(source: Source) -> str:
    left = ", ".join(f"{what} ({count})" for what, count in source.left_aside.items())
    return f"All was left aside: {left}." if left else "Expected pictures and what is said of them."


def _given_root(path: Path, root: str, base: str, where: str) -> Path:
    candidates = [Path(base, root).expanduser(), (path if path.is_dir() else path.parent) / root]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"{where}.root: no folder '{candidates[0]}', nor '{candidates[1]}'. Expected where pictures' paths start."
    )
