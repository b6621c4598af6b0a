"""The survey: one scan counts all that a processor is fitted on."""

import pytest

from mmjax.data import survey
from mmjax.data.survey import Survey
from mmjax.errors import ConfigError


class Memory(list):
    """A source of records in memory, which counts how often each is read."""

    def __init__(self, records, name):
        super().__init__(records)
        self.name, self.reads = name, [0] * len(records)

    def annotations(self, i):
        self.reads[i] += 1
        return self[i]


def talk(text, pictures=0):
    return [{"role": "user", "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}]


def qa(question, *answers):
    return {"question": question, "answers": list(answers)}


A = Memory([
    {"id": "0", "texts": ["one", "two"], "label": "cat"},
    {"id": "1", "qa": [qa("what?", "Red", "red", "blue"), qa("where?", "here")], "labels": ["dog", "owl"]},
    {"id": "2", "messages": talk("hello")},
], "a")  # fmt: skip
B = Memory([{"id": "3", "texts": ["three"] * 5, "label": ""}, {"id": "4", "messages": talk("look", 2)}], "b")


def test_every_row_of_every_source_is_counted_once():
    found = Survey.of([A, B])
    assert A.reads == [1, 1, 1] and B.reads == [1, 1]
    assert found.rows == 5 and found.most_captions == 5
    assert found.fields == {"texts": 2, "label": 1, "qa": 1, "labels": 1, "messages": 2}
    assert found.captions == ["one", "two", *["three"] * 5] and found.questions == ["what?", "where?"]
    assert found.answers == {"red": 1, "here": 1}
    assert (found.label, found.labels) == ({"cat": 1}, {"dog", "owl"})
    assert [name for name, _ in found.chats] == ["a, row 2 (2)", "b, row 1 (4)"]
    assert found.several == (1, "b, row 1 (4)")


def test_texts_of_large_sources_are_a_sample_and_counts_are_not(monkeypatch):
    monkeypatch.setattr(survey, "_SAMPLE", 10)
    monkeypatch.setattr(survey, "_CHATS", 5)
    rows = [{"id": str(i), "texts": [str(i)], "messages": talk(str(i)), "label": str(i)} for i in range(100)]
    found = Survey.of([Memory(rows, "large")])
    assert 5 <= len(found.captions) <= 10 and 3 <= len(found.chats) <= 5
    assert found.fields["texts"] == found.fields["messages"] == len(found.label) == 100


def test_what_is_missing_or_cannot_be_is_said_with_the_sources():
    found = Survey.of([A, B])
    for feature in ("text", "question", "answer", "answer_text", "label", "labels"):
        found.expect(feature)
    with pytest.raises(ConfigError, match=r"b, row 1 \(4\): a conversation about more than one picture, as in 1 of 5"):
        found.expect("chat")
    with pytest.raises(ConfigError, match=r"which needs sets of labels, but b \(2 rows\) has only captions and conv"):
        Survey.of([B]).expect("labels")
    with pytest.raises(ConfigError, match="no feature 'smell'. Expected some of image, text"):
        found.expect("smell")


def test_labels_are_numbers_only_where_all_of_them_are():
    numbers = Memory([{"id": str(i), "label": text} for i, text in enumerate(("1.5", "-2e1", "3"))], "n")
    found = Survey.of([numbers])
    found.expect("value")
    assert found.numbers == [1.5, -20.0, 3.0]
    with pytest.raises(ConfigError, match=r"n, row 3 \(3\): 'nan' is no number"):
        Survey.of([Memory([*numbers, {"id": "3", "label": "nan"}], "n")]).expect("value")
