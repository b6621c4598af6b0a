"""The processor as the files of a Hugging Face folder: tokenizer.json, preprocessor_config.json and what names them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mmjax.config import build
from mmjax.data.images import ImageSettings
from mmjax.data.processor import Processor
from mmjax.data.tokenizer import Tokenizer, TokenizerConfig
from mmjax.pretrained.processing import PICTURES, TEXTS, VOCABULARIES

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # PIL's numbers


def write_processor(processor: Processor, model: Any, out: Path, origin: Path | None) -> None:
    """Writes what the model reads of pictures and texts; `origin` holds the files that the run began with, or is None.

    A vocabulary that has not changed is copied as it came, and none where it came without; else it is a tokenizer.json.
    """
    if model.config.patch_encoder is not None:
        _write_pictures(processor.image, out, origin)
    if (model.config.text_encoder is None and model.config.decoder is None) or processor.tokenizer.wordless:
        return
    if origin is not None:
        for file in origin.glob("chat_template*"):
            shutil.copyfile(file, out / file.name)
        if _unchanged(processor.tokenizer, origin):
            for pattern in (*VOCABULARIES, TEXTS, "special_tokens_map.json", "added_tokens.json"):
                for file in origin.glob(pattern):
                    shutil.copyfile(file, out / file.name)
            return
    _write_tokenizer(processor, out, origin)


def picture_file(settings: ImageSettings) -> dict[str, Any]:
    """preprocessor_config.json of picture settings."""
    side = dict(zip(("height", "width"), settings.sides, strict=True))
    crop = settings.resize == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor" if crop else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": settings.short_side or settings.size} if crop else side,
        "resample": _RESAMPLE[settings.method],
        **({"do_center_crop": True, "crop_size": side} if crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(settings.mean),
        "image_std": list(settings.std),
    }


def _write_pictures(settings: ImageSettings, out: Path, origin: Path | None) -> None:
    ours = picture_file(settings)
    for name in PICTURES:
        if origin is None or not (origin / name).is_file():
            continue
        whole = json.loads((origin / name).read_text("utf-8"))
        inner = whole.get("image_processor", whole)
        kept = {k: v for k, v in ours.items() if k != "image_processor_type" or k not in inner}
        inner.update(kept)
        (out / name).write_text(json.dumps(whole, indent=2) + "\n")
    if not any((out / name).is_file() for name in PICTURES):
        (out / PICTURES[0]).write_text(json.dumps(ours, indent=2) + "\n")


def _unchanged(tokenizer: Tokenizer, origin: Path) -> bool:
    """Whether the files that the run began with still say the whole vocabulary."""
    from mmjax.data.vocabularies import read

    if not any(found for pattern in VOCABULARIES for found in origin.glob(pattern)):
        return False
    first = read(build(TokenizerConfig, {"path": str(origin)}, "export"), "export")
    one, other = (t.backend.get_vocab(with_added_tokens=True) for t in (tokenizer, first))
    return one == other


def _write_tokenizer(processor: Processor, out: Path, origin: Path | None) -> None:
    from tokenizers import Tokenizer as Backend
    from tokenizers.processors import TemplateProcessing

    tokenizer, special = processor.tokenizer, processor.tokenizer.special
    backend = Backend.from_str(tokenizer.backend.to_str())
    before, after = (
        (f"{special.bos} " if tokenizer.reads_bos else ""),
        (f" {special.eos}" if tokenizer.reads_eos else ""),
    )
    ids = {special.bos: tokenizer.bos, special.eos: tokenizer.eos}
    backend.post_processor = TemplateProcessing(
        single=f"{before}$A{after}", pair=f"{before}$A{after} $B{after}", special_tokens=list(ids.items())
    )
    backend.save(str(out / "tokenizer.json"))
    told = json.loads((origin / TEXTS).read_text("utf-8")) if origin and (origin / TEXTS).is_file() else {}
    config = {k: v for k, v in told.items() if k in ("chat_template", "do_lower_case", "model_max_length")}
    config |= {f"{kind}_token": token for kind, token in vars(special).items()}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (out / TEXTS).write_text(json.dumps(config, indent=2) + "\n")
