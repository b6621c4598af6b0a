"""Cleaning of captions and questions: named steps, each an exact function of the text."""

from __future__ import annotations

import functools
import html
import re
import string
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from mmjax.errors import ConfigError, did_you_mean

_TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][^<>]*>", re.DOTALL)
_PUNCTUATION = str.maketrans("", "", string.punctuation)

STEPS: Mapping[str, Callable[[str], str]] = {
    "lower": str.lower,
    "unescape": html.unescape,  # "&amp;" -> "&"
    "strip_html": functools.partial(_TAG.sub, " "),  # tags and comments become a space
    "nfc": functools.partial(unicodedata.normalize, "NFC"),
    "nfkc": functools.partial(unicodedata.normalize, "NFKC"),
    "underscores": lambda text: text.replace("_", " "),  # "polar_bear" -> "polar bear"
    "no_punctuation": lambda text: text.translate(_PUNCTUATION),  # of ASCII, as SigLIP's texts
    "no_trailing_period": lambda text: text.rstrip(". \t\n\r"),
}


def clean(text: str, steps: Sequence[str]) -> str:
    """The named steps one after another; white space is left to the caller."""
    for step in steps:
        text = STEPS[step](text)
    return text


def check_steps(steps: Sequence[str], where: str) -> None:
    """Raises ConfigError where a step is unknown or named twice."""
    for i, step in enumerate(steps):
        if step not in STEPS:
            raise ConfigError(
                f"{where}[{i}]: no step '{step}'.{did_you_mean(step, STEPS)} Expected some of {', '.join(STEPS)}."
            )
        if step in steps[:i]:
            raise ConfigError(f"{where}[{i}]: '{step}' a second time. Expected each step once.")
