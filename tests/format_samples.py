"""A small sample of every format that is read: eight drawn pictures, and what is said of them in the format's way."""

import csv
import io
import json
import tarfile

import numpy as np
from PIL import Image

WORDS = ("red", "green", "blue", "grey")
COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "grey": (128, 128, 128)}
COUNT = 8


def picture(i):
    """A PNG with a square in a colour, 8 to 15 pixels wide; number 5 is the same picture as number 1."""
    i = 1 if i == 5 else i
    pixels = np.full((8 + i % 3, 8 + i, 3), 240, np.uint8)
    pixels[2:6, 2:6] = COLOURS[WORDS[i % 4]]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def captions(i):
    return [f"a {WORDS[i % 4]} square", f"picture {i} shows a square that is {WORDS[i % 4]}"][: 1 + i % 2]


def turns(i):
    return [("what colour is the square?", WORDS[i % 4]), ("is it round?", "no")][: 1 + i % 2]


def images(folder, name="{}.png"):
    for i in range(COUNT):
        file = folder / name.format(i)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(i))


def _table(folder, name, dialect):
    images(folder / "images")
    with open(folder / name, "w", newline="") as file:
        writer = csv.writer(file, dialect)
        writer.writerow(["filepath", "title", "url"])
        writer.writerows([f"images/{i}.png", text, "http://x"] for i in range(COUNT) for text in captions(i))
    return name


def csv_file(folder):
    return _table(folder, "train.csv", "excel")


def tsv_file(folder):
    return _table(folder, "train.tsv", "excel-tab")


def _lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def jsonl(folder):
    """Captions, questions and a label; one picture is cut off, and one is missing."""
    images(folder)
    (folder / "3.png").write_bytes(picture(3)[:40])
    rows = [{"image": f"{i}.png", "caption": captions(i), "label": WORDS[i % 4]} for i in range(COUNT)]
    rows += [{"image": f"{i}.png", "question": q, "answer": a} for i in range(COUNT) for q, a in turns(i)]
    _lines(folder / "train.jsonl", [*rows, {"image": "gone.png", "caption": "nobody knows", "label": "red"}])
    return "train.jsonl"


def class_folder(folder):
    for i in range(COUNT):
        (folder / "set" / WORDS[i % 4]).mkdir(parents=True, exist_ok=True)
        (folder / "set" / WORDS[i % 4] / f"{i}.png").write_bytes(picture(i))
    return "set"


def pairs_folder(folder):
    images(folder / "set")
    for i in range(COUNT):
        (folder / "set" / f"{i}.txt").write_text("\n".join(captions(i)) + "\n")
    return "set"


def easy_vqa(folder):
    images(folder / "set" / "images")
    questions = [[q, a, i] for i in range(COUNT) for q, a in turns(i)]
    (folder / "set" / "questions.json").write_text(json.dumps(questions))
    return "set"


def _coco_images():
    return [{"id": 100 + i, "file_name": f"{i:012d}.png", "width": 8, "height": 8} for i in range(COUNT)]


def coco_captions(folder):
    images(folder / "val2017", "{:012d}.png")
    said = [
        {"id": 10 * i + k, "image_id": 100 + i, "caption": t} for i in range(COUNT) for k, t in enumerate(captions(i))
    ]
    (folder / "annotations").mkdir()
    whole = {"images": _coco_images(), "annotations": said}
    (folder / "annotations" / "captions_val2017.json").write_text(json.dumps(whole))
    return "annotations/captions_val2017.json"


def coco_instances(folder):
    images(folder / "val2017", "{:012d}.png")
    kinds = [{"id": k + 1, "name": word} for k, word in enumerate((*WORDS, "square"))]
    seen = [{"id": 2 * i, "image_id": 100 + i, "category_id": 1 + i % 4} for i in range(COUNT)]
    seen += [{"id": 2 * i + 1, "image_id": 100 + i, "category_id": 5} for i in range(COUNT)]
    (folder / "annotations").mkdir()
    whole = {"images": _coco_images(), "annotations": seen, "categories": kinds}
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(whole))
    return "annotations/instances_val2017.json"


