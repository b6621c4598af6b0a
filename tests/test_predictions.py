"""Lines of predictions: complete or not there, unique ids, figures read back."""

import json

import numpy as np
import pytest

from mmjax import report
from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Tally
from mmjax.predictions import PredictionFile, UniqueIds, dumps, read_figures

RECORDS = [{"id": "a.png"}, {"id": "a.png"}, {"id": "b.png", "key": "sentence"}]


def test_rows_of_one_picture_have_ids_of_their_own_and_stay_together():
    named = UniqueIds()
    assert [(r["id"], r["key"]) for r in map(named, RECORDS)] == [
        ("a.png", "a.png"),
        ("a.png#2", "a.png"),
        ("b.png", "sentence"),
    ]
    assert "key" not in RECORDS[0]  # the source's record is its own


def test_figures_read_back_with_their_scores(tmp_path):
    named, file = UniqueIds(), PredictionFile(tmp_path / "eval" / "test.jsonl")
    share, nll = Tally("chance"), Tally()
    for k, record in enumerate(map(named, RECORDS)):
        file.add(record, {"vqa": {"answer": [f"answer {k}"], "confidence": np.float32(0.5)}})
        share.add(record, k % 2, 0.25, weight=1)
        nll.add(record, 0.5 * k, weight=2)
    assert not (tmp_path / "eval" / "test.jsonl").exists()  # not under its name before it is whole
    figures = [share.figure("vqa/accuracy"), nll.figure("vqa/perplexity", percent=False, link="exp")]
    file.finish(figures)
    assert [p.name for p in (tmp_path / "eval").iterdir()] == ["test.jsonl"]
    report.write_json(tmp_path / "eval" / "test.json", figures)
    read = read_figures(tmp_path / "eval" / "test.jsonl")
    assert read == figures
    for one, other in zip(read, figures, strict=True):
        for a, b in zip(one.scores, other.scores, strict=True):
            np.testing.assert_array_equal(a, b)
    line = json.loads((tmp_path / "eval" / "test.jsonl").read_text().splitlines()[1])
    assert line["id"] == "a.png#2" and line["unit"] == "a.png" and line["scores"]["vqa/accuracy"] == [1, 1]


def test_what_is_no_prediction_file_is_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": "a"}\n')
    with pytest.raises(ConfigError, match="no file '.*x.json'"):
        read_figures(tmp_path / "x.jsonl")
    (tmp_path / "x.json").write_text('{"figures": {}}')
    with pytest.raises(ConfigError, match="x.jsonl, line 1: no id or scores"):
        read_figures(tmp_path / "x.jsonl")
    (tmp_path / "x.jsonl").write_text('{"id": ')
    with pytest.raises(ConfigError, match="line 1: not JSON"):
        read_figures(tmp_path / "x.jsonl")


def test_numbers_of_numpy_are_plain_and_words_stay_as_they_are():
    value = {"p": np.float32(1 / 3), "n": np.int64(3), "a": np.array([1.5]), "s": "é", 3: (True, None)}
    assert dumps(value) == '{"p": 0.333333, "n": 3, "a": [1.5], "s": "é", "3": [true, null]}'
