"""csv and tsv: a row a caption, a question or a label. Separator, header and the meaning of the columns are inferred.

Read: a header `image,caption`, `filepath<TAB>title`, `image,question,answer`, `image,label`; or two columns without a
header, a picture's path and a caption. As with jsonl, only the places of the rows of a large file are indexed.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmjax.data.sources import Source, SourceConfig
from mmjax.data.sources.fields import NAMES, meaning
from mmjax.data.sources.line_file import READ_WHOLE, large_source
from mmjax.data.sources.pictures import Line, looks_like_picture, picture_source
from mmjax.errors import ConfigError

NAME = "csv"
SEPARATORS = "\t,;|"


def claims(path: Path, head: bytes) -> bool:
    """Any text file that no other format claims and that is not json."""
    return bool(head) and b"\0" not in head[:1024] and head.lstrip()[:1] not in (b"{", b"[")


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens a csv or tsv file. ConfigError names the file and the row, counted from 1 with the header."""
    with open(path, "rb") as file:
        first = file.readline()
    parse = TableRows(path, _text(first, path.name), config.fields)
    if path.stat().st_size > READ_WHOLE:
        return large_source(path, parse, config, where, header=len(first) if parse.header else 0)
    lines = _read_whole(path, parse)
    left_aside = {f"column '{name}'": len(lines) for name in parse.left_aside}
    return picture_source(
        path, lines, config.root, config.group, where, tolerate=config.max_bad_fraction, left_aside=left_aside
    )


def _read_whole(path: Path, parse: TableRows) -> list[Line]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = parse.reader(file)
        try:
            numbered = enumerate(rows, 1)
            if parse.header:
                next(numbered)
            return [parse.line(row, number) for number, row in numbered if any(cell.strip() for cell in row)]
        except UnicodeDecodeError as error:
            raise _not_utf8(path.name, error) from None
        except csv.Error as error:
            raise _unpaired(f"{path.name}, row {rows.line_num}", error) from None


def _text(data: bytes, at: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(at, error) from None


def _not_utf8(at: str, error: UnicodeDecodeError) -> ConfigError:
    return ConfigError(f"{at}: not UTF-8 ({error.reason}, byte {error.start}). Expected a UTF-8 text file.")


def _unpaired(at: str, error: csv.Error) -> ConfigError:
    return ConfigError(f"{at}: {error}. Expected quotation marks in pairs around a field.")


def separator(path: Path, first: str) -> str:
    """The tab if the first row has one, else the one of comma, semicolon, bar that it has most of."""
    if "\t" in first:
        return "\t"
    best = max(SEPARATORS, key=first.count)
    if not first.count(best):
        raise ConfigError(
            f"{path.name}, row 1: one column only: '{first.strip()[:80]}'. Expected columns parted by a comma, tab, "
            "semicolon or bar."
        )
    return best


class TableRows:
    """Cells or bytes of a row -> Line; what the first row says of the file.

    Attributes:
      header: whether the first row is one.
      left_aside: columns that mean nothing here.
    """

    def __init__(self, path: Path, first: str, fields: Mapping[str, str]):
        self._file = path.name
        # Captions in tsv files hold bare quotation marks; those around a whole cell are taken off in `_plain`.
        self._mark = separator(path, first)
        row = next(iter(self.reader([first])))
        self._columns, self.header, self.left_aside = _columns(path, row, fields)
        self._width = len(row)

    def reader(self, lines: Any) -> Any:
        """The csv reader of some lines of the file."""
        tab = self._mark == "\t"
        return csv.reader(
            lines, delimiter=self._mark, quoting=csv.QUOTE_NONE if tab else csv.QUOTE_MINIMAL, strict=not tab
        )

    def __call__(self, text: bytes, number: int) -> Line:
        at = f"{self._file}, row {number}"
        try:
            return self.line(next(iter(self.reader([_text(text, at)]))), number)
        except csv.Error as error:
            raise _unpaired(at, error) from None

    def line(self, row: list[str], number: int) -> Line:
        if len(row) != self._width:
            raise ConfigError(
                f"{self._file}, row {number}: {len(row)} columns, expected {self._width} as in row 1: {_shown(row)}. "
                "A caption that holds the separator needs quotation marks, or a tab as the separator."
            )
        cells = {key: self._cell(row[k]) for key, k in self._columns.items()}
        for key, cell in cells.items():
            if not cell:
                raise ConfigError(
                    f"{self._file}, row {number}: the {key} is empty. Expected text in every row; remove the row."
                )
        return Line(
            image=cells["image"],
            row=number,
            texts=[cells["text"]] if "text" in cells else [],
            question=cells.get("question", ""),
            answers=[cells["answer"]] if "answer" in cells else None,
            label=cells.get("label", ""),
        )

    def _cell(self, cell: str) -> str:
        return (_plain(cell) if self._mark == "\t" else cell).strip()

    def row_ends(self, chunk: np.ndarray) -> np.ndarray:
        """A line feed ends a row unless it is within quotation marks."""
        ends = chunk == 10
        if self._mark != "\t":
            ends &= np.bitwise_xor.accumulate((chunk == 34).view(np.uint8)) == 0
        return ends

    def keys(self, chunk: bytes, count: int) -> list[bytes]:
        """The pictures' names of the rows in a chunk."""
        rows = self.reader(f"{line}\n" for line in _text(chunk, self._file).split("\n"))
        column = self._columns["image"]
        return [self._cell(row[column]).encode() for row in rows if len(row) > column]


def _shown(row: list[str]) -> str:
    return repr(" | ".join(row)[:80])


def _plain(cell: str) -> str:
    """A tsv cell without the quotation marks that pandas puts around one which holds some."""
    return cell[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell


def _columns(path: Path, row: list[str], fields: Mapping[str, str]) -> tuple[dict[str, int], bool, tuple[str, ...]]:
    """({meaning: column}, whether the row is a header, columns left aside)."""
    if any(looks_like_picture(cell) for cell in row):
        if len(row) == 2 and looks_like_picture(row[0]):
            return {"image": 0, "text": 1}, False, ()
        raise ConfigError(
            f"{path.name}, row 1: {len(row)} columns and no header: {_shown(row)}. Expected a header that names "
            "the columns, such as image,question,answer, or two columns without one: a picture's path and its caption."
        )
    names = {*(alias for aliases in NAMES.values() for alias in aliases), *(name.lower() for name in fields.values())}
    if not any(cell.strip().lower() in names for cell in row):
        raise ConfigError(
            f"{path.name}, row 1: neither a header nor a picture's path in {_shown(row)}. Expected a header such as "
            "image,caption, or a path that ends in .jpg, .png, .webp, ... and a caption."
        )
    found, left_aside = meaning(row, f"{path.name}, row 1", fields)
    return {key: row.index(name) for key, name in found.items()}, True, left_aside
