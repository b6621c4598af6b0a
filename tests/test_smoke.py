"""The smoke rule."""

from mmjax.experiment import from_mapping
from mmjax.smoke import shrink


def test_smoke_shrinks_sizes_and_steps_and_nothing_else():
    made = {
        "data": {"train": {"path": "tfds:scenes/full", "batch_size": 8}},
        "tasks": {"captioning": {}},
        "model": {"decoder": {"size": "B", "dropout": 0.1}},
        "train": {"steps": 3},
    }
    small = from_mapping(shrink(made))
    assert (small.model.decoder.width, small.model.decoder.depth, small.model.decoder.dropout) == (32, 2, 0.1)
    assert small.train.steps == 1 and small.data.train["main"].path == "tfds:scenes/full_16train"
    assert made["model"]["decoder"] == {"size": "B", "dropout": 0.1}


def test_smoke_takes_the_smallest_version_of_a_built_in_set():
    named = {"a": {"path": "tfds:scenes/full_4000train"}, "b": {"path": "tfds:scenes/easy"}, "c": {"path": "own.csv"}}
    small = shrink({"data": {"train": named["b"], "test": named}, "tasks": {}})["data"]
    paths = [small["test"][name]["path"] for name in "abc"]
    assert paths == ["tfds:scenes/full_16train", "tfds:scenes/easy_16train", "own.csv"]
