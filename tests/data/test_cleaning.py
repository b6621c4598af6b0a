"""Cleaning: each step does what its name says, in the order given."""

import pytest

from mmjax.data.cleaning import STEPS, check_steps, clean
from mmjax.errors import ConfigError


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("lower", "A Red CAT", "a red cat"),
        ("unescape", "salt &amp; pepper &#39;s &lt;b&gt;", "salt & pepper 's <b>"),
        ("strip_html", "a <b>red</b> cat<br/>on<!-- a\nnote --> a mat", "a  red  cat on  a mat"),
        ("strip_html", "1 < 2 and 3 > 2, x<3>y", "1 < 2 and 3 > 2, x<3>y"),
        ("nfc", "cafe\u0301 ﬁ", "caf\u00e9 ﬁ"),
        ("nfkc", "cafe\u0301 ﬁ ２", "caf\u00e9 fi 2"),
        ("underscores", "polar_bear", "polar bear"),
        ("no_trailing_period", "A dog. Two dogs. ..\n", "A dog. Two dogs"),
    ],
)
def test_a_step_does_what_its_name_says(step, text, expected):
    assert clean(text, [step]) == expected
    assert clean(clean(text, [step]), [step]) == expected or step == "unescape"  # a second time changes nothing


def test_steps_run_in_the_order_given():
    text = "&lt;B&gt;Two_Dogs&lt;/B&gt;."
    assert clean(text, ["unescape", "strip_html"]) == " Two_Dogs ."
    assert clean(text, ["strip_html", "unescape"]) == "<B>Two_Dogs</B>."
    assert clean(text, []) == text


def test_an_unknown_or_repeated_step_is_refused():
    check_steps(list(STEPS), "w")
    with pytest.raises(ConfigError, match=r"w\[1\]: no step 'lowercase'. Did you mean 'lower'\?"):
        check_steps(["nfc", "lowercase"], "w")
    with pytest.raises(ConfigError, match=r"w\[2\]: 'nfc' a second time"):
        check_steps(["nfc", "lower", "nfc"], "w")
