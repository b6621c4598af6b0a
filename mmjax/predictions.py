"""What a model said of each row, a JSON object a line: written while rows stream by, read back to compare two models.

    {"id": "test/17", "vqa": {"answer": ["red"], "truth": [["blue"]], "right": 0.0}, "scores": {"vqa/accuracy": [0, 1]}}

`scores` are what the row gave to each figure, [sum, weight]; `unit` names the rows that are drawn together, where it is
not the row's own id.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Scores


class UniqueIds:
    """Gives every row an id of its own: the second row of a picture (`group=False`) is "picture.jpg#2"."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, record: Record) -> Record:
        """The record with a unique `id`, and with a `key` that says which rows belong together."""
        name = str(record["id"])
        self._seen[name] += 1
        unique = name if self._seen[name] == 1 else f"{name}#{self._seen[name]}"
        return {**record, "id": unique, "key": record.get("key") or name}


class PredictionFile:
    """The lines of one pass over a set. Complete under its name only after `finish`, which adds the scores."""

    def __init__(self, path: Path):
        self.path, self._partial = path, path.with_name(f".{path.name}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("w", encoding="utf-8")

    def add(self, record: Record, said: Mapping[str, Any]) -> None:
        """said: {task: what it says}, JSON-able."""
        unit = {"unit": record["key"]} if record.get("key", record["id"]) != record["id"] else {}
        self._file.write(dumps({"id": record["id"], **unit, **said}) + "\n")

    def finish(self, figures: Sequence[Figure]) -> None:
        """Adds each row's scores and puts the file in its place."""
        self._file.close()
        scored: dict[str, dict[str, list[float]]] = {}
        for figure in figures:
            if figure.scores is not None:
                s = figure.scores
                for name, total, weight in zip(s.ids.tolist(), s.sums.tolist(), s.weights.tolist(), strict=True):
                    scored.setdefault(name, {})[figure.name] = [total, weight]
        ready = self._partial.with_name(f".{self.path.name}.ready")
        with self._partial.open(encoding="utf-8") as lines, ready.open("w", encoding="utf-8") as out:
            for line in lines:
                item = json.loads(line)
                out.write(dumps({**item, "scores": scored.get(item["id"], {})}) + "\n")
        os.replace(ready, self.path)
        self._partial.unlink()


class Results:
    """The lines of results, in memory or in a file that a killed run has begun.

    Attributes:
      done: ids of the rows that have a line.
      failed: lines with an error.
    """

    def __init__(self, file: Path | None, about: Mapping[str, Any]):
        """about: of the model and the request, kept beside the file: lines of two requests are not mixed."""
        self.done, self.failed, self._lines, self._file, self._path = set(), 0, [], None, file
        if file is None:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(".request.json")
        if file.exists() and file.stat().st_size:
            self._check(beside, about)
            self._take_up(file)
        else:
            beside.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
        self._file = file.open("a", encoding="utf-8")

    def _check(self, beside: Path, about: Mapping[str, Any]) -> None:
        before = json.loads(beside.read_text("utf-8")) if beside.is_file() else {}
        for key in {**about, **before}:
            if before.get(key) != about.get(key):
                raise ConfigError(
                    f"--out: '{self._path}' holds results of another run: {key} was {before.get(key)!r}, is "
                    f"{about.get(key)!r}. Give another file, or remove it."
                )

    def _take_up(self, file: Path) -> None:
        with file.open("rb+") as lines:
            whole = 0
            for line in lines:
                if not line.endswith(b"\n"):  # a killed run left half of it
                    break
                item = json.loads(line)
                whole += len(line)
                self.done.add(item["id"])
                self.failed += "error" in item
            lines.truncate(whole)

    def add(self, line: Mapping[str, Any]) -> None:
        """One more line."""
        self.done.add(line["id"])
        self.failed += "error" in line
        if self._file:
            self._file.write(dumps(line) + "\n")
            self._file.flush()
        else:
            self._lines.append(line)

    def first(self, count: int) -> list[Mapping[str, Any]]:
        """The first lines that hold no error."""
        if self._path is None:
            return [line for line in self._lines if "error" not in line][:count]
        with self._path.open(encoding="utf-8") as lines:
            return list(islice((item for item in map(json.loads, lines) if "error" not in item), count))

    def close(self) -> None:
        if self._file:
            self._file.close()


def read_figures(path: Path) -> list[Figure]:
    """The figures of a set's predictions, with their scores: from SET.jsonl, and SET.json beside it."""
    beside = path.with_suffix(".json")
    for file in (path, beside):
        if not file.is_file():
            raise ConfigError(f"no file '{file}'. Expected the SET.jsonl and SET.json of an evaluation side by side.")
    rows: dict[str, list[tuple[str, str, float, float]]] = {}
    for number, item in enumerate(_lines(path), 1):
        if "scores" not in item or "id" not in item:
            raise ConfigError(f"{path}, line {number}: no id or scores. Expected the lines that 'mmjax eval' writes.")
        for name, (total, weight) in item["scores"].items():
            rows.setdefault(name, []).append((item["id"], item.get("unit", item["id"]), total, weight))
    figures = []
    for name, told in json.loads(beside.read_text("utf-8"))["figures"].items():
        scores = None
        if name in rows:
            ids, units, sums, weights = zip(*rows[name], strict=True)
            scores = Scores(
                np.array(ids, object), np.array(units, object), np.array(sums), np.array(weights), told["link"]
            )
        pair = {key: told[key] and tuple(told[key]) for key in ("interval", "gain")}
        kept = {key: told[key] for key in ("value", "n", "baseline", "baseline_name", "percent")}
        figures.append(Figure(name, **kept, **pair, scores=scores))
    return figures


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{path}, line {number}: not JSON ({error}).") from error


def dumps(value: Any) -> str:
    """JSON on one line; NumPy numbers and arrays as plain ones, floats with six digits."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
