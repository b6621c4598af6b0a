"""csv and tsv: a row a caption, a question or a label. Separator, header and the meaning of the columns are inferred.

Read: a header `image,caption`, `filepath<TAB>title`, `image,question,answer`, `image,label`; or two columns without a
header, a picture's path and a caption.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.fields import NAMES, meaning
from mmjax.data.sources.pictures import Line, PictureSource, looks_like_picture, picture_source
from mmjax.errors import ConfigError

SEPARATORS = "\t,;|"


def open_table(path: Path, config: SourceConfig, where: str) -> PictureSource:
    """Opens a csv or tsv file. ConfigError names the file and the row, counted from 1 with the header."""
    return picture_source(path, read_lines(path), config.root, config.group, where)


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


def read_lines(path: Path) -> Iterator[Line]:
    """The rows of the file, as lines about pictures."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            first = file.readline()
            file.seek(0)
            # Captions in tsv files hold bare quotation marks; those around a whole cell are taken off in `_plain`.
            mark = separator(path, first)
            quoting = csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL
            rows = csv.reader(file, delimiter=mark, quoting=quoting, strict=mark != "\t")
            yield from _lines(path, ([_plain(cell) for cell in row] for row in rows) if mark == "\t" else rows)
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path.name}: not UTF-8 ({error.reason}, byte {error.start}). Expected a UTF-8 text file."
            ) from None
        except csv.Error as error:
            raise ConfigError(
                f"{path.name}, row {rows.line_num}: {error}. Expected quotation marks in pairs around a field."
            ) from None


def _lines(path: Path, rows: Iterator[list[str]]) -> Iterator[Line]:
    columns: dict[str, int] = {}
    width = 0
    for number, row in enumerate(rows, 1):
        if not any(cell.strip() for cell in row):
            continue
        if not columns:
            columns, header = _columns(path, row)
            width = len(row)
            if header:
                continue
        if len(row) != width:
            raise ConfigError(
                f"{path.name}, row {number}: {len(row)} columns, expected {width} as in row 1: {_shown(row)}. "
                "A caption that holds the separator needs quotation marks, or a tab as the separator."
            )
        cells = {key: row[k].strip() for key, k in columns.items()}
        for key, cell in cells.items():
            if not cell:
                raise ConfigError(
                    f"{path.name}, row {number}: the {key} is empty. Expected text in every row; remove the row."
                )
        yield Line(
            image=cells["image"],
            row=number,
            texts=[cells["text"]] if "text" in cells else [],
            question=cells.get("question", ""),
            answers=[cells["answer"]] if "answer" in cells else None,
            label=cells.get("label", ""),
        )


def _shown(row: list[str]) -> str:
    return repr(" | ".join(row)[:80])


def _plain(cell: str) -> str:
    """A tsv cell without the quotation marks that pandas puts around one which holds some."""
    return cell[1:-1].replace('""', '"') if re.fullmatch(r'"(?:[^"]|"")*"', cell) else cell


def _columns(path: Path, row: list[str]) -> tuple[dict[str, int], bool]:
    """({meaning: column}, whether the row is a header)."""
    if any(looks_like_picture(cell) for cell in row):
        if len(row) == 2 and looks_like_picture(row[0]):
            return {"image": 0, "text": 1}, False
        raise ConfigError(
            f"{path.name}, row 1: {len(row)} columns and no header: {_shown(row)}. Expected a header that names "
            "the columns, such as image,question,answer, or two columns without one: a picture's path and its caption."
        )
    names = {alias for aliases in NAMES.values() for alias in aliases}
    if not any(cell.strip().lower() in names for cell in row):
        raise ConfigError(
            f"{path.name}, row 1: neither a header nor a picture's path in {_shown(row)}. Expected a header such as "
            "image,caption, or a path that ends in .jpg, .png, .webp, ... and a caption."
        )
    found = meaning(row, f"{path.name}, row 1")
    return {key: row.index(name) for key, name in found.items()}, True
