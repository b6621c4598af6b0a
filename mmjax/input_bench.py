"""`mmjax data bench`: how fast the input of a config is by itself; no model is built."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mmjax import assemble, sharding
from mmjax.data.image_files import examine
from mmjax.data.images import training_image
from mmjax.data.order import row_keys
from mmjax.data.pipeline import Pipeline
from mmjax.errors import ConfigError
from mmjax.experiment import load
from mmjax.metrics import progress
from mmjax.table import columns

_WARM = 2  # batches before the clock starts: the threads have begun
_STAGED = 3  # batches that are timed by stage, at most one more than _WARM


def bench(file: str, overrides: Mapping[str, str], steps: int = 100) -> int:
    """Makes `steps` batches of each stream and prints how long they took, and the stages of some by one thread.

    The processor's time, of all threads, is what tells two ways apart on a machine with other work.
    """
    if steps < 1:
        raise ConfigError(f"--steps: found {steps}, expected 1 or more.")
    config, _ = load(file, overrides)
    opening, data = _timed(assemble.open_data, config)
    fitting, processor = _timed(assemble.fit_processor, config, data)
    whole = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])  # all rows, whatever devices the run will have
    pipelines = assemble.train_pipelines(config, data, processor, whole)
    print(f"open the data: {opening:.1f} s; fit the processor: {fitting:.1f} s")
    speeds = [
        ("stream", "rows a batch", "threads", "batches", "rows a second", "CPU ms a row", "MB a second", "ms a batch",
         "95 %")
    ]  # fmt: skip
    stages = [("stream", "one thread, ms a batch", "", "share")]
    for stream, pipeline in pipelines.items():
        if pipeline.layout:
            print(f"{stream}: {pipeline.layout.describe(pipeline.batch_size, config.train.seed)}")
        each, cpu = _batch_seconds(pipeline, steps, stream)
        spent, size = stage_seconds(pipeline)
        rows = pipeline.rows_a_step
        read = f"{size * rows / each.mean() / 1e6:,.1f}" if size else "no files"
        speeds.append(
            (stream, f"{rows:.4g}", str(pipeline.threads), str(steps), f"{rows / each.mean():,.0f}",
             f"{1000 * cpu / rows:.2f}", read, f"{1000 * np.median(each):,.1f}",
             f"{1000 * np.percentile(each, 95):,.1f}")
        )  # fmt: skip
        total = sum(spent.values())
        stages += [(stream, name, f"{1000 * s:8,.2f}", f"{s / total:5.0%}") for name, s in spent.items()]
    print(f"\n{columns(speeds)}\n\n{columns(stages)}")
    return 0


def _timed(function: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    made = function(*arguments, **options)
    return time.perf_counter() - begun, made


def _batch_seconds(pipeline: Pipeline, steps: int, label: str) -> tuple[np.ndarray, float]:
    """([steps] seconds from one batch to the next, as fast as they are taken; the threads' seconds a batch).

    As many batches are read ahead at the end as at the beginning.
    """
    batches = pipeline.batches()
    for _ in range(_WARM):
        next(batches)
    begun = time.process_time()
    each = [_timed(next, batches)[0] for _ in progress(range(steps), f"input of {label}")]
    spent = time.process_time() - begun
    batches.close()
    return np.array(each), spent / steps


def stage_seconds(pipeline: Pipeline) -> tuple[dict[str, float], float]:
    """({stage: seconds a batch, by one thread}, mean bytes of a picture file) of the first batches.

    The pipeline has made these before, so that it knows the bad rows among them.
    """
    source, processor, spent, size, count = pipeline.source, pipeline.processor, {}, 0, 0

    def add(stage: str, seconds: float) -> None:
        spent[stage] = spent.get(stage, 0.0) + seconds / _STAGED

    images = "image" in pipeline.features
    read = source.__getitem__ if images else source.annotations
    wanted = {"train": True, "captions": pipeline.captions, "questions": pipeline.questions}
    for step in range(_STAGED):
        rows = [row for row in pipeline.rows_at(step).tolist() if row not in pipeline.bad]
        keys = row_keys(pipeline.seed, np.zeros(len(rows), np.int64), np.array(rows, np.int64))
        count += len(rows)
        seconds, records = _timed(lambda rows: list(map(read, rows)), rows)
        add("read", seconds)
        if images and "packed" not in records[0]:
            pictures = [(record, key) for record, key in zip(records, keys, strict=True) if "image" in record]
            size += sum(len(record["image"]) for record, _ in pictures)
            add("pictures", _timed(_decode, pictures, processor)[0])
        add("texts", _timed(processor.arrays, records, keys, pipeline.features, **wanted)[0])
    return spent, size / max(count, 1)


def _decode(pictures: list[tuple[Mapping[str, Any], np.uint64]], processor: Any) -> None:
    settings, draws = processor.image, processor.picture_draws(np.array([key for _, key in pictures], np.uint64))
    for (record, _), draw in zip(pictures, draws, strict=True):
        training_image(examine(record["image"], settings.max_pixels), draw, settings, processor.augment_of(record))
