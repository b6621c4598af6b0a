"""The processor: everything that turns a record into numbers, saved whole in every checkpoint.

The same one serves training, evaluation and prediction. It is fitted once on the annotations of the run's sources (no
picture is read), is one JSON item with a schema version, and is identified by the sha256 of that item.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.config import build, plain
from mmjax.config import differences as config_differences
from mmjax.data import answers as answering
from mmjax.data.images import Augment, ImageSettings, draws, image_pil
from mmjax.data.order import uniforms
from mmjax.data.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.sources import Source

SCHEMA = 1
FEATURES = ("image", "text", "question", "answer", "answer_text", "label")
_FIELD = {"text": "texts", "question": "qa", "answer": "qa", "answer_text": "qa", "label": "label"}
_TEXT, _QUESTION, _ANSWER, _IMAGE = 1, 2, 3, 4  # purposes of random numbers: each choice has numbers of its own
_SIDES = re.compile(r"\b(left|right)(most|hand|handed|side|wards?)?\b", re.IGNORECASE)
_CHECKED = 20_000  # texts that are measured for their length
_SAMPLE = 200_000  # rows whose texts train and check a tokenizer; more change nothing measurable and cost memory


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How records become arrays.

    Attributes:
      image, augment, tokenizer: see their classes.
      length, question_length, answer_length: tokens of a caption, a question and an answer, bos and eos included.
      captions, questions: how many are drawn of each row in training (evaluation takes all).
      answers: largest size of the answer list; the most frequent are kept.
    """

    image: ImageSettings = ImageSettings()
    augment: Augment = Augment()
    tokenizer: TokenizerConfig = TokenizerConfig()
    length: int = 32
    question_length: int = 24
    answer_length: int = 8
    captions: int = 1
    questions: int = 4
    answers: int = 3000

    def check(self, where: str) -> None:
        for name in ("length", "question_length", "answer_length"):
            if getattr(self, name) < 3:
                raise ConfigError(
                    f"{where}.{name}: found {getattr(self, name)}, expected 3 or more (bos, a token, eos)."
                )
        for name in ("captions", "questions", "answers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected 1 or more.")


