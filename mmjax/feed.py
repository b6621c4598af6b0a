"""Batches on the devices before the step asks: a background thread reads, tokenises, decodes and transfers ahead."""

from __future__ import annotations

import queue
import threading
import time
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.data.pipeline import Pipeline
from mmjax.sharding import put_batch


class Feed:
    """Iterates over steps start .. stop-1, giving ({stream: {feature: global array}}, {stream: checksum of row ids}).

    Attributes:
      waited: seconds that the caller has waited for data so far.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], mesh: Mesh, start: int, stop: int, ahead: int = 2):
        self.waited = 0.0
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(pipelines, mesh, start, stop), daemon=True)
        self._thread.start()

    def _run(self, pipelines: Mapping[str, Pipeline], mesh: Mesh, start: int, stop: int) -> None:
        try:
            streams = {name: pipeline.batches(start, stop) for name, pipeline in pipelines.items()}
            for _ in range(start, stop):
                host = {name: next(batches) for name, batches in streams.items()}
                rows = {name: row_checksum(batch) for name, batch in host.items()}
                device = {name: put_batch(b, mesh, pipelines[name].batch_size) for name, b in host.items()}
                if not self._offer((device, rows)):
                    return
        except BaseException as error:  # handed to the caller, who raises it where the user sees it
            self._offer(error)

    def _offer(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def take(self) -> tuple[dict[str, dict[str, jax.Array]], dict[str, str]]:
        """The next step's batch. Raises what the reading thread raised."""
        begun = time.perf_counter()
        item = self._queue.get()
        self.waited += time.perf_counter() - begun
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stops the reading thread."""
        self._stopped.set()
        self._thread.join(timeout=5)

    def __enter__(self) -> Feed:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def row_checksum(batch: Mapping[str, np.ndarray]) -> str:
    """Eight hex digits that change when the rows or what was drawn for them change."""
    text = batch["row"].tobytes() + b"".join(
        batch[k].tobytes() for k in ("text_key", "question", "chat", "labels") if k in batch
    )
    return f"{zlib.crc32(text):08x}"
