"""Prepared sets: what is read is what was drawn, in any order, without TensorFlow."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from mmjax.data.scenes import make_record
from mmjax.data.sources import SourceConfig
from mmjax.data.sources.opening import open_source
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


def png(value):
    data = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(data, "PNG")
    return data.getvalue()


class Captions(tfds.core.GeneratorBasedBuilder):
    """Named and nested as `coco_captions` has it, with a class and objects besides."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = epath.Path(__file__)

    def _info(self):
        f = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=f.FeaturesDict(
                {
                    "captions": f.Sequence({"id": np.int64, "text": f.Text()}),
                    "image": f.Image(encoding_format="png"),
                    "image/filename": f.Text(),
                    "label": f.ClassLabel(names=["cat", "dog"]),
                    "objects": f.Sequence({"bbox": f.BBoxFeature(), "label": f.ClassLabel(names=["x", "y"])}),
                }
            ),
            disable_shuffling=True,
        )

    def _split_generators(self, _):
        return {"train": self._generate_examples(5), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for i in range(count):
            yield (
                i,
                {
                    "captions": [{"id": 10 * i + k, "text": f"caption {i} {k}"} for k in range(i)],
                    "image": io.BytesIO(png(i)),
                    "image/filename": f"{i}.png",
                    "label": i % 2 if i else -1,
                    "objects": [{"bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0), "label": 1}],
                },
            )


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, cache, tmp_path_factory):
    """The data folder that holds the set, in either format of files."""
    data = tmp_path_factory.mktemp(request.param)
    Captions(data_dir=str(data)).download_and_prepare(file_format=request.param)
    return data


def test_any_prepared_set_is_read_by_its_features(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    for path in ("tfds:captions", "tfds:captions:1.0.0", str(prepared / "captions" / "1.0.0")):
        source = open_source(SourceConfig(path=path), "config.data.train")
        assert len(source) == 5
        assert "texts" not in source[0] and "label" not in source[0]
        for i in (4, 1, 3):
            said = {"id": str(i), "texts": [f"caption {i} {k}" for k in range(i)], "label": ("cat", "dog")[i % 2]}
            assert source.annotations(i) == said
            assert source[i] == said | {"image": png(i)}
        unused = ("captions/id", "image/filename", "objects/bbox", "objects/label")
        assert source.left_aside == {f"feature '{name}'": 5 for name in unused}
    assert len(open_source(SourceConfig(path="tfds:captions", split="test"), "config.data.test")) == 2
    assert len(open_source(SourceConfig(path="tfds:captions", group=False), "config.data.train")) == 1 + 1 + 2 + 3 + 4


def test_the_newest_version_is_taken_and_variants_are_named(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("9.0.0", "10.0.0"):
        shutil.copytree(prepared / "captions" / "1.0.0", tmp_path / "captions" / version)
    info = tmp_path / "captions" / "9.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"splits": []}))
    assert len(open_source(SourceConfig(path="tfds:captions"), "config.data.train")) == 5
    (tmp_path / "captions").rename(tmp_path / "2014")
    (tmp_path / "coco").mkdir()
    (tmp_path / "2014").rename(tmp_path / "coco" / "2014")
    assert len(open_source(SourceConfig(path="tfds:coco/2014"), "config.data.train")) == 5
    with pytest.raises(ConfigError, match=r"holds 2014\. Expected one of them: tfds:coco/2014"):
        open_source(SourceConfig(path="tfds:coco"), "config.data.train")


def test_reading_imports_no_tensorflow(cache):
    opened()
    code = (
        "import sys; from mmjax.data.sources import SourceConfig; from mmjax.data.sources.opening import open_source;"
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
        ({"path": "tfds:mnist"}, "found 'tfds:mnist', expected tfds:scenes/easy.*Prepare it: .*'mnist'.*array_record"),
        ({"path": f"tfds:scenes/{NAME}", "root": "x"}, r"\.root: found 'x'"),
        ({"path": f"tfds:scenes/{NAME}", "format": "csv"}, r"\.format: found 'csv'"),
    ],
)
def test_a_wrong_config_is_an_error(cache, config, message, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        open_source(SourceConfig(**config), "config.data.train")
