"""What an evaluation leaves in a workdir, beside the figures."""

import json

import numpy as np
from PIL import Image

from mmjax.evaluation import _Worst
from mmjax.report import PanelItem


def lines_of(workdir, name="validation"):
    return [json.loads(line) for line in (workdir / "eval" / f"{name}.jsonl").read_text().splitlines()]


def test_every_row_has_a_line_with_what_each_task_says_and_how_right_it_is(trained):
    workdir, _ = trained
    figures = json.loads((workdir / "eval" / "validation.json").read_text())["figures"]
    lines = lines_of(workdir)
    assert len({line["id"] for line in lines}) == len(lines) == figures["classification/accuracy"]["n"]
    for name in ("vqa/accuracy", "classification/accuracy", "captioning/exact", "matching/accuracy"):
        sums, weights = np.sum([line["scores"][name] for line in lines if name in line["scores"]], axis=0)
        np.testing.assert_allclose(sums / weights, figures[name]["value"], rtol=1e-6)
    for line in lines:
        said = line["classification"]
        assert (said["label"] == said["truth"]) == bool(said["right"]) and 0 < said["probability"] <= 1
        vqa = line["vqa"]
        assert len(vqa["question"]) == len(vqa["answer"]) == len(vqa["truth"]) == len(vqa["confidence"])
        assert np.isclose(vqa["right"] * len(vqa["truth"]), line["scores"]["vqa/accuracy"][0], atol=1e-4)
        assert isinstance(line["captioning"]["caption"], str) and "said" in line["contrastive"]


def test_classes_have_a_report_and_a_confusion_matrix_and_every_task_its_worst_rows(trained):
    workdir, _ = trained
    folder = workdir / "eval"
    assert "precision" in (folder / "validation.classification.classes.txt").read_text()
    assert Image.open(folder / "validation.classification.confusion.png").width > 300
    wrong = {task for line in lines_of(workdir) for task, said in line.items()
             if isinstance(said, dict) and said.get("badness", 0) > 0}  # fmt: skip
    assert "classification" in wrong  # six steps do not make all of them right
    for task in ("classification", "vqa", "contrastive", "captioning", "matching"):
        assert (folder / f"validation.{task}.worst.png").is_file() == (task in wrong)


def test_the_worst_are_the_worst_and_of_equals_the_first():
    items = [PanelItem(np.zeros((2, 2, 3), np.uint8), [], str(i)) for i in range(8)]
    worst = _Worst(3)
    for item, badness in zip(items, [0.2, 0.9, 0.0, 0.5, 0.9, 0.5, 0.1, 0.3], strict=True):
        if worst.takes(badness):
            worst.add(badness, item)
    assert [item.title for item in worst.items()] == ["1", "4", "3"]
    assert not _Worst(0).takes(1.0)
