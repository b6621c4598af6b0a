"""parquet: every layout of pictures and of what is said, at random, for the price of a plain file."""

import io
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmjax.data.sources import SourceConfig, parquet_copies
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MMJAX_CACHE", str(folder))
    return folder


def write(path, columns, features=None, **options):
    """columns: {name: values, or an array}; features: what Hugging Face notes about them."""
    table = pa.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


def records(source):
    return [source[i] for i in range(len(source))]


def held(*pictures):
    return pa.array([{"bytes": data, "path": "x.png"} if data else None for data in pictures], HF)


@pytest.mark.parametrize(
    "pictures",
    [
        held(b"A", b"B"),
        pa.array([b"A", b"B"], pa.binary()),
        pa.array([b"A", b"B"], pa.large_binary()),
        pa.array([[b"A"], [b"B"]], pa.list_(pa.binary())),
        pa.array([[{"bytes": b"A"}], [{"bytes": b"B"}]], pa.list_(HF)),
        pa.array([b"A", b"B"]).dictionary_encode(),
    ],
    ids=["struct", "binary", "large", "list", "list of structs", "dictionary"],
)
def test_every_form_of_pictures_is_read(tmp_path, pictures):
    source = opened(write(tmp_path / "a.parquet", {"image": pictures, "caption": ["x", "y"]}))
    assert records(source) == [
        {"id": "a/0", "texts": ["x"], "image": b"A"},
        {"id": "a/1", "texts": ["y"], "image": b"B"},
    ]


@pytest.mark.parametrize(
    "columns,said",
    [
        ({"caption": ["x"]}, {"texts": ["x"]}),
        ({"captions": [["x", "y"]]}, {"texts": ["x", "y"]}),
        ({"sentences": [[{"raw": "x.", "tokens": ["x"]}, {"raw": "y.", "tokens": ["y"]}]]}, {"texts": ["x.", "y."]}),
        ({"question": ["q"], "answer": ["x"]}, {"qa": [{"question": "q", "answers": ["x"]}]}),
        ({"question": ["q"], "answers": [["x", "y"]]}, {"qa": [{"question": "q", "answers": ["x", "y"]}]}),
        (
            {"question": ["q"], "answers": [[{"answer": "x", "answer_id": 1}, {"answer": "y", "answer_id": 2}]]},
            {"qa": [{"question": "q", "answers": ["x", "y"]}]},
        ),
        ({"label": ["x"]}, {"label": "x"}),
        ({"label": [3]}, {"label": "3"}),
        ({"labels": [["x", "y"]]}, {"labels": ["x", "y"]}),
        ({"caption": pa.array(["x"]).dictionary_encode()}, {"texts": ["x"]}),
    ],
)
def test_every_shape_of_what_is_said_is_read(tmp_path, columns, said):
    source = opened(write(tmp_path / "a.parquet", {"image": held(b"A"), **columns}))
    assert source[0] == {"id": "a/0", "image": b"A"} | said
    assert source.annotations(0) == {"id": "a/0"} | said


def test_labels_have_the_names_that_hugging_face_notes(tmp_path):
    names = {"_type": "ClassLabel", "names": ["cat", "dog"]}
    columns = {"image": held(b"A", b"B", b"C"), "label": [1, 0, -1]}
    source = opened(write(tmp_path / "a.parquet", columns, {"image": {"_type": "Image"}, "label": names}))
    assert [record["label"] for record in records(source)] == ["dog", "cat"]
    assert source.left_aside == {"rows of which nothing is said": 1}
    columns = {"image": held(b"A"), "labels": [[1, 0]]}
    for features in ({"_type": "Sequence", "feature": names}, [names], {"_type": "List", "feature": names}):
        path = write(tmp_path / "b.parquet", columns, {"labels": features})
        assert opened(path)[0]["labels"] == ["dog", "cat"]


def test_what_datasets_writes_is_read(tmp_path):
    """Pixels through PIL: the struct holds the bytes of a png."""
    picture = io.BytesIO()
    Image.new("RGB", (4, 4), (200, 10, 10)).save(picture, "PNG")
    path = write(tmp_path / "a.parquet", {"image": held(picture.getvalue()), "text": ["red"]}, compression="zstd")
    assert Image.open(io.BytesIO(opened(path)[0]["image"])).getpixel((1, 1)) == (200, 10, 10)


