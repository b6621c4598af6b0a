"""Sums and weights, the files they are written to, throughput, and the progress bar.

A metric is a pair (sum, weight) until the very end: pairs add up over microbatches, hosts and batches; means do not.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

Sums = dict[str, tuple[Any, Any]]


def add(a: Mapping[str, tuple[Any, Any]], b: Mapping[str, tuple[Any, Any]]) -> Sums:
    """Adds pairs by name; a name on one side stays. Host scalars become Python floats: long sums keep float64."""
    total = {name: _wide(pair) for name, pair in a.items()}
    for name, pair in b.items():
        value, weight = _wide(pair)
        before = total.get(name, (0.0, 0.0))
        total[name] = (before[0] + value, before[1] + weight)
    return total


def _wide(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    return tuple(float(x) if isinstance(x, (np.ndarray, np.generic)) and x.ndim == 0 else x for x in pair)


def divide(sums: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """{name: sum / weight}; NaN where the weight is 0, because nothing was measured."""
    return {name: float(value) / float(weight) if float(weight) else math.nan for name, (value, weight) in sums.items()}


class MetricWriter:
    """Appends to WORKDIR/metrics.jsonl and to TensorBoard event files in WORKDIR/tensorboard.

    Event files are written with the protocol buffers of the `tensorboard` package alone: clu's writers would import
    TensorFlow, which costs seconds and which GPU images often lack. All processes but the first use `active=False`.
    """

    def __init__(self, workdir: str | Path, *, active: bool = True):
        self.folder, self.active = Path(workdir), active
        self.path = self.folder / "metrics.jsonl"
        self._lines: io.TextIOBase | None = None
        self._events: _EventFile | None = None
        if active:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._open()

    def _open(self) -> None:
        torn = self.path.exists() and self.path.stat().st_size and self.path.read_bytes()[-1:] != b"\n"
        self._lines = self.path.open("a", encoding="utf-8")
        if torn:  # a killed process left half a line; the next must not be glued to it
            self._lines.write("\n")
        self._events = self._events or _EventFile(self.folder / "tensorboard")

    def truncate_after(self, step: int) -> None:
        """Drops lines of steps after `step` (the restored one), and torn ones, so that nothing is doubled."""
        if not self.active:
            return
        self._lines.close()
        kept = [line for line in self.path.read_text("utf-8", errors="replace").splitlines() if _step_of(line) <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), "utf-8")
        os.replace(temporary, self.path)
        self._open()
        self._events.restart(step + 1)

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """One line {"step": step, ...}. Numbers go to TensorBoard as well; other values (JSON) only into the line."""
        if not self.active:
            return
        plain = {name: _plain(value) for name, value in values.items()}
        # JSON knows no NaN: null keeps each line readable for every reader.
        line = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in plain.items()}
        self._lines.write(json.dumps({"step": int(step), **line}) + "\n")
        self._lines.flush()
        numbers = {n: v for n, v in plain.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}
        self._events.scalars(int(step), numbers)

    def text(self, step: int, name: str, text: str) -> None:
        """Markdown for TensorBoard's text page."""
        if self.active:
            self._events.text(int(step), name, text)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """image: [H, W, 3] uint8, for TensorBoard's image page."""
        if self.active:
            self._events.image(int(step), name, image)

    def flush(self) -> None:
        """Everything written so far is in the files."""
        if self.active:
            self._lines.flush()
            self._events.flush()

    def close(self) -> None:
        """Closes the files."""
        if self.active:
            self._lines.close()
            self._events.close()


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; torn ones are left out."""
    lines = Path(path).read_text("utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if _step_of(line) < math.inf]


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


class _EventFile:
    """One TensorBoard event file; made at the first value, so that a run without values leaves none."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._file: Any = None
        self._writer: Any = None

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        now = time.time()
        if self._writer is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}.{os.getpid()}"
            self._file = (self.folder / name).open("wb")
            self._writer = RecordWriter(self._file)
            self._writer.write(Event(wall_time=now, file_version="brain.Event:2").SerializeToString())
        self._writer.write(Event(wall_time=now, **fields).SerializeToString())

    def restart(self, step: int) -> None:
        """Tells TensorBoard to forget everything at or after `step` in older files."""
        from tensorboard.compat.proto.event_pb2 import SessionLog

        if self.folder.exists():
            self._write(step=step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        if values:
            each = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
            self._write(step=step, summary=Summary(value=each))

    def text(self, step: int, name: str, text: str) -> None:
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2
        from tensorboard.plugins.text.metadata import create_summary_metadata

        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
        metadata = create_summary_metadata(display_name=name, description="")
        value = summary_pb2.Summary.Value(tag=name, tensor=tensor, metadata=metadata)
        self._write(step=step, summary=summary_pb2.Summary(value=[value]))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        Image.fromarray(image).save(png, "PNG")
        height, width = image.shape[:2]
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png.getvalue())
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, image=shown)]))

    def flush(self) -> None:
        if self._file:
            self._file.flush()

    def close(self) -> None:
        if self._file:
            self._file.close()


