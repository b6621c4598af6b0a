import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmjax import report
from mmjax.errors import ConfigError
from mmjax.evaluators import Figure

FIGURES = [
    Figure("vqa/accuracy", 0.873, 9673, 0.453, "question only", (0.861, 0.884), gain=(0.407, 0.434)),
    Figure("captioning/perplexity", 12.3456, 40, percent=False),
]
PICTURE = np.full((64, 32, 3), 200, np.uint8)


def colours(path):
    return {tuple(int(c) for c in colour) for colour in np.unique(np.asarray(Image.open(path)).reshape(-1, 3), axis=0)}


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


def test_a_table_is_aligned_and_complete():
    lines = report.table(FIGURES).splitlines()
    assert lines[2].split("  ")[0] == "vqa/accuracy"
    assert [len(line) for line in lines] == [len(lines[0])] * 4  # the last column is flush right
    wanted = ("87.3 %", "86.1 to 88.4", "45.3 % (question only)", "+42.0 (+40.7 to +43.4)", "9,673")
    assert all(text in lines[2] for text in wanted)
    assert "12.35" in lines[3] and "%" not in lines[3]


def test_json_reads_back(tmp_path):
    report.write_json(tmp_path / "test.json", FIGURES, {"step": 7})
    read = json.loads((tmp_path / "test.json").read_text())
    assert read["step"] == 7 and read["figures"]["vqa/accuracy"]["interval"] == [0.861, 0.884]


def test_right_is_green_and_wrong_is_red(tmp_path):
    for right, colour in ((True, report.RIGHT), (False, report.WRONG), (np.True_, report.RIGHT), (None, report.INK)):
        report.panel(tmp_path / "panel.png", [report.PanelItem(PICTURE, [("answer", right)])])
        others = {report.RIGHT, report.WRONG, report.INK} - {colour}
        assert rgb(colour) in colours(tmp_path / "panel.png")
        assert not {rgb(other) for other in others} & colours(tmp_path / "panel.png")


def test_a_panel_holds_each_picture_once_whatever_the_shapes(tmp_path):
    shades = [(10 * i, 255 - 10 * i, 99) for i in range(7)]
    items = [
        report.PanelItem(np.full((8 + 30 * i, 150, 3), shade, np.uint8), [("one two " * i, None)], title=f"picture {i}")
        for i, shade in enumerate(shades)
    ]
    report.panel(tmp_path / "panel.png", items, columns=3)
    assert set(shades) <= colours(tmp_path / "panel.png")
    assert Image.open(tmp_path / "panel.png").width == 20 + 3 * 260


def test_lines_wrap_inside_their_column_and_lose_no_letter():
    font = report._font(14)
    text = "a caption " * 9 + "w" * 90 + " end"
    lines = report._wrap(text, font, 200)
    assert max(font.getlength(line) for line in lines) <= 200
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert report._wrap("", font, 200) == [""]


def test_pictures_that_are_not_uint8_are_errors(tmp_path):
    with pytest.raises(ConfigError, match=r"a picture of float32 \(4, 4, 3\)"):
        report.panel(tmp_path / "panel.png", [report.PanelItem(np.zeros((4, 4, 3), np.float32), [])])
    with pytest.raises(ConfigError, match="no pictures"):
        report.panel(tmp_path / "panel.png", [])


def test_a_confusion_matrix_is_dark_where_the_share_is_high():
    counts = np.array([[9, 0, 1], [0, 5, 5], [0, 0, 0]])
    drawn = report.draw_confusion(counts, ("bird", "cat", "dog")).astype(int)
    assert drawn.ndim == 3 and drawn.shape[2] == 3
    dark = drawn.sum(axis=2) < 3 * 90
    assert dark.sum() > 500  # the cell of 9 of 10, and nothing else is that dark
    assert report.draw_confusion(np.eye(130, dtype=int), [f"class {i}" for i in range(130)]).shape[0] == 1400


def test_curves_group_training_and_evaluation(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 1, "loss": 2.0, "vqa/loss": 2.0, "lr": 0.1, "rows": {"train": "ab"}, "vqa/accuracy": 0.1},
        {
            "step": 2,
            "validation/vqa/loss": 1.9,
            "validation/vqa/accuracy": 0.5,
            "validation/captioning/perplexity": 9.0,
        },
        {"step": 3, "loss": 1.0, "vqa/loss": None, "lr": 0.2},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    drawn = {}
    real = report._draw
    monkeypatch.setattr(report, "_draw", lambda out, groups, dotted: (drawn.update(groups), real(out, groups, dotted)))
    report.curves(tmp_path / "curves.png", path)
    assert drawn == {
        "loss": {"vqa/loss": ([1], [2.0]), "validation/vqa/loss": ([2], [1.9])},
        "learning rate": {"lr": ([1, 3], [0.1, 0.2])},
        "evaluation, %": {"validation/vqa/accuracy": ([2], [50.0])},
        "evaluation, other": {"validation/captioning/perplexity": ([2], [9.0])},
    }
    assert len(colours(tmp_path / "curves.png")) > 10


def test_curves_of_nothing_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no line to draw"):
        report.curves(tmp_path / "curves.png", tmp_path / "metrics.jsonl")


def test_real_photos_make_a_panel(tmp_path):
    photos = Path(__file__).parents[1] / ".." / "shared" / "data" / "flickr8k_native" / "images"
    if not photos.is_dir():
        pytest.skip("../shared/data is not here")
    files = sorted(photos.iterdir())[:3]
    items = [report.PanelItem(np.asarray(Image.open(f).convert("RGB")), [("a photo", True)], f.name) for f in files]
    report.panel(tmp_path / "panel.png", items)
    assert Image.open(tmp_path / "panel.png").width == 20 + 3 * 260