def test_turns_of_user_and_assistant_are_a_conversation(tmp_path):
    columns = {
        "images": pa.array([[{"bytes": b"A"}, {"bytes": b"B"}], []], pa.list_(HF)),
        "texts": [
            [{"user": "q", "assistant": "x", "source": "s"}, {"user": "r", "assistant": "y", "source": "s"}],
            [{"user": "no picture", "assistant": "z", "source": "s"}],
        ],
        "relevance_ratings": [[5, 5], [4]],
    }
    source = opened(write(tmp_path / "a.parquet", columns))

    def turn(role, text, pictures=0):
        return {"role": role, "content": [{"type": "image"}] * pictures + [{"type": "text", "text": text}]}

    assert source[0]["images"] == [b"A", b"B"] and source[0]["image"] == b"A"
    assert source.annotations(0)["messages"] == [
        turn("user", "q", pictures=2),
        turn("assistant", "x"),
        turn("user", "r"),
        turn("assistant", "y"),
    ]
    assert source[1]["messages"] == [turn("user", "no picture"), turn("assistant", "z")]
    assert "image" not in source[1]
    assert source.left_aside == {"column 'relevance_ratings'": 2}


def test_messages_are_read_as_from_json(tmp_path):
    columns = {
        "image": held(b"A"),
        "messages": [[{"role": "user", "content": "<image>q"}, {"role": "assistant", "content": "x"}]],
    }
    assert opened(write(tmp_path / "a.parquet", columns)).annotations(0)["messages"] == [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "x"}]},
    ]


def test_rows_about_one_picture_are_one_row_and_its_bytes_are_kept_once(tmp_path, cache):
    columns = {
        "image": held(b"A" * 1000, b"B" * 1000, b"A" * 1000),
        "question": ["q0", "q1", "q2"],
        "answer": ["x", "y", "z"],
    }
    path = write(tmp_path / "a.parquet", columns)
    assert [[qa["question"] for qa in record["qa"]] for record in records(opened(path))] == [["q0", "q2"], ["q1"]]
    alone = records(opened(path, group=False))
    assert [(r["image"][:1], r["qa"][0]["question"]) for r in alone] == [(b"A", "q0"), (b"B", "q1"), (b"A", "q2")]
    assert [file.stat().st_size for file in cache.rglob("*.pictures")] == [2000]


