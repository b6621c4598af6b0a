"""The drawn scenes: functions of the picture's number, true captions, questions that do not give answers away."""

import collections
import io
import multiprocessing
import re

import numpy as np
import pytest
from PIL import Image

from mmjax.data import scene_drawing, scenes
from mmjax.data.scenes import caption_is_right, held_out, make_record, parse_caption
from mmjax.errors import ConfigError


def records(kind, split, n, start=0):
    return [make_record(kind, split, i, size=32) for i in range(start, start + n)]


def pairs_said(record):
    """Colour-shape pairs named anywhere in the texts and questions of a record."""
    words = "|".join(scenes.COLORS), "|".join(scenes.TEXTURES), "|".join(scenes.SHAPES)
    pattern = re.compile(r"\b({}) (?:(?:{}) )?({})\b".format(*words))
    said = record["texts"] + [row["question"] for row in record["qa"]]
    return {pair for text in said for pair in pattern.findall(text)}


@pytest.mark.parametrize("kind", ["easy", "full", "truth"])
def test_a_picture_depends_on_its_number_and_split_only(kind):
    first = [make_record(kind, "train", i) for i in (5, 6)]
    again = [make_record(kind, "train", i) for i in (6, 5)][::-1]
    assert first == again
    assert (
        first[0] != make_record(kind, "test", 5) and first[0]["scene"] != make_record(kind, "train", 5, seed=1)["scene"]
    )
    assert make_record(kind, "train", 5, size=96)["scene"] == first[0]["scene"]


@pytest.mark.parametrize("kind", ["easy", "full"])
def test_held_out_pairs_are_in_every_unseen_picture_and_nowhere_else(kind):
    held = set(held_out(kind))
    for split in ("train", "validation", "test"):
        for record in records(kind, split, 150):
            shown = {(o["color"], o["shape"]) for o in record["scene"]}
            assert not held & (shown | pairs_said(record))
    for record in records(kind, "test_unseen", 50):
        shown = {(o["color"], o["shape"]) for o in record["scene"]}
        assert held & shown
        assert all(shown <= pairs_said({"texts": [text], "qa": []}) for text in record["texts"])


@pytest.mark.parametrize("kind", ["easy", "full", "truth"])
def test_captions_parse_back_to_the_scene(kind):
    for record in records(kind, "train", 100):
        truth = collections.Counter(
            (o.get("size", ""), o["color"], o.get("texture", ""), o["shape"]) for o in record["scene"]
        )
        assert len(set(record["texts"])) == 5
        for text in record["texts"]:
            assert parse_caption(text) == truth and caption_is_right(text, record), text


SCENE = {
    "scene": [
        {"color": "red", "shape": "star", "x": 0.25, "y": 0.5, "radius": 0.2},
        {"color": "blue", "shape": "circle", "x": 0.75, "y": 0.5, "radius": 0.2},
    ]
}


@pytest.mark.parametrize(
    "caption,right",
    [
        ("a red star to the left of a blue circle", True),
        ("The picture shows a blue circle , right of a red star .", True),
        ("a blue circle on the right and a red star on the left", True),
        ("on the left is a red star and on the right is a blue circle", True),
        ("a red star and a blue circle", True),
        ("a red star right of a blue circle", False),  # relation
        ("a red star above a blue circle", False),
        ("a red star on the right and a blue circle on the left", False),  # place
        ("on the right is a red star and on the left is a blue circle", False),
        ("a blue star left of a red circle", False),  # attributes swapped
        ("a red star", False),  # one missing
        ("a red star left of a blue circle and a blue circle", False),  # one too many
        ("a red star and a circle", False),  # attribute missing
        ("a large red star left of a blue circle", False),  # attribute added
        ("a red star left of a blue circle and a dog", False),  # something added
        ("", False),
    ],
)
def test_a_caption_is_right_only_if_all_of_it_is(caption, right):
    assert caption_is_right(caption, SCENE) is right


def answer(question, objects):
    """A second way to the answer, from the scene alone, of the questions that need no reference resolved."""
    if match := re.fullmatch(r"is there an? (\w+) (\w+)\?", question):
        return any(match[1] == o["color"] and match[2] in (o["shape"], "shape") for o in objects)
    if match := re.fullmatch(r"is there an? (\w+)\?", question):
        return any(match[1] == o["shape"] for o in objects)
    if match := re.fullmatch(r"is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", question):
        a, b = (
            next(o for o in objects if (o["color"], o["shape"]) == pair)
            for pair in ((match[1], match[2]), (match[4], match[5]))
        )
        axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[match[3]]
        return sign * (b[axis] - a[axis]) > 0.15
    if match := re.fullmatch(r"how many (?:(\w+) )?shapes are there\?", question):
        return ["zero", "one", "two", "three"][sum(match[1] in (None, o["color"]) for o in objects)]
    return None


