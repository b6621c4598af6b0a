"""Rows that cannot be read: counted by cause, written down once each, and too many of them end the run."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

from mmjax.errors import ConfigError


class BadRecords:
    """The bad rows of one source that have been met so far. Whether a row is bad depends on the row alone.

    With a `file` each is appended to it as a json object a line: source, row, id, cause, error. A row that the file
    already has, from before the run was resumed, is not written again.
    """

    def __init__(self, source: str, rows: int, max_fraction: float, file: Path | None = None):
        self.source, self._rows, self._max_fraction, self._file = source, rows, max_fraction, file
        self._causes: dict[int, str] = {}
        self._written: set[int] = set()
        self._lock = threading.Lock()
        if file is not None and file.exists():
            lines = map(json.loads, file.read_text().splitlines())
            self._written = {line["row"] for line in lines if line["source"] == source}

    def __contains__(self, row: int) -> bool:
        return row in self._causes

    def __len__(self) -> int:
        return len(self._causes)

    def add(self, row: int, id: str, cause: str, error: ConfigError) -> None:
        """Notes a row. Raises `error` where no bad record is allowed, or says that they are too many."""
        with self._lock:
            self._causes[row] = cause
            if self._file is not None and row not in self._written:
                self._written.add(row)
                with open(self._file, "a") as out:
                    line = {"source": self.source, "row": row, "id": id, "cause": cause, "error": str(error)}
                    out.write(json.dumps(line) + "\n")
        if not self._max_fraction:
            raise ConfigError(
                f"{error} Or set data.max_bad_fraction (a share, such as 0.01) to train without such rows."
            )
        if len(self) > self._max_fraction * self._rows:
            raise ConfigError(
                f"{self.source}: {len(self)} of {self._rows} rows cannot be read ({self.summary()}), above the "
                f"data.max_bad_fraction of {self._max_fraction}. The last: {error}"
            )

    def summary(self) -> str:
        """How many of each cause, in words."""
        with self._lock:
            counts = Counter(self._causes.values())
        return ", ".join(f"{count} {cause}" for cause, count in sorted(counts.items()))
