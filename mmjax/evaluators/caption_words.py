"""A caption's words as the COCO caption evaluation counts them: a Penn Treebank tokenizer, lower case, no punctuation.

Written after the behaviour of Stanford's PTBTokenizer, which that evaluation runs in Java; what it leaves out is not
found in captions: e-mail headers, XML, phone numbers with spaces, emoticons.
"""

from __future__ import annotations

import re

# Tokens that the evaluation drops; brackets have names, and stay: its list spells those in upper case.
_DROPPED = {"'", '"', "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", "''", "``"}
_SAME = str.maketrans({"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": " ", "`": "'",
                       "€": "$", "£": "#", "½": "1/2", "¼": "1/4", "¾": "3/4"})  # fmt: skip
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Their stop belongs to them.
_ABBREVIATIONS = (
    "mr mrs ms dr st prof rev gen col capt lt sgt gov sen rep pres hon jr sr messrs "
    "jan feb mar apr jun jul aug sep sept oct nov dec "
    "inc co corp ltd bros etc vs mt ft ave blvd rd"
)
_SPLIT = {
    "cannot": "can not", "gonna": "gon na", "gotta": "got ta", "wanna": "wan na", "gimme": "gim me",
    "lemme": "lem me", "'tis": "'t is", "'twas": "'t was",
}  # fmt: skip

_TOKEN = re.compile(
    rf"""
      https?://\S+ | www\.\S+ | [\w.+-]+@[\w-]+(?:\.[\w-]+)+        # addresses
    | [a-z\d-]+(?:\.[a-z\d-]+)*\.(?:com|org|net)\b | <[a-z/][^>\s]*>
    | '(?:tis|twas)\b | 'n'(?=\s) | '\d0s\b
    | (?:[a-z]\.){{2,}}(?![a-z]) | ph\.d\. | (?-i:\b[A-Z]\.)(?!\w)   # u.s., a.m., U. Miami
    | (?-i:[A-Z]+(?:&[A-Z]+)+)                                       # AT&T
    | (?:{"|".join(_ABBREVIATIONS.split())})\.(?!\w) | no\.(?=\s*\d)
    | (?<![\w])[+-]?(?:\d+(?:[,.:/-]\d+)*|\.\d+)(?=pm\b|am\b)           # 3:30pm
    | (?<![\w])[+-]?(?:\d+(?:[,.:/-]\d+)+|\.\d+)(?![\w-])
    | n't\b | '(?:s|m|d|re|ve|ll)\b
    | (?:o'|d'|c'|ma')[a-z]+                                         # o'clock, ma'am
    | \w+?(?=n't\b) | [^\W_]+(?:[-/_][^\W_]+)*
    | --+ | [?!]{{2,}} | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)


def words(caption: str) -> list[str]:
    """The words of a caption: "A man's dog can't run." gives "a man 's dog ca n't run"."""
    found = []
    for token in _TOKEN.findall(caption.translate(_SAME)):
        token = token.lower()
        if token not in _DROPPED and not token.startswith("--"):
            found += _SPLIT.get(token, _BRACKETS.get(token, token)).split()
    return found
