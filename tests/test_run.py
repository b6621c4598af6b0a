"""A run, opened: what it refuses before its first step."""

import signal

import pytest

from mmjax.errors import ConfigError
from mmjax.experiment import from_mapping
from mmjax.run import check_best
from mmjax.train import _StopSignal


@pytest.mark.parametrize(
    ("best", "sets", "message"),
    [
        ("valid/captioning/loss", ["validation"], "there is no set 'valid'.* Did you mean 'validation'"),
        ("validation/caption/loss", ["validation"], "there is no task 'caption'.* Did you mean 'captioning'"),
        ("validation/captioning/loss", [], "nothing is judged: config.data.holdout is 0"),
    ],
)
def test_a_figure_that_no_evaluation_can_give_is_refused(best, sets, message):
    made = {"data": {"train": {"path": "a.csv", "batch_size": 8}}, "tasks": {"captioning": {}},
            "model": {"decoder": {}}, "train": {"steps": 3}, "checkpoint": {"best": best}}  # fmt: skip
    with pytest.raises(ConfigError, match=message):
        check_best(from_mapping(made), sets)
    check_best(from_mapping({**made, "checkpoint": {"best": "validation/captioning/loss"}}), ["validation"])


def test_signals_are_those_of_the_process_again_after_training():
    before = signal.getsignal(signal.SIGTERM)
    with _StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked and stop.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before
