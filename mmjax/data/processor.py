"""The processor: everything that turns a record into numbers, saved whole in every checkpoint.

The same one serves training, evaluation and prediction. It is fitted once on the annotations of the run's sources (no
picture is read), is one JSON item with a schema version, and is identified by the sha256 of that item.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmjax.config import build, choice, plain
from mmjax.config import differences as config_differences
from mmjax.data import answers as answering
from mmjax.data import chat, chat_jinja, cleaning
from mmjax.data.buckets import rounded
from mmjax.data.choices import ANSWER, IMAGE, QUESTION, TEXT, bytes_key, names_a_side, pick, text_key
from mmjax.data.images import Augment, ImageSettings, draws, image_pil
from mmjax.data.order import uniforms
from mmjax.data.patches import cut, joined
from mmjax.data.survey import FIELD_OF, Survey, number
from mmjax.data.tokenizer import Tokenizer, TokenizerConfig
from mmjax.data.vocabularies import open_tokenizer
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.sources import Source

SCHEMA = 2
FEATURES = ("image", *FIELD_OF)
AS_THEY_ARE = (0.0, 1.0)  # mean and spread of numbers that no training set has told yet
_CHECKED = 20_000  # texts that are measured for their length


@dataclasses.dataclass(frozen=True)
class ProcessorConfig:
    """How records become arrays.

    Attributes:
      image, augment, tokenizer, chat_template: see their classes.
      clean: steps of `cleaning.py` that captions, questions and conversations go through, in this order.
      length, question_length, answer_length: tokens of a caption, a question and an answer, bos and eos included.
      chat_length: tokens of a conversation, its picture counted as one.
      captions: how many of each row are trained on at once; 0 is all of them (evaluation always takes all).
      caption_choice: which ones, where a row has more: "random" draws them anew each epoch, "first" keeps to the first.
      questions: how many are drawn of each row in training.
      answers: largest size of the answer list; the most frequent are kept.
    """

    image: ImageSettings = ImageSettings()
    augment: Augment = Augment()
    tokenizer: TokenizerConfig = TokenizerConfig()
    chat_template: chat.ChatTemplate = chat.ChatTemplate()
    clean: tuple[str, ...] = ()
    length: int = 32
    question_length: int = 24
    answer_length: int = 8
    chat_length: int = 256
    captions: int = 1
    caption_choice: str = choice("random", "first")
    questions: int = 4
    answers: int = 3000

    def check(self, where: str) -> None:
        cleaning.check_steps(self.clean, f"{where}.clean")
        for name in ("length", "question_length", "answer_length", "chat_length"):
            if getattr(self, name) < 3:
                raise ConfigError(
                    f"{where}.{name}: found {getattr(self, name)}, expected 3 or more (bos, a token, eos)."
                )
        if self.captions < 0:
            raise ConfigError(f"{where}.captions: found {self.captions}, expected 1 or more, or 0 for all of a row.")
        for name in ("questions", "answers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name}: found {getattr(self, name)}, expected 1 or more.")


@dataclasses.dataclass(frozen=True)
class Processor:
    """A fitted `ProcessorConfig`: with the tokenizer, the answer list and the labels. Fields as there.

    Attributes:
      captions: never 0: "all" is the most that any row of the training sources has.
      label_counts: how many training rows have each of `labels` as their one label.
      values: mean and standard deviation of the training values, where labels are numbers.
    """

    image: ImageSettings
    augment: Augment
    tokenizer: Tokenizer
    chat_template: chat.ChatTemplate
    clean: tuple[str, ...]
    length: int
    question_length: int
    answer_length: int
    chat_length: int
    captions: int
    caption_choice: str
    questions: int
    answers: tuple[str, ...]
    labels: tuple[str, ...]
    label_counts: tuple[int, ...] = ()
    values: tuple[float, float] = AS_THEY_ARE

    @staticmethod
    def fit(
        config: ProcessorConfig,
        sources: Sequence[Source],
        features: frozenset[str],
        *,
        where: str = "config.processor",
        base: str = "",
        say: Callable[[str], None] = print,
        start: Processor | None = None,
    ) -> Processor:
        """Scans the annotations of `sources` once: trains or reads the tokenizer, makes the answer list and the labels.

        Prints a line on texts that will be cut, one on answers outside of the list, and one on conversations that teach
        nothing, where there are any.

        Args:
          features: what the tasks want; an unknown one, or one that no record has, is a `ConfigError`.
          where: config path of `config`, for messages.
          base: folder that a relative tokenizer path starts from.
          say: takes the lines that are printed.
          start: an earlier one, whose tokenizer (unless None), answers and labels are kept; new ones come after them.
        """
        config.check(where)
        found = Survey.of(sources)
        for feature in sorted(features - {"image"}):
            found.expect(feature)
        tidy = functools.partial(cleaning.clean, steps=config.clean)
        captions, questions = ([_single_spaced(tidy(t)) for t in texts] for texts in (found.captions, found.questions))
        chats = found.chats if "chat" in features else ()
        conversations = [chat.pieces(m, config.chat_template, name, clean=tidy) for name, m in chats]
        said = [piece.text for pieces in conversations for piece in pieces if not piece.picture]
        texts = [*captions, *questions, *sorted(found.answers), *sorted({*found.label, *found.labels}), *said]
        if start is not None and start.tokenizer is not None:
            tokenizer = start.tokenizer
            if texts:
                tokenizer.check(texts, f"{where}.tokenizer")
        else:
            tokenizer = open_tokenizer(config.tokenizer, texts, f"{where}.tokenizer", base)
        answers = answering.answer_list(found.answers, config.answers)
        classes = {} if "value" in features else found.label  # a number is no class
        labels = sorted({*classes, *(found.labels if "labels" in features else ())})
        if start is not None:
            answers, labels = ((*old, *(x for x in new if x not in old)) for old, new in
                               ((start.answers, answers), (start.labels, labels)))  # fmt: skip
        cut = {
            "length": (captions, config.length, "text"),
            "question_length": (questions, config.question_length, "question"),
            "answer_length": (sorted(found.answers), config.answer_length, "answer_text"),
        }
        for name, (texts, length, feature) in cut.items():
            texts = texts[:: 1 + len(texts) // _CHECKED]
            if feature in features and texts:
                long = sum(len(ids) > length - 2 for ids in tokenizer.tokens(texts))
                if long:
                    say(f"{where}.{name}: {long / len(texts):.1%} of {len(texts)} texts are cut at {length} tokens.")
        if conversations:
            told = _told([(name, m, None) for name, m in chats], config.chat_template, tokenizer, tidy)
            _check_conversations(told, config.chat_length, where, say)
        outside = sum(found.answers.values()) - sum(found.answers[a] for a in answers)
        if outside and "answer" in features:
            share = outside / sum(found.answers.values())
            say(f"{where}.answers: {share:.1%} of the questions have an answer outside of the list of {len(answers)}.")
        fitted = {"tokenizer": tokenizer, "answers": tuple(answers), "labels": tuple(labels)}
        fitted["label_counts"] = tuple(found.label[name] for name in labels)
        fitted["values"] = start.values if start is not None else AS_THEY_ARE
        if "value" in features and fitted["values"] == AS_THEY_ARE:
            spread = float(np.std(found.numbers))
            fitted["values"] = (float(np.mean(found.numbers)), spread if spread > 0 else 1.0)
        if not config.captions:
            fitted["captions"] = max(found.most_captions, 1)
            if "text" in features:
                say(f"{where}.captions: 0 takes all; a row has up to {fitted['captions']}.")
        copied = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
        return Processor(**copied | fitted)

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
        fields = {f.name: value[f.name] for f in dataclasses.fields(Processor) if f.name in value}
        fields |= {
            "image": build(ImageSettings, value["image"], "processor.image"),
            "augment": build(Augment, value["augment"], "processor.augment"),
            "tokenizer": Tokenizer.from_json(value["tokenizer"]),
            "chat_template": build(chat.ChatTemplate, value["chat_template"], "processor.chat_template"),
            "clean": tuple(value["clean"]),
            "answers": tuple(value["answers"]),
            "labels": tuple(value["labels"]),
            "label_counts": tuple(value.get("label_counts", ())),
            "values": tuple(value.get("values", AS_THEY_ARE)),
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
        """Encoded picture -> [H, W, 3] uint8 as in evaluation, without TensorFlow."""
        return image_pil(data, self.image)

    def pictures(self, pictures: Sequence[np.ndarray | None]) -> dict[str, np.ndarray]:
        """B pictures [H, W, 3] uint8 at their final sizes, None for a blank one, as a batch has them: `image` [B, size,
        size, 3]; native ones as patches, with `image_grid`.
        """
        settings = self.image
        if settings.aspect == "native":
            nothing = np.zeros((0, 0, 3), np.uint8)
            return cut([nothing if p is None else p for p in pictures], settings.patch, settings.tokens)
        blank = np.zeros((*settings.sides, 3), np.uint8)
        return {"image": np.stack([blank if p is None else p for p in pictures] or [blank])[: len(pictures)]}

    def picture_draws(self, keys: np.ndarray) -> np.ndarray:
        """keys [B] -> [B, n] float32 of `images.draws`, for `training_image` with the record's `augment_of`."""
        return draws(keys, IMAGE, self.augment)

    def augment_of(self, record: Mapping) -> Augment:
        """How the picture of a record is changed: as `augment` says, but never mirrored where a side is named."""
        return self._unmirrored if self.augment.flip and names_a_side(record) else self.augment

    @functools.cached_property
    def _unmirrored(self) -> Augment:
        return dataclasses.replace(self.augment, flip=False)

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
          train: draw texts (by `caption_choice`), questions and answers; else take all in order, and the most frequent
            answer.
          captions, questions: K. A row with fewer is filled up with empty texts (`bos eos`) that are not valid.
        """
        batch: dict[str, np.ndarray] = {}
        if "image" in features:
            batch["image_key"] = np.array([bytes_key(r.get("image", b"")) for r in records], np.int32)
        if "label" in features:
            batch["label"] = np.array([self._labels.get(r.get("label"), -1) for r in records], np.int32)
        if "value" in features:
            found = [number(r.get("label") or "") for r in records]
            mean, spread = self.values
            batch["value"] = np.array([0.0 if x is None else (x - mean) / spread for x in found], np.float32)
            batch["value_valid"] = np.array([x is not None for x in found])
        if "labels" in features:
            batch["labels"] = np.zeros((len(records), len(self.labels)), bool)
            for row, record in enumerate(records):
                batch["labels"][row, [self._labels[n] for n in record.get("labels", ()) if n in self._labels]] = True
            batch["labels_valid"] = np.array(["labels" in r for r in records])
        if "text" in features:
            draw = train and self.caption_choice == "random"
            texts, valid = pick([r.get("texts", ()) for r in records], keys, TEXT, captions, draw, "")
            texts = [[self.cleaned(t) for t in row] for row in texts]
            batch["text"], batch["text_mask"] = self._encode(texts, self.length)
            batch["text_valid"] = valid
            batch["text_key"] = np.array([[text_key(t) for t in row] for row in texts], np.int32)
        if features & {"question", "answer", "answer_text"}:
            nothing = {"question": "", "answers": ()}
            asked, valid = pick([r.get("qa", ()) for r in records], keys, QUESTION, questions, train, nothing)
            batch["question_valid"] = valid
            if "question" in features:
                words = [[self.cleaned(q["question"]) for q in row] for row in asked]
                batch["question"], batch["question_mask"] = self._encode(words, self.question_length)
            if "answer" in features:
                batch["answer"] = np.array([[self.answer_class(q["answers"]) for q in row] for row in asked], np.int32)
            if "answer_text" in features:
                chance = uniforms(keys, ANSWER, questions) if train else None
                words = [
                    [answering.drawn(q["answers"], None if chance is None else chance[i, j]) for j, q in enumerate(row)]
                    for i, row in enumerate(asked)
                ]
                batch["answer_text"], batch["answer_mask"] = self._encode(words, self.answer_length)
        if "chat" in features:
            batch |= self.conversations(records, pictures="image" in features)
            if "image" in features:
                batch["image_valid"] = np.array([bool(r.get("image")) for r in records])
        return batch

    def cleaned(self, text: str) -> str:
        """A caption or question as it is tokenised: through the steps of `clean`, then single-spaced."""
        return _single_spaced(cleaning.clean(text, self.clean))

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """n captions or questions -> ids, mask [n, length], as training had them."""
        return self.tokenizer.encode([self.cleaned(t) for t in texts], length)

    def conversations(
        self, records: Sequence[Mapping], *, pictures: bool, reply: bool = False
    ) -> dict[str, np.ndarray]:
        """B records -> chat, chat_mask, chat_supervised [B, chat_length]; bos alone where there are no messages. With
        `reply` the length is the next power of two: few shapes to compile, and no long padding under a short question.

        Args:
          pictures: the records hold their pictures, so that one which no part names is put into the first user turn.
          reply: an assistant's turn is opened at the end, for a model to fill; a longer one is then a ConfigError.
        """
        talks = [(str(r.get("id")), r.get("messages", ()), bool(r.get("image")) if pictures else None) for r in records]
        tidy = functools.partial(cleaning.clean, steps=self.clean)
        tokens = _told(talks, self.chat_template, self.tokenizer, tidy, reply)
        longest = max(len(ids) for ids, _ in tokens)
        if reply and longest > self.chat_length:
            raise ConfigError(f"a conversation of {longest} tokens, expected up to {self.chat_length} (chat_length).")
        length = rounded(longest, self.chat_length) if reply else self.chat_length
        arrays = chat.padded(tokens, length, self.tokenizer.pad)
        return dict(zip(("chat", "chat_mask", "chat_supervised"), arrays, strict=True))

    def _encode(self, texts: list[list[str]], length: int) -> tuple[np.ndarray, np.ndarray]:
        """[B][K] texts -> ids and mask [B, K, length]."""
        shape = (len(texts), len(texts[0]), length)
        ids, mask = self.tokenizer.encode([text for row in texts for text in row], length)
        return ids.reshape(shape), mask.reshape(shape)


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _told(
    talks: Sequence[tuple[str, Sequence[Mapping[str, Any]], bool | None]],
    template: chat.ChatTemplate,
    tokenizer: Tokenizer,
    clean: Callable[[str], str],
    reply: bool = False,
) -> list[tuple[list[int], list[bool]]]:
    """(name, messages, whether there is a picture) -> (ids, which of them are learnt), uncut."""
    if template.jinja:
        write = functools.partial(chat_jinja.written, template=template.jinja, tokenizer=tokenizer, clean=clean)
        return chat_jinja.tokens_of([write(m, name=n, picture=p, reply=reply) for n, m, p in talks], tokenizer)
    made = [chat.pieces(m, template, n, picture=p, clean=clean) for n, m, p in talks]
    return chat.tokens_of([[*p, *[chat.Piece(template.assistant)] * reply] for p in made], tokenizer)


def _check_conversations(
    conversations: Sequence[tuple[list[int], list[bool]]], length: int, where: str, say: Callable[[str], None]
) -> None:
    count = len(conversations)
    long = sum(len(ids) > length for ids, _ in conversations)
    mute = sum(not any(learnt[:length]) for _, learnt in conversations)
    if mute == count:
        raise ConfigError(
            f"{where}.chat_length: no assistant's turn begins within {length} tokens in any of {count} conversations. "
            f"Expected turns of the assistant, and a length that reaches them."
        )
    if long:
        say(f"{where}.chat_length: {long / count:.1%} of {count} conversations are cut at {length} tokens.")
    if mute:
        say(
            f"{where}.chat_length: {mute / count:.1%} of {count} conversations teach nothing: no assistant's turn "
            f"begins within {length} tokens."
        )


def picture_of(batch: Mapping[str, np.ndarray], *place: int) -> np.ndarray:
    """The picture [H, W, 3] uint8 at a place of a batch, as the model sees it."""
    image = batch["image"][place]
    return joined(image, batch["image_grid"][place]) if "image_grid" in batch else image
