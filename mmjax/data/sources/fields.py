"""Names that users give to columns and json fields, and what they mean here."""

from __future__ import annotations

from collections.abc import Sequence

from mmjax.errors import ConfigError, did_you_mean

NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "filepath", "file_name", "filename", "image_path", "img", "path", "file", "image_name"),
    "text": ("caption", "captions", "text", "texts", "sentence", "sentences", "title", "comment"),
    "question": ("question",),
    "answer": ("answer", "answers"),
    "label": ("label", "class", "category"),
}
# Carried along by public sets, and of no use here.
IGNORED = frozenset(
    {
        "id",
        "image_id",
        "question_id",
        "caption_number",
        "comment_number",
        "caption_id",
        "split",
        "dataset",
        "width",
        "height",
        "url",
        "source",
    }
)
EXPECTED = (
    "an image field (image, filepath, file_name, ...) and captions (caption, text, title, ...), question with answer, "
    "or label"
)


def meaning(names: Sequence[str], where: str) -> dict[str, str]:
    """{what it is here: the name found}, for the columns of a table or the fields of an object.

    Raises ConfigError for an unknown name, two names for one thing, no image, question without answer, or image alone.
    """
    known = {alias: key for key, aliases in NAMES.items() for alias in aliases}
    found: dict[str, str] = {}
    for name in names:
        plain = name.strip().lower()
        if plain in IGNORED or plain == "":
            continue
        key = known.get(plain)
        if key is None:
            near = did_you_mean(plain, known)
            raise ConfigError(f"{where}: unknown '{name}' in {_list(names)}. Expected {EXPECTED}.{near}")
        if key in found:
            raise ConfigError(
                f"{where}: both '{found[key]}' and '{name}' could be the {key}. Expected one of them; remove the other."
            )
        found[key] = name
    if "image" not in found:
        raise ConfigError(f"{where}: no image field in {_list(names)}. Expected {EXPECTED}.")
    if ("question" in found) != ("answer" in found):
        raise ConfigError(f"{where}: found {_list(names)}; expected question and answer together.")
    if len(found) == 1:
        raise ConfigError(f"{where}: only an image in {_list(names)}. Expected {EXPECTED}.")
    return found


def _list(names: Sequence[str]) -> str:
    return "(" + ", ".join(map(str, names)) + ")"
