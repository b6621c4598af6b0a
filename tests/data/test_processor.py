"""The processor: what is drawn and when, answers and labels, messages at the start, and its JSON."""

import dataclasses
import json

import numpy as np
import pytest

from mmjax.data.choices import names_a_side
from mmjax.data.images import Augment, ImageSettings
from mmjax.data.order import row_keys
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.data.tokenizer import TokenizerConfig
from mmjax.errors import ConfigError


class Memory:
    """A source of records in memory."""

    def __init__(self, records, name="memory"):
        self.records, self.name, self.fingerprint = records, name, f"{name}-{len(records)}"

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i]

    def annotations(self, i):
        return {k: v for k, v in self.records[i].items() if k != "image"}


GOLDEN = [[3, 2, 1], [2, 4, 0], [1, 3, 0], [3, 2, 4]]


def record(i: int) -> dict:
    qa = [{"question": f"what is thing {j} of {i}?", "answers": [f"a{j}", f"A{j} ", "rare"]} for j in range(6)]
    texts = [f"caption {j} of picture {i}" for j in range(5)]
    return {"id": str(i), "image": b"bytes%d" % i, "texts": texts, "qa": qa, "label": "odd" if i % 2 else "even"}


RECORDS = [record(i) for i in range(12)]
ALL = frozenset({"image", "text", "question", "answer", "answer_text", "label"})


def fit(config=ProcessorConfig(captions=2, questions=3), records=RECORDS, features=ALL, say=lambda line: None):  # noqa: B008
    return Processor.fit(config, [Memory(records)], features, say=say)


def keys(rows, epoch=0, seed=0):
    return row_keys(seed, np.full(len(rows), epoch), np.asarray(rows))


def arrays(processor, rows=range(12), *, train=True, epoch=0, captions=2, questions=3, features=ALL):
    rows = list(rows)
    counts = {"captions": captions, "questions": questions}
    return processor.arrays([RECORDS[r] for r in rows], keys(rows, epoch), features, train=train, **counts)


@pytest.fixture(scope="module")
def processor():
    return fit()


def decoded(processor, ids):
    return [[processor.tokenizer.decode(line) for line in row] for row in ids]


def test_shapes_and_types_are_those_of_the_batch_table(processor):
    batch = arrays(processor)
    expected = {
        "image_key": ((12,), np.int32),
        "label": ((12,), np.int32),
        "text": ((12, 2, 32), np.int32),
        "text_mask": ((12, 2, 32), bool),
        "text_valid": ((12, 2), bool),
        "text_key": ((12, 2), np.int32),
        "question": ((12, 3, 24), np.int32),
        "question_mask": ((12, 3, 24), bool),
        "question_valid": ((12, 3), bool),
        "answer": ((12, 3), np.int32),
        "answer_text": ((12, 3, 8), np.int32),
        "answer_mask": ((12, 3, 8), bool),
    }
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {k: (s, np.dtype(d)) for k, (s, d) in expected.items()}


def test_only_the_features_wanted_are_made(processor):
    assert set(arrays(processor, features=frozenset({"text"}))) == {"text", "text_mask", "text_valid", "text_key"}
    assert set(arrays(processor, features=frozenset({"question", "answer"}))) == {
        "question",
        "question_mask",
        "question_valid",
        "answer",
    }


def test_a_rows_choices_do_not_depend_on_its_batch(processor):
    whole, part = arrays(processor), arrays(processor, [7, 2])
    for name in whole:
        assert np.array_equal(part[name], whole[name][[7, 2]]), name


def test_texts_and_questions_are_drawn_without_replacement_and_anew_each_epoch(processor):
    seen = set()
    for epoch in range(30):
        batch = arrays(processor, epoch=epoch)
        for i, (texts, questions) in enumerate(
            zip(decoded(processor, batch["text"]), decoded(processor, batch["question"]), strict=True)
        ):
            assert len(set(texts)) == 2 and set(texts) <= set(RECORDS[i]["texts"])
            assert len(set(questions)) == 3 and set(questions) <= {q["question"] for q in RECORDS[i]["qa"]}
            seen.update((i, t) for t in texts)
    assert len(seen) == 60  # 30 epochs show every caption of every row