def test_equal_pictures_with_labels_stay_apart(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": held(b"A", b"A"), "label": ["cat", "feline"]})
    assert [record["label"] for record in records(opened(path))] == ["cat", "feline"]


def test_a_folder_is_read_by_split(tmp_path):
    for split, count in (("train", 2), ("test", 1)):
        for k in range(count):
            caption = f"{split} {k}"
            write(
                tmp_path / "data" / f"{split}-0000{k}-of-0000{count}.parquet",
                {"image": held(caption.encode()), "caption": [caption]},
            )
    for path in (tmp_path, tmp_path / "data"):
        assert [record["image"] for record in records(opened(path))] == [b"train 0", b"train 1"]
        assert [record["texts"] for record in records(opened(path, split="test"))] == [["test 0"]]
        with pytest.raises(ConfigError, match=r"split: found 'dev', but the files are of: test, train"):
            opened(path, split="dev")
    assert len(opened(tmp_path / "data" / "train-{00000..00001}-of-00002.parquet")) == 2


def test_folders_named_for_splits_are_read(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split / "0000.parquet", {"image": held(b"A"), "caption": [split]})
    assert records(opened(tmp_path, split="test"))[0]["texts"] == ["test"]


def test_paths_are_found_as_for_other_files(tmp_path):
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(name.encode())
    columns = {"file_name": ["a.jpg", "b.jpg", "a.jpg"], "caption": ["x", "y", "z"]}
    path = write(tmp_path / "a.parquet", columns)
    expected = [
        {"id": "a.jpg", "texts": ["x", "z"], "image": b"a"},
        {"id": "b.jpg", "texts": ["y"], "image": b"b"},
    ]
    assert records(opened(path)) == records(opened(path, root="images")) == expected
    assert len(opened(path, group=False)) == 3
    structs = pa.array([{"bytes": None, "path": p} for p in columns["file_name"]], HF)
    assert records(opened(write(tmp_path / "b.parquet", columns | {"file_name": structs}))) == expected
    (tmp_path / "images" / "b.jpg").unlink()
    with pytest.raises(ConfigError, match=r"row 2: no file 'b\.jpg' below"):
        opened(path)


def test_what_is_not_used_is_counted(tmp_path):
    columns = {
        "image": held(b"A", None, b"", b"D", b"E"),
        "caption": ["x", "y", "z", None, ""],
        "url": ["u"] * 5,
        "file_name": ["a.jpg"] * 5,
    }
    source = opened(write(tmp_path / "a.parquet", columns))
    assert records(source) == [{"id": "a/0", "texts": ["x"], "image": b"A"}]
    assert source.left_aside == {
        "rows without a picture": 2,
        "rows of which nothing is said": 2,
        "column 'url'": 5,
        "column 'file_name'": 5,
    }


def test_fields_name_columns(tmp_path):
    columns = {"left": held(b"A"), "right": held(b"B"), "alt": ["x"], "caption": ["y"]}
    path = write(tmp_path / "a.parquet", columns)
    assert opened(path, fields={"image": "right", "text": "alt"})[0] == {"id": "a/0", "texts": ["x"], "image": b"B"}
    with pytest.raises(ConfigError, match=r"a\.parquet: pictures may be in left, right\. Set fields"):
        opened(path)


def test_random_rows_of_many_groups_equal_the_table(tmp_path, monkeypatch):
    """The pieces that are copied side by side, the row groups and the files leave every row in its place."""
    monkeypatch.setattr(parquet_copies, "PIECE", 2000)
    rng = random.Random(0)
    pictures = [rng.randbytes(rng.randrange(1, 200)) for _ in range(300)]
    captions = [f"caption {k}" for k in range(300)]
    for k, (begin, end) in enumerate(((0, 120), (120, 121), (121, 121), (121, 300))):
        columns = {
            "image": held(*pictures[begin:end]),
            "caption": pa.array(captions[begin:end], pa.string()),
        }
        write(tmp_path / f"{k}.parquet", columns, row_group_size=7)
    source = opened(tmp_path)
    assert len(list(source._ranges.files)) > 4
    order = rng.choices(range(300), k=1000)
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(source.__getitem__, order))
    assert [(r["image"], r["texts"][0]) for r in read] == [(pictures[i], captions[i]) for i in order]


def test_the_fingerprint_is_that_of_content_and_settings(tmp_path):
    columns = {"image": held(b"A", b"A"), "caption": ["x", "y"]}
    here, there = (write(tmp_path / folder / "a.parquet", columns) for folder in ("here", "there"))
    assert opened(here).fingerprint == opened(there).fingerprint == opened(here.parent).fingerprint
    assert opened(here).fingerprint != opened(here, group=False).fingerprint
    write(there, columns | {"caption": ["x", "z"]})
    assert opened(here).fingerprint != opened(there).fingerprint


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"bad\.parquet: not readable as parquet"):
        opened(tmp_path / "bad.parquet")
    write(tmp_path / "laion.parquet", {"url": ["http://x/a.jpg"], "caption": ["x"]})
    with pytest.raises(ConfigError, match="no image field.*It has urls: fetch the pictures first"):
        opened(tmp_path / "laion.parquet")
    path = write(tmp_path / "a.parquet", {"image": held(b"A"), "caption": ["x"]})
    with pytest.raises(ConfigError, match=r"root: found 'x', but 'image' holds the pictures"):
        open_source(SourceConfig(path=str(tmp_path / "{a,a}.parquet"), root="x"), "config.data.train")
    write(tmp_path / "none.parquet", {"image": held(), "caption": pa.array([], pa.string())})
    with pytest.raises(ConfigError, match=r"none\.parquet: no rows"):
        opened(tmp_path / "none.parquet")
    write(tmp_path / "b.parquet", {"image": held(b"B"), "text": ["x"]})
    with pytest.raises(ConfigError, match=r"b\.parquet: no column 'caption', which the other files have"):
        opened(tmp_path / "{a,b}.parquet")
    monkeypatch.setattr(parquet_copies.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1}))
    write(path, {"image": held(b"A" * 10_000_000), "caption": ["x"]})
    with pytest.raises(ConfigError, match="0.0 GB are free.*Set MMJAX_CACHE"):
        opened(path)
