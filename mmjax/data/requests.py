"""What is to be predicted, as a source: any set that can be trained on, and what cannot: pictures or questions alone.

a folder, a tar, a parquet file, ...        as `sources/` reads it
csv, tsv or jsonl of `image`                pictures that nothing is said of
csv, tsv or jsonl of `image`, `question`    questions without answers
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.data.sources import Record, Source, SourceConfig, folder, sniffing
from mmjax.data.sources.fields import NAMES
from mmjax.data.sources.opening import open_source
from mmjax.data.sources.pictures import EXTENSIONS, Line, infer_root
from mmjax.data.sources.table import separator
from mmjax.errors import ConfigError


class Pictures:
    """Picture files, with a question each or none. A file that is not there fails when it is read, and not before."""

    def __init__(self, name: str, files: Sequence[tuple[str, Path]], questions: Sequence[str] = ()):
        """files: (id, path); questions: as many as files, or none."""
        self.name, self.left_aside, self._files, self._questions = name, {}, files, questions
        said = json.dumps([[name for name, _ in files], list(questions)])
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._files)

    def annotations(self, i: int) -> Record:
        record: Record = {"id": self._files[i][0]}
        if self._questions:
            record["qa"] = [{"question": self._questions[i], "answers": []}]
        return record

    def __getitem__(self, i: int) -> Record:
        return {**self.annotations(i), "image": self._files[i][1].read_bytes()}


def open_requests(path: str, root: str, where: str, *, group: bool = True) -> Source:
    """Opens what is to be predicted. root: where relative pictures are looked for; "" infers it, as for training.
    group: a row is a picture with all that is asked about it, else one question.

    Pictures that are missing or broken are found when they are read.
    """
    file = Path(path)
    if file.is_dir() and sniffing.claimant(file, b"") is folder:
        names = sorted(name for name in folder.files_below(file) if Path(name).suffix.lower() in EXTENSIONS)
        if not names:
            raise ConfigError(f"{where}: no picture below '{file}'. Expected {', '.join(sorted(EXTENSIONS))} files.")
        return Pictures(file.name, [(name, file / name) for name in names])
    if file.suffix.lower() in (".csv", ".tsv", ".jsonl") and file.is_file():
        rows = _jsonl(file) if file.suffix.lower() == ".jsonl" else _table(file)
        first = next(rows, {})
        found = {key: next((name for name in first if name.strip().lower() in NAMES[key]), "") for key in NAMES}
        if found["image"] and not any(found[key] for key in ("answer", "text", "label")):
            rows = _jsonl(file) if file.suffix.lower() == ".jsonl" else _table(file)
            return _unanswered(file, rows, [n for n in (found["image"], found["question"]) if n], root)
    return open_source(SourceConfig(path=path, root=root, group=group, max_bad_fraction=0.999), where)


def _unanswered(file: Path, rows: Iterator[Mapping[str, Any]], names: list[str], root: str) -> Pictures:
    """names: the fields of the picture and, where there are questions, of the question."""
    lines = []
    for number, row in enumerate(rows, 1):
        if not all(str(row.get(name) or "").strip() for name in names):
            raise ConfigError(f"{file.name}, row {number}: has ({', '.join(row)}), expected {' and '.join(names)}.")
        lines.append(Line(str(row[names[0]]).strip(), number, question=str(row[names[-1]])))
    base = Path(root) if root else infer_root(file, lines)
    questions = [line.question for line in lines] if len(names) > 1 else []
    return Pictures(file.name, [(line.image, base / line.image) for line in lines], questions)


def _jsonl(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{file.name}, row {number}: not JSON ({error}).") from error
                yield row if isinstance(row, dict) else {}


def _table(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        first = lines.readline()
        mark = separator(file, first) if any(m in first for m in "\t,;|") else ","  # one column has none
        names = next(csv.reader([first], delimiter=mark), [])
        yield from (dict(zip(names, row, strict=False)) for row in csv.reader(lines, delimiter=mark) if row)
