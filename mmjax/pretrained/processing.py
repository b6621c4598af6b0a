"""What a folder says of pictures and texts -> keys of `config.processor`: the model sees what it saw in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax.data.tokenizer import Tokenizer, TokenizerConfig
from mmjax.errors import ConfigError
from mmjax.pretrained.folder import Folder

PICTURES = ("preprocessor_config.json", "processor_config.json")
TEXTS = "tokenizer_config.json"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "*.model", "bpe_simple_vocab*.txt*")
_OF_TOKENS = ("special_tokens_map.json", "added_tokens.json")
_GIVE_ONE = "Say where it is with config.processor.tokenizer.path=FOLDER_OR_FILE, or put its files beside config.json."
_METHODS = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
# Rows of a table without a token: what published tables are padded by. More of them are another model's vocabulary.
_SPARE, _SPARE_SHARE = 1024, 0.03


def picture_settings(folder: Folder) -> dict[str, Any]:
    """Keys of `config.processor.image`. ConfigError for what our pictures cannot be: padded, unscaled."""
    told = folder.json(*PICTURES)
    told = told.get("image_processor", told)
    where = f"{folder.where}: '{folder.path / next((n for n in PICTURES if (folder.path / n).is_file()), PICTURES[0])}'"
    if not told:
        height, width = folder.described.image_size
        print(f"{where} is not there: pictures are squashed to {height} x {width}, mean and std 0.5.")
        return _sides(folder.described.image_size, where)
    _expect(told, "do_resize", True, where)
    _expect(told, "do_rescale", True, where)
    _expect(told, "do_pad", False, where)
    if abs(told.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-8:
        raise ConfigError(f"{where}: rescale_factor is {told['rescale_factor']}, expected 1/255.")
    bilinear = str(told.get("image_processor_type", told.get("feature_extractor_type"))).startswith(("ViT", "DeiT"))
    method = told.get("resample", 2 if bilinear else 3)
    if method not in _METHODS:
        raise ConfigError(f"{where}: resample is {method}, expected 2 (bilinear) or 3 (bicubic).")
    normal = told.get("do_normalize", True)
    mean, std = (_three(told.get(k, 0.5)) if normal else [v] * 3 for k, v in (("image_mean", 0.0), ("image_std", 1.0)))
    size, crop = told.get("size", folder.described.image_size), told.get("do_center_crop", False)
    settings = {"method": _METHODS[method], "mean": mean, "std": std}
    if not crop:
        if isinstance(size, Mapping) and "height" not in size:
            raise ConfigError(f"{where}: size is {dict(size)} without a crop, so that pictures differ in size.")
        return {**settings, **_sides(size, where), "resize": "squash"}
    short = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if not isinstance(short, int):
        raise ConfigError(f"{where}: size is {size} with a central crop, expected shortest_edge.")
    cut = _sides(told.get("crop_size", short), where)
    if cut["width"]:
        raise ConfigError(f"{where}: crop_size is {told['crop_size']}, expected a square.")
    return {**settings, **cut, "resize": "crop", "short_side": 0 if short == cut["size"] else short}


def _expect(told: Mapping[str, Any], key: str, expected: bool, where: str) -> None:
    if bool(told.get(key, expected)) != expected:
        raise ConfigError(f"{where}: {key} is {told[key]}, expected {expected}.")


def _three(value: Any) -> list[float]:
    return [float(v) for v in value] if isinstance(value, (list, tuple)) else [float(value)] * 3


def _sides(size: Any, where: str) -> dict[str, int]:
    """224, {"height": 224, "width": 224}, (224, 224) -> {"size": 224, "width": 0}; width where it is not the height."""
    sides = (size, size) if isinstance(size, int) else size
    if isinstance(size, Mapping):
        sides = (size.get("height"), size.get("width"))
    if not (isinstance(sides, (tuple, list)) and len(sides) == 2 and all(isinstance(side, int) for side in sides)):
        raise ConfigError(f"{where}: pictures of {size}; expected a height and a width.")
    height, width = sides
    return {"size": height, "width": 0 if width == height else width}


def text_settings(folder: Folder, vocabulary: str = "", base: str = "") -> dict[str, Any]:
    """Keys of `config.processor` for texts: tokenizer, clean, length. The vocabulary is checked against the table.

    vocabulary: a file or folder, from `base`, that stands in where the folder has none. With neither there is no key
    for the tokenizer (`ids_alone`).
    """
    described, settings, bos = folder.described, {}, True
    texts = _with_vocabulary(folder, vocabulary, base)
    if texts is not None:
        told = texts.json(TEXTS)
        bos, eos = _what_is_read(texts, told)
        config = {
            "path": str(folder.path.absolute()) if texts is folder else vocabulary,
            "rows": described.vocab_size,
            "lower": bool(told.get("do_lower_case", True)),
            "read_bos": bos,
            "read_eos": eos,
        }
        tokenizer = open_vocabulary(folder, config, base)
        if "start" in described.token_ids and described.token_ids["start"] != tokenizer.bos:
            config["start"] = tokenizer.backend.id_to_token(described.token_ids["start"])
        settings |= {"tokenizer": config, "clean": _cleaning(texts, told)}
    if template := chat_template(folder):
        settings["chat_template"] = {"jinja": template}
    if described.contrastive:  # such towers are trained on texts padded to that length
        settings["length"] = described.model["text_encoder"]["length"] + (0 if bos else 1)
    return settings


def _with_vocabulary(folder: Folder, vocabulary: str, base: str) -> Folder | None:
    """The folder where it has a vocabulary; else itself at the place of the one that stands in, or None."""
    if any(found for pattern in VOCABULARIES for found in folder.path.glob(pattern)):
        return folder
    if vocabulary:
        place = Path(base, vocabulary).expanduser()
        return dataclasses.replace(folder, path=place.parent if place.is_file() else place)
    if spoken := [name for name in (TEXTS, *_OF_TOKENS) if (folder.path / name).is_file()]:
        raise ConfigError(
            f"{folder.where}: '{folder.path}' has {spoken[0]}, but no vocabulary. Expected one of {VOCABULARIES}. "
            f"{_GIVE_ONE}"
        )
    return None


def chat_template(folder: Folder) -> str:
    """The jinja source that says how conversations are written; "" where there is none."""
    file = folder.path / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    told = folder.json("chat_template.json").get("chat_template") or folder.json(TEXTS).get("chat_template") or ""
    return told if isinstance(told, str) else ""  # some name several


def ids_alone(folder: Folder) -> Tokenizer:
    """For a folder without a vocabulary: a text is its ids ("5 17 3"), so that the model can be imported, applied and
    exported; words are an error. What config.json does not say, or says of a row that is not there, is the last row.
    """
    from mmjax.data.vocabularies import ids_as_words

    rows, told = folder.described.vocab_size, folder.described.token_ids
    known = {kind: i for kind, i in told.items() if 0 <= i < rows}
    eos = known.get("eos", rows - 1)
    pad = known.get("pad", eos)
    print(
        f"{folder.where}: '{folder.path}' has no vocabulary: its texts are ids ('5 17 3'), begun with "
        f"{known.get('start', known.get('bos', pad))}, ended with {eos}, filled with {pad}. {_GIVE_ONE}"
    )
    return ids_as_words(rows, known.get("bos", pad), eos, pad, known.get("image", -1), known.get("start", -1))


def open_vocabulary(folder: Folder, settings: Mapping[str, Any], base: str = "") -> Tokenizer:
    """The folder's tokenizer, or that which stands in, its ids compared with the table and with config.json."""
    from mmjax.config import build
    from mmjax.data.vocabularies import read

    tokenizer = read(build(TokenizerConfig, dict(settings), folder.where), folder.where, base)
    described, ids = folder.described, tokenizer.backend.get_vocab(with_added_tokens=True)
    largest, rows = max(ids.values()) + 1, described.vocab_size
    if largest > rows or rows - largest > max(_SPARE, _SPARE_SHARE * rows):
        raise ConfigError(
            f"{folder.where}: the tokenizer of '{settings['path']}' has {largest} tokens, the embedding table {rows} "
            "rows. Is it the tokenizer of another model?"
        )
    own = {"bos": tokenizer.bos, "eos": tokenizer.eos, "image": tokenizer.image}
    for kind, told in described.token_ids.items():
        token = tokenizer.backend.id_to_token(told) if 0 <= told < largest else None
        if token is None:
            raise ConfigError(
                f"{folder.where}: config.json says that {kind} is token {told}, which the tokenizer of "
                f"'{settings['path']}' does not have ({largest} tokens). Is it the tokenizer of another model?"
            )
        if kind in own and own[kind] != told:
            raise ConfigError(
                f"{folder.where}: config.json says that {kind} is token {told} ('{token}'), the tokenizer of "
                f"'{settings['path']}' that it is {own[kind]}. Is it the tokenizer of another model?"
            )
    return tokenizer


