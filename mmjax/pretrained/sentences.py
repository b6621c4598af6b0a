"""sentence-transformers: how a sentence's vector is made of BERT's tokens, which config.json does not say."""

from __future__ import annotations

from pathlib import Path

from mmjax.errors import ConfigError
from mmjax.pretrained.settings import read_json

POOLING = "sentence_pooling"  # the key that config.json gets here; transformers ignores it
FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
_KINDS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}


def pooling_of(folder: Path, where: str) -> dict[str, str]:
    """{POOLING: "mean" or "cls"} as `1_Pooling` says it, {} where there is none.

    Raises:
      ConfigError: another pooling, or a dense layer after it.
    """
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return {}
    modes = [key for key, value in read_json(file, where).items() if key.startswith("pooling_mode_") and value]
    if len(modes) != 1 or modes[0] not in _KINDS:
        raise ConfigError(f"{where}: '{file}' pools by {modes or 'nothing'}; expected one of {', '.join(_KINDS)}.")
    if dense := sorted(folder.glob("[0-9]_Dense")):
        raise ConfigError(f"{where}: '{dense[0]}' is a layer after the pooling, which is not read. Expected none.")
    return {POOLING: _KINDS[modes[0]]}
