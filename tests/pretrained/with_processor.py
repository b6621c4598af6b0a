"""The folders of tests/fixtures/pretrained as people have them: with a vocabulary and picture settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

FIXTURES = Path(__file__).parents[1] / "fixtures" / "pretrained"
WORDS = (
    *("a", "an", "photo", "of", "red", "green", "blue", "yellow", "orange", "purple", "circle", "square", "triangle"),
    *("star", "heart", "is", "the", "there", "what", "where", "above", "below", "left", "right", "at", "top", "bottom"),
    *(
        "how",
        "many",
        "shapes",
        "are",
        "color",
        "shape",
        "?",
        "center",
        "dog",
        "dogs",
        "one",
        "two",
        "three",
        "no",
        "yes",
    ),
)
SPECIAL = ("<pad>", "<bos>", "<unk>")


def tokenizer_json(
    size: int, *, bos: bool = True, eos: bool = True, end: int | None = None, image: int | None = None
) -> str:
    """Words, with pad 0, bos 1, unk 2, eos `end` (the last where None), and <image> where it has an id."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    end = size - 1 if end is None else end
    words = [*SPECIAL, *WORDS]
    vocabulary = {token: i for i, token in enumerate(words[:end])}
    vocabulary |= {f"<spare_{i}>": i for i in range(len(vocabulary), size) if i != end} | {"<eos>": end}
    if image is not None:
        vocabulary["<image>"] = vocabulary.pop(f"<spare_{image}>")
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*SPECIAL, "<eos>")])
    before, after = "<bos> " if bos else "", " <eos>" if eos else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{before}$A{after}", special_tokens=[("<bos>", 1), ("<eos>", end)]
    )
    return backend.to_str()


def pictures(size: int | list[int], *, crop: bool = False) -> dict:
    height, width = (size, size) if isinstance(size, int) else size
    side = {"height": height, "width": width}
    return {
        "image_processor_type": "CLIPImageProcessor" if crop else "ViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size} if crop else side,
        **({"do_center_crop": True, "crop_size": side} if crop else {}),
        "resample": 3 if crop else 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }


def complete(name: str, target: Path, *, size: int = 61, end: int | None = 59, bos: bool = True) -> Path:
    """A copy of a fixture with tokenizer.json, tokenizer_config.json and preprocessor_config.json."""
    target.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FIXTURES / name / file, target)
    config = json.loads((target / "config.json").read_text())
    vision = config.get("vision_config", config)
    if "image_size" in vision:
        crop = config["model_type"].startswith("clip")
        (target / "preprocessor_config.json").write_text(json.dumps(pictures(vision["image_size"], crop=crop)))
    if "vocab_size" in config.get("text_config", config):
        image = config.get("image_token_index", config.get("image_token_id"))
        (target / "tokenizer.json").write_text(tokenizer_json(size, end=end, bos=bos, image=image))
        marks = {f"{kind}_token": f"<{kind}>" for kind in ("bos", "eos", "pad", "unk")}
        (target / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **marks})
        )
    return target
