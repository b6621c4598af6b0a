"""COCO: captions are texts, instances are labels in the order of the categories, and both are of one picture."""

import json
from pathlib import Path

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
IMAGES = [{"id": 10, "file_name": "a.jpg"}, {"id": 0, "file_name": "b.jpg"}, {"id": 12, "file_name": "c.jpg"}]
CAPTIONS = [
    {"id": 1, "image_id": 0, "caption": "b one"},
    {"id": 2, "image_id": 10, "caption": "a one "},
    {"id": 3, "image_id": 0, "caption": "b two"},
]
CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
INSTANCES = [
    {"image_id": 0, "category_id": 3, "bbox": [0, 0, 1, 1]},
    {"image_id": 0, "category_id": 7, "bbox": [0, 0, 1, 1]},
    {"image_id": 0, "category_id": 3, "bbox": [0, 0, 1, 1]},
    {"image_id": 12, "category_id": 3, "bbox": [0, 0, 1, 1]},
]


def write(folder, name, pictures="train2017", **lists):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"info": {"year": 2017}, "images": IMAGES, **lists}))
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    for image in lists.get("images", IMAGES):
        (folder / pictures / image["file_name"]).write_bytes(image["file_name"].encode())
    return file


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


def both(folder, split="train2017"):
    write(folder, f"annotations/captions_{split}.json", split, annotations=CAPTIONS)
    write(folder, f"annotations/instances_{split}.json", split, annotations=INSTANCES, categories=CATEGORIES)


def test_captions_and_instances_of_a_folder_are_one_row_a_picture(tmp_path):
    both(tmp_path)
    source = opened(tmp_path)
    assert [source[i] for i in range(len(source))] == [
        {"id": "b.jpg", "texts": ["b one", "b two"], "labels": ["dog", "cat"], "image": b"b.jpg"},
        {"id": "a.jpg", "texts": ["a one"], "image": b"a.jpg"},
        {"id": "c.jpg", "labels": ["cat"], "image": b"c.jpg"},
    ]
    assert source.left_aside == {"field 'bbox'": 4}
    lines = opened(tmp_path, group=False)
    assert [lines.annotations(i).get("texts") for i in range(len(lines))] == [["b one"], ["a one"], ["b two"], None]
    write(tmp_path, "annotations/instances_train2017.json", annotations=INSTANCES[2:], categories=CATEGORIES)
    assert opened(tmp_path).fingerprint != source.fingerprint


def test_a_file_by_itself_is_opened_by_itself(tmp_path):
    both(tmp_path)
    captions = opened(tmp_path / "annotations" / "captions_train2017.json")
    assert [captions.annotations(i) for i in range(len(captions))] == [
        {"id": "b.jpg", "texts": ["b one", "b two"]},
        {"id": "a.jpg", "texts": ["a one"]},
    ]
    assert captions.left_aside == {"pictures without annotations": 1}
    instances = opened(tmp_path / "annotations" / "instances_train2017.json")
    assert [instances.annotations(i)["labels"] for i in range(len(instances))] == [["dog", "cat"], ["cat"]]


def test_pictures_are_found_wherever_exports_put_them(tmp_path):
    for place, pictures in [
        ("x/annotations", "x/images/val"),
        ("y", "y/val"),
        ("z", "z"),
        ("w/annotations", "w/images"),
    ]:
        file = write(tmp_path, f"{place}/captions_val.json", pictures, annotations=CAPTIONS)
        assert opened(file)[1]["image"] == b"a.jpg"
    images = [{**image, "file_name": f"val/{image['file_name']}"} for image in IMAGES]
    (tmp_path / "v" / "val").mkdir(parents=True)
    file = write(tmp_path / "v", "annotations/captions_val.json", "", images=images, annotations=CAPTIONS)
    assert opened(file)[1]["image"] == b"val/a.jpg"


def test_lists_may_come_in_any_order_and_the_file_have_any_name(tmp_path):
    file = write(tmp_path, "mine.json", ".", annotations=CAPTIONS)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"annotations": content["annotations"], "images": content["images"]}, indent=1))
    assert opened(file).annotations(1) == opened(tmp_path).annotations(1) == {"id": "a.jpg", "texts": ["a one"]}


def test_of_several_splits_one_is_chosen(tmp_path):
    both(tmp_path)
    both(tmp_path, "val2017")
    with pytest.raises(ConfigError, match="several splits: train2017, val2017.*annotations/instances_val2017.json"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "lists,message",
    [
        ({"annotations": [*CAPTIONS, {"image_id": 5, "caption": "x"}]}, "annotation 4: image_id 5 is none of the 3"),
        ({"annotations": [{"image_id": 0, "category_id": 1}], "categories": CATEGORIES},
         "annotation 1: category_id 1 is none of the 2"),
        ({"annotations": [{"image_id": 0, "segments_info": []}]}, "annotation 1: found .* a caption or a category_id"),
        ({"annotations": [{"caption": "x"}]}, "annotation 1: .*expected an object with 'image_id'"),
        ({"annotations": [{"image_id": 0, "caption": " "}]}, "annotation 1: caption: found ' '"),
        ({"annotations": []}, "no annotations"),
        ({"images": [*IMAGES, {"id": 0, "file_name": "c.jpg"}], "annotations": CAPTIONS}, "image 0 is 'c.jpg' and 'b"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, lists, message):
    file = write(tmp_path, "captions_train2017.json", **lists)
    with pytest.raises(ConfigError, match=f"captions_train2017.json.*{message}"):
        opened(file)


def test_a_missing_picture_is_named_by_its_caption(tmp_path):
    file = write(tmp_path, "annotations/captions_train2017.json", annotations=CAPTIONS)
    (tmp_path / "train2017" / "a.jpg").unlink()
    with pytest.raises(ConfigError, match=r"captions_train2017.json, row 2: no file 'a.jpg' below .*train2017\."):
        opened(file)
    assert len(opened(file, max_bad_fraction=0.6)) == 2


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent: the real sets are not read")
@pytest.mark.parametrize("name,pictures,texts,labelled", [("coco_mini", 80, 400, 80), ("tiny_coco", 50, 250, 49)])
def test_real_sets_are_read_whole(name, pictures, texts, labelled):
    source = opened(SHARED / name)
    notes = [source.annotations(i) for i in range(len(source))]
    assert len(notes) == pictures and sum(len(note["texts"]) for note in notes) == texts
    assert sum("labels" in note for note in notes) == labelled
    # Counted the slow way, by the plain json.
    instances = json.loads((SHARED / name / "annotations" / "instances_train2017.json").read_text())
    names = {category["id"]: category["name"] for category in instances["categories"]}
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    pairs = {(files[x["image_id"]], names[x["category_id"]]) for x in instances["annotations"]}
    assert {(note["id"], label) for note in notes for label in note.get("labels", [])} == pairs