def _what_is_read(folder: Folder, told: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether texts are read with bos, and with eos: as tokenizer.json puts them around a text; for a bare vocabulary
    as its family does.
    """
    file = folder.path / "tokenizer.json"
    if file.is_file():
        from mmjax.data.vocabularies import read_json as read_tokenizer

        backend = read_tokenizer(file, folder.where)
        bare, whole = (backend.encode("a", add_special_tokens=added).ids for added in (False, True))
        at = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        before, after = whole[:at], whole[at + len(bare) :]
        if max(len(before), len(after)) > 1:
            raise ConfigError(f"{folder.where}: '{file}' puts {before} before and {after} after a text; expected one.")
        found = bool(before), bool(after)
    elif any(folder.path.glob("*.model")):
        llama = str(told.get("tokenizer_class", "")).startswith(("Llama", "Gemma", "CodeLlama"))
        found = (True, False) if llama else (False, True)
    else:
        plain = (folder.path / "vocab.json").is_file() and folder.described.contrastive == ""
        roberta = str(told.get("tokenizer_class", "")).startswith("Roberta")
        found = (not plain or roberta,) * 2
    return bool(told.get("add_bos_token", found[0])), bool(told.get("add_eos_token", found[1]))


def _cleaning(folder: Folder, told: Mapping[str, Any]) -> list[str]:
    """SigLIP's texts are lower-cased, the first release's also without punctuation. Other tokenizers do it all."""
    if folder.described.contrastive != "sigmoid" or not told.get("do_lower_case", True):
        return []
    first = str(told.get("tokenizer_class", "SiglipTokenizer")).removesuffix("Fast") == "SiglipTokenizer"
    return ["lower", *(["no_punctuation"] if first else [])]
