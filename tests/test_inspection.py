"""What `mmjax data inspect` says of each format, word for word.

After a change that is wanted, write the golden files anew by `MMJAX_WRITE_GOLDEN=1 python -m pytest
tests/test_inspection.py`, and read what changed in them.
"""

import os
from pathlib import Path

import format_samples
import pytest

from mmjax import cli, inspection
from mmjax.data.sources.sniffing import FORMATS
from mmjax.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", format_samples.FORMATS)
def test_the_report_on_a_format_is_the_golden_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = inspection.inspect(format_samples.FORMATS[name](tmp_path)) + "\n"
    golden = GOLDEN / f"inspect_{name}.txt"
    if os.environ.get("MMJAX_WRITE_GOLDEN"):
        golden.write_text(said)
    assert str(tmp_path) not in said
    assert said == golden.read_text()


def test_every_format_has_a_golden_file():
    first_lines = [(GOLDEN / f"inspect_{name}.txt").read_text().split(":")[0] for name in format_samples.FORMATS]
    assert set(first_lines) >= {kind.NAME for kind in FORMATS} - {"packed"}


def test_the_config_lines_open_what_was_inspected(tmp_path, monkeypatch):
    from ml_collections import ConfigDict

    from mmjax.data.sources import SourceConfig
    from mmjax.data.sources.opening import open_source

    monkeypatch.chdir(tmp_path)
    said = inspection.inspect(format_samples.jsonl(tmp_path))
    config = ConfigDict({"data": {}, "processor": {}, "tasks": {}})
    exec(said.partition("config lines\n")[2].replace("  config", "config"), {"config": config})
    train = config.data.train.to_dict()
    assert train.pop("batch_size") == 64
    opened = open_source(SourceConfig(**train, max_bad_fraction=config.data.max_bad_fraction), "config.data.train")
    assert len(opened) == 9
    assert set(config.tasks) == {"contrastive", "captioning", "vqa", "classification"}
    assert config.processor.length % 8 == 0


def test_a_large_set_is_sampled_evenly_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inspection, "SAMPLE", 3)
    said = inspection.inspect(format_samples.csv_file(tmp_path))
    assert "8 rows (3 of them, evenly spread, are read)" in said
    assert [line for line in said.splitlines() if line.startswith("  row ")] == [
        "  row 0: images/0.png", "  row 3: images/3.png", "  row 6: images/6.png",
    ]  # fmt: skip


def test_lengths_are_of_the_tokenizer_that_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "square", *format_samples.WORDS, "picture", "shows", "that", "is"]
    (tmp_path / "vocab.txt").write_text("\n".join([*words, *map(str, range(8))]) + "\n")
    said = inspection.inspect(format_samples.csv_file(tmp_path), tokenizer="vocab.txt", length=6)
    line = next(line for line in said.splitlines() if "captions, tokens" in line)
    assert line.split()[2:] == ["12", "5", "5", "10", "10", "10", "33.3%"]  # 8 of 3 words, 4 of 8, with bos and eos


def test_the_command_prints_the_report_and_refuses_what_it_cannot_read(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = format_samples.csv_file(tmp_path)
    assert cli.main(["data", "inspect", path]) == 0
    assert capsys.readouterr().out == inspection.inspect(path) + "\n"
    assert cli.main(["data", "inspect", "nowhere.csv"]) == 2
    assert "mmjax data inspect: PATH.path: no file or folder 'nowhere.csv'" in capsys.readouterr().err
    assert cli.main(["data", "inspect", path, "--config.a=1"]) == 2
    with pytest.raises(ConfigError, match="expected auto or one of"):
        inspection.inspect(path, format="excel")