@dataclasses.dataclass(frozen=True)
class Processor:
    """A fitted `ProcessorConfig`: with the tokenizer, the answer list and the labels. Fields as there."""

    image: ImageSettings
    augment: Augment
    tokenizer: Tokenizer
    length: int
    question_length: int
    answer_length: int
    captions: int
    questions: int
    answers: tuple[str, ...]
    labels: tuple[str, ...]

    @staticmethod
    def fit(
        config: ProcessorConfig,
        sources: Sequence[Source],
        features: frozenset[str],
        *,
        where: str = "config.processor",
        base: str = "",
        say: Callable[[str], None] = print,
    ) -> Processor:
        """Scans the annotations of `sources` once: trains or reads the tokenizer, makes the answer list and the labels.

        Prints one line on texts that will be cut and one on answers outside of the list, where there are any.

        Args:
          features: what the tasks want; an unknown one, or one that no record has, is a `ConfigError`.
          where: config path of `config`, for messages.
          base: folder that a relative tokenizer path starts from.
          say: takes the lines that are printed.
        """
        config.check(where)
        found = _scan(sources)
        for feature in sorted(features - {"image"}):
            _expect_feature(feature, found, sources)
        tokenizer = open_tokenizer(config.tokenizer, found.all_texts(), f"{where}.tokenizer", base)
        answers = answering.answer_list(found.answers, config.answers)
        labels = tuple(sorted(found.labels))
        cut = {
            "length": (found.captions, config.length, "text"),
            "question_length": (found.questions, config.question_length, "question"),
            "answer_length": (sorted(found.answers), config.answer_length, "answer_text"),
        }
        for name, (texts, length, feature) in cut.items():
            texts = texts[:: 1 + len(texts) // _CHECKED]
            if feature in features and texts:
                long = sum(len(ids) > length - 2 for ids in tokenizer.tokens(texts))
                if long:
                    say(f"{where}.{name}: {long / len(texts):.1%} of {len(texts)} texts are cut at {length} tokens.")
        outside = sum(found.answers.values()) - sum(found.answers[a] for a in answers)
        if outside and "answer" in features:
            share = outside / sum(found.answers.values())
            say(f"{where}.answers: {share:.1%} of the questions have an answer outside of the list of {len(answers)}.")
        copied = ("image", "augment", "length", "question_length", "answer_length", "captions", "questions")
        return Processor(
            **{name: getattr(config, name) for name in copied}, tokenizer=tokenizer, answers=answers, labels=labels
        )

    def to_json(self) -> dict[str, Any]:
        """One JSON item; `from_json` gives an equal processor back."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"schema": SCHEMA, **{k: v.to_json() if k == "tokenizer" else plain(v) for k, v in fields.items()}}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Processor:
        """The inverse of `to_json`. A schema of another version is a `ConfigError`."""
        if value.get("schema") != SCHEMA:
            raise ConfigError(
                f"processor: found schema {value.get('schema')}, expected {SCHEMA}. Use the mmjax that wrote it."
            )
        fields = {f.name: value[f.name] for f in dataclasses.fields(Processor)}
        fields |= {
            "image": build(ImageSettings, value["image"], "processor.image"),
            "augment": build(Augment, value["augment"], "processor.augment"),
            "tokenizer": Tokenizer.from_json(value["tokenizer"]),
            "answers": tuple(value["answers"]),
            "labels": tuple(value["labels"]),
        }
        return Processor(**fields)

    @functools.cached_property
    def sha256(self) -> str:
        """Identifies the processor: of the JSON item with sorted keys."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def differences(self, other: Processor) -> list[str]:
        """Names of the fields in which two processors differ, as `image.size`; the tokenizer counts as one field."""
        changed = config_differences(self.to_json(), other.to_json())
        return sorted({"tokenizer" if name.startswith("tokenizer.") else name for name in changed})

    @functools.cached_property
    def _classes(self) -> dict[str, int]:
        return {answer: i for i, answer in enumerate(self.answers)}

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.labels)}

    def answer_class(self, answers: Sequence[str]) -> int:
        """Class of the most frequent of the answers to a question; -1 where the list lacks it."""
        return self._classes.get(answering.most_frequent(answers), -1)

    def image_pil(self, data: bytes) -> np.ndarray:
        """Encoded picture -> [size, size, 3] uint8 as in evaluation, without TensorFlow."""
        return image_pil(data, self.image)

    def picture_draws(self, records: Sequence[Mapping], keys: np.ndarray) -> np.ndarray:
        """[B] records and keys -> [B, n] float32 of `images.draws`. A row that names a side is never mirrored."""
        allowed = np.array([self.augment.flip and not names_a_side(r) for r in records])
        return draws(keys, _IMAGE, self.augment, allowed)

    def arrays(
        self,
        records: Sequence[Mapping],
        keys: np.ndarray,
        features: frozenset[str],
        *,
        train: bool,
        captions: int,
        questions: int,
    ) -> dict[str, np.ndarray]:
        """All arrays of a batch but the pictures themselves (shapes: the Batch table of mmjax/README.md).

        Args:
          records: B records.
          keys: [B] uint64 of `order.row_keys`; a row's choices depend on its own key alone.
          train: draw texts, questions and answers; else take all in order, and the most frequent answer.
          captions, questions: K. A row with fewer is filled up with empty texts (`bos eos`) that are not valid.
        """
        batch: dict[str, np.ndarray] = {}
        if "image" in features:
            batch["image_key"] = np.array([_hash(r["image"]) for r in records], np.int32)
        if "label" in features:
            batch["label"] = np.array([self._labels.get(r.get("label"), -1) for r in records], np.int32)
        if "text" in features:
            texts, valid = _pick([r.get("texts", ()) for r in records], keys, _TEXT, captions, train, "")
            batch["text"], batch["text_mask"] = self._encode(texts, self.length)
            batch["text_valid"] = valid
            batch["text_key"] = np.array([[text_key(t) for t in row] for row in texts], np.int32)
        if features & {"question", "answer", "answer_text"}:
            nothing = {"question": "", "answers": ()}
            asked, valid = _pick([r.get("qa", ()) for r in records], keys, _QUESTION, questions, train, nothing)
            batch["question_valid"] = valid
            if "question" in features:
                words = [[q["question"] for q in row] for row in asked]
                batch["question"], batch["question_mask"] = self._encode(words, self.question_length)
            if "answer" in features:
                batch["answer"] = np.array([[self.answer_class(q["answers"]) for q in row] for row in asked], np.int32)
            if "answer_text" in features:
                chance = uniforms(keys, _ANSWER, questions) if train else None
                words = [
                    [_answer(q["answers"], None if chance is None else chance[i, j]) for j, q in enumerate(row)]
                    for i, row in enumerate(asked)
                ]
                batch["answer_text"], batch["answer_mask"] = self._encode(words, self.answer_length)
        return batch

    def _encode(self, texts: list[list[str]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """[B][K] texts -> ids and mask [B, K, length]."""
        shape = (len(texts), len(texts[0]), length)
        ids, mask = self.tokenizer.encode([" ".join(t.split()) for row in texts for t in row], length)
        return ids.reshape(shape), mask.reshape(shape)


def text_key(text: str) -> int:
    """int32 hash of a text, lower-cased and stripped: captions with equal keys say the same."""
    return _hash(answering.normalise(text).encode())


def names_a_side(record: Mapping) -> bool:
    """Whether a text, question or answer of a record says left or right: its mirror image would make that wrong."""
    texts = [*record.get("texts", ()), *(t for q in record.get("qa", ()) for t in (q["question"], *q["answers"]))]
    return any(_SIDES.search(text) for text in [*texts, record.get("label") or ""])


def _hash(data: bytes) -> int:
    return zlib.crc32(data) - 2**31


def _pick(
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


def _answer(answers: Sequence[str], chance: float | None) -> str:
    if chance is None or not answers:
        return answering.most_frequent(answers)
    return answering.normalise(answers[int(chance * len(answers))])


@dataclasses.dataclass
class _Found:
    """What a scan of the annotations saw."""

    rows: int = 0
    captions: list[str] = dataclasses.field(default_factory=list)
    questions: list[str] = dataclasses.field(default_factory=list)
    answers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    labels: set[str] = dataclasses.field(default_factory=set)
    fields: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def all_texts(self) -> list[str]:
        return [*self.captions, *self.questions, *sorted(self.answers), *sorted(self.labels)]


def _scan(sources: Sequence[Source]) -> _Found:
    found = _Found()
    stride = 1 + sum(map(len, sources)) // _SAMPLE
    for source in sources:
        for i in range(len(source)):
            record = source.annotations(i)
            found.rows += 1
            found.fields.update(k for k in ("texts", "qa", "label") if record.get(k))
            found.answers.update(answering.count(record.get("qa", ())))
            if record.get("label"):
                found.labels.add(record["label"])
            if i % stride == 0:
                found.captions += record.get("texts", ())
                found.questions += [q["question"] for q in record.get("qa", ())]
    return found


def _expect_feature(feature: str, found: _Found, sources: Sequence[Source]) -> None:
    names = {"texts": "captions", "qa": "questions with answers", "label": "class labels"}
    if feature not in FEATURES:
        raise ConfigError(f"config.tasks: no feature '{feature}'. Expected some of {', '.join(FEATURES)}.")
    field = _FIELD[feature]
    if not found.fields[field]:
        has = [names[k] for k in names if found.fields[k]]
        raise ConfigError(
            f"config.tasks: a task wants '{feature}', which needs {names[field]}, but "
            f"{', '.join(s.name for s in sources)} ({found.rows} rows) has only {' and '.join(has) or 'pictures'}. "
            f"Choose another task, or data that has them."
        )
