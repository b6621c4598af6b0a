"""Conversations: every dialect gives the same messages, and the n-th image part is the n-th picture."""

import json
from pathlib import Path

import pytest

from mmjax.data.sources import SourceConfig, conversations
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

SHARED = Path(__file__).parents[3] / ".." / "shared" / "data"
IMAGE = {"type": "image"}


def text(words):
    return {"type": "text", "text": words}


def llava(*turns, **more):
    return {**more, "conversations": [{"from": who, "value": value} for who, value in turns]}


def chat(*turns, **more):
    return {**more, "messages": [{"role": who, "content": content} for who, content in turns]}


def write(folder, items, name="chat.jsonl"):
    for picture in "ab":
        (folder / f"{picture}.jpg").write_bytes(picture.encode())
    lines = json.dumps(items, indent=1) if name.endswith(".json") else "\n".join(map(json.dumps, items))
    (folder / name).write_text(lines)
    return folder / name


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


ASKED = [
    {"role": "user", "content": [IMAGE, text("What is it?")]},
    {"role": "assistant", "content": [text("A dog.")]},
]


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
@pytest.mark.parametrize(
    "item",
    [
        llava(("human", "<image>\nWhat is it?"), ("gpt", "A dog."), id="1", image="a.jpg"),
        llava(("human", "What is it?"), ("gpt", "A dog."), image="a.jpg"),  # no placeholder: in front
        llava(("user", "<image>\nWhat is it?"), ("assistant", "A dog."), images=["a.jpg"]),
        chat(("user", "<image>What is it?"), ("assistant", "A dog."), images=["a.jpg"]),
        chat(("user", [{**IMAGE, "path": "a.jpg"}, text("What is it?")]), ("assistant", [text("A dog.")])),
        chat(("user", [{**IMAGE, "url": "a.jpg"}, text("What is it?")]), ("assistant", "A dog."), images=["a.jpg"]),
        chat(("user", [{**IMAGE, "image": "a.jpg"}, text("What is it?")]), ("assistant", "A dog.")),
        chat(("user", [{"type": "image_url", "image_url": {"url": "a.jpg"}}, text("What is it?")]),
             ("assistant", "A dog.")),
        chat(("user", [IMAGE, text("What is it?")]), ("assistant", "A dog."), images=[{"path": "a.jpg"}]),
    ],
)  # fmt: skip
def test_every_dialect_gives_the_same_record(tmp_path, name, item):
    source = opened(write(tmp_path, [item], name))
    record = {"id": item.get("id", "a.jpg"), "messages": ASKED}
    assert len(source) == 1 and source[0] == {**record, "image": b"a"}
    assert source.annotations(0) == record


def test_places_and_pictures_keep_their_order(tmp_path):
    item = llava(
        ("system", "Be brief."),
        ("human", "Is <image> like\n<image>\n?"),
        ("gpt", "No."),
        ("human", "Why?"),
        ("gpt", "It is a dog."),
        image=["b.jpg", "a.jpg"],
    )
    record = opened(write(tmp_path, [item]))[0]
    assert record["images"] == [b"b", b"a"] and record["image"] == b"b"
    assert record["messages"][:2] == [
        {"role": "system", "content": [text("Be brief.")]},
        {"role": "user", "content": [text("Is "), IMAGE, text(" like"), IMAGE, text("?")]},
    ]
    mixed = chat(("user", [IMAGE, text("or"), {**IMAGE, "path": "b.jpg"}, IMAGE]), ("assistant", "x"), image="a.jpg")
    with pytest.raises(ConfigError, match="row 1: 1 pictures in its fields and 2 places"):
        opened(write(tmp_path, [mixed]))
    mixed["image"] = ["a.jpg", "a.jpg"]
    assert opened(write(tmp_path, [mixed]))[0]["images"] == [b"a", b"b", b"a"]


