"""`mmjax data preview`: rows of real training batches as the model sees them, as a PNG and as text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from mmjax import assemble, report, sharding
from mmjax.data.lengths import TEXTS
from mmjax.data.processor import Processor, picture_of
from mmjax.errors import ConfigError
from mmjax.experiment import Config, load
from mmjax.report import TokenLine

_TEXTS = {"text": ("text_mask", "text_valid"), "question": ("question_mask", "question_valid"),
          "answer_text": ("answer_mask", "question_valid")}  # fmt: skip


def preview(file: str, overrides: Mapping[str, str], out: Path, rows: int = 8) -> int:
    """Prints and draws the first `rows` rows of each stream, from the run's own pipelines."""
    if rows < 1:
        raise ConfigError(f"--rows: found {rows}, expected 1 or more.")
    config, _ = load(file, overrides)
    data = assemble.open_data(config)
    processor = assemble.fit_processor(config, data)
    whole = sharding.make_mesh(sharding.MeshConfig(), jax.devices()[:1])  # all rows, whatever devices the run will have
    pipelines = assemble.train_pipelines(config, data, processor, whole)
    drawn = []
    for stream, pipeline in pipelines.items():
        learnt = learnt_features(config, stream)
        every = ((batch, i) for batch in pipeline.batches() for i in range(len(batch["row"])))
        for batch, i in itertools.islice(every, rows):
            named = f"{stream}: " if len(pipelines) > 1 else ""
            if batch["valid"].ndim == 2:
                real = batch["row"][i, batch["valid"][i]].tolist()
                title = f"{named}sequence {len(drawn) + 1}: {len(real)} rows ({', '.join(map(str, real))})"
            else:
                row = int(batch["row"][i])
                title = f"{named}row {row}  {data.train[stream].annotations(row)['id']}"
            drawn.append((title, _picture(batch, i), lines_of(batch, i, processor, learnt)))
    for title, _, lines in drawn:
        print(title)
        for line in lines:
            print(f"  {line}")
    print("[in brackets]: learnt; the others are only read")
    report.token_rows(out, drawn)
    print(f"written: {out}")
    return 0


def learnt_features(config: Config, stream: str) -> frozenset[str]:
    """The texts that a decoder of one of the stream's tasks learns to write."""
    tasks = config.tasks_of(stream).values()
    return frozenset(f for t in tasks if "decoder" in t.needs for f in t.features & {"text", "answer_text"})


def _picture(batch: Mapping[str, np.ndarray], i: int) -> np.ndarray | None:
    """None where there is none to see; those of a packed sequence on one sheet, in reading order."""
    if "image" not in batch:
        return None
    seen = (batch["valid"] & batch.get("image_valid", True))[i]
    pictures = [picture_of(batch, i, *place) for place in np.argwhere(seen)]
    if len(pictures) < 2:
        return pictures[0] if pictures else None
    columns = math.ceil(math.sqrt(len(pictures)))
    height, width = (2 + max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    sheet = np.full((-(-len(pictures) // columns) * height, columns * width, 3), 255, np.uint8)
    for k, picture in enumerate(pictures):
        top, left = k // columns * height, k % columns * width
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def lines_of(batch: Mapping[str, np.ndarray], i: int, processor: Processor, learnt: frozenset[str]) -> list[TokenLine]:
    """Row i of a batch: every text in its tokens, every class by its name; of a packed sequence each row's text."""
    for name in TEXTS:
        if f"{name}_segment" in batch:
            return _packed(batch, name, i, processor, name in learnt)
    lines = []
    for k in range(batch["text"].shape[1] if "text" in batch else 0):
        lines.append(_text(batch, "text", i, k, processor, "text" in learnt))
    for k in range(batch["question_valid"].shape[1] if "question_valid" in batch else 0):
        for name in ("question", "answer_text"):
            if name in batch:
                lines.append(_text(batch, name, i, k, processor, name in learnt))
        if "answer" in batch and batch["question_valid"][i, k]:
            lines.append(_class(f"answer {k + 1}, class", int(batch["answer"][i, k]), processor.answers))
    if "label" in batch:
        lines.append(_class("label", int(batch["label"][i]), processor.labels))
    if "labels" in batch:
        names = [(processor.labels[c], True) for c in np.flatnonzero(batch["labels"][i])]
        lines.append(TokenLine("labels", names, masked="" if batch["labels_valid"][i] else "the row has none"))
    if "chat" in batch:
        ids, mask, supervised = (batch[name][i] for name in ("chat", "chat_mask", "chat_supervised"))
        lines.append(_tokens("chat", ids, mask, supervised, processor))
    return lines


def _packed(batch: Mapping[str, np.ndarray], name: str, i: int, processor: Processor, learnt: bool) -> list[TokenLine]:
    """A line a place of the sequence, and the padding at its end in the last one."""
    ids, segments, lines = batch[name][i], batch[f"{name}_segment"][i], []
    for place, valid in enumerate(batch["valid"][i]):
        mine = ids[segments == place + 1]
        supervised = np.full(len(mine), learnt) & (np.arange(len(mine)) > 0)
        if f"{name}_supervised" in batch:
            supervised = batch[f"{name}_supervised"][i, segments == place + 1]
        line = _tokens(f"segment {place + 1}", mine, np.ones(len(mine), bool), supervised, processor)
        lines.append(
            line if valid else TokenLine(f"segment {place + 1}", (), masked="empty: no row, or one that cannot be read")
        )
    padding = int((segments == 0).sum())
    return [*lines, TokenLine("rest", (), padding, masked="" if padding else "no padding")]


def _text(batch: Mapping[str, np.ndarray], name: str, i: int, k: int, processor: Processor, learnt: bool) -> TokenLine:
    mask, valid = (batch[n][i, k] for n in _TEXTS[name])
    title = f"{name.removesuffix('_text')} {k + 1}"
    if not valid:
        return TokenLine(title, (), masked="masked: the row has no more")
    # The first token is given to a decoder, never asked of it.
    supervised = mask & learnt & (np.arange(len(mask)) > 0)
    return _tokens(title, batch[name][i, k], mask, supervised, processor)


def _tokens(name: str, ids: np.ndarray, mask: np.ndarray, supervised: np.ndarray, processor: Processor) -> TokenLine:
    count = int(mask.sum())
    words = [processor.tokenizer.backend.decode([int(n)], skip_special_tokens=False) for n in ids[:count]]
    return TokenLine(name, list(zip(words, supervised[:count].tolist(), strict=True)), len(ids) - count)


def _class(name: str, number: int, names: tuple[str, ...]) -> TokenLine:
    known = 0 <= number < len(names)
    return TokenLine(name, [(names[number], True)] if known else [], masked="" if known else "masked: not in the list")
