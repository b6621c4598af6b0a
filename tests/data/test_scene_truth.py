"""True and false sentences of the scenes: true as a second reader has it, and balanced by construction."""

import collections
import re

import pytest

from mmjax.data.scene_language import SHAPES
from mmjax.data.scene_truth import true_sentences
from mmjax.data.scenes import held_out, make_record

TRUTH = {"true": True, "false": False}
NUMBERS = {"zero": 0, "one": 1, "two": 2, "three": 3}


def find(words, scene):
    """Objects that "a red circle", "red shapes" or "circles" can mean."""
    words = re.sub(r"^an? ", "", words).split()
    *colors, noun = words
    meant = {"shape": "shape"} | {s + end: s for s in SHAPES for end in ("", "s", "es")} | {"shapes": "shape"}
    return [o for o in scene if meant[noun] in (o["shape"], "shape") and all(c == o["color"] for c in colors)]


def holds(sentence, scene):
    """A reader of its own: by regular expressions, from the scene alone."""
    if match := re.fullmatch(r"there (?:is|are) exactly (\w+) (.+)", sentence):
        return len(find(match[2], scene)) == NUMBERS[match[1]]
    if match := re.fullmatch(r"there is no (.+)", sentence):
        return not find(match[1], scene)
    if match := re.fullmatch(r"all shapes are (\w+)", sentence):
        return all(match[1] in (o["color"], o["shape"] + "s", o["shape"] + "es") for o in scene)
    if match := re.fullmatch(r"there is (.+) at the (.+)", sentence):
        top, left = "top" in match[2], "left" in match[2]
        return any((o["y"] < 0.5) == top and (o["x"] < 0.5) == left for o in find(match[1], scene))
    if match := re.fullmatch(r"there is (.+) (left of|right of|above|below) (.+)", sentence):
        axis, sign = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}[match[2]]
        both = [(a, b) for a in find(match[1], scene) for b in find(match[3], scene)]
        return any(sign * (b[axis] - a[axis]) > 0.15 for a, b in both)
    if match := re.fullmatch(r"there is (.+) and (.+)", sentence):
        return bool(find(match[1], scene)) and bool(find(match[2], scene))
    match = re.fullmatch(r"there is (.+)", sentence)
    return bool(find(match[1], scene))


@pytest.mark.parametrize("split", ["train", "test_unseen"])
def test_a_second_reader_finds_the_same_true(split):
    kinds = collections.Counter()
    for i in range(300):
        record = make_record("truth", split, i, size=32)
        assert 2 <= len(record["qa"]) <= 6
        for qa in record["qa"]:
            (answer,) = qa["answers"]
            assert holds(qa["question"], record["scene"]) == TRUTH[answer], (qa, record["scene"])
            kinds.update(re.findall(r"exactly|no |all|at the|left|right|above|below|and", qa["question"]))
    assert len(kinds) == 9 and min(kinds.values()) > 10


def test_pictures_come_in_twos_with_the_same_sentences_and_opposite_answers():
    records = [make_record("truth", "train", i, size=32) for i in range(200)]
    for one, other in zip(records[::2], records[1::2], strict=True):
        said = [{qa["question"]: qa["answers"][0] for qa in record["qa"]} for record in (one, other)]
        assert said[0].keys() == said[1].keys() and all(said[0][q] != said[1][q] for q in said[0])
        assert sorted(said[0].values()).count("true") == len(said[0]) / 2  # nor does the number of true ones say it
        assert one["scene"] != other["scene"] and one["image"] != other["image"]


def test_held_out_pairs_are_shown_and_said_in_unseen_alone():
    held = set(held_out("truth"))
    named = {f"{color} {shape}" for color, shape in held}
    for i in range(200):
        record = make_record("truth", "train", i, size=32)
        assert not held & {(o["color"], o["shape"]) for o in record["scene"]}
        assert not any(name in qa["question"] for qa in record["qa"] for name in named)
        unseen = make_record("truth", "test_unseen", i, size=32)
        assert held & {(o["color"], o["shape"]) for o in unseen["scene"]}


def test_all_that_is_true_is_found():
    scene = [
        {"color": "red", "shape": "star", "x": 0.26, "y": 0.26},
        {"color": "red", "shape": "cross", "x": 0.74, "y": 0.26},
    ]
    said = true_sentences(scene, [("red", "star"), ("red", ""), ("", "moon")])
    assert set(said) == {
        "there are exactly two shapes",
        "there is a red star",
        "there is a red shape",
        "there is a red star at the top left",
        "there is a red shape at the top left",
        "there is a red shape at the top right",
        "all shapes are red",
        "there are exactly two red shapes",
        "there is no moon",
        "there is a red star left of a red shape",
        "there is a red shape right of a red star",
    }
