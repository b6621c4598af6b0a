"""Templates: what a source's labels, captions or questions are put into before anything else sees them."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmjax.data.answers import most_frequent
from mmjax.errors import ConfigError

if TYPE_CHECKING:
    from mmjax.data.sources import Record, Source

_CAPTIONS, _QUESTIONS = "captions", "questions"
# What a template may name together, and what it then makes.
_MAKES = {
    frozenset({"text"}): _CAPTIONS,
    frozenset({"label"}): _CAPTIONS,
    frozenset({"text", "label"}): _CAPTIONS,
    frozenset({"question", "answer"}): _CAPTIONS,
    frozenset({"question"}): _QUESTIONS,
}


@dataclasses.dataclass(frozen=True)
class Template:
    """One or more wordings, as `a photo of a {label}.|a drawing of a {label}.`, all with the same placeholders.

    `{text}`, `{label}`, or both: new captions, one for each caption or label of a record in each wording. `{question}
    {answer}`: a caption for each question with its most frequent answer. `{question}`: the questions, in each wording.

    Attributes:
      wordings: as `str.format` takes them ("{{" is a brace).
      names: the placeholders.
    """

    wordings: tuple[str, ...]
    names: frozenset[str]

    @staticmethod
    def parse(template: str, where: str) -> Template:
        """Raises ConfigError where a wording has no placeholder, an unknown one, or others than the first."""
        wordings = tuple(part.strip() for part in template.split("|"))
        named = [_placeholders(wording, where) for wording in wordings]
        for wording, names in zip(wordings, named, strict=True):
            if names not in _MAKES:
                sets = ", or ".join(" with ".join(f"{{{n}}}" for n in sorted(s, reverse=True)) for s in _MAKES)
                found = " with ".join(f"{{{n}}}" for n in sorted(names)) or "no placeholder"
                raise ConfigError(f"{where}: '{wording}' has {found}. Expected {sets}.")
            if names != named[0]:
                raise ConfigError(
                    f"{where}: '{wording}' and '{wordings[0]}' name different things. Expected the same in every "
                    f"wording (wordings are parted by '|')."
                )
        return Template(wordings, named[0])

    @property
    def names_only_the_label(self) -> bool:
        """Whether its captions are class names in words: the prompts of zero-shot classification."""
        return self.names == {"label"}

    def apply(self, record: Mapping[str, Any]) -> Record | None:
        """The record with what the template makes; None where it has nothing to put into it."""
        if _MAKES[self.names] == _QUESTIONS:
            qa = [
                {**one, "question": wording.format(question=one["question"])}
                for one in record.get("qa", ())
                for wording in self.wordings
            ]
            return {**record, "qa": qa} if qa else None
        if "question" in self.names:
            options = [
                {"question": one["question"], "answer": most_frequent(one["answers"])}
                for one in record.get("qa", ())
                if any(answer.strip() for answer in one["answers"])
            ]
        else:
            labels = [record["label"]] if record.get("label") else record.get("labels", ())
            values = {"text": record.get("texts", ()), "label": labels}
            names = sorted(self.names)
            options = [dict(zip(names, v, strict=True)) for v in itertools.product(*(values[n] for n in names))]
        texts = [wording.format(**option) for option in options for wording in self.wordings]
        return {**record, "texts": texts} if texts else None


def _placeholders(wording: str, where: str) -> frozenset[str]:
    try:
        parts = list(string.Formatter().parse(wording))
    except ValueError as error:
        raise ConfigError(f"{where}: '{wording}' is no template ({error}). Write {{{{ for a brace.") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion):
            raise ConfigError(f"{where}: '{wording}' formats '{name}'. Expected the name alone, as {{{name}}}.")
    return frozenset(name for _, name, _, _ in parts if name is not None)


class Templated:
    """A Source whose records went through a template. A record that it has nothing of stays as it is.

    `record["prompt"]` names the template in the records that it changed.
    """

    def __init__(self, source: Source, template: str, where: str):
        """Reads annotations up to the first record that the template changes; none at all is a ConfigError."""
        self.source, self.template = source, Template.parse(template, where)
        self.name, self.left_aside, self._prompt = source.name, source.left_aside, template
        self.fingerprint = hashlib.sha256(f"{source.fingerprint}:prompt:{template}".encode()).hexdigest()
        if all(self.template.apply(source.annotations(i)) is None for i in range(len(source))):
            wants = " and ".join(f"{{{name}}}" for name in sorted(self.template.names))
            raise ConfigError(f"{where}: '{template}' wants {wants}, but no row of {source.name} has that.")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Record:
        return self._templated(self.source[i])

    def annotations(self, i: int) -> Record:
        return self._templated(self.source.annotations(i))

    def _templated(self, record: Record) -> Record:
        changed = self.template.apply(record)
        return record if changed is None else {**changed, "prompt": self._prompt}
