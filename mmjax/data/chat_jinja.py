"""Conversations as the chat template of public weights writes them (jinja, rendered by transformers).

A conversation is encoded as one text, as its model saw it. What is learnt is told by the places of the assistant's
turns in that text: a turn encoded by itself could be cut into other tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mmjax.data.chat import checked
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.tokenizer import Tokenizer


class Written(NamedTuple):
    """A conversation as text; `said`: (begin, end) of what is learnt, each up to the end token of the turn."""

    text: str
    said: list[tuple[int, int]]


def written(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    tokenizer: Tokenizer,
    name: str,
    *,
    picture: bool | None = None,
    clean: Callable[[str], str] = str,
    reply: bool = False,
) -> Written:
    """Args as of `chat.pieces`; reply: with the beginning of the assistant's next turn.

    Raises:
      ConfigError: the template cannot write it, or writes earlier turns otherwise once there are later ones.
    """
    left = checked(messages, name, picture)
    turns = _turns(messages, template, tokenizer, left, clean)
    marks = {f"{kind}_token": token for kind, token in dataclasses.asdict(tokenizer.special).items()}
    render = functools.partial(_render, template=template, marks=marks, name=name)
    text, said = render(turns, reply=reply), []
    for i, turn in enumerate(turns):
        if turn["role"] == "assistant":
            before, after = render(turns[:i], reply=True), render(turns[: i + 1])
            if not (text.startswith(before) and text.startswith(after)):
                raise ConfigError(
                    f"{name}: the chat template writes turn {i + 1} otherwise once there are later ones, so that what "
                    "is learnt has no place. Set config.processor.chat_template.jinja='' to write plain turns."
                )
            end = text.find(tokenizer.special.eos, len(before), len(after))
            said.append((len(before), len(after) if end < 0 else end + len(tokenizer.special.eos)))
    return Written(text, said)


def _turns(
    messages: Sequence[Mapping[str, Any]],
    template: str,
    tokenizer: Tokenizer,
    left: bool,
    clean: Callable[[str], str],
) -> list[dict[str, Any]]:
    """The messages as the template reads them: a list of parts where it knows of pictures, else a text with the
    picture's token in it. left: a picture that no part names goes into the first user turn.
    """
    in_parts = re.search(r"['\"]image['\"]", template) is not None
    shows = tokenizer.image >= 0
    turns = []
    for message in messages:
        role, parts = message["role"], []
        if left and role == "user":
            parts, left = [{"type": "image"}], False
        parts += message["content"]
        made: list[dict[str, str]] = []
        for part in parts:
            if part["type"] != "image":
                made.append({"type": "text", "text": _wordly(clean(part["text"]).strip(), tokenizer)})
            elif shows:
                image = tokenizer.backend.id_to_token(tokenizer.image)
                made.append({"type": "image"} if in_parts else {"type": "text", "text": image})
        made = [part for part in made if part.get("text") != ""]
        whole = in_parts and role != "assistant"
        turns.append({"role": role, "content": made if whole else "\n".join(part["text"] for part in made)})
    return turns


def _wordly(text: str, tokenizer: Tokenizer) -> str:
    """Without special tokens that stand in a text as words: they would end a turn, or hold a picture."""
    added = tokenizer.backend.get_added_tokens_decoder().values()
    return _any_of(tuple(sorted(token.content for token in added if token.special))).sub("", text)


@functools.lru_cache(maxsize=8)
def _any_of(words: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, words)) or r"(?!)")


def _render(
    turns: list[dict[str, Any]], *, template: str, marks: Mapping[str, str], name: str, reply: bool = False
) -> str:
    """The turns as text; reply: with what stands before the assistant's next one."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        made, _ = render_jinja_template([turns], chat_template=template, add_generation_prompt=reply, **marks)
    except Exception as error:  # a template raises what it likes
        raise ConfigError(
            f"{name}: the chat template cannot write this conversation: {error}. Set "
            "config.processor.chat_template.jinja='' to write plain turns."
        ) from error
    return made[0]


def tokens_of(conversations: Sequence[Written], tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """(ids, which of them are learnt) of each conversation, uncut; bos alone where nothing is written."""
    encoded = tokenizer.backend.encode_batch([written.text for written in conversations], add_special_tokens=False)
    made = []
    for conversation, found in zip(conversations, encoded, strict=True):
        learnt = [any(a < stop and start < b for a, b in conversation.said) for start, stop in found.offsets]
        made.append((found.ids, learnt) if found.ids else ([tokenizer.bos], [False]))
    return made
