"""How many tokens the texts of each row have, known before the first step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mmjax.data import chat
from mmjax.data.index import index
from mmjax.errors import ConfigError
from mmjax.metrics import progress

if TYPE_CHECKING:
    from mmjax.data.processor import Processor
    from mmjax.data.sources import Record, Source

TEXTS = {"text": "length", "chat": "chat_length"}  # features that have lengths -> the processor's key of the most
_CHUNK = 1000  # rows that are tokenised at a time


class Lengths(NamedTuple):
    """Tokens of each row's text, bos and eos included: the most that a draw can give, and the mean. 0: it has none.

    longest: [rows] int32; mean: [rows] float32; most: to which texts are cut.
    """

    longest: np.ndarray
    mean: np.ndarray
    most: int


def lengths_of(source: Source, processor: Processor, feature: str) -> Lengths:
    """Of every row of a source. Reads and tokenises all annotations once; kept by the fingerprints of both."""
    kind = f"lengths of {feature}, {source.fingerprint}, {processor.sha256}"
    found = index(kind, [], lambda: _lengths(source, processor, feature))
    return Lengths(found["longest"], found["mean"], getattr(processor, TEXTS[feature]))


def _lengths(source: Source, processor: Processor, feature: str) -> dict[str, np.ndarray]:
    count = {"text": _captions, "chat": _conversations}[feature]
    made = {"longest": np.zeros(len(source), np.int32), "mean": np.zeros(len(source), np.float32)}
    for first in progress(range(0, len(source), _CHUNK), f"lengths of {source.name}", unit=f"{_CHUNK} rows"):
        rows = slice(first, min(first + _CHUNK, len(source)))
        records = [source.annotations(i) for i in range(rows.start, rows.stop)]
        made["longest"][rows], made["mean"][rows] = zip(*count(records, processor), strict=True)
    return made


def _captions(records: list[Record], processor: Processor) -> list[tuple[int, float]]:
    """Those that may be drawn: with caption_choice "first" no others."""
    used = processor.captions if processor.caption_choice == "first" else None
    texts = [[processor.cleaned(text) for text in record.get("texts", ())[:used]] for record in records]
    ids = iter(processor.tokenizer.tokens([text for row in texts for text in row]))
    counts = [[min(len(next(ids)) + 2, processor.length) for _ in row] for row in texts]
    return [(max(row, default=0), float(np.mean(row)) if row else 0.0) for row in counts]


def _conversations(records: list[Record], processor: Processor) -> list[tuple[int, float]]:
    """A picture that no part names is counted too: it is put into the first turn of the user."""
    made = processor.conversations(records, pictures=False)["chat_mask"].sum(1).tolist()
    extra = [not chat.pictures_in(record.get("messages", ())) for record in records]
    counts = [min(n + more, processor.chat_length) for n, more in zip(made, extra, strict=True)]
    return [(n, float(n)) for n in counts]


def the_text(features: frozenset[str], where: str) -> str:
    """The one feature of a stream that has lengths. ConfigError where there are none or two."""
    found = [name for name in TEXTS if name in features]
    if len(found) != 1:
        raise ConfigError(
            f"{where}: the stream's tasks read {' and '.join(found) or 'no texts'}, expected captions or "
            "conversations, one of them. Leave it out, or put the tasks into streams of their own."
        )
    return found[0]
