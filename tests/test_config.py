"""Config files, overrides and their errors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections
import pytest

from mmjax.config import build, choice, differences, flatten, merge, nest, parse_overrides, read_file, share
from mmjax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    kind: str = choice("sum", "mean")
    shape: tuple[int, ...] = (1,)


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: Mapping[str, Inner] = dataclasses.field(default_factory=dict)
    on: bool = False
    count: int = 3
    part: float = share()
    free: Any = ""


def test_builds_nested_dataclasses_from_plain_data_and_text():
    made = build(Outer, {"name": "a", "inner": {"rate": "3e-4", "shape": "2,3"}, "on": "true", "count": "7"}, "config")
    assert made == Outer("a", Inner(3e-4, "sum", (2, 3)), None, {}, True, 7)
    assert build(Outer, {"name": "a", "free": "{'cat': 2.0}"}, "config").free == {"cat": 2.0}
    assert build(Outer, {"name": "a", "free": "cat"}, "config").free == "cat"


def test_optional_group_is_none_by_name_and_built_from_keys():
    assert build(Outer, {"name": "a", "maybe": "none"}, "config").maybe is None
    assert build(Outer, {"name": "a", "maybe": {"rate": 1}}, "config").maybe == Inner(rate=1.0)
    assert build(Outer, {"name": "a", "many": {"x": {"rate": 2}}}, "config").many == {"x": Inner(rate=2.0)}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"name": "a", "inner": {"rte": 1}}, r"config\.inner\.rte: no such key\. Did you mean 'rate'\?"),
        ({"name": "a", "inner": {"rate": "fast"}}, r"config\.inner\.rate: found 'fast' \(str\), expected a number"),
        ({"name": "a", "count": 1.5}, r"config\.count: found 1\.5 \(float\), expected a whole number"),
        ({"name": "a", "count": True}, r"config\.count: found True"),
        ({"name": "a", "on": "yes"}, r"config\.on: found 'yes' \(str\), expected true or false"),
        (
            {"name": "a", "inner": {"kind": "sun"}},
            r"config\.inner\.kind: found 'sun', expected one of sum, mean\. Did you mean 'sum'\?",
        ),
        ({"name": "a", "inner": 3}, r"config\.inner: found 3"),
        ({"name": "a", "part": "1.0"}, r"config\.part: found 1\.0, expected a share in \[0, 1\)"),
        ({"name": "a", "part": -0.1}, r"config\.part: found -0\.1, expected a share"),
        ({}, r"config\.name: missing"),
    ],
)
def test_bad_values_are_errors_that_name_the_key(value, message):
    with pytest.raises(ConfigError, match=message):
        build(Outer, value, "config")


def test_overrides_are_merged_over_the_file(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        "import ml_collections\ndef get_config():\n  c = ml_collections.ConfigDict()\n"
        "  c.a = {'b': 1, 'c': (1, 2)}\n  return c\n"
    )
    flags = parse_overrides(["--config.a.b=2", "--config.d.e", "text"])
    assert merge(read_file(str(file)), nest(flags)) == {"a": {"b": "2", "c": [1, 2]}, "d": {"e": "text"}}


def test_unknown_argument_and_missing_file_and_function_are_errors(tmp_path):
    with pytest.raises(ConfigError, match="unknown argument '--steps=3'"):
        parse_overrides(["--steps=3"])
    with pytest.raises(ConfigError, match="no value"):
        parse_overrides(["--config.a"])
    (tmp_path / "quick.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match=r"Did you mean '.*quick\.py'"):
        read_file(str(tmp_path / "qick.py"))
    with pytest.raises(ConfigError, match="defines no get_config"):
        read_file(str(tmp_path / "quick.py"))


def test_differences_and_flatten_name_full_keys():
    old = ml_collections.ConfigDict({"a": {"b": 1, "c": 2}})
    assert differences(old, {"a": {"b": 1, "c": 3}, "d": 4}) == {"a.c": (2, 3), "d": (None, 4)}
    assert nest(flatten({"a": {"b": {"c": 1}}})) == {"a": {"b": {"c": 1}}}
