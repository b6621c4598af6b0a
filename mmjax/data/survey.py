"""What the annotations of the training sources hold: one scan, from which a processor is fitted."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mmjax.data import answers, chat
from mmjax.data.sources import at_most
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.sources import Source

FIELD_OF = {
    "text": "texts",
    "question": "qa",
    "answer": "qa",
    "answer_text": "qa",
    "label": "label",
    "labels": "labels",
    "value": "label",
    "chat": "messages",
}
_NAMES = {
    "texts": "captions",
    "qa": "questions with answers",
    "label": "class labels",
    "labels": "sets of labels",
    "messages": "conversations",
}
_ROWS = 1_000_000  # rows of a source that are read; the lines of ten millions take minutes
_SAMPLE = 200_000  # rows whose texts train and check a tokenizer; more change nothing measurable and cost memory
_CHATS = 20_000  # the same for conversations, which are longer


@dataclasses.dataclass
class Survey:
    """Attributes:
    rows: of all sources. fields: how many of them have each field of a Record.
    captions, questions: texts of a sample of the rows. chats: (id, messages) of a sample.
    answers: how many questions have each answer as their most frequent one.
    label: how many rows have each class name. labels: the names seen in that field.
    numbers: of the rows whose label is one; no_number: the first row whose label is none.
    most_captions: of any row.
    several: how many conversations are about more than one picture, and the first of them.
    """

    sources: Sequence[Source]
    rows: int = 0
    fields: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    captions: list[str] = dataclasses.field(default_factory=list)
    questions: list[str] = dataclasses.field(default_factory=list)
    chats: list[tuple[str, list[dict[str, Any]]]] = dataclasses.field(default_factory=list)
    answers: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    label: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    numbers: list[float] = dataclasses.field(default_factory=list)
    no_number: str = ""
    labels: set[str] = dataclasses.field(default_factory=set)
    most_captions: int = 0
    several: tuple[int, str] = (0, "")

    @staticmethod
    def of(sources: Sequence[Source]) -> Survey:
        """Reads every annotation of the sources once (of a source above _ROWS so many rows), and no picture."""
        found = Survey(sources)
        for source in sources:
            if len(source) > _ROWS:
                print(
                    f"{source.name}: vocabulary, answers and labels are taken from {_ROWS:,} of {len(source):,} rows."
                )
        sources = [at_most(source, _ROWS) for source in sources]
        total = sum(map(len, sources))
        texts_every, chats_every = 1 + total // _SAMPLE, 1 + total // _CHATS
        for source in sources:
            for i in range(len(source)):
                record = source.annotations(i)
                found.rows += 1
                found.fields.update(field for field in _NAMES if record.get(field))
                found.answers.update(answers.count(record.get("qa", ())))
                if label := record.get("label"):
                    found.label[label] += 1
                    if (value := number(label)) is not None:
                        found.numbers.append(value)
                    else:
                        found.no_number = found.no_number or f"{source.name}, row {i} ({record.get('id')}): '{label}'"
                found.labels.update(record.get("labels", ()))
                found.most_captions = max(found.most_captions, len(record.get("texts", ())))
                if i % texts_every == 0:
                    found.captions += record.get("texts", ())
                    found.questions += [q["question"] for q in record.get("qa", ())]
                if messages := record.get("messages"):
                    name = f"{source.name}, row {i} ({record.get('id')})"
                    if chat.pictures_in(messages) > 1:
                        found.several = (found.several[0] + 1, found.several[1] or name)
                    if i % chats_every == 0:
                        found.chats.append((name, messages))
        return found

    def expect(self, feature: str) -> None:
        """Raises ConfigError where a feature is unknown or no row has what it is made of."""
        if feature not in FIELD_OF:
            raise ConfigError(f"config.tasks: no feature '{feature}'. Expected some of image, {', '.join(FIELD_OF)}.")
        field = FIELD_OF[feature]
        if not self.fields[field]:
            has = [name for key, name in _NAMES.items() if self.fields[key]]
            raise ConfigError(
                f"config.tasks: a task wants '{feature}', which needs {_NAMES[field]}, but "
                f"{', '.join(s.name for s in self.sources)} ({self.rows} rows) has only "
                f"{' and '.join(has) or 'pictures'}. Choose another task, or data that has them."
            )
        if feature == "value" and self.no_number:
            raise ConfigError(f"{self.no_number} is no number. Expected one in the label of every row to learn values.")
        if feature == "chat" and self.several[0]:
            count, first = self.several
            raise ConfigError(
                f"{first}: a conversation about more than one picture, as in {count} of {self.rows} rows. A row can "
                f"hold one so far; leave these rows out."
            )


def number(text: str) -> float | None:
    """The finite number that a label spells, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