def test_answers_follow_their_questions_and_are_drawn_among_the_answers_given(processor):
    drawn = []
    for epoch in range(20):
        batch = arrays(processor, epoch=epoch)
        questions, texts = decoded(processor, batch["question"]), decoded(processor, batch["answer_text"])
        for row in range(12):
            for question, answer, cls in zip(questions[row], texts[row], batch["answer"][row], strict=True):
                number = question.split()[3]
                assert processor.answers[cls] == f"a{number}"
                assert answer in (f"a{number}", "rare")
                drawn.append(answer == "rare")
    assert 0.25 < np.mean(drawn) < 0.42  # one of three


def test_evaluation_takes_all_in_order_with_the_most_frequent_answer(processor):
    batch = arrays(processor, train=False, captions=7, questions=6)
    assert decoded(processor, batch["text"])[3] == [*RECORDS[3]["texts"], "", ""]
    assert batch["text_valid"][3].tolist() == [True] * 5 + [False] * 2
    assert decoded(processor, batch["answer_text"])[0] == [f"a{j}" for j in range(6)]
    assert batch["question_valid"].all()


def test_an_empty_slot_is_bos_eos_and_not_valid(processor):
    batch = processor.arrays([{"id": "x"}], keys([0]), ALL - {"image"}, train=True, captions=2, questions=3)
    assert not batch["text_valid"].any() and not batch["question_valid"].any()
    assert batch["text"][0, 0, :2].tolist() == [processor.tokenizer.bos, processor.tokenizer.eos]
    assert batch["text_mask"].sum() == 4  # no mask is empty: a softmax over nothing is not a number
    assert (batch["answer"] == -1).all() and batch["label"].tolist() == [-1]


def test_the_draws_are_golden(processor):
    """A resumed run must see the same questions: a change here is a change of the checkpoint's meaning."""
    numbers = [[int(q.split()[3]) for q in row] for row in decoded(processor, arrays(processor, epoch=3)["question"])]
    assert numbers[:4] == GOLDEN


def test_keys_tell_equal_pictures_and_equal_texts(processor):
    same = [{"id": "a", "image": b"x", "texts": ["A dog", "a  DOG "]}, {"id": "b", "image": b"x", "texts": ["a cat"]}]
    batch = processor.arrays(same, keys([0, 1]), frozenset({"image", "text"}), train=False, captions=2, questions=1)
    assert batch["image_key"][0] == batch["image_key"][1]
    assert batch["text_key"][0, 0] == batch["text_key"][0, 1] != batch["text_key"][1, 0]


def test_labels_are_sorted_and_answers_by_frequency(processor):
    assert processor.labels == ("even", "odd")
    assert processor.answers == tuple(f"a{j}" for j in range(6))
    assert arrays(processor)["label"].tolist() == [0, 1] * 6
    assert processor.answer_class(["A3 "]) == 3 and processor.answer_class(["unheard of"]) == -1


def test_flips_are_drawn_only_where_no_text_names_a_side():
    processor = fit(ProcessorConfig(augment=Augment(flip=True)))
    records = [{"texts": ["a dog"]}, {"texts": ["a dog", "left of it"]}] * 100
    assert [processor.augment_of(record).flip for record in records] == [True, False] * 100
    assert 70 < processor.picture_draws(keys(range(200)))[:, 0].sum() < 130
    assert not fit(ProcessorConfig()).augment_of(records[0]).flip


def test_a_feature_that_no_record_has_is_refused_with_what_there_is():
    records = [{"id": "0", "image": b"", "texts": ["a"]}]
    with pytest.raises(ConfigError, match="wants 'answer', which needs questions .* memory .1 rows. has only captions"):
        fit(records=records, features=frozenset({"image", "answer"}))
    with pytest.raises(ConfigError, match="no feature 'smell'"):
        fit(features=frozenset({"smell"}))


def test_cut_texts_and_answers_outside_of_the_list_are_said():
    lines = []
    fit(ProcessorConfig(length=4, answers=3), say=lines.append)
    assert "config.processor.length: 100.0% of 60 texts are cut at 4 tokens." in lines
    assert any("config.processor.answers: 50.0% of the questions" in line for line in lines)
    quiet = []
    fit(say=quiet.append)
    assert quiet == []


