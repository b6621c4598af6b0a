import numpy as np
import pytest

from mmjax.evaluators.matching import PairAccuracy


def test_pairs_are_counted_once_beside_the_more_frequent_answer():
    random = np.random.default_rng(0)
    match, truth = random.integers(0, 2, (2, 6, 3))
    seen, valid = random.random((6, 3)) < 0.8, np.array([1, 1, 1, 1, 1, 0], bool)
    evaluator = PairAccuracy("matching")
    for rows in (slice(0, 4), slice(4, 6)):
        outputs = {"match": match[rows], "match_truth": truth[rows], "match_valid": seen[rows]}
        evaluator.update(outputs, {"valid": valid[rows]}, [{}] * len(valid[rows]))
    (figure,) = evaluator.figures()
    pairs = [(match[b, p], truth[b, p]) for b in range(5) for p in range(3) if seen[b, p]]
    share = np.mean([t for _, t in pairs])
    assert figure.name == "matching/accuracy" and figure.n == len(pairs)
    assert figure.value == pytest.approx(np.mean([m == t for m, t in pairs]))
    assert figure.baseline == pytest.approx(max(share, 1 - share))
