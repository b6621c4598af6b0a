"""The files that a path means: one, a folder of them, `part-{00000..00099}.tar`, several joined by `::`; splits."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from mmjax.data.ranges import is_remote, path_of
from mmjax.errors import ConfigError, did_you_mean

SPLITS = ("train", "training", "validation", "val", "valid", "dev", "test", "testing")
_BRACES = re.compile(r"\{([^{}]*)\}")


def is_pattern(path: Path) -> bool:
    """Whether the path means several files, so that there is none of that name."""
    return "::" in os.fspath(path) or bool(_BRACES.search(os.fspath(path)))


def shards(path: Path, written: str, ending: re.Pattern[str], where: str) -> list[Path]:
    """The files that `path` means, in order; those of a folder are the ones whose name `ending` is found in.

    Args:
      written: the part of the path that the config gives; parts after a `::` start where it does.
    """
    first, *others = os.fspath(path).split("::")
    base = Path() if is_remote(path) else Path(*path.parts[: -len(Path(written).parts)])
    parts = [path_of(first), *(path_of(part) if is_remote(part) else base / part for part in others)]
    files: list[Path] = []
    for part in parts:
        names = [path_of(name) for name in _alternatives(os.fspath(part), where)]
        if missing := next((file for file in names if not file.exists()), None):
            raise ConfigError(f"{where}.path: no file '{missing}', one of the {len(names)} that '{part}' means.")
        for file in names:
            files += in_folder(file, ending) if file.is_dir() else [file]
    return files


def in_folder(folder: Path, ending: re.Pattern[str]) -> list[Path]:
    """The files of a folder, not of those below it, by name; none of what is not a folder."""
    try:
        return sorted(file for file in folder.iterdir() if ending.search(file.name)) if folder.is_dir() else []
    except OSError:
        return []


def _alternatives(pattern: str, where: str) -> list[str]:
    """ "{08..10}.tar" -> 08.tar, 09.tar, 10.tar; "{a,b}.tar" -> a.tar, b.tar."""
    braces = _BRACES.search(pattern)
    if not braces:
        return [pattern]
    inner = braces[1].split(",")
    if ends := re.fullmatch(r"(\d+)\.\.(\d+)", braces[1]):
        numbers = range(int(ends[1]), int(ends[2]) + 1)
        if not numbers:
            raise ConfigError(f"{where}.path: '{braces[0]}' counts down. Expected the smaller number first.")
        inner = [f"{k:0{len(ends[1])}d}" for k in numbers]
    rest = _alternatives(pattern[braces.end() :], where)
    return [pattern[: braces.start()] + one + end for one in inner for end in rest]


def split_of(file: Path) -> str:
    """The split that a file is named for: `train-00000-of-00005.parquet`, `coco_val_003.tar`, `test/0000.parquet`."""
    if numbered := re.match(r"(.+)-\d{5}-of-\d{5}", file.name):
        return re.sub(r"\.\w+$", "", numbered[1])
    parts = re.split(r"[-_.]", file.name.lower())
    return next((part for part in parts if part in SPLITS), file.parent.name if file.parent.name in SPLITS else "")


def of_split(files: Sequence[Path], split: str, where: str) -> tuple[list[Path], dict[str, int]]:
    """(the files of the split, {what is left aside: files}). Without a split: all if they are of one, else train."""
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(split_of(file), []).append(file)
    wanted = split or (next(iter(found)) if len(found) == 1 else "train")
    if wanted not in found:
        names = ", ".join(name or f"none ('{found[name][0].name}')" for name in found)
        raise ConfigError(
            f"{where}.split: found '{split}', but the files are of: {names}. Set it to one of them."
            f"{did_you_mean(wanted, found)}"
        )
    return found[wanted], {f"files of split '{name}'": len(of) for name, of in found.items() if name != wanted}
