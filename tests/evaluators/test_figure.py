import json

from mmjax.evaluators import Figure, as_json
from mmjax.evaluators.figure import annotations_of, valid_rows

FIGURE = Figure("vqa/accuracy", 0.873, 9673, 0.453, "question only", (0.861, 0.884))


def test_a_row_shows_value_interval_baseline_and_count():
    assert FIGURE.row() == "vqa/accuracy 87.3 % [86.1 to 88.4], question only 45.3 %, n = 9,673"
    assert Figure("captioning/perplexity", 12.3456, 40, percent=False).row() == "captioning/perplexity 12.35, n = 40"


def test_json_holds_shares_under_the_figures_name():
    text = json.dumps(as_json([FIGURE, Figure("a/b", 0.5, 2)]))
    assert json.loads(text) == {
        "vqa/accuracy": {
            "value": 0.873, "n": 9673, "baseline": 0.453, "baseline_name": "question only", "interval": [0.861, 0.884],
        },
        "a/b": {"value": 0.5, "n": 2, "baseline": None, "baseline_name": "", "interval": None},
    }  # fmt: skip


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
