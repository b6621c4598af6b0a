"""Classification by several labels: which rows count, the smoothing, and what is shown."""

import types

import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.evaluators.mean_average_precision import MeanAveragePrecision
from mmjax.tasks import Task
from mmjax.tasks.classification import Classification

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 4.0, 1.0], [9.0, 9.0, 9.0], [9.0, 9.0, 9.0]], np.float32)
TRUTH = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0]], bool)
BATCH = {"labels": TRUTH, "valid": np.arange(4) != 2, "labels_valid": np.arange(4) != 3}
TASK = Classification(name="objects", labels="many", label_smoothing=0.2)


def forward(train):
    image = types.SimpleNamespace(pooled=None)
    return types.SimpleNamespace(batch=BATCH, train=train, image=lambda: image, head=lambda name, pooled: LOGITS)


@pytest.mark.parametrize("train", [True, False])
def test_each_class_is_a_yes_or_no_of_rows_that_have_labels(train):
    targets = np.where(TRUTH, 0.9, 0.1) if train else TRUTH.astype(float)
    p = 1 / (1 + np.exp(-LOGITS.astype(float)))
    terms = -(targets * np.log(p) + (1 - targets) * np.log(1 - p))
    loss, weight = TASK.loss(forward(train))["loss"]
    assert float(loss) == pytest.approx(terms[:2].sum(), rel=1e-5) and weight == 2


def test_what_is_found_is_shown_the_likeliest_first_and_judged_as_a_set():
    processor = types.SimpleNamespace(labels=("cat", "dog", "owl"))
    outputs = TASK.readable({k: np.asarray(v) for k, v in TASK.predict(forward(False)).items()}, processor)
    assert TASK.describe(outputs, 0, {"labels": ["owl", "cat"]}) == [("cat (88%), owl (62%)", True)]
    assert TASK.describe(outputs, 1, {"labels": ["dog"]}) == [("dog (98%), owl (73%)", False)]
    assert TASK.describe(outputs, 1, {})[0][1] is None
    nothing = TASK.readable({"probability": np.full((1, 3), 0.2)}, processor)
    assert TASK.describe(nothing, 0, {"labels": []}) == [("none of the classes", True)]
    assert isinstance(TASK.evaluator(processor, None), MeanAveragePrecision)


def test_the_feature_follows_the_kind_of_labels():
    assert TASK.features == {"image", "labels"}
    assert build(Task, {"kind": "classification"}, "config.tasks.a").features == {"image", "label"}
    with pytest.raises(ConfigError, match="config.tasks.a.labels: found 'several', expected one of one, many"):
        build(Task, {"kind": "classification", "labels": "several"}, "config.tasks.a")
