"""What is taken of all that is said of a picture, and what tells two rows apart."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmjax.data import chat
from mmjax.data.answers import normalise
from mmjax.data.order import uniforms

TEXT, QUESTION, ANSWER, IMAGE = 1, 2, 3, 4  # purposes of random numbers: each choice has numbers of its own
_SIDES = re.compile(r"\b(left|right)(most|hand|handed|side|wards?)?\b", re.IGNORECASE)


def pick(
    options: Sequence[Sequence], keys: np.ndarray, purpose: int, k: int, train: bool, nothing: Any
) -> tuple[list[list], np.ndarray]:
    """Takes k of each row's options (drawn without replacement in training), -> ([B][k], valid [B, k])."""
    most = max(map(len, options), default=0)
    chance = uniforms(keys, purpose, most) if train and most else None
    taken, valid = [], np.zeros((len(options), k), bool)
    for i, row in enumerate(options):
        if chance is not None:
            row = [row[j] for j in np.argsort(chance[i, : len(row)], kind="stable")]
        row = list(row[:k])
        valid[i, : len(row)] = True
        taken.append(row + [nothing] * (k - len(row)))
    return taken, valid


def text_key(text: str) -> int:
    """int32 hash of a text, lower-cased and stripped: captions with equal keys say the same."""
    return bytes_key(normalise(text).encode())


def names_a_side(record: Mapping) -> bool:
    """Whether anything that is said of a record names left or right: its mirror image would make that wrong."""
    texts = [*record.get("texts", ()), *(t for q in record.get("qa", ()) for t in (q["question"], *q["answers"]))]
    texts += [record.get("label") or "", *record.get("labels", ()), *chat.words_in(record.get("messages", ()))]
    return any(_SIDES.search(text) for text in texts)


def bytes_key(data: bytes) -> int:
    """int32 hash of a file: pictures with equal keys are the same."""
    return zlib.crc32(data) - 2**31
