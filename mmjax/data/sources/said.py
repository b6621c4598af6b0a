"""What a row of a container says of its picture, in any of the shapes that public sets have, as fields of a Record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data.index import index
from mmjax.data.sources import Record, Source, conversations
from mmjax.data.sources.fields import meaning
from mmjax.errors import ConfigError

_TEXT_IN = ("raw", "text", "caption", "sentence", "answer")  # the key of the text, where a row keeps texts in objects


def meanings(
    names: Iterable[str], picture: str, where: str, fields: Mapping[str, str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """({what it is: its name} of all but the picture, the names left aside), where `picture` holds the pictures.

    A file's name or path beside the picture itself is left aside: it is not a second picture. Beside a conversation
    everything else is.
    """
    names = list(names)
    if turns := [name for name in names if name in conversations.TURNS]:
        return {"messages": turns[0]}, tuple(name for name in names if name not in (picture, turns[0]))
    found, left = meaning([picture, *(name for name in names if name != picture)], where, {**fields, "image": picture})
    del found["image"]
    return found, left


def said(item: Mapping[str, Any], at: str, classes: Sequence[str] = (), pictures: int = 1) -> Record:
    """texts, qa, label, labels and messages, those that the row has.

    Args:
      item: {"text" | "question" | "answer" | "label": a text, a number, a list of them, or objects that hold them}, or
        {"messages": a list of turns}, which `text` may be too.
      at: the row, for messages.
      classes: names of the classes where labels are numbers; -1 is no label.
      pictures: of the row.
    """
    record: Record = {}
    text = item.get("text")
    turns = item.get("messages") or (_turns(text) if _are_turns(text) else None)
    if turns:
        return _conversation(turns, at, pictures)
    if texts := strings(text, at):
        record["texts"] = texts
    if "question" in item and (qa := _questions(item["question"], item.get("answer"), at)):
        record["qa"] = qa
    label = item.get("label")
    labels = [_class(number, classes, at) for number in strings(label, at) if not (classes and number == "-1")]
    if labels and isinstance(label, list):
        record["labels"] = labels
    elif labels:
        record["label"] = labels[0]
    return record


def strings(value: Any, at: str) -> list[str]:
    """The texts in a value that are not empty, without white space around them."""
    if value is None:
        return []
    if isinstance(value, list):
        return [text for one in value for text in strings(one, at)]
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{at}: not UTF-8 ({error.reason}, byte {error.start}). Expected text.") from None
    if isinstance(value, str):
        return [text] if (text := value.strip()) else []
    if isinstance(value, (int, float)):
        return [str(value)]
    if isinstance(value, Mapping):
        for name in _TEXT_IN:
            if name in value:
                return strings(value[name], at)
        raise ConfigError(f"{at}: an object of ({', '.join(value)}), expected one with {', '.join(_TEXT_IN)}.")
    raise ConfigError(f"{at}: found {type(value).__name__}, expected text.")


def _questions(asked: Any, answered: Any, at: str) -> list[dict[str, Any]]:
    """One question with its answers, or as many answers as questions. Questions without answer (test sets) are not."""
    if not isinstance(asked, list):
        asked = [asked]
    answers = [answered] if len(asked) == 1 else answered
    if not isinstance(answers, list) or len(answers) != len(asked):
        raise ConfigError(f"{at}: {len(asked)} questions and other answers. Expected as many, in the same order.")
    pairs = [(strings(q, at), strings(a, at)) for q, a in zip(asked, answers, strict=True)]
    return [{"question": question[0], "answers": answers} for question, answers in pairs if question and answers]


def _class(label: str, classes: Sequence[str], at: str) -> str:
    if not classes:
        return label
    if not (label.isdecimal() and int(label) < len(classes)):
        raise ConfigError(f"{at}: label {label}, expected the number of a class below {len(classes)}.")
    return classes[int(label)]


def _are_turns(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "assistant" in value[0]


def _turns(pairs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """[{user, assistant}, ...] (The Cauldron, FineVision) -> turns of a message each."""
    return [{"role": role, "content": pair.get(role)} for pair in pairs for role in ("user", "assistant")]


def _conversation(turns: Sequence[Mapping[str, Any]], at: str, pictures: int) -> Record:
    line = conversations.line_of({"messages": turns, "images": [f"picture {k}" for k in range(pictures)]}, 0, at)
    return {"messages": line.messages} | ({"key": line.key} if line.key else {})


class LineByLine:
    """A row for each text and each question of a source's rows (`group=False`)."""

    def __init__(self, source: Source):
        self.source, self.name, self.left_aside = source, source.name, source.left_aside
        self.fingerprint = f"{source.fingerprint}, a row a line"
        # [lines, 3] int64: row of the source, which text, which question; -1 is none of them.
        self._lines = index(f"lines of {source.fingerprint}", [], lambda: {"lines": _lines(source)})["lines"]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, i: int) -> Record:
        return self._part(i, self.source[int(self._lines[i, 0])])

    def annotations(self, i: int) -> Record:
        return self._part(i, self.source.annotations(int(self._lines[i, 0])))

    def _part(self, i: int, record: Record) -> Record:
        _, text, question = self._lines[i]
        texts, qa = record.pop("texts", []), record.pop("qa", [])
        if text >= 0:
            record["texts"] = [texts[text]]
        if question >= 0:
            record["qa"] = [qa[question]]
        return record


def _lines(source: Source) -> np.ndarray:
    lines = []
    for i in range(len(source)):
        record = source.annotations(i)
        texts, qa = len(record.get("texts", ())), len(record.get("qa", ()))
        lines += [(i, t, -1) for t in range(texts)] + [(i, -1, q) for q in range(qa)] or [(i, -1, -1)]
    return np.array(lines, np.int64).reshape(-1, 3)