def vqav2(folder):
    images(folder / "val2014", "COCO_val2014_{:012d}.jpg")  # by their names; what they are is told by their bytes
    asked = [(i, k, q, a) for i in range(COUNT) for k, (q, a) in enumerate(turns(i))]
    questions = [{"image_id": i, "question": q, "question_id": 10 * i + k} for i, k, q, _ in asked]
    ten = [[a] * 7 + ["unsure"] * 3 for *_, a in asked]
    annotations = [
        {
            "image_id": i,
            "question_id": 10 * i + k,
            "answers": [{"answer": a, "answer_id": n + 1} for n, a in enumerate(said)],
        }
        for (i, k, _, _), said in zip(asked, ten, strict=True)
    ]
    kind = {"data_type": "mscoco", "data_subtype": "val2014"}
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({**kind, "questions": questions}))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({**kind, "annotations": annotations}))
    return "v2_OpenEnded_mscoco_val2014_questions.json"


def llava(folder):
    """The last conversation is about no picture."""
    images(folder / "images")
    rows = []
    for i in range(COUNT):
        said = [{"from": who, "value": text} for q, a in turns(i) for who, text in (("human", q), ("gpt", a))]
        if i < COUNT - 1:
            said[0]["value"] = "<image>\n" + said[0]["value"]
        rows.append({"id": str(i), "conversations": said} | ({"image": f"images/{i}.png"} if i < COUNT - 1 else {}))
    (folder / "llava.json").write_text(json.dumps(rows))
    return "llava.json"


def messages(folder):
    images(folder)
    rows = []
    for i in range(COUNT):
        (question, answer), *_ = turns(i)
        content = [{"type": "image", "path": f"{i}.png"}, {"type": "text", "text": question}]
        turn = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        rows.append({"messages": [{"role": "system", "content": "Be brief."}, *turn]})
    _lines(folder / "messages.jsonl", rows)
    return "messages.jsonl"


def webdataset(folder):
    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"{shard:05d}.tar", "w") as tar:
            for i in range(4 * shard, 4 * shard + 4):
                about = json.dumps({"url": "http://x", "similarity": 0.3}).encode()
                for ending, data in (("png", picture(i)), ("txt", captions(i)[-1].encode()), ("json", about)):
                    info = tarfile.TarInfo(f"{i:05d}.{ending}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return "shards"


def parquet(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(COUNT)],
        "sentences": [captions(i) for i in range(COUNT)],
        "score": [0.5] * COUNT,
    }
    pq.write_table(pa.table(columns), folder / "train.parquet", row_group_size=3)
    return "train.parquet"


def tfrecord(folder):
    import tensorflow as tf

    def feature(*values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    with tf.io.TFRecordWriter(str(folder / "train.tfrecord")) as file:
        for i in range(COUNT):
            made = {"image/encoded": feature(picture(i)), "caption": feature(captions(i)[-1].encode())}
            file.write(tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString())
    return "train.tfrecord"


def tfds(folder):
    return "tfds:scenes/easy_16train"


def flat_json(folder):
    images(folder / "val2014")
    rows = [{"image": f"val2014/{i}.png", "caption": captions(i), "image_id": f"coco_{i}"} for i in range(COUNT)]
    (folder / "coco_karpathy_val.json").write_text(json.dumps(rows))
    return "coco_karpathy_val.json"


def nlvr(folder):
    rows = []
    for i in range(4):
        about = {"identifier": f"{i}-0", "directory": "0"}
        rows.append({"sentence": f"there is a {WORDS[i % 2]} square", "label": "true" if i < 2 else "false", **about})
        for order in range(6):
            file = folder / "images" / "0" / f"dev-{i}-0-{order}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(i))
    _lines(folder / "dev.json", rows)
    return "dev.json"


FORMATS = {
    "csv": csv_file, "tsv": tsv_file, "jsonl": jsonl, "class_folder": class_folder, "pairs_folder": pairs_folder,
    "easy_vqa": easy_vqa, "coco_captions": coco_captions, "coco_instances": coco_instances, "vqav2": vqav2,
    "llava": llava, "messages": messages, "webdataset": webdataset, "parquet": parquet, "tfrecord": tfrecord,
    "tfds": tfds, "flat_json": flat_json, "nlvr": nlvr,
}  # fmt: skip
