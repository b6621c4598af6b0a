"""Classification by several labels: which rows count, the smoothing, and what is shown."""

import types

import jax
import numpy as np
import pytest

from mmjax.config import build
from mmjax.errors import ConfigError
from mmjax.evaluators.mean_average_precision import MeanAveragePrecision
from mmjax.models.forward import Forward
from mmjax.models.patch_encoder import normalise
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


class Blank:
    """Stands in for the model: logits are sums over parts of the pictures, so that mixed pictures give mixed logits."""

    mean, std = (0.0,) * 3, (1.0,) * 3


def row_forward(train, labels, seed=0):
    draw = np.random.default_rng(0)
    batch = {"image": draw.integers(0, 255, (len(labels), 3, 1, 3), np.uint8), "label": np.array(labels),
             "valid": np.ones(len(labels), bool)}  # fmt: skip
    return Forward(Blank(), {}, batch, jax.random.key(seed), train)


@pytest.fixture
def blank(monkeypatch):
    def logits(self, forward):
        return normalise(forward.batch["image"], Blank.mean, Blank.std)[:, :, 0].sum(-1) * 3

    monkeypatch.setattr(Classification, "_logits", logits)


def test_weights_of_classes_are_those_named_or_balanced_and_only_in_training(blank):
    processor = types.SimpleNamespace(labels=("cat", "dog", "owl"), label_counts=(6, 3, 0))
    task = build(Task, {"kind": "classification", "class_weights": {"dog": 5}}, "config.tasks.a").prepared(processor)
    assert task.class_weights == (1.0, 5.0, 1.0)
    plain = Classification(name="a")
    loss, weight = task.loss(row_forward(True, [0, 1]))["loss"]
    one, two = (plain.loss(row_forward(True, x))["loss"][0] for x in ([0, -1], [-1, 1]))
    assert float(loss) == pytest.approx(float(one + 5 * two), rel=1e-6) and weight == 6
    judged = task.loss(row_forward(False, [0, 1]))["loss"]
    assert float(judged[0]) == pytest.approx(float(one + two), rel=1e-6) and judged[1] == 2
    assert Classification(name="a", class_weights="balanced").prepared(processor).class_weights == (0.75, 1.5, 0.0)
    with pytest.raises(ConfigError, match="config.tasks.a.class_weights: no label 'dogs'. Did you mean 'dog'?"):
        Classification(name="a", class_weights={"dogs": 2}).prepared(processor)
    with pytest.raises(ConfigError, match="found 'even', expected 'balanced'"):
        build(Task, {"kind": "classification", "class_weights": "even"}, "config.tasks.a")


def test_mixup_mixes_pictures_and_targets_alike_and_is_seeded(blank):
    task, labels = Classification(name="a", mixup=0.4), [0, 2, -1, 1, 2]
    loss, weight = task.loss(row_forward(True, labels))["loss"]
    forward = row_forward(True, labels)
    shares = np.array(jax.random.beta(forward.rng("a/mixup"), 0.4, 0.4, (5,)))
    shares[[2, 3]] = 1  # no target there, or before it
    x = forward.batch["image"].astype(float) / 255
    x = np.stack([s * x[i] + (1 - s) * x[i - 1] for i, s in enumerate(shares)])[:, :, 0].sum(-1) * 3
    logs = x - np.log(np.exp(x).sum(-1, keepdims=True))
    expected = -sum(shares[i] * logs[i, labels[i]] + (1 - shares[i]) * logs[i, labels[i - 1]] for i in (0, 1, 3, 4))
    assert float(loss) == pytest.approx(expected, rel=1e-4) and float(weight) == pytest.approx(4)
    assert float(task.loss(row_forward(True, labels))["loss"][0]) == float(loss)
    assert float(task.loss(row_forward(True, labels, seed=1))["loss"][0]) != float(loss)
    plain = Classification(name="a").loss(row_forward(False, labels))["loss"]
    assert task.loss(row_forward(False, labels))["loss"] == plain  # nothing is mixed in evaluation
