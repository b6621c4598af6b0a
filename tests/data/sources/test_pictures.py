"""Where pictures lie is inferred; an absent one ends the run before its first step; content makes the fingerprint."""

import pytest

from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
from mmjax.errors import ConfigError


def write(folder, where, n=20, absent=()):
    (folder / where).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        if i not in absent:
            (folder / where / f"{i}.jpg").write_bytes(b"x" * (i + 1))
    (folder / "lists").mkdir(exist_ok=True)
    rows = [f"{i}.jpg,caption {i}" for i in range(n)]
    (folder / "lists" / "train.csv").write_text("image,caption\n" + "\n".join(rows) + "\n")
    return str(folder / "lists" / "train.csv")


def opened(path, base="", **options):
    return open_source(SourceConfig(path=path, **options), "config.data.train", base)


@pytest.mark.parametrize("where", ["lists", "lists/images", "lists/imgs", "images", "."])
def test_the_root_is_inferred(tmp_path, where):
    assert opened(write(tmp_path, where))[4]["image"] == b"x" * 5


def test_a_given_root_starts_at_data_root_or_at_the_file(tmp_path):
    path = write(tmp_path, "lists/far/away")
    with pytest.raises(ConfigError, match="no file '0.jpg'"):
        opened(path)
    for base, root in (
        (str(tmp_path), "lists/far/away"),
        ("", "far/away"),
        ("", str(tmp_path / "lists" / "far" / "away")),
    ):
        assert opened(path, base, root=root)[4]["image"] == b"x" * 5
    with pytest.raises(ConfigError, match=r"config\.data\.train\.root: no folder"):
        opened(path, root="nowhere")


def test_absolute_paths_need_no_root(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"A")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "x.csv").write_text(f"image,caption\n{tmp_path}/a.jpg,x\n")
    assert opened(str(tmp_path / "deep" / "er" / "x.csv"))[0]["image"] == b"A"


def test_any_absent_picture_is_named_at_opening(tmp_path):
    path = write(tmp_path, "lists/images", absent=(15,))
    with pytest.raises(ConfigError) as error:
        opened(path)
    assert str(error.value) == (
        f"train.csv, row 17: no file '15.jpg' below {tmp_path}/lists/images. The first 16 rows are fine; set "
        "config.data.train.root if the pictures are elsewhere, or data.max_bad_fraction to train without some."
    )
    (tmp_path / "lists" / "images" / "15.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match="row 17: the file '15.jpg' below .* is empty"):
        opened(path)


def test_the_fingerprint_changes_with_rows_pictures_and_grouping_only(tmp_path):
    path = write(tmp_path / "a", "lists/images")
    first = opened(path).fingerprint
    assert opened(write(tmp_path / "b", "images")).fingerprint == first
    (tmp_path / "a" / "lists" / "images" / "3.jpg").write_bytes(b"other")
    assert opened(path).fingerprint != first
    write(tmp_path / "a", "lists/images")
    assert opened(path).fingerprint == first
    with open(path, "a") as file:
        file.write("3.jpg,another caption\n")
    longer = opened(path).fingerprint
    assert longer != first and longer != opened(path, group=False).fingerprint
