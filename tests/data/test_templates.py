"""Templates: what each placeholder makes, and what is refused."""

import pytest

from mmjax.data.templates import Template, Templated
from mmjax.errors import ConfigError


class Memory:
    """A source of records in memory."""

    def __init__(self, records):
        self.records, self.name, self.fingerprint, self.left_aside = records, "memory", "abc", {"column 'url'": 2}

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i]

    def annotations(self, i):
        return {k: v for k, v in self.records[i].items() if k != "image"}


QA = [{"question": "what?", "answers": ["A cat", "a cat", "dog"]}, {"question": "where?", "answers": []}]
RECORD = {"id": "x", "image": b"1", "texts": ["old {text}", "older"], "label": "cat", "qa": QA}


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        ("a photo of a {label}.", ["a photo of a cat."]),
        ("a photo of a {label}. | {label} {{here}}", ["a photo of a cat.", "cat {here}"]),
        ("caption: {text}", ["caption: old {text}", "caption: older"]),
        ("{label}: {text}|{text}", None),
        ("{label}: {text}|{text} ({label})", ["cat: old {text}", "old {text} (cat)", "cat: older", "older (cat)"]),
        ("Question: {question} Answer: {answer}", ["Question: what? Answer: a cat"]),
    ],
)
def test_captions_are_made_of_what_a_template_names(template, texts):
    if texts is None:
        with pytest.raises(ConfigError, match="name different things"):
            Template.parse(template, "w")
        return
    made = Template.parse(template, "w").apply(RECORD)
    assert made == {**RECORD, "texts": texts}


def test_each_of_several_labels_makes_a_caption():
    made = Template.parse("a {label}", "w").apply({"id": "x", "labels": ["cat", "dog"]})
    assert made == {"id": "x", "labels": ["cat", "dog"], "texts": ["a cat", "a dog"]}


def test_a_question_template_words_questions_and_leaves_answers_and_captions():
    made = Template.parse("Q: {question} A:|{question}", "w").apply(RECORD)
    assert [q["question"] for q in made["qa"]] == ["Q: what? A:", "what?", "Q: where? A:", "where?"]
    assert [q["answers"] for q in made["qa"]] == [QA[0]["answers"]] * 2 + [[]] * 2
    assert {k: v for k, v in made.items() if k != "qa"} == {k: v for k, v in RECORD.items() if k != "qa"}


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a photo", "w: 'a photo' has no placeholder. Expected {text}, or {label}, or {text} with {label}"),
        ("a photo of a {}", "has {}"),
        ("{name}", "has {name}"),
        ("{text} {question}", "has {question} with {text}"),
        ("{label!r}", "formats 'label'. Expected the name alone"),
        ("{label:>3}", "formats 'label'"),
        ("a {label", "is no template"),
        ("{label}|", "'' has no placeholder"),
    ],
)
def test_a_template_that_cannot_be_is_refused(template, message):
    with pytest.raises(ConfigError) as caught:
        Template.parse(template, "w")
    assert message in str(caught.value)


def test_a_templated_source_changes_records_that_have_what_it_names_and_no_others():
    rows = [{"id": "0", "image": b"0", "texts": ["t"]}, {"id": "1", "image": b"1", "texts": ["u"], "label": "owl"}]
    source = Templated(Memory(rows), "an {label}", "w")
    assert source[0] == rows[0]
    assert source[1] == {**rows[1], "texts": ["an owl"], "prompt": "an {label}"}
    assert source.annotations(1) == {k: v for k, v in source[1].items() if k != "image"}
    assert (len(source), source.name, source.left_aside) == (2, "memory", {"column 'url'": 2})
    other = Templated(Memory(rows), "the {label}", "w")
    assert len({"abc", source.fingerprint, other.fingerprint}) == 3


def test_a_template_that_no_row_can_fill_is_refused():
    with pytest.raises(ConfigError, match="w: 'a {label}' wants {label}, but no row of memory has that"):
        Templated(Memory([{"id": "0", "texts": ["t"]}]), "a {label}", "w")