def test_a_row_is_a_conversation_with_or_without_a_picture(tmp_path):
    said = (("human", "Hello"), ("gpt", "Good day"))
    items = [llava(*said, image="a.jpg", model="x"), llava(*said), llava(*said, image="a.jpg"), llava(*said)]
    source = opened(write(tmp_path, items))
    assert len(source) == 4 and "image" in source[2] and "image" not in source[1]
    assert source[1]["messages"][0] == {"role": "user", "content": [text("Hello")]}
    # The same words without a picture stay on one side of train and validation; with one, the picture decides.
    assert source.annotations(1)["key"] == source.annotations(3)["key"] and "key" not in source.annotations(0)
    assert source.left_aside == {"field 'model'": 1}


def test_a_large_file_is_read_by_its_index(tmp_path, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path / "cache"))
    said = (("human", "Hello"), ("gpt", "Good day"))
    file = write(tmp_path, [llava(*said, image=picture) for picture in ("a.jpg", "b.jpg", "a.jpg")])
    whole = opened(file)
    monkeypatch.setattr(conversations, "READ_WHOLE", 10)
    indexed = opened(file)
    assert [indexed[i] for i in range(len(indexed))] == [whole[i] for i in range(3)]


FINE = llava(("human", "Hello"), ("gpt", "Good day"))


@pytest.mark.parametrize(
    "item,message",
    [
        (llava(("human", "<image>"), ("gpt", "x")), "row 2: 0 pictures in its fields and 1 places"),
        (llava(("human", "<image>"), ("gpt", "x"), image=["a.jpg", "b.jpg"]), "row 2: 2 pictures .* and 1 places"),
        (llava(("human", "x"), ("gpt", "y"), image="https://a.b/c.jpg"), "row 2: image: .*nothing is downloaded"),
        (llava(("human", "x"), ("gpt", "y"), image="data:image/png;base64,xx"), "row 2: image: .*the picture itself"),
        (llava(("human", "x"), ("gpt", "y"), image=3), "row 2: image: found 3"),
        (llava(("human", "x"), ("gpt", "y"), video="a.mp4"), "row 2: found a field 'video', which is not supported"),
        (llava(("human", "x"), ("gtp", "y")), "row 2, turn 2: found the role 'gtp'.*Did you mean 'gpt'"),
        (llava(("human", "x"), ("gpt", " ")), "row 2, turn 2: the assistant says nothing"),
        (llava(("human", ""), ("gpt", "y")), "row 2, turn 1: the user says nothing"),
        (llava(("human", "x"), ("gpt", "y"), ("human", "z")), "row 2: the last of 3 turns is the user's"),
        (llava(("gpt", "y"), image="a.jpg"), "row 2: a picture, but no turn of the user"),
        (llava(("human", "x"), ("gpt", "y"), messages=[1]), r"row 2: found \(messages, conversations\)"),
        (llava(), r"row 2: found \(conversations\)"),
        ({"image": "a.jpg", "caption": "x"}, r"row 2: found \(image, caption\). Expected an object with 'conv"),
        (chat(("user", [{"type": "video", "path": "a.mp4"}])), "row 2, turn 1: found .*video.*not|only parts"),
        (chat(("user", 3)), "row 2, turn 1: found 3, expected text, or a list"),
        ({"messages": ["x"]}, "row 2, turn 1: found 'x', expected from and value"),
        (llava(("human", "x"), ("gpt", "y"), image="c.jpg"), "row 2: no file 'c.jpg'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, item, message):
    with pytest.raises(ConfigError, match=f"chat.jsonl, {message}"):
        opened(write(tmp_path, [FINE, item]))


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent: the real sets are not read")
@pytest.mark.parametrize("name,turns", [("llava.json", 4), ("messages.jsonl", 2)])
def test_real_sets_are_read_whole(name, turns):
    source = opened(SHARED / "chat" / name)
    notes = [source.annotations(i) for i in range(len(source))]
    assert len(notes) == 80 and {len(note["messages"]) for note in notes} == {turns}
    assert all(note["messages"][0]["content"][0] == IMAGE for note in notes)
    assert source[79]["image"][:2] == b"\xff\xd8"
