"""Prepared sets: what is read is what was drawn, in any order, without TensorFlow."""

import subprocess
import sys

import pytest

from mmjax.data.scenes import make_record
from mmjax.data.sources import SourceConfig, open_source
from mmjax.errors import ConfigError

NAME = "full_32px_16train"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMJAX_CACHE", str(folder))
        yield folder


def opened(split="", **options):
    return open_source(SourceConfig(path=f"tfds:scenes/{NAME}", split=split, **options), "config.data.train")


def test_random_access_equals_drawing(cache):
    for split in ("train", "validation", "test", "test_unseen"):
        source = opened(split)
        assert len(source) == (16 if split == "train" else 8)
        for i in (len(source) - 1, 0, 3):
            record = make_record("full", split, i, size=32)
            assert source[i] == record
            del record["image"]
            assert source.annotations(i) == record


def test_the_fingerprint_is_that_of_the_content(cache, tmp_path, monkeypatch):
    train = opened().fingerprint
    assert train != opened("test").fingerprint and train != opened(group=False).fingerprint
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path))
    assert opened().fingerprint == train


def test_a_row_a_line_holds_every_text_and_question_once(cache):
    grouped, lines = opened(), opened(group=False)
    rows = [lines[i] for i in range(len(lines))]
    for i in range(len(grouped)):
        record = grouped[i]
        mine = [row for row in rows if row["id"] == record["id"]]
        assert [text for row in mine for text in row.get("texts", [])] == record["texts"]
        assert [qa for row in mine for qa in row.get("qa", [])] == record["qa"]
        assert all(len(row.get("texts", [])) + len(row.get("qa", [])) == 1 for row in mine)


def test_a_prepared_folder_opens_by_its_path(cache):
    source = opened("test")
    folder = next((cache / "scenes" / NAME).glob("*.*.*"))
    assert open_source(SourceConfig(path=str(folder), split="test"), "config.data.test")[2] == source[2]


def test_reading_imports_no_tensorflow(cache):
    opened()
    code = (
        "import sys; from mmjax.data.sources import SourceConfig, open_source;"
        f"open_source(SourceConfig(path='tfds:scenes/{NAME}'), 'config.data.train')[0];"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "config,message",
    [
        (
            {"path": f"tfds:scenes/{NAME}", "split": "tests"},
            r"config\.data\.train\.split: found 'tests'.*Did you mean 'test'",
        ),
        ({"path": "tfds:mnist"}, "found 'tfds:mnist', expected tfds:scenes/easy"),
        ({"path": f"tfds:scenes/{NAME}", "root": "x"}, r"\.root: found 'x'"),
        ({"path": f"tfds:scenes/{NAME}", "format": "csv"}, r"\.format: found 'csv'"),
    ],
)
def test_a_wrong_config_is_an_error(cache, config, message):
    with pytest.raises(ConfigError, match=message):
        open_source(SourceConfig(**config), "config.data.train")
