"""`mmjax data inspect`: what a set is before anything is trained on it, as text."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmjax.data import answers, chat
from mmjax.data.image_files import PictureError, examine
from mmjax.data.images import ImageSettings
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.data.sources import Record, Source, SourceConfig, sniffing
from mmjax.data.sources.opening import open_source
from mmjax.data.survey import FIELD_OF, Survey
from mmjax.data.tokenizer import Tokenizer, TokenizerConfig
from mmjax.errors import ConfigError
from mmjax.metrics import progress
from mmjax.table import columns

SAMPLE = 20_000  # rows that are read, of a larger set
EXAMPLES = 3
_WIDE = 100  # characters of an example's text
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"RIFF", "WebP"), (b"BM", "BMP"))
_ANSWERS = ProcessorConfig.answers


class Seen(NamedTuple):
    """A picture file: a hash of it, its sides in pixels, its size in bytes and its format."""

    digest: bytes
    width: int
    height: int
    size: int
    kind: str

    @staticmethod
    def of(data: bytes, max_pixels: int) -> Seen:
        """Raises PictureError where its structure is not that of a whole picture; its pixels are not decoded."""
        picture = examine(data, max_pixels)
        kind = next((name for magic, name in _MAGIC if data.startswith(magic)), "other")
        digest = hashlib.blake2b(data, digest_size=16).digest()
        return Seen(digest, picture.width, picture.height, len(data), kind)


@dataclass
class Found:
    """What the rows that were read hold.

    Attributes:
      rows: their numbers. records: (row, its annotations).
      sizes: (width, height, bytes) of each readable picture. kinds: pictures of each file format.
      bad: {cause: ids of the rows}. seen: {hash of a picture: ids of the rows that show it}.
    """

    rows: Sequence[int]
    records: list[tuple[int, Record]] = field(default_factory=list)
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    bad: dict[str, list[str]] = field(default_factory=dict)
    seen: dict[bytes, list[str]] = field(default_factory=dict)


def inspect(
    path: str, *, length: int = 32, tokenizer: str = "", root: str = "", split: str = "", format: str = "auto"
) -> str:
    """The whole report on a set.

    Args:
      length: tokens, of which it is said how many captions are longer.
      tokenizer: a file or folder with a vocabulary; "" trains one on the set's texts, as training would.
      root, split, format: as of `SourceConfig`.
    """
    config = SourceConfig(path=path, root=root, split=split, format=format, max_bad_fraction=0.99)
    source = open_source(config, "PATH")
    kind = format if format != "auto" else sniffing.sniff(Path(path), "PATH")[0].NAME
    found = _read(source)
    survey = Survey.of([source])
    vocabulary = _tokenizer(source, survey, tokenizer)
    lengths = _token_lengths(found, vocabulary)
    whole = len(found.rows) == len(source)
    read = "all are read" if whole else f"{len(found.rows):,} of them, evenly spread, are read"
    said = "trained on all of its texts, as training does" if not tokenizer else f"of {tokenizer}"
    title = f"{kind}: {source.name}, {len(source):,} rows ({read})"
    sections = {
        title: "",
        "fields": _fields(found),
        "left aside": "\n".join(f"{what}: {count:,}" for what, count in sorted(source.left_aside.items())),
        "rows that cannot be read": _bad(found),
        "examples": _examples(found, source),
        "pictures": _pictures(found),
        f"texts; tokens with bos and eos, by a vocabulary of {vocabulary.vocab_size:,} {said}"
        if vocabulary
        else "texts": _texts(found, lengths, length),
        "the same again": _again(found),
        "config lines": _config(config, found, survey, lengths),
    }
    return "\n\n".join(
        f"{name}\n{_indented(text)}".rstrip() for name, text in sections.items() if text or name == title
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _read(source: Source) -> Found:
    step = -(-len(source) // SAMPLE)
    found = Found(range(0, len(source), step))
    most = ImageSettings().max_pixels

    def read(i: int) -> tuple[Record | None, list[Seen], str, str]:
        """-> annotations, what is known of each picture; or the cause and the id where it cannot be read."""
        said: Record | None = None
        try:
            said = source.annotations(i)
            record = source[i]
            data = record.get("images") or ([record["image"]] if "image" in record else [])
            return said, [Seen.of(one, most) for one in data], "", ""
        except PictureError as error:
            cause = error.cause
        except FileNotFoundError:
            cause = "missing"
        except ConfigError:
            cause = "unreadable line"
        return said, [], cause, said["id"] if said else f"row {i}"

    with ThreadPoolExecutor(4) as pool:
        rows = pool.map(read, found.rows)
        for i in progress(found.rows, f"inspect {source.name}", unit="row"):
            record, pictures, cause, id = next(rows)
            if cause:
                found.bad.setdefault(cause, []).append(id)
            if record is not None:
                found.records.append((i, record))
            for picture in pictures:
                found.sizes.append((picture.width, picture.height, picture.size))
                found.kinds[picture.kind] += 1
                found.seen.setdefault(picture.digest, []).append(record["id"])
    return found


def _tokenizer(source: Source, survey: Survey, path: str) -> Tokenizer | None:
    """What training would have; None where there is nothing to tokenise."""
    # A label is a number only where a task says so.
    wanted = {feature for feature, name in FIELD_OF.items() if survey.fields[name]} - {"value"}
    if survey.several[0]:
        wanted -= {"chat"}
    if not wanted:
        return None
    config = ProcessorConfig(tokenizer=TokenizerConfig(path=path), chat_length=1 << 20)
    return Processor.fit(config, [source], frozenset(wanted), where="--tokenizer", say=lambda line: None).tokenizer


def _texts_of(found: Found) -> dict[str, list[str]]:
    """{what they are: the texts of the rows}; of a question its most frequent answer."""
    records = [record for _, record in found.records]
    questions = [question for record in records for question in record.get("qa", ())]
    said = {
        "captions": [text for record in records for text in record.get("texts", ())],
        "questions": [question["question"] for question in questions],
        "answers": [answer for q in questions if (answer := answers.most_frequent(q["answers"]))],
        "conversations": ["\n".join(chat.words_in(r["messages"])) for r in records if "messages" in r],
    }
    return {name: texts for name, texts in said.items() if texts}


def _token_lengths(found: Found, tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
    """{what they are: tokens of each text, with bos and eos}; of a conversation with its template."""
    if tokenizer is None:
        return {}
    lengths = {
        name: np.array([len(ids) + 2 for ids in tokenizer.tokens(texts)])
        for name, texts in _texts_of(found).items()
        if name != "conversations"
    }
    talks = [r["messages"] for _, r in found.records if "messages" in r and chat.pictures_in(r["messages"]) <= 1]
    if talks:
        made = chat.tokens_of([chat.pieces(talk, chat.ChatTemplate(), "") for talk in talks], tokenizer)
        lengths["conversations"] = np.array([len(ids) for ids, _ in made])
    return lengths


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:,.1f}"


def _percentiles(values: Sequence[float]) -> tuple[str, ...]:
    return tuple(_number(v).rjust(6) for v in np.percentile(values, [0, 50, 95, 99, 100], method="inverted_cdf"))


_HEADS = ("   min", "median", "  95 %", "  99 %", "   max")


def _fields(found: Found) -> str:
    """A line a field: in how many rows, how many of them a row has, how many different ones there are."""
    records = [record for _, record in found.records]
    many = {
        "texts": [record.get("texts", ()) for record in records],
        "qa": [[q["question"] for q in record.get("qa", ())] for record in records],
        "label": [[record["label"]] if record.get("label") else [] for record in records],
        "labels": [record.get("labels", ()) for record in records],
        "messages": [[m["role"] for m in record.get("messages", ())] for record in records],
        "key": [[record["key"]] if record.get("key") else [] for record in records],
    }
    what = {"texts": "captions", "qa": "questions", "label": "classes", "labels": "names", "messages": "roles"}
    shown = sum(map(len, found.seen.values()))
    rows = [("field", "  rows", "  in all", "a row", "different"), ("image", *_counts(found, shown), "")]
    for name, values in many.items():
        present = [value for value in values if value]
        if not present:
            continue
        counts = [len(value) for value in present]
        each = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        kinds = len({text for value in present for text in value})
        cells = (f"{len(present):,}".rjust(6), f"{sum(counts):,}".rjust(8), each)
        rows.append((name, *cells, f"{kinds:,} {what.get(name, 'keys')}"))
    if replies := _texts_of(found).get("answers"):
        common = ", ".join(f"{answer} ({count:,})" for answer, count in Counter(replies).most_common(3))
        rows.append(("answers", "", f"{len(replies):,}".rjust(8), "", f"{len(set(replies)):,} answers: {common}, ..."))
    return columns(rows, head=False)


def _counts(found: Found, shown: int) -> tuple[str, str, str]:
    rows = len({id for ids in found.seen.values() for id in ids})
    each = "1" if shown == rows else f"up to {max(Counter(i for ids in found.seen.values() for i in ids).values())}"
    return f"{rows:,}".rjust(6), f"{shown:,}".rjust(8), each if shown else "0"


def _bad(found: Found) -> str:
    rows = [
        (f"{len(ids):,}".rjust(6), cause, ", ".join(ids[:EXAMPLES]) + (", ..." if len(ids) > EXAMPLES else ""))
        for cause, ids in sorted(found.bad.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    return columns([("  rows", "cause", "first"), *rows], head=False) if rows else ""


def _examples(found: Found, source: Source) -> str:
    """The first, the middle and the last row."""
    last = len(found.records) - 1
    lines = []
    for place in sorted({0, last // 2, last} if last >= 0 else ()):
        row, record = found.records[place]
        lines.append(f"row {row}: {record['id']}")
        lines += [f"  text: {_short(text)}" for text in record.get("texts", ())[:EXAMPLES]]
        lines += [
            f"  question: {_short(q['question'])}  answers: {_short(', '.join(dict.fromkeys(q['answers'])))}"
            for q in record.get("qa", ())[:EXAMPLES]
        ]
        lines += [f"  label: {record['label']}"] if record.get("label") else []
        lines += [f"  labels: {_short(', '.join(record['labels']))}"] if record.get("labels") else []
        for message in record.get("messages", ())[: 2 * EXAMPLES]:
            parts = [p.get("text", "").strip() or f"<{p['type']}>" for p in message["content"]]
            lines.append(f"  {message['role']}: {_short(' '.join(parts))}")
    return "\n".join(lines)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _WIDE else text[: _WIDE - 3] + "..."


def _pictures(found: Found) -> str:
    if not found.sizes:
        return "none"
    width, height, size = np.array(found.sizes).T
    rows = [("", *_HEADS)]
    rows += [(name, *_percentiles(v)) for name, v in (("width", width), ("height", height))]
    rows += [("short side", *_percentiles(np.minimum(width, height)))]
    rows += [("KB", *_percentiles(size / 1000))]
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(found.kinds.items(), key=lambda k: (-k[1], k[0])))
    return f"{columns(rows, head=False)}\n{kinds}"


def _texts(found: Found, lengths: dict[str, np.ndarray], length: int) -> str:
    rows = [("", "       n", *_HEADS, f"cut at {length}")]
    for name, texts in _texts_of(found).items():
        words = [len(text.split()) for text in texts]
        rows.append((f"{name}, words", f"{len(words):,}".rjust(8), *_percentiles(words), ""))
        if name in lengths:
            cut = f"{np.mean(lengths[name] > length):.1%}".rjust(6)
            rows.append((f"{name}, tokens", f"{len(lengths[name]):,}".rjust(8), *_percentiles(lengths[name]), cut))
    return columns(rows, head=False) if len(rows) > 1 else ""


def _again(found: Found) -> str:
    """What comes more than once: pictures by their bytes, captions as they are spelt."""
    lines = []
    if twice := [ids for ids in found.seen.values() if len(ids) > 1]:
        extra = sum(len(ids) - 1 for ids in twice)
        first = "; ".join(" = ".join(ids[:EXAMPLES]) for ids in twice[:EXAMPLES])
        lines.append(f"pictures: {extra:,} are the bytes of another one: {first}")
    elif found.seen:
        lines.append("pictures: none")
    captions = Counter(_texts_of(found).get("captions", ()))
    if captions:
        extra = sum(captions.values()) - len(captions)
        common = "; ".join(f"'{_short(t)}' ({n:,})" for t, n in captions.most_common(EXAMPLES) if n > 1)
        lines.append(f"captions: {extra:,} are the words of another one: {common}" if extra else "captions: none")
    return "\n".join(lines)


def _config(config: SourceConfig, found: Found, survey: Survey, lengths: dict[str, np.ndarray]) -> str:
    """Lines for a config file: the set, lengths that keep 99 % of the texts whole, the tasks that its fields allow."""
    train: dict[str, Any] = {"path": config.path}
    train |= {n: getattr(config, n) for n in ("root", "split") if getattr(config, n)}
    train |= {"format": config.format} if config.format != "auto" else {}
    train |= {"batch_size": 64}
    keys = {"captions": "length", "questions": "question_length", "answers": "answer_length"}
    keys |= {"conversations": "chat_length"}
    processor = {
        keys[name]: int(-(-np.percentile(n, 99, method="inverted_cdf") // 8) * 8) for name, n in lengths.items()
    }
    tasks: dict[str, Any] = {}
    if survey.fields["texts"]:
        tasks |= {"contrastive": {}, "captioning": {}}
    if survey.fields["qa"] and survey.answers:
        tasks["vqa"] = {"answer": "class" if len(survey.answers) <= _ANSWERS else "generate"}
    if survey.fields["label"] or survey.fields["labels"]:
        tasks["classification"] = {"labels": "many"} if not survey.fields["label"] else {}
    if survey.fields["messages"] and not survey.several[0]:
        tasks["chat"] = {}
    lines = [f"config.data = {_literal({'train': train})}"]
    if found.bad:
        share = sum(map(len, found.bad.values())) / len(found.rows)
        lines.append(f"config.data.max_bad_fraction = {max(share * 1.5, 0.001):.2g}")
    lines += [f"config.processor = {_literal(processor)}"] if processor else []
    lines += [f"config.tasks = {_literal(tasks)}"] if tasks else []
    if survey.several[0]:
        lines.append(f"# {survey.several[0]:,} conversations are about several pictures: no task trains on these yet.")
    return "\n".join(lines)


def _literal(value: Any) -> str:
    """Python, with double quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {_literal(v)}' for key, v in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else repr(value)
