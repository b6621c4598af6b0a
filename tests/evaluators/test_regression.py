import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.regression import Errors


def judge(values, labels):
    errors = Errors("age", mean=30.0)
    for start in range(0, len(values), 3):  # streamed
        part = slice(start, start + 3)
        batch = {"valid": np.ones(len(values[part]), bool)}
        errors.update({"value": np.array(values[part])}, batch, [{"label": x} if x else {} for x in labels[part]])
    return errors


def test_errors_are_in_the_unit_of_the_labels_beside_those_of_the_mean():
    truth, found = np.array([20.0, 30.0, 50.0, 41.5]), np.array([25.0, 30.0, 47.0, 40.0])
    rmse, mae = judge([*found, 99.0], [*map(str, truth), ""]).figures()
    assert (rmse.name, mae.name, rmse.n) == ("age/rmse", "age/mae", 4)
    assert rmse.value == pytest.approx(np.sqrt(np.mean((found - truth) ** 2)))
    assert mae.value == pytest.approx(np.mean(np.abs(found - truth)))
    assert rmse.baseline == pytest.approx(np.sqrt(np.mean((30 - truth) ** 2)))
    assert rmse.interval[0] < rmse.value < rmse.interval[1]


def test_a_set_without_numbers_is_an_error():
    with pytest.raises(ConfigError, match="age: no picture of the test set has a number"):
        judge([1.0], ["old"]).figures()
