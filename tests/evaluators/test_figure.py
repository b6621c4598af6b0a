import json

import numpy as np
import pytest

from mmjax.evaluators import Figure, as_json
from mmjax.evaluators.figure import Tally, annotations_of, valid_rows

FIGURE = Figure("vqa/accuracy", 0.873, 9673, 0.453, "question only", (0.861, 0.884), gain=(0.41, 0.43))


def test_a_row_shows_value_interval_baseline_and_count():
    assert FIGURE.row() == "vqa/accuracy 87.3 % [86.1 to 88.4], question only 45.3 %, n = 9,673"
    assert Figure("captioning/perplexity", 12.3456, 40, percent=False).row() == "captioning/perplexity 12.35, n = 40"


def test_json_holds_shares_under_the_figures_name():
    text = json.dumps(as_json([FIGURE, Figure("a/b", 0.5, 2)]))
    assert json.loads(text) == {
        "vqa/accuracy": {
            "value": 0.873, "n": 9673, "baseline": 0.453, "baseline_name": "question only", "interval": [0.861, 0.884],
            "gain": [0.41, 0.43], "percent": True, "link": "",
        },
        "a/b": {"value": 0.5, "n": 2, "baseline": None, "baseline_name": "", "interval": None, "gain": None,
                "percent": True, "link": ""},
    }  # fmt: skip


def tally(rows, *baselines):
    """rows: (id, key, weight, score, baselines' scores...)."""
    made = Tally(*baselines)
    for name, key, weight, *scores in rows:
        made.add({"id": name} | ({"key": key} if key else {}), *scores, weight=weight)
    return made


def test_a_figure_is_the_ratio_of_sums_beside_the_better_baseline():
    rows = [("a", "", 1, 1, 0, 1), ("a", "", 1, 0, 0, 0), ("b", "", 2, 2, 1, 2), ("c", "", 4, 1, 0, 1)]
    figure = tally(rows, "chance", "majority").figure("t/m")
    assert (figure.value, figure.n, figure.baseline, figure.baseline_name) == (0.5, 8, 0.5, "majority")
    assert figure.scores.ids.tolist() == ["a", "b", "c"]  # as they came
    assert figure.scores.sums.tolist() == [1, 2, 1] and figure.scores.weights.tolist() == [2, 2, 4]
    less = tally([("a", "", 2, 2.0, 3.0, 4.0)], "x", "y").figure("t/p", percent=False, link="exp")
    assert (less.value, less.baseline_name) == (pytest.approx(np.e), "x")


def test_the_interval_of_the_gain_is_paired():
    random = np.random.default_rng(0)
    hard = random.random(400)
    baseline = (hard < 0.4).astype(float)
    own = ((hard < 0.4) | (random.random(400) < 0.1)).astype(float)  # right wherever the baseline is
    rows = [(str(i), "", 1, own[i], baseline[i]) for i in range(400)]
    figure = tally(rows, "blind").figure("t/m")
    by_hand = []
    for _ in range(2000):
        drawn = random.integers(0, 400, 400)
        by_hand.append(own[drawn].mean() - baseline[drawn].mean())
    np.testing.assert_allclose(figure.gain, np.quantile(by_hand, [0.025, 0.975]), atol=0.006)
    assert figure.gain[1] - figure.gain[0] < 0.7 * (figure.interval[1] - figure.interval[0])


def test_rows_of_one_key_are_drawn_together():
    rows = [(str(i), f"sentence {i // 10}", 1, (i // 10) % 2) for i in range(200)]
    apart = [(str(i), "", 1, (i // 10) % 2) for i in range(200)]
    width = [np.diff(tally(r).figure("t/m").interval)[0] for r in (rows, apart)]
    np.testing.assert_allclose(width[0] / width[1], np.sqrt(10), rtol=0.2)


def test_annotations_come_without_pictures_from_a_source_and_from_a_list():
    class Source:
        def __len__(self):
            return 2

        def __getitem__(self, i):
            raise AssertionError("a picture was read")

        def annotations(self, i):
            return {"id": str(i)}

    assert list(annotations_of(Source())) == list(annotations_of([{"id": "0"}, {"id": "1"}]))


def test_padding_rows_are_dropped():
    assert list(valid_rows({"valid": [True, False, True]}, [{"id": "a"}, {}, {"id": "c"}])) == [
        (0, {"id": "a"}), (2, {"id": "c"}),
    ]  # fmt: skip
