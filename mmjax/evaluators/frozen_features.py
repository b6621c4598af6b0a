"""What can be read from features as they are: a linear probe and the nearest neighbours, fitted on the training set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from mmjax.errors import ConfigError
from mmjax.evaluators.figure import Figure, Record, Tally, valid_rows

_BLOCK = 4_000_000  # similarities held at a time
_SHARPNESS = 1 / 0.07  # of the votes (Wu et al., 2018, sec. 3.4)


def nearest_votes(queries: np.ndarray, features: np.ndarray, classes: np.ndarray, count: int, k: int) -> np.ndarray:
    """Class [Q] that the k training features of largest cosine vote for, each with exp(cosine / 0.07).

    queries, features: [Q, D], [N, D], unit length; classes: [N] int in [0, count). Similarities exist a block at a
    time.
    """
    chosen, rows = [], max(1, _BLOCK // len(features))
    for start in range(0, len(queries), rows):
        similar = queries[start : start + rows] @ features.T
        near = np.argpartition(-similar, min(k, len(features)) - 1, axis=1)[:, :k]
        votes = np.zeros((len(similar), count))
        weights = np.exp(_SHARPNESS * (np.take_along_axis(similar, near, 1) - 1))
        np.add.at(votes, (np.arange(len(similar))[:, None], classes[near]), weights)
        chosen.append(votes.argmax(1))
    return np.concatenate(chosen)


class FrozenFeatures:
    """`name/linear_accuracy` and `name/neighbours_accuracy` over pictures with a label, from their pooled features.

    The probe is a logistic regression (scikit-learn, L2, features to mean 0 and variance 1), the neighbours are
    `nearest_votes`; both beside the most frequent training class. `fit` sees the training set once, before `update`.
    A test label that training never had counts as wrong.

    Reads outputs `features` [B, D] and the annotations' `label`. Keeps the training features.
    """

    def __init__(self, name: str, *, neighbours: int = 20):
        self.name, self.neighbours = name, neighbours
        self._tallies = {"linear": Tally(), "neighbours": Tally()}

    def fit(self, batches: Iterable[tuple[np.ndarray, dict[str, np.ndarray], list[Record]]]) -> None:
        """batches: (features [B, D], batch, annotations) of the training set."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        seen = [_labelled(*batch) for batch in batches]
        labels = [record["label"] for _, records in seen for record in records]
        if len(set(labels)) < 2:
            raise ConfigError(
                f"eval.probe: data.train has {len(set(labels))} classes. Expected a 'label' of 2 or more."
            )
        features = np.concatenate([rows for rows, _ in seen])
        self.labels, self._classes = np.unique(labels, return_inverse=True)
        self._features = _unit(features)
        self._probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, self._classes)
        self._frequent = np.bincount(self._classes).argmax()
        self._tallies = {kind: Tally(f"always '{self.labels[self._frequent]}'") for kind in self._tallies}

    def update(self, outputs: dict[str, np.ndarray], batch: dict[str, np.ndarray], annotations: list[Record]) -> None:
        features, records = _labelled(outputs["features"], batch, annotations)
        if not records:
            return
        near = nearest_votes(_unit(features), self._features, self._classes, len(self.labels), self.neighbours)
        for record, linear, voted in zip(records, self._probe.predict(features), near, strict=True):
            baseline = record["label"] == self.labels[self._frequent]
            self._tallies["linear"].add(record, self.labels[linear] == record["label"], baseline)
            self._tallies["neighbours"].add(record, self.labels[voted] == record["label"], baseline)

    def figures(self) -> list[Figure]:
        if not all(map(len, self._tallies.values())):
            raise ConfigError("eval.probe: no picture of the test set has a label. Expected a 'label' field.")
        return [tally.figure(f"{self.name}/{kind}_accuracy") for kind, tally in self._tallies.items()]


def _labelled(features: np.ndarray, batch: dict, annotations: list[Record]) -> tuple[np.ndarray, list[Record]]:
    """Features and records of the batch's real rows that have a label."""
    rows = [(row, record) for row, record in valid_rows(batch, annotations) if record.get("label") is not None]
    return np.asarray(features, np.float32)[[row for row, _ in rows]], [record for _, record in rows]


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
