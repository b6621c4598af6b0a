"""Published vocabularies: ids equal those of transformers and sentencepiece, for tiny files made here and real ones."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.data.tokenizer import Tokenizer, TokenizerConfig
from mmjax.data.vocabularies import read
from mmjax.errors import ConfigError

SHARED = Path(os.environ.get("MMJAX_SHARED_DATA") or Path(__file__).parents[2] / ".." / "shared" / "data")
ODD = ["Two Dogs'll play!  It's 2024, café — naïve", "don't", "東京 😀 x", "A [MASK] <b>", "tabs\tand\nlines  end "]


def real(name: str) -> Path:
    if not (SHARED / "tokenizers" / name).exists():
        pytest.skip(f"needs ../shared/data/tokenizers/{name}")
    return SHARED / "tokenizers" / name


def captions(count: int = 300) -> list[str]:
    with (SHARED / "flickr8k" / "dev.csv").open() as file:
        return [row[1] for row in csv.reader(file)][1 : count + 1] + ODD


def of_transformers(cls: str, folder: Path, texts: list[str], **options) -> list[list[int]]:
    import transformers

    tokenizer = getattr(transformers, cls).from_pretrained(folder, **options)
    return [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]


def open_(path: Path, **options) -> Tokenizer:
    return read(TokenizerConfig(path=str(path), **options), "config.processor.tokenizer")


def bert_folder(folder: Path) -> Path:
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a dog cafe ##s run ##ning , . ! two ' don t 20 ##24 東".split()  # noqa: SIM905
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    return folder


def gpt2_folder(folder: Path) -> Path:
    from tokenizers import ByteLevelBPETokenizer

    backend = ByteLevelBPETokenizer()
    texts = ["two dogs running", "a dog runs. It's 2024!"] * 9
    backend.train_from_iterator(texts, 300, special_tokens=["<|endoftext|>"], show_progress=False)
    backend.save_model(str(folder))
    return folder


def clip_folder(folder: Path) -> Path:
    from tokenizers.pre_tokenizers import ByteLevel

    merges = [("t", "w"), ("tw", "o</w>"), ("d", "o"), ("do", "g"), ("dog", "s</w>"), ("i", "n</w>")]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(x + "</w>" for x in letters), *map("".join, merges), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(map(" ".join, merges)) + "\n")
    return folder


def t5_folder(folder: Path) -> Path:
    sentencepiece_file(folder, model_type="unigram", vocab_size=35).rename(folder / "spiece.model")
    return folder


def sentencepiece_file(folder: Path, **options) -> Path:
    import sentencepiece

    texts = ["two dogs running in the snow", "a dog runs, the café", "It's 2024 and the dogs play"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "tiny"),
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **options,
    )
    return folder / "tiny.model"


def test_tiny_bert_equals_transformers(tmp_path):
    folder = bert_folder(tmp_path)
    texts = ["A dog runs, two cafés!", "Dogs RUNNING don't 2024", *ODD]
    assert open_(folder).tokens(texts) == of_transformers("BertTokenizer", folder, texts)


def test_tiny_gpt2_equals_transformers(tmp_path):
    folder = gpt2_folder(tmp_path)
    assert open_(folder, kind="gpt2").tokens(ODD) == of_transformers("GPT2Tokenizer", folder, ODD)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram", "vocab_size": 35},
        {"model_type": "bpe", "vocab_size": 60},
        {"model_type": "bpe", "vocab_size": 320, "byte_fallback": True},
    ],
)
def test_tiny_sentencepiece_equals_sentencepiece(tmp_path, options):
    import sentencepiece

    file = sentencepiece_file(tmp_path, **options)
    tokenizer, truth = open_(file), sentencepiece.SentencePieceProcessor(str(file))
    texts = ["two dogs", "the café in  snow", *ODD]
    assert tokenizer.tokens(texts) == truth.encode(texts)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.unk) == (0, 1, 0, 2)
    assert tokenizer.decode(tokenizer.encode(["two dogs in the snow"], 40)[0][0]) == "two dogs in the snow"


FAMILIES = {"clip": clip_folder, "bert": bert_folder, "gpt2": gpt2_folder, "t5": t5_folder}
REAL = {"bert": "bert_uncased", "gpt2": "gpt2", "t5": "t5_base"}
CLASSES = {"clip": "CLIPTokenizer", "bert": "BertTokenizer", "gpt2": "GPT2Tokenizer", "t5": "T5Tokenizer"}


@pytest.mark.parametrize("size", ["tiny", "real"])
@pytest.mark.parametrize("family", FAMILIES)
def test_batches_hold_the_ids_of_transformers(family, size, tmp_path):
    """Through the processor, as training has them: bos, the ids of Hugging Face cut at the length, eos, padding.

    The family's own tokenizer puts bos and eos there itself for CLIP and BERT, and eos for T5.
    """
    if size == "tiny":
        folder = FAMILIES[family](tmp_path)
    elif family == "clip":
        pytest.skip("the real one has its own test: transformers does not read its file")
    else:
        folder = tmp_path
        for file in real(REAL[family]).iterdir():
            shutil.copy(file, folder)
    texts = ["two dogs in the snow", "A dog runs, two dogs run!  It's 2024", "dogs " * 30, ""]
    length, source = 12, Texts(texts)
    config = ProcessorConfig(tokenizer=TokenizerConfig(path=str(folder), kind="auto"), length=length)
    processor = Processor.fit(config, [source], frozenset({"text"}), say=lambda line: None)
    records = [source[i] for i in range(len(texts))]
    batch = processor.arrays(
        records, np.arange(4, dtype=np.uint64), frozenset({"text"}), train=True, captions=1, questions=1
    )
    tokenizer = processor.tokenizer
    for row, mask, text in zip(batch["text"][:, 0], batch["text_mask"][:, 0], texts, strict=True):
        (ids,) = of_transformers(CLASSES[family], folder, [" ".join(text.split())])
        expected = [tokenizer.bos, *ids[: length - 2], tokenizer.eos]
        assert row.tolist() == expected + [tokenizer.pad] * (length - len(expected))
        assert mask.sum() == len(expected)
        if family in ("clip", "bert"):
            assert of_transformers_whole(CLASSES[family], folder, " ".join(text.split()), length) == row.tolist()


def of_transformers_whole(cls: str, folder: Path, text: str, length: int) -> list[int]:
    import transformers

    tokenizer = getattr(transformers, cls).from_pretrained(folder)
    return tokenizer(text, padding="max_length", truncation=True, max_length=length)["input_ids"]


class Texts:
    """Captions in memory, as a source."""

    name, fingerprint, left_aside = "texts", "texts", {}

    def __init__(self, texts):
        self.texts = texts

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, i):
        return {"id": str(i), "texts": [self.texts[i]]}

    annotations = __getitem__


def test_a_folder_with_tokenizer_json_is_taken_whole_with_the_special_tokens_it_names(tmp_path):
    bpe = open_(gpt2_folder(tmp_path), kind="gpt2")
    folder = tmp_path / "json"
    folder.mkdir()
    bpe.backend.add_special_tokens(["<start>", "<fill>"])
    bpe.backend.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<start>", "pad_token": {"content": "<fill>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    again = open_(folder)
    assert again.tokens(ODD) == bpe.tokens(ODD)
    assert (again.special.bos, again.special.pad, again.special.eos) == ("<start>", "<fill>", "<|endoftext|>")


def test_padding_and_cutting_that_a_tokenizer_json_carries_are_left_out(tmp_path):
    bpe = open_(gpt2_folder(tmp_path), kind="gpt2")
    expected = bpe.tokens(ODD)
    bpe.backend.enable_padding(length=128)
    bpe.backend.enable_truncation(2)
    folder = tmp_path / "json"
    folder.mkdir()
    bpe.backend.save(str(folder / "tokenizer.json"))
    assert open_(folder).tokens(ODD) == expected


def test_real_bert_equals_transformers():
    folder = real("bert_uncased")
    texts = captions()
    tokenizer = open_(folder)
    assert tokenizer.tokens(texts) == of_transformers("BertTokenizer", folder, texts)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad, tokenizer.vocab_size) == (101, 102, 0, 30522)


@pytest.mark.parametrize(
    ("name", "cls", "bos", "eos"), [("gpt2", "GPT2Tokenizer", 50256, 50256), ("roberta", "RobertaTokenizer", 0, 2)]
)
def test_real_gpt2_and_roberta_equal_transformers(name, cls, bos, eos):
    folder = real(name)
    texts = captions()
    tokenizer = open_(folder)
    assert tokenizer.tokens(texts) == of_transformers(cls, folder, texts)
    assert (tokenizer.bos, tokenizer.eos) == (bos, eos)


def test_real_clip_gives_openais_ids_and_equals_transformers(tmp_path):
    tokenizer = open_(real("clip"))
    # Published with CLIP: clip.tokenize("a photo of a cat").
    assert tokenizer.encode(["a photo of a cat"], 8)[0][0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 49407]
    assert tokenizer.vocab_size == 49408
    model = json.loads(tokenizer.backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in model["merges"]) + "\n")
    texts = captions()
    assert tokenizer.tokens(texts) == of_transformers("CLIPTokenizer", tmp_path, texts)
    assert open_(tmp_path).tokens(texts) == tokenizer.tokens(texts)  # a Hugging Face folder of the same
    assert tokenizer.decode(tokenizer.encode(["Two dogs play, it's snow!"], 20)[0][0]).startswith("two dogs play")


def test_real_t5_equals_transformers(tmp_path):
    shutil.copy(real("t5_base") / "spiece.model", tmp_path)
    texts = [t for t in captions() if "<" not in t]
    tokenizer = open_(tmp_path)
    assert tokenizer.tokens(texts) == of_transformers("T5Tokenizer", tmp_path, texts)
    assert (tokenizer.bos, tokenizer.eos, tokenizer.pad) == (0, 1, 0)


@pytest.mark.parametrize(
    "file", ["t5_base/spiece.model", "c4_sp/bpe_32k_c4.model", "librispeech_sp/unigram_1024.model"]
)
def test_real_sentencepiece_models_equal_sentencepiece(file):
    import sentencepiece

    path = real(file)
    texts = captions()
    assert open_(path).tokens(texts) == sentencepiece.SentencePieceProcessor(str(path)).encode(texts)


def test_what_is_no_vocabulary_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match=r"config.processor.tokenizer.path: no file or folder"):
        open_(tmp_path / "absent")
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(
        ConfigError, match=r"is no vocabulary of kind 'auto': found \['readme.md'\], expected tokenizer.json"
    ):
        open_(tmp_path)
    (tmp_path / "x.model").write_bytes(b"\xff\xff\xff")
    with pytest.raises(ConfigError, match="is no SentencePiece model"):
        open_(tmp_path / "x.model")


def test_a_cased_bert_vocabulary_must_not_be_lower_cased(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nDog\nCat\ndog\n")
    with pytest.raises(ConfigError, match="it is a cased vocabulary. Set lower to False"):
        open_(tmp_path)
    assert open_(tmp_path, lower=False).tokens(["Dog dog"]) == [[4, 6]]