def test_json_round_trip_keeps_everything(processor):
    again = Processor.from_json(json.loads(json.dumps(processor.to_json())))
    assert again.sha256 == processor.sha256 and again.differences(processor) == []
    for name, array in arrays(processor).items():
        assert np.array_equal(arrays(again)[name], array), name
    assert again.image == processor.image and again.augment == processor.augment


def test_differences_name_the_fields(processor):
    other = dataclasses.replace(processor, image=ImageSettings(size=32), length=16, answers=("x",))
    assert other.sha256 != processor.sha256
    assert processor.differences(other) == ["answers", "image.size", "length"]
    words = fit(records=[{**r, "texts": ["Quite other words"]} for r in RECORDS])
    assert processor.differences(words) == ["tokenizer"]


def test_a_schema_of_another_version_is_refused(processor):
    with pytest.raises(ConfigError, match="found schema 99, expected 2"):
        Processor.from_json({**processor.to_json(), "schema": 99})


def test_fitting_twice_gives_the_same_processor(processor):
    assert fit().sha256 == processor.sha256


def test_captions_are_the_first_where_the_choice_is_first():
    processor = fit(ProcessorConfig(captions=2, caption_choice="first", questions=3))
    for epoch in range(3):
        batch = arrays(processor, epoch=epoch)
        assert decoded(processor, batch["text"])[4] == RECORDS[4]["texts"][:2]
    assert not np.array_equal(batch["question"], arrays(processor)["question"])  # questions are still drawn


def test_no_number_of_captions_takes_all_that_a_row_has():
    lines = []
    processor = fit(ProcessorConfig(captions=0), records=[*RECORDS, {"id": "x", "texts": ["one"]}], say=lines.append)
    assert processor.captions == 5 and "config.processor.captions: 0 takes all; a row has up to 5." in lines
    batch = arrays(processor, [3], captions=processor.captions)
    assert sorted(decoded(processor, batch["text"])[0]) == RECORDS[3]["texts"] and batch["text_valid"].all()


def test_cleaning_is_the_same_in_training_evaluation_and_prediction():
    records = [{**r, "texts": ["A &amp;<b>Dog</b>.", "a & Dog"]} for r in RECORDS]
    clean = ("unescape", "strip_html", "lower", "no_trailing_period")
    raw = ProcessorConfig(captions=2, clean=clean, tokenizer=TokenizerConfig(lower=False))
    processor = fit(raw, records)
    assert processor.cleaned(records[0]["texts"][0]) == "a & dog"
    for train in (True, False):
        batch = processor.arrays(records, keys(range(12)), ALL, train=train, captions=2, questions=1)
        assert decoded(processor, batch["text"]) == [["a & dog"] * 2] * 12
        assert len(np.unique(batch["text_key"])) == 1  # what reads the same is the same caption
    ids, mask = processor.encode(records[0]["texts"], processor.length)
    assert np.array_equal(ids, batch["text"][0]) and np.array_equal(mask, batch["text_mask"][0])
    again = Processor.from_json(json.loads(json.dumps(processor.to_json())))
    assert again.clean == clean and again.sha256 == processor.sha256
    assert fit(dataclasses.replace(raw, clean=()), records).sha256 != processor.sha256
    with pytest.raises(ConfigError, match=r"config.processor.clean\[0\]: no step 'lwer'"):
        fit(ProcessorConfig(clean=("lwer",)))


def test_several_labels_are_one_row_of_truths():
    named = {"0": ["dog", "cat"], "1": [], "3": ["owl"]}
    records = [*({"id": i, "labels": labels} for i, labels in named.items()), {"id": "2"}]
    processor = fit(records=records, features=frozenset({"labels"}))
    assert processor.labels == ("cat", "dog", "owl")
    seen = [*records, {"id": "4", "labels": ["dog", "unheard of"]}]
    batch = processor.arrays(seen, keys(range(5)), frozenset({"labels"}), train=True, captions=1, questions=1)
    assert batch["labels"].astype(int).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert batch["labels_valid"].tolist() == [True, True, True, False, True]
    both = [{"id": "0", "label": "zoo", "labels": ["cat"]}]
    assert fit(records=both, features=frozenset({"label"})).labels == ("zoo",)