class Throughput:
    """Speed over the last `window` steps. The first step (it compiles) and pauses count for nothing.

    Attributes:
      examples: rows a step; window: steps that are looked back on.
    """

    def __init__(self, examples: int, window: int = 100, clock: Callable[[], float] = time.perf_counter):
        self.examples = examples
        self._clock = clock
        self._times: collections.deque[tuple[float, float]] = collections.deque(maxlen=window)  # (step, wait) seconds
        self._last: float | None = None
        self._waited = 0.0

    def step(self, waited: float) -> None:
        """A step is done. waited: seconds waited for data, from the start of the run until now."""
        now = self._clock()
        if self._last is not None:
            self._times.append((now - self._last, waited - self._waited))
        self._last, self._waited = now, waited

    def skip(self, seconds: float) -> None:
        """Time spent on something else (evaluation, a save) inside the current step."""
        if self._last is not None:
            self._last += seconds

    def numbers(self) -> dict[str, float]:
        """examples_per_second, data_wait (share of time), step_seconds_p50 and _p95; empty before the second step."""
        if not self._times:
            return {}
        times, waits = np.array(self._times).T
        p50, p95 = np.percentile(times, [50, 95])
        total = max(times.sum(), 1e-9)
        return {
            "examples_per_second": float(len(times) * self.examples / total),
            "data_wait": float(np.clip(waits.sum() / total, 0.0, 1.0)),
            "step_seconds_p50": float(p50),
            "step_seconds_p95": float(p95),
        }

    def seconds_left(self, steps: int) -> float | None:
        """Expected seconds for so many more steps, without evaluations and saves; None before the second step."""
        return float(np.mean([t for t, _ in self._times]) * steps) if self._times else None


class Progress:
    """The bar of the training loop: a tqdm bar on a terminal, else a line every `every` seconds.

    Attributes:
      start, total: the step that the run begins after, and its last; examples: rows a step.
    """

    def __init__(self, start: int, total: int, examples: int, *, every: float = 30.0, file: Any = None):
        self.file = file or sys.stderr
        self.step, self.total, self.every = start, total, every
        self.speed = Throughput(examples)
        self._loss: float | None = None
        self._said = time.monotonic() - every  # the first line comes at once: it shows that the run is alive
        self._bar = (
            _bar(self.file, total=total, initial=start, unit="step", desc="train") if _terminal(self.file) else None
        )

    def advance(self, waited: float) -> None:
        """A step is done; waited: seconds that the loop has waited for data so far."""
        self.step += 1
        self.speed.step(waited)
        if self._bar is not None:
            self._bar.update(1)

    def show(self, loss: float) -> None:
        """Shows the loss of the last finished step, and the speed."""
        self._loss = loss
        facts = self._facts()
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(facts))
        elif time.monotonic() - self._said >= self.every or self.step >= self.total:
            self._said = time.monotonic()
            print(f"step {self.step}/{self.total}: {', '.join(facts)}", file=self.file, flush=True)

    def _facts(self) -> list[str]:
        numbers = self.speed.numbers()
        facts = [] if self._loss is None else [f"loss {self._loss:.4g}"]
        if numbers:
            facts += [f"{numbers['examples_per_second']:.4g} ex/s", f"wait {100 * numbers['data_wait']:.0f} %"]
            facts.append(f"ETA {tqdm.format_interval(self.speed.seconds_left(self.total - self.step))}")
        return facts

    def throughput(self) -> dict[str, float]:
        """See `Throughput.numbers`."""
        return self.speed.numbers()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Clears the bar for other output, and keeps the time inside out of the speed."""
        if self._bar is not None:
            self._bar.clear()
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.speed.skip(time.perf_counter() - begun)
            if self._bar is not None:
                self._bar.refresh()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def progress(
    items: Iterable[Any], label: str, *, unit: str = "batch", every: float = 30.0, file: Any = None
) -> Iterator[Any]:
    """Yields `items` with a bar on a terminal, else with a line every `every` seconds; nothing when done sooner."""
    file = file or sys.stderr
    total = len(items) if hasattr(items, "__len__") else None
    if _terminal(file):
        yield from _bar(file, iterable=items, total=total, unit=unit, desc=label, leave=False)
        return
    begun = said = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - said >= every:
            said = time.monotonic()
            left = ""
            if total is not None and done:
                left = f", ETA {tqdm.format_interval((said - begun) / done * (total - done))}"
            print(f"{label}: {done}{f'/{total}' if total is not None else ''} {unit}{left}", file=file, flush=True)
        yield item


def _terminal(file: Any) -> bool:
    return bool(getattr(file, "isatty", lambda: False)())


def _bar(file: Any, **options: Any) -> tqdm:
    return tqdm(file=file, dynamic_ncols=True, mininterval=0.5, smoothing=0.1, **options)