@pytest.mark.parametrize("kind", ["easy", "full"])
def test_answers_are_true(kind):
    checked = 0
    for record in records(kind, "train", 150):
        assert 6 <= len(record["qa"]) <= 9
        for row in record["qa"]:
            truth = answer(row["question"], record["scene"])
            if truth is not None:
                checked += 1
                assert row["answers"] == [{True: "yes", False: "no"}.get(truth, truth)], (row, record["scene"])
            assert " " not in row["answers"][0]
    assert checked > 400


@pytest.mark.parametrize("kind", ["easy", "full"])
def test_the_question_alone_does_not_give_the_answer_away(kind):
    """The best guess from the question, fitted on train: at most 60 % on test; half of the yes/no answers are yes."""
    guess = collections.defaultdict(collections.Counter)
    for record in records(kind, "train", 600):
        for row in record["qa"]:
            guess[row["question"]][row["answers"][0]] += 1
    rows = [row for record in records(kind, "test", 256) for row in record["qa"]]
    hits = [guess[r["question"]].most_common(1)[0][0] == r["answers"][0] for r in rows if r["question"] in guess]
    assert sum(hits) / len(rows) < 0.60
    answers = collections.Counter(r["answers"][0] for r in rows)
    assert abs(answers["yes"] - answers["no"]) < 0.1 * (answers["yes"] + answers["no"])


def test_edges_are_anti_aliased():
    """The drawn disc against its coverage counted on a 16 times finer grid."""
    size, x, y, radius = 48, 0.513, 0.487, 0.25
    canvas = Image.new("RGB", (size, size), (0, 0, 0))
    scene_drawing.draw([{"color": "yellow", "shape": "circle", "x": x, "y": y, "radius": radius}], canvas)
    drawn = np.asarray(canvas, np.float64)[..., 0] / scene_drawing.RGB["yellow"][0]
    v, u = (np.mgrid[: size * 16, : size * 16] + 0.5) / (size * 16)
    inside = np.hypot(u - x, v - y) < 0.95 * radius
    coverage = inside.reshape(size, 16, size, 16).mean((1, 3))
    assert ((drawn > 0.05) & (drawn < 0.95)).sum() > 20
    assert np.abs(drawn - coverage).max() < 0.35 and abs(drawn.sum() / coverage.sum() - 1) < 0.05


def test_shapes_of_a_scene_do_not_touch():
    for kind in scenes.KINDS:
        for i in range(300):
            scene = scenes.sample_scene(kind, "train", np.random.default_rng(i))
            for k, a in enumerate(scene):
                assert min(a["x"], a["y"], 1 - a["x"], 1 - a["y"]) > 0.9 * a["radius"]
                for b in scene[:k]:
                    assert max(abs(a["x"] - b["x"]), abs(a["y"] - b["y"])) > 0.98 * (a["radius"] + b["radius"])


def test_twos_are_never_parted():
    config = scenes.SceneConfig.named("truth_41train")
    assert [config.count(split) for split in scenes.SPLITS] == [42, 8, 8, 8]


@pytest.mark.parametrize("name", ["hard", "easy_px", "easy_16px", "full_0train"])
def test_an_unknown_set_is_named(name):
    with pytest.raises(ConfigError, match=f"tfds:scenes/{name}"):
        scenes.SceneConfig.named(name)


def test_two_processes_prepare_one_set(tmp_path):
    """Both end well, the set is whole, and what an interrupted run left is gone."""
    left_over = tmp_path / "scenes" / "easy_32px_16train" / "incomplete.ABC_1.0.0"
    left_over.mkdir(parents=True)
    spawn = multiprocessing.get_context("spawn")
    runs = [spawn.Process(target=scenes.prepare, args=("easy_32px_16train", tmp_path)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
    assert [run.exitcode for run in runs] == [0, 0]
    folder = scenes.prepare("easy_32px_16train", tmp_path)
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name, "lock"]
    assert (folder / "dataset_info.json").is_file()


def test_the_size_is_that_of_the_name():
    assert Image.open(io.BytesIO(make_record("full", "train", 0, size=96)["image"])).size == (96, 96)
    assert (scenes.SceneConfig.named("full_96px").size, scenes.SceneConfig.named("full_96px").kind) == (96, "full")
