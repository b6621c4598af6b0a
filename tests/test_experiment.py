"""The whole config: inheritance of data sets, streams, length, and no key that nothing reads."""

import dataclasses
import re
import typing
from pathlib import Path

import pytest

from mmjax.errors import ConfigError
from mmjax.experiment import Config, EarlyStop, from_mapping

ROOT = Path(__file__).parents[1]


def mapping(**data):
    train = {"path": "a.csv", "batch_size": 8, "root": "pictures"}
    return {
        "data": {"train": train, **data},
        "tasks": {"captioning": {}},
        "model": {"decoder": {}},
        "train": {"steps": 3},
    }


def parts(kind, seen):
    """All dataclasses that a config is made of."""
    for hint in typing.get_type_hints(kind).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part) and part not in seen:
                seen.add(part)
                parts(part, seen)
    return seen


def test_no_key_that_nothing_reads():
    """Each field of each part of the config is read as an attribute somewhere, or through getattr by its name."""
    from mmjax.tasks.captioning import Captioning
    from mmjax.tasks.contrastive import Contrastive
    from mmjax.tasks.matching import Matching
    from mmjax.tasks.vqa import VQA

    code = "\n".join(file.read_text() for file in (ROOT / "mmjax").rglob("*.py"))
    for kind in parts(Config, {Config, Captioning, Contrastive, Matching, VQA}):
        for field in dataclasses.fields(kind):
            read = rf"\.{field.name}\b|getattr\([^)]*\"{field.name}\"|\"{field.name}\""
            assert re.search(read, code), f"{kind.__name__}.{field.name}"


def test_sets_feed_the_stream_of_their_name_and_tasks_find_theirs():
    streams = {"pairs": {"path": "p.csv"}, "asked": {"path": "q.csv"}, "batch_size": 4}
    made = mapping()
    made["data"] = {"train": streams, "test": {"asked": {"path": "t.csv"}, "other": {"path": "o.csv"}}}
    made["tasks"] = {"captioning": {}, "vqa": {"stream": "asked", "answer": "generate"}}
    config = from_mapping(made)
    assert {n: s.stream for n, s in config.data.test.items()} == {"asked": "asked", "other": "pairs"}
    made["data"]["train"] = {"a": {"path": "p.csv", "stream": "pairs"}, "b": {"path": "q.csv", "stream": "asked"}}
    made["data"]["train"]["batch_size"] = 4
    assert {n: s.stream for n, s in from_mapping(made).data.test.items()} == {"asked": "asked", "other": "pairs"}
    assert {n: list(config.tasks_of(n)) for n in streams if n != "batch_size"} == {
        "pairs": ["captioning"],
        "asked": ["vqa"],
    }
    assert config.data.train["asked"].batch_size == 4
    made["tasks"]["vqa"]["stream"] = "pairs"
    with pytest.raises(ConfigError, match="config.data.train.asked: no task reads this stream"):
        from_mapping(made)


def test_length_in_steps_epochs_or_examples():
    made = mapping()
    for given, steps in (({"steps": 7}, 7), ({"epochs": 1.5}, 15), ({"examples": 96}, 12)):
        made["train"] = given
        assert from_mapping(made).train.total_steps(batch_size=8, rows=80) == steps
    made["train"] = {"steps": 7, "epochs": 1}
    with pytest.raises(ConfigError, match="exactly one above 0"):
        from_mapping(made)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"train": {"steps": 3, "log_every": 0}}, "config.train.log_every: found 0, expected 1 or more"),
        ({"train": {"steps": 3, "max_bad_steps": 0}}, "config.train.max_bad_steps: found 0, expected 1 or more"),
        ({"train": {"steps": -5, "epochs": 1}}, "config.train.steps: found -5, expected 0 or more"),
        ({"data": "train.csv"}, r"config.data: found 'train.csv', expected a group of keys"),
    ],
)
def test_what_cannot_be_meant_is_an_error(over, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping({**mapping(), **over})


@pytest.mark.parametrize(
    ("values", "mode", "asks"),
    [
        ([0.5, 0.55, 0.58], "max", True),  # two in a row that are not better by more than 0.1
        ([0.5, 0.55, 0.65], "max", False),  # 0.65 is, of the 0.5 that counts as the best so far
        ([0.5, 0.45, 0.42], "min", True),
        ([0.5, 0.45, 0.35], "min", False),
        ([0.5, 0.4], "max", False),  # one is not yet two
    ],
)
def test_a_change_below_the_least_is_none(values, mode, asks):
    assert EarlyStop(patience=2, min_change=0.1).asks(values, mode) is asks
