"""Durations."""

import pytest

from mmjax import duration
from mmjax.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (7.0, 7),
        ("7", 7),
        ("1 step", 1),
        ("1e3 steps", 1000),
        ("1_000steps", 1000),
        ("5%", 10),
        ("0.25%", 1),
        ("2 epochs", 21),
        ("0.3 epochs", 4),
        ("101 examples", 11),
        ("0 steps", 0),
    ],
)
def test_units_convert_to_steps(value, expected):
    assert duration.steps(value, total=200, batch_size=10, rows=105) == expected


def test_float_noise_does_not_add_a_step():
    assert duration.steps("0.1 epochs", batch_size=1, rows=30) == 3


@pytest.mark.parametrize("value", ["1 epoch 5 steps", "5 parsecs", "steps", "-3", "2.5 steps", "", True, "5%%"])
def test_what_is_no_duration_is_an_error_that_names_the_key(value):
    with pytest.raises(ConfigError, match="config.warmup"):
        duration.steps(value, total=10, batch_size=1, rows=1, where="config.warmup")


def test_misspelt_unit_gets_a_suggestion():
    with pytest.raises(ConfigError, match="Did you mean 'epochs'"):
        duration.steps("2 epoks")


@pytest.mark.parametrize("value", ["5%", "1 epoch", "10 examples"])
def test_a_unit_without_meaning_here_is_an_error(value):
    with pytest.raises(ConfigError, match="not known here"):
        duration.steps(value)
