"""Names that users give to columns and json fields, and what they mean here."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from mmjax.errors import ConfigError, did_you_mean

NAMES: dict[str, tuple[str, ...]] = {
    "image": (
        "image", "images", "filepath", "file_name", "filename", "image_path", "img_path", "img", "path", "file",
        "image_name", "image_file",
    ),
    "text": ("caption", "captions", "text", "texts", "sentence", "sentences", "title", "comment", "alt_text"),
    "question": ("question", "prefix"),
    "answer": ("answer", "answers", "suffix"),
    "label": ("label", "labels", "class", "category", "value"),
}  # fmt: skip
EXPECTED = (
    "an image field (image, filepath, file_name, ...) and captions (caption, text, title, ...), question with answer, "
    "or label; for other names set fields, e.g. fields={'text': 'alt'}"
)


def meaning(
    names: Sequence[str],
    where: str,
    fields: Mapping[str, str] = {},  # noqa: B006
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What the columns of a table, or the fields of an object, are -> ({what it is here: its name}, names left aside).

    Names count without their case and the blanks around them. What is called `image` or `label` is that where other
    names (`filename`, `path`; `value`) could be it too.

    Args:
      fields: {what it is here: its name}, over the guess.

    Raises ConfigError for a name in `fields` that is not there, two names for one thing, no image, a question without
    answer, or an image alone. It proposes the known name that one left aside is nearly spelt like.
    """
    found = _given(names, where, fields)
    for key, aliases in NAMES.items():
        if key in fields:
            continue
        options = [name for name in names if _plain(name) in aliases and name not in found.values()]
        if key in ("image", "label"):
            options = [name for name in options if _plain(name) == key] or options
        if len(options) > 1:
            raise ConfigError(
                f"{where}: both '{options[0]}' and '{options[1]}' could be the {key}. Expected one of them; remove the "
                f"other, or set fields={{'{key}': '{options[0]}'}}."
            )
        if options:
            found[key] = options[0]
    left = tuple(name for name in names if name.strip() and name not in found.values())
    wrong, absent = _wrong(found)
    if wrong:
        for name in left:
            if near := _near(name, absent):
                raise ConfigError(
                    f"{where}: unknown '{name}' in {_list(names)}. Expected {EXPECTED}. Did you mean '{near}'?"
                )
        raise ConfigError(f"{where}: {wrong} in {_list(names)}. Expected {EXPECTED}.")
    return found, left


def _wrong(found: Mapping[str, str]) -> tuple[str, list[str]]:
    """(what is wrong, "" if nothing is; what would mend it)."""
    if "image" not in found:
        return "no image field", ["image"]
    if ("question" in found) != ("answer" in found):
        present, absent = ("question", "answer") if "question" in found else ("answer", "question")
        return f"{present} without {absent}", [absent]
    return ("only an image", [key for key in NAMES if key != "image"]) if len(found) == 1 else ("", [])


def _near(name: str, keys: Sequence[str]) -> str:
    """The known name of one of `keys` that `name` is nearly, or ""; `image_id` is not nearly `image`."""
    aliases = [alias for key in keys for alias in NAMES[key]]
    if any(_plain(name).startswith(f"{alias}_") for alias in aliases):
        return ""
    return next(iter(difflib.get_close_matches(_plain(name), aliases, 1, 0.75)), "")


def _given(names: Sequence[str], where: str, fields: Mapping[str, str]) -> dict[str, str]:
    """`fields`, spelt as in `names`."""
    found = {}
    for key, wanted in fields.items():
        if key not in NAMES:
            raise ConfigError(
                f"fields: found '{key}', expected what a field is ({', '.join(NAMES)}) and its name, as in "
                f"fields={{'text': 'alt'}}.{did_you_mean(key, NAMES)}"
            )
        name = next((name for name in names if name.strip() == wanted.strip()), None)
        if name is None:
            raise ConfigError(
                f"{where}: no '{wanted}' in {_list(names)}, which fields gives as the {key}."
                f"{did_you_mean(wanted, names)}"
            )
        found[key] = name
    return found


def _plain(name: str) -> str:
    return name.strip().lower()


def _list(names: Sequence[str]) -> str:
    return "(" + ", ".join([*names[:12], "..."] if len(names) > 12 else names) + ")"
