"""VQAv2: questions find their answers and pictures by the official names, and all ten answers are kept."""

import json

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

OFFICIAL = ("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json")
QUESTIONS = [
    {"question_id": 90, "image_id": 9, "question": "what?"},
    {"question_id": 71, "image_id": 7, "question": "where?"},
    {"question_id": 91, "image_id": 9, "question": "is it?"},
]
ANSWERS = {90: ["dog"] * 9 + ["cat"], 71: ["here"] * 10, 91: ["yes"] * 6 + ["no"] * 4}


def annotations(answers):
    return [
        {"question_id": k, "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(some, 1)]}
        for k, some in answers.items()
    ]


def write(folder, names=OFFICIAL, pictures="train2014/COCO_train2014_{:012d}.jpg", answers=ANSWERS, **more):
    (folder / names[0]).write_text(json.dumps({"questions": QUESTIONS, **more}))
    if answers is not None:
        (folder / names[1]).write_text(json.dumps({"annotations": annotations(answers), "info": {}}))
    for image in (7, 9):
        file = folder / pictures.format(image)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(str(image).encode())
    return folder / names[0]


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


@pytest.mark.parametrize(
    "names", [OFFICIAL, ("my_questions.json", "my_annotations.json"), ("a_questions.json", "b_annotations.json")]
)
def test_answers_are_found_beside_the_questions(tmp_path, names):
    source = opened(write(tmp_path, names, "COCO_train2014_{:012d}.jpg", data_subtype="train2014"))
    qa = [[(one["question"], one["answers"]) for one in source[i]["qa"]] for i in range(len(source))]
    assert qa == [[("what?", ANSWERS[90]), ("is it?", ANSWERS[91])], [("where?", ANSWERS[71])]]
    assert source[0]["image"] == b"9" and opened(tmp_path).fingerprint == source.fingerprint
    other = {**ANSWERS, 71: ["there"] * 10, 5: ["never asked"]}
    changed = opened(write(tmp_path, names, "COCO_train2014_{:012d}.jpg", other, data_subtype="train2014"))
    assert changed.fingerprint != source.fingerprint
    assert changed.left_aside == {"answers to questions that are not asked": 1}


@pytest.mark.parametrize(
    "pictures",
    ["train2014/COCO_train2014_{:012d}.jpg", "images/train2014/{:012d}.jpg", "images/{}.png", "{:012d}.jpg"],
)
def test_pictures_are_named_by_habit(tmp_path, pictures):
    source = opened(write(tmp_path, pictures=pictures))
    assert [source[i]["image"] for i in range(2)] == [b"9", b"7"]


@pytest.mark.parametrize("root", ["elsewhere", "elsewhere/train2014"])
def test_pictures_may_be_elsewhere(tmp_path, root):
    source = opened(write(tmp_path, pictures="elsewhere/train2014/{:012d}.jpg"), root=str(tmp_path / root))
    assert source[1]["image"] == b"7"


def test_only_a_test_set_may_lack_answers(tmp_path):
    with pytest.raises(ConfigError, match=f"no file with its answers beside it.*'{OFFICIAL[1]}'"):
        opened(write(tmp_path, answers=None))
    test = ("v2_OpenEnded_mscoco_test-dev2015_questions.json", "")
    source = opened(write(tmp_path, test, "test2015/COCO_test2015_{:012d}.jpg", None))
    assert source[0]["image"] == b"9" and source[0]["qa"][0] == {"question": "what?", "answers": []}


@pytest.mark.parametrize(
    "change,message",
    [
        ({"answers": {90: ["dog"]}}, r"no answer to question 2 of .*\(question_id 71\)"),
        ({"answers": {**ANSWERS, 71: [3]}}, "annotation 2: found .*expected answers"),
        ({"questions": [{"question_id": 1, "image_id": 9, "question": " "}]}, "question 1: found ' ', expected text"),
        ({"pictures": "COCO_train2014_{}.jpg"}, "row 1: no file 'COCO_train2014_000000000009.jpg'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        opened(write(tmp_path, **change))


def test_the_file_of_the_answers_and_several_sets_are_no_path(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match="holds the answers"):
        opened(tmp_path / OFFICIAL[1])
    write(tmp_path, ("val_questions.json", "val_annotations.json"))
    with pytest.raises(ConfigError, match="several sets of questions.*v2_OpenEnded.*val_questions.json"):
        opened(tmp_path)
