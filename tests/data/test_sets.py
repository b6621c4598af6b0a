"""The data sets of an experiment."""

import pytest

from mmjax.data.sets import DataConfig
from mmjax.errors import ConfigError


def test_evaluation_sets_inherit_from_their_stream_and_a_path_of_its_own_drops_root():
    train = {"path": "a.csv", "batch_size": 8, "root": "pictures"}
    sets = {"validation": {"split": "dev"}, "test": {"one": {"path": "b.csv"}, "two": {"group": False}}}
    data = DataConfig.from_config({"train": train, **sets}, "config.data")
    assert data.validation["validation"].path == "a.csv" and data.validation["validation"].root == "pictures"
    assert (data.test["one"].path, data.test["one"].root, data.test["one"].batch_size) == ("b.csv", "", 8)
    assert (data.test["two"].path, data.test["two"].root, data.test["two"].group) == ("a.csv", "pictures", False)
    assert {s.stream for s in (*data.test.values(), *data.validation.values())} == {"main"}


def test_sources_of_one_stream_agree_on_its_batch():
    one, other = {"path": "a.csv", "batch_size": 8}, {"path": "b.csv", "batch_size": 4}
    with pytest.raises(ConfigError, match="config.data.train: found batch_size 4 and 8 in the stream 'one'"):
        DataConfig.from_config({"train": {"one": one, "other": {**other, "stream": "one"}}}, "config.data")
