"""csv and tsv: whatever the separator and header, the same records; what is wrong is named by its row."""

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError

CAPTIONED = [
    {"id": "a.jpg", "texts": ["two dogs, running", 'the "best" dog'], "image": b"A"},
    {"id": "b.png", "texts": ["a cat"], "image": b"BB"},
]


def write(folder, text, name="train.csv"):
    (folder / name).write_bytes(text.encode())
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "a.jpg").write_bytes(b"A")
    (folder / "images" / "b.png").write_bytes(b"BB")
    return folder / name


def opened(path, **options):
    return open_source(SourceConfig(path=str(path), **options), "config.data.train")


@pytest.mark.parametrize(
    "text",
    [
        'image,caption\na.jpg,"two dogs, running"\nb.png,a cat\na.jpg,"the ""best"" dog"\n',
        '\ufeffimage,caption\r\na.jpg,"two dogs, running"\r\n\r\nb.png,a cat\r\na.jpg,"the ""best"" dog"\r\n',
        'filepath\ttitle\na.jpg\ttwo dogs, running\nb.png\ta cat\na.jpg\tthe "best" dog\n',
        'filepath\ttitle\na.jpg\ttwo dogs, running\nb.png\ta cat\na.jpg\t"the ""best"" dog"\n',
        'a.jpg\ttwo dogs, running\nb.png\ta cat\na.jpg\tthe "best" dog',
        'a.jpg,"two dogs, running"\nb.png,a cat\na.jpg,"the ""best"" dog"\n',
        'image_name| comment_number| comment\na.jpg| 0| two dogs, running\nb.png|0|a cat\na.jpg|1|"the ""best"" dog"\n',
        'caption;image\n"two dogs, running";a.jpg\na cat;b.png\n"the ""best"" dog";a.jpg\n',
    ],
)
def test_every_dialect_gives_the_same_records(tmp_path, text):
    source = opened(write(tmp_path, text))
    assert [source[i] for i in range(len(source))] == CAPTIONED
    lines = opened(tmp_path / "train.csv", group=False)
    assert [lines.annotations(i)["texts"] for i in range(3)] == [["two dogs, running"], ["a cat"], ['the "best" dog']]


def test_questions_and_labels(tmp_path):
    source = opened(write(tmp_path, "image,question,answer\na.jpg,what?,dog\na.jpg,where?,here\n"))
    assert source.annotations(0)["qa"] == [
        {"question": "what?", "answers": ["dog"]},
        {"question": "where?", "answers": ["here"]},
    ]
    source = opened(write(tmp_path, "filename,label\na.jpg,dog\nb.png,cat\n"))
    assert [source.annotations(i)["label"] for i in range(2)] == ["dog", "cat"]


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "is empty. Expected a row"),
        ("image,caption\n", "no rows"),
        ("image,caption\na.jpg,two\na.jpg,two, three\n", "train.csv, row 3: 3 columns, expected 2"),
        ("image,caption\na.jpg,two\nb.png,\n", "train.csv, row 3: the text is empty"),
        ("image,captoin\na.jpg,two\n", r"row 1: unknown 'captoin' in \(image, captoin\).*Did you mean 'caption'"),
        ("image,caption,text\na.jpg,a,b\n", "both 'caption' and 'text' could be the text"),
        ("caption,label\na,b\n", r"no image field in \(caption, label\)"),
        ("image,question\na.jpg,b\n", "question without answer"),
        ("image,id\na.jpg,b\n", "only an image"),
        ("a.jpg,what?,dog\n", "3 columns and no header"),
        ("hello there\n", "one column only"),
        ("hello,there\n", "neither a header nor a picture's path"),
        ('image,caption\na.jpg,"never closed\n', "train.csv, row 2: .*quotation marks"),
        ("image,label\na.jpg,dog\na.jpg,cat\n", "row 3: label 'cat' for 'a.jpg', but 'dog' in row 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        opened(write(tmp_path, text))
