"""Conversations about pictures: LLaVA's json, and the messages of chat APIs; a json list, or an object a line.

    {"image": path or paths, "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt"}]}
    {"messages": [{"role": "user", "content": text or [{"type": "image", "path"}, {"type": "text", "text"}]}, ...]}

A row is a conversation, whatever `group` says: its turns belong together, and its picture may come again in another.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmjax.data.sources import Source, SourceConfig, jsonl
from mmjax.data.sources.json_file import first_keys, is_list, objects
from mmjax.data.sources.line_file import READ_WHOLE, large_source
from mmjax.data.sources.pictures import Line, picture_source
from mmjax.errors import ConfigError, did_you_mean

NAME = "conversations"
TURNS = ("conversations", "messages")
PICTURES = ("image", "images")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
UNSUPPORTED = ("video", "videos", "audio", "audios")
EXPECTED = "an object with 'conversations' or 'messages', a list of turns"
# The line ends around a placeholder are how it was set, not what was said.
PLACEHOLDER = re.compile(r"\n*<image>\n*")


def claims(path: Path, head: bytes) -> bool:
    """Objects with a list of turns."""
    return not set(TURNS).isdisjoint(first_keys(head))


def open_source(path: Path, config: SourceConfig, where: str) -> Source:
    """Opens the file. ConfigError names the row, from 1: of the list, or the line."""
    if path.stat().st_size > READ_WHOLE and not is_list(path):
        return large_source(path, _Lines(path, {}), replace(config, group=False), where)
    left_aside: Counter[str] = Counter()
    lines = (line_of(item, row, at, left_aside) for row, at, item in objects(path, EXPECTED))
    return picture_source(
        path, lines, config.root, False, where, tolerate=config.max_bad_fraction, left_aside=left_aside
    )


class _Lines(jsonl.JsonLines):
    """Bytes of a line -> Line, of files too large to hold."""

    def __call__(self, text: bytes, number: int) -> Line:
        at = f"{self._file}, row {number}"
        return line_of(jsonl.object_of(text, at), number, at)


def line_of(item: Mapping[str, Any], row: int, at: str, left_aside: Counter[str] | None = None) -> Line:
    """One conversation in either spelling -> Line with `messages` and its pictures. `at` names it in messages.

    The n-th image part of the messages is the n-th picture. Places for pictures are `<image>` in a text, or parts of
    type image, which may hold their own path; pictures without any place stand in front of the user's first turn.

    left_aside: counts the fields that are not used.

    Raises ConfigError for an unknown role or part, a turn that says nothing, more or fewer pictures than places, a last
    turn that is not the assistant's, and pictures that are no files.
    """
    turns = [name for name in TURNS if item.get(name)]
    if len(turns) != 1 or not isinstance(item[turns[0]], list):
        raise ConfigError(f"{at}: found ({', '.join(item)}). Expected {EXPECTED}.")
    for name in UNSUPPORTED:
        if item.get(name):
            raise ConfigError(f"{at}: found a field '{name}', which is not supported yet. Remove the row.")
    if left_aside is not None:
        left_aside.update(f"field '{name}'" for name in item if name not in (*TURNS, *PICTURES, "id"))
    messages: list[dict[str, Any]] = []
    places: list[str] = []  # the picture's path, "" where the row's own fields have it
    for number, turn in enumerate(item[turns[0]], 1):
        messages.append(_message(turn, f"{at}, turn {number}", places))
    listed = [path for name in PICTURES for path in _paths(item.get(name), f"{at}: {name}")]
    pictures = _placed(messages, places, listed, at)
    if messages[-1]["role"] != "assistant":
        raise ConfigError(
            f"{at}: the last of {len(messages)} turns is the {messages[-1]['role']}'s. Expected the assistant's, "
            "which is what is learnt; remove the row or the turn."
        )
    key = "" if pictures else hashlib.blake2b(json.dumps(messages).encode(), digest_size=8).hexdigest()
    name = str(item.get("id", ""))
    return Line(image=pictures[0] if pictures else "", row=row, more=pictures[1:], messages=messages, key=key, id=name)


def _message(turn: Any, at: str, places: list[str]) -> dict[str, Any]:
    """A turn as in Record; the pictures that it has a place for are added to `places`."""
    if not isinstance(turn, dict) or not ({"from", "value"} <= set(turn) or {"role", "content"} <= set(turn)):
        raise ConfigError(f"{at}: found {turn!r:.80}, expected from and value, or role and content.")
    role = turn["role"] if "role" in turn else turn["from"]
    if role not in ROLES:
        near = did_you_mean(str(role), ROLES)
        raise ConfigError(f"{at}: found the role {role!r:.40}, expected one of {', '.join(ROLES)}.{near}")
    content = turn["content"] if "role" in turn else turn["value"]
    parts: list[dict[str, Any]] = []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else _list_of(content, at):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            for number, text in enumerate(PLACEHOLDER.split(part["text"])):
                if number:
                    parts.append({"type": "image"})
                    places.append("")
                if text.strip():
                    parts.append({"type": "text", "text": text})
        elif kind in ("image", "image_url"):
            own = [path for name in ("image", "path", "url", "image_url") for path in _paths(part.get(name), at)]
            if len(own) > 1:
                raise ConfigError(f"{at}: found {part!r:.80}, expected one path in an image part.")
            parts.append({"type": "image"})
            places.extend(own or [""])
        else:
            raise ConfigError(
                f"{at}: found {part!r:.80}; only parts of type text and image are supported yet. Remove the row."
            )
    role = ROLES[role]
    if not parts or role != "user" and all(part["type"] != "text" for part in parts):
        raise ConfigError(f"{at}: the {role} says nothing. Expected text; remove the turn or the row.")
    return {"role": role, "content": parts}


def _list_of(content: Any, at: str) -> list[Any]:
    if not isinstance(content, list):
        raise ConfigError(f"{at}: found {content!r:.60}, expected text, or a list of parts.")
    return content


def _placed(messages: Sequence[dict[str, Any]], places: Sequence[str], listed: Sequence[str], at: str) -> list[str]:
    """The pictures in the order of their places. `listed` fill those without a path of their own."""
    if listed and not places:
        user = next((message for message in messages if message["role"] == "user"), None)
        if user is None:
            raise ConfigError(f"{at}: a picture, but no turn of the user. Expected one in which it is shown.")
        user["content"][:0] = [{"type": "image"} for _ in listed]
        return list(listed)
    free = places.count("")
    if len(listed) != free and list(listed) != list(places):  # the same paths may stand in both
        raise ConfigError(
            f"{at}: {len(listed)} pictures in its fields and {free} places for them (<image>, or image parts without a "
            "path). Expected as many."
        )
    rest = iter(listed)
    return [path or next(rest) for path in places]


def _paths(value: Any, at: str) -> list[str]:
    """The paths in a field: one, a list of them, or {"path": ...} or {"url": ...}; none in an empty one."""
    if not value:
        return []
    if isinstance(value, list):
        return [path for one in value for path in _paths(one, at)]
    if isinstance(value, dict):
        return _paths(value.get("path") or value.get("url"), at)
    if not isinstance(value, str):
        raise ConfigError(f"{at}: found {value!r:.60}, expected the path of a picture.")
    if value.startswith(("http://", "https://", "data:")):
        what = "the picture itself" if value.startswith("data:") else "an address; nothing is downloaded"
        raise ConfigError(f"{at}: found '{value[:60]}', {what}. Expected the path of a file.")
    return [value.removeprefix("file://")]
