"""json files: what they hold by their first bytes, and what is in them, one thing at a time."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from mmjax.errors import ConfigError

# A string that the head cuts off goes to its end: looking for strings within it would take quadratic time.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}\[\],:]|[^\s"{}\[\],:]++', re.DOTALL)
HEAD = 65536  # bytes of a file by which its format is told
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def head_of(path: Path) -> bytes:
    """The first HEAD bytes of a file; nothing of a folder, or of what is not there."""
    if not os.path.isfile(path):  # which, unlike Path.is_file, takes any pattern of names
        return b""
    with open(path, "rb") as file:
        return file.read(HEAD)


def is_list(file: Path) -> bool:
    """Whether the file begins as a json list."""
    return head_of(file).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")


@functools.lru_cache(maxsize=64)
def outline(head: bytes) -> dict[str, tuple[str, ...]]:
    """{key of the file's first object: keys of the first object in the list that it holds}, from its first bytes.

    The objects of a list have the key "": `[{"image": ...}]` is {"": ("image",)}. Empty for what is no json object.
    """
    found: dict[str, list[str]] = {}
    open_, within, before, done = "", "", "", set()  # brackets that are open, the key we are below, the last token
    for match in _TOKEN.finditer(head.decode("utf-8-sig", errors="replace")):
        token = match[0]
        if not open_ and token not in "{[":
            return {}
        if token in "{[":
            open_ += token
            if open_ == "[{":
                found.setdefault("", [])
        elif token in "}]":
            if open_ in ("{[{", "[{"):
                done.add(within)
            open_ = open_[:-1]
            if not open_:
                break
        elif token == ":" and before.startswith('"'):
            key = _unquoted(before)
            if open_ == "{":
                within = key
                found.setdefault(key, [])
            elif open_ in ("{[{", "[{") and within not in done:
                found[within].append(key)
        before = token
    return {key: tuple(keys) for key, keys in found.items()}


def first_keys(head: bytes) -> tuple[str, ...]:
    """The keys of the first object of a list, or of the first line."""
    found = outline(head)
    return found.get("", tuple(found))


def _unquoted(token: str) -> str:
    try:
        return json.loads(token)
    except ValueError:
        return token


def entries(file: Path, expected: str) -> Iterator[tuple[str, Any]]:
    """What the file holds, in order: (key, each item of its list) or (key, value) of an object, ("", item) of a list.

    Only the text of the file and one item are in memory. ConfigError where it is no json, or neither list nor object;
    `expected` says what should be there.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        at = _skip(text, 0)
        if text[at : at + 1] == "[":
            at = yield from _items(text, at, "")
        elif text[at : at + 1] == "{":
            at = yield from _members(text, at)
        else:
            raise ConfigError(f"{file.name}: begins with {text[at : at + 40]!r}. Expected {expected}.")
        at = _skip(text, at)
        if at < len(text):
            raise json.JSONDecodeError("more after the end", text, at)
    except ValueError as error:
        raise ConfigError(f"{file.name}: not json ({error}). Expected {expected}.") from None


def objects(file: Path, expected: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(number from 1, its name for messages, object) of a json list of objects, or of a file with an object a line."""
    for row, item in _listed(file, expected):
        at = f"{file.name}, row {row}"
        if not isinstance(item, dict):
            raise ConfigError(f"{at}: found {item!r:.60}, expected {expected}.")
        yield row, at, item


def _listed(file: Path, expected: str) -> Iterator[tuple[int, Any]]:
    if is_list(file):
        yield from enumerate((item for _, item in entries(file, expected)), 1)
        return
    with open(file, "rb") as lines:
        for row, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                yield row, json.loads(text.decode("utf-8-sig"))
            except ValueError as error:
                raise ConfigError(
                    f"{file.name}, row {row}: not json ({error}): {text[:60]!r}. Expected {expected}."
                ) from None


def _items(text: str, at: int, key: str) -> Generator[tuple[str, Any], None, int]:
    """Yields the items of the list that begins at `at`; returns the place after it."""
    at = _skip(text, at + 1)
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        item, at = _DECODER.raw_decode(text, at)
        yield key, item
        at, ended = _next(text, at, "]")
        if ended:
            return at


def _members(text: str, at: int) -> Generator[tuple[str, Any], None, int]:
    """Yields what the object that begins at `at` holds; returns the place after it."""
    at = _skip(text, at + 1)
    if text[at : at + 1] == "}":
        return at + 1
    while True:
        key, at = _DECODER.raw_decode(text, at)
        at = _skip(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise json.JSONDecodeError("expected a name in quotation marks and a colon", text, at)
        at = _skip(text, at + 1)
        if text[at : at + 1] == "[":
            at = yield from _items(text, at, key)
        else:
            value, at = _DECODER.raw_decode(text, at)
            yield key, value
        at, ended = _next(text, at, "}")
        if ended:
            return at


def _next(text: str, at: int, end: str) -> tuple[int, bool]:
    """-> (where the next item begins, or after the end; whether it has ended)."""
    at = _skip(text, at)
    mark = text[at : at + 1]
    if mark not in (",", end):
        raise json.JSONDecodeError(f"expected ',' or '{end}'", text, at)
    return _skip(text, at + 1), mark == end


def _skip(text: str, at: int) -> int:
    return _BLANK.match(text, at).end()
