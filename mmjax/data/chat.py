"""Conversations -> token ids: whose turn it is stands before each turn as text, and the assistant's turns are learnt.

bos  system: ...  user: <image> ...  assistant: ... eos  user: ...  assistant: ... eos  pad
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.tokenizer import Tokenizer


ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """How turns are marked.

    Attributes:
      system, user, assistant: what stands before a turn: text, so that every tokenizer can encode it.
      jinja: the template of public weights, in their place (`chat_jinja.py`).
    """

    system: str = "system:"
    user: str = "user:"
    assistant: str = "assistant:"
    jinja: str = ""

    def check(self, where: str) -> None:
        for role in ROLES:
            if not getattr(self, role).strip():
                raise ConfigError(f"{where}.{role}: empty. Expected a text that marks the turns of the {role}.")


class Piece(NamedTuple):
    """A stretch of one turn: the picture (`text` is then ""), or text. What is `said` by the assistant is learnt."""

    text: str
    picture: bool = False
    said: bool = False


def pictures_in(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many image parts a conversation has."""
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def words_in(messages: Sequence[Mapping[str, Any]], role: str = "") -> list[str]:
    """The texts of the turns (of one role), a string a turn."""
    return [
        "\n".join(text for part in message["content"] if (text := part.get("text", "").strip()))
        for message in messages
        if role in ("", message["role"])
    ]


def checked(messages: Sequence[Mapping[str, Any]], name: str, picture: bool | None) -> bool:
    """Whether the record has a picture that no part names. ConfigError for a conversation that cannot be written.

    Args:
      name: of the record, for messages.
      picture: whether the record has one; None does not look.
    """
    named = pictures_in(messages)
    if named > 1:
        raise ConfigError(f"{name}: a conversation about {named} pictures. Expected at most one a row; leave it out.")
    if picture is not None and named > picture:
        raise ConfigError(f"{name}: a conversation with an image part, but the row has no picture.")
    for message in messages:
        if message["role"] not in ROLES:
            raise ConfigError(f"{name}: a turn of '{message['role']}'. Expected system, user or assistant.")
    return bool(picture) and not named


def pieces(
    messages: Sequence[Mapping[str, Any]],
    template: ChatTemplate,
    name: str,
    *,
    picture: bool | None = None,
    clean: Callable[[str], str] = str,
) -> list[Piece]:
    """The stretches of a conversation, in order.

    Args:
      messages: as in a Record (mmjax/README.md).
      name: of the record, for messages.
      picture: whether the record has one; None does not look. One that no part names stands before the first user
        turn's words.
      clean: applied to every text.
    """
    left, made = checked(messages, name, picture), []
    for message in messages:
        role = message["role"]
        made.append(Piece(getattr(template, role)))
        if role == "assistant":
            made.append(Piece(clean(words_in([message])[0]).strip(), said=True))
            continue
        if left and role == "user":
            made.append(Piece("", picture=True))
            left = False
        for part in message["content"]:
            if part["type"] == "image":
                made.append(Piece("", picture=True))
            elif text := clean(part["text"]).strip():
                made.append(Piece(text))
    return made


def tokens_of(conversations: Sequence[Sequence[Piece]], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """(ids, which of them are learnt) of each conversation, uncut: bos, then its pieces; eos after what was said.

    The picture is one `<image>` id, or none where the tokenizer has none. Special tokens that stand in a text as words
    are dropped: they would end a turn, or hold a picture that is not there.
    """
    told = [piece.text for conversation in conversations for piece in conversation if not piece.picture]
    texts = iter(tokenizer.tokens(told))
    special = {tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.image}
    made = []
    for conversation in conversations:
        ids, learnt = [tokenizer.bos], [False]
        for piece in conversation:
            if piece.picture:
                new = [tokenizer.image] if tokenizer.image >= 0 else []
            else:
                new = [i for i in next(texts) if i not in special] + [tokenizer.eos] * piece.said
            ids += new
            learnt += [piece.said] * len(new)
        made.append((ids, learnt))
    return made


def padded(
    conversations: Sequence[tuple[list[int], list[bool]]], length: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """-> ids, mask, supervised [B, length]. A long one is cut without an eos: it did not end there."""
    shape = (len(conversations), length)
    ids, mask, supervised = np.full(shape, pad, np.int32), np.zeros(shape, bool), np.zeros(shape, bool)
    for row, (tokens, learnt) in enumerate(conversations):
        count = min(len(tokens), length)
        ids[row, :count], mask[row, :count], supervised[row, :count] = tokens[:count], True, learnt[:count]
    return ids, mask, supervised
