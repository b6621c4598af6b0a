"""`mmjax data pack`: every set of a config as packed arrays, and the config values that train on them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmjax import assemble
from mmjax.data.mixture import Mixture
from mmjax.data.packed import pack, refuse_crops
from mmjax.data.sets import SETS
from mmjax.data.sources import Source, SourceConfig
from mmjax.experiment import Config, load


def pack_sets(file: str, overrides: Mapping[str, str], out: Path) -> int:
    """Packs all sets that the config names, and what training holds out, into folders of `out`; prints how to use them.

    Each as the run sees it: prompts are applied, the held-out pictures are a set of their own.
    """
    config, _ = load(file, overrides)
    refuse_crops(config.processor)
    data = assemble.open_data(config)
    processor = assemble.fit_processor(config, data)
    values = []
    for group, sets in _sets(config, data).items():
        for name, (stream, source) in sets.items():
            key = group if len(sets) == 1 else f"{group}.{name}"
            folder = out / key.replace(".", "/")
            size = pack(
                source,
                processor,
                config.processor,
                config.features_of(stream),
                folder,
                threads=config.data.threads,
                max_bad_fraction=config.data.max_bad_fraction,
            )
            print(f"{folder}: {len(source):,} rows, {size / 2**20:,.1f} MiB", flush=True)
            values += _values(f"--config.data.{key}", folder, getattr(config.data, group).get(name))
    print("Train on it with the same config and\n  " + " \\\n  ".join(values))
    return 0


def _sets(config: Config, data: assemble.Data) -> dict[str, dict[str, tuple[str, Source]]]:
    """{group: {name: (stream, source)}} of the groups that have any."""
    train = {}
    for stream, names in config.data.streams.items():
        source = data.train[stream]
        parts = source.sources if isinstance(source, Mixture) else dict.fromkeys(names, source)
        train |= {name: (stream, part) for name, part in parts.items()}
    later = {group: assemble.open_sets(config, group) for group in SETS[2:]}
    return {g: sets for g, sets in ({"train": train, "validation": dict(data.validation)} | later).items() if sets}


def _values(key: str, folder: Path, config: SourceConfig | None) -> list[str]:
    """The command line values that point a set to its pack, without what is done already."""
    done = [name for name in ("root", "split", "fields", "prompt") if config is not None and getattr(config, name)]
    emptied = [f"{key}.{name}={'{}' if name == 'fields' else ''}" for name in done]
    named = [f"{key}.format=auto"] if config is not None and config.format != "auto" else []
    return [f"{key}.path={folder.absolute()}", *named, *emptied]
