"""Neighbours against a loop, the probe against scikit-learn on the whole set at once."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from mmjax.errors import ConfigError
from mmjax.evaluators import frozen_features
from mmjax.evaluators.frozen_features import FrozenFeatures, nearest_votes

DRAW = np.random.default_rng(0)
CENTRES = DRAW.normal(size=(3, 6))


def some(count, seed):
    draw = np.random.default_rng(seed)
    classes = draw.choice(3, count, p=[0.5, 0.3, 0.2])
    features = CENTRES[classes] + 1.5 * draw.normal(size=(count, 6))
    return features.astype(np.float32), [{"label": "abc"[c]} for c in classes]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 100_000])
def test_neighbours_are_those_of_a_loop(block, monkeypatch):
    monkeypatch.setattr(frozen_features, "_BLOCK", block)
    train, records = some(50, 1)
    classes = np.array(["abc".index(r["label"]) for r in records])
    queries = unit(some(17, 2)[0])
    got = nearest_votes(queries, unit(train), classes, 3, k=5)
    for query, said in zip(queries, got, strict=True):
        cosines = unit(train) @ query
        near = np.argsort(-cosines)[:5]
        votes = [sum(np.exp(cosines[i] / 0.07) for i in near if classes[i] == c) for c in range(3)]
        assert said == np.argmax(votes)


def test_both_readings_stream_and_stand_beside_the_most_frequent_class():
    (train, records), (test, asked) = some(80, 3), some(31, 4)
    judge = FrozenFeatures("probe", neighbours=7)
    padded = [*asked[20:], {"label": "a"}, {}]
    judge.fit([(train[:50], {"valid": np.ones(50)}, records[:50]), (train[50:], {"valid": np.ones(30)}, records[50:])])
    judge.update({"features": test[:20]}, {"valid": np.ones(20)}, asked[:20])
    judge.update(
        {"features": np.pad(test[20:], ((0, 2), (0, 0)))}, {"valid": np.r_[np.ones(11), 0, 1]}, padded
    )  # one row that pads, one without a label
    linear, near = judge.figures()
    truth, classes = np.array([r["label"] for r in asked]), np.array([r["label"] for r in records])
    scaled = lambda x: (x - train.mean(0)) / train.std(0)  # noqa: E731
    whole = LogisticRegression(max_iter=1000).fit(scaled(train), classes).predict(scaled(test))
    assert (linear.name, linear.n) == ("probe/linear_accuracy", 31)
    assert linear.value == pytest.approx(np.mean(whole == truth)) and linear.value > linear.baseline
    assert linear.baseline == near.baseline == pytest.approx(np.mean(truth == "a"))
    ids = np.array(["abc".index(c) for c in classes])
    voted = np.array(list("abc"))[nearest_votes(unit(test), unit(train), ids, 3, 7)]
    assert near.value == pytest.approx(np.mean(voted == truth))


def test_sets_without_labels_are_errors():
    judge = FrozenFeatures("probe")
    with pytest.raises(ConfigError, match="eval.probe: data.train has 1 classes"):
        judge.fit([(np.ones((2, 3)), {"valid": np.ones(2)}, [{"label": "a"}] * 2)])
    with pytest.raises(ConfigError, match="eval.probe: no picture of the test set has a label"):
        judge.figures()