def talk(*turns, picture=True):
    """Messages from texts of the user and the assistant in turn; the picture stands in the first."""
    parts = [[{"type": "text", "text": text}] for text in turns]
    parts[0] = [{"type": "image"}] * picture + parts[0]
    return [{"role": ("user", "assistant")[i % 2], "content": part} for i, part in enumerate(parts)]


TALKS = [
    {"id": "0", "image": b"x", "messages": talk("what is it?", "a cat", "where?", "left of it")},
    {"id": "1", "messages": talk("who are you?", "a machine", picture=False)},
    {"id": "2", "image": b"y"},
]
CHAT = frozenset({"image", "chat"})


def test_conversations_become_ids_with_the_assistants_words_supervised():
    processor = fit(ProcessorConfig(chat_length=48), TALKS, CHAT)
    batch = processor.arrays(TALKS, keys(range(3)), CHAT, train=True, captions=1, questions=1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image_key": ((3,), "int32"), "image_valid": ((3,), "bool"), "chat": ((3, 48), "int32"),
        "chat_mask": ((3, 48), "bool"), "chat_supervised": ((3, 48), "bool"),
    }  # fmt: skip
    said = [processor.tokenizer.decode(i[s & (i != processor.tokenizer.eos)]) for i, s in
            zip(batch["chat"], batch["chat_supervised"], strict=True)]  # fmt: skip
    assert said == ["a cat left of it", "a machine", ""]
    assert batch["image_valid"].tolist() == [True, False, True]
    assert (batch["chat"] == processor.tokenizer.image).sum(1).tolist() == [1, 0, 0]
    assert batch["chat_mask"].sum(1)[2] == 1  # bos alone
    assert names_a_side(TALKS[0]) and not names_a_side(TALKS[1])
    again = Processor.from_json(json.loads(json.dumps(processor.to_json())))
    assert again.sha256 == processor.sha256 and again.chat_template == processor.chat_template


def test_a_reply_is_asked_for_by_an_open_turn_of_the_assistant():
    processor = fit(ProcessorConfig(chat_length=24), TALKS, CHAT)
    asked = [{"id": "q", "messages": talk("what is it?")}]
    batch = processor.conversations(asked, pictures=False, reply=True)
    ids = batch["chat"][batch["chat_mask"]].tolist()
    marker = processor.tokenizer.tokens(["assistant:"])[0]
    assert ids[-len(marker) :] == marker and not batch["chat_supervised"].any()
    given = processor.conversations(TALKS[:1], pictures=True)["chat"][0].tolist()
    assert given[: len(ids)] == ids  # just as in training
    with pytest.raises(ConfigError, match="conversation of .* tokens, expected up to 24 .chat_length"):
        processor.conversations([{"messages": talk("what is it? " * 9)}], pictures=False, reply=True)


def test_conversations_that_are_cut_or_teach_nothing_are_said():
    lines = []
    mute = {"id": "3", "messages": talk("a", "b")[:1]}
    fit(ProcessorConfig(chat_length=16), [*TALKS, mute], CHAT, say=lines.append)
    assert [line.split(": ")[1].split(" ")[:4] for line in lines] == [
        ["33.3%", "of", "3", "conversations"], ["33.3%", "of", "3", "conversations"],
    ]  # fmt: skip
    assert "are cut at 16 tokens" in lines[0] and "teach nothing" in lines[1]
    with pytest.raises(ConfigError, match="no assistant's turn begins within 24 tokens in any of 1 conversations"):
        fit(ProcessorConfig(chat_length=24), [mute], CHAT)


def test_a_conversation_about_several_pictures_is_refused_at_the_start():
    several = {"id": "9", "messages": [*talk("a", "b"), *talk("c", "d")]}
    with pytest.raises(ConfigError, match=r"memory, row 3 \(9\): a conversation about more than one .* 1 of 4 rows"):
        fit(records=[*TALKS, several], features=CHAT)


@pytest.mark.parametrize(("field", "value"), [("length", 2), ("captions", -1), ("answers", 0), ("chat_length", 2)])
def test_impossible_settings_are_refused(field, value):
    with pytest.raises(ConfigError, match=f"config.processor.{field}: found {value}"):
        fit(dataclasses.replace(ProcessorConfig(), **{field: value}))
