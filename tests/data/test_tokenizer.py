"""The tokenizer: layout, truncation, round trips, special tokens, and the refusal of a vocabulary that does not fit."""

import json

import numpy as np
import pytest

from mmjax.data.tokenizer import Special, Tokenizer, TokenizerConfig, special_of, train_bpe
from mmjax.data.vocabularies import open_tokenizer
from mmjax.errors import ConfigError

TEXTS = ["A red circle left of a blue square.", "Two green dogs running", "a café naïve, 東京"] * 3


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 512, lower=True)


def test_encode_is_bos_tokens_eos_pad(bpe):
    ids, mask = bpe.encode(["two dogs", ""], 12)
    tokens = bpe.tokens(["two dogs"])[0]
    n = len(tokens)
    assert ids.dtype == np.int32 and mask.dtype == bool and ids.shape == mask.shape == (2, 12)
    assert ids[0].tolist() == [bpe.bos, *tokens, bpe.eos] + [bpe.pad] * (10 - n)
    assert mask[0].tolist() == [True] * (n + 2) + [False] * (10 - n)
    assert ids[1].tolist() == [bpe.bos, bpe.eos] + [bpe.pad] * 10


def test_truncation_keeps_eos(bpe):
    ids, mask = bpe.encode([TEXTS[0] * 5], 6)
    assert ids[0].tolist() == [bpe.bos, *bpe.tokens([TEXTS[0] * 5])[0][:4], bpe.eos]
    assert mask.all()


def test_bpe_knows_every_byte_and_reads_back_what_it_wrote(bpe):
    for text in [*TEXTS, "unseen 😀 Ω words"]:
        assert bpe.decode(bpe.encode([text], 64)[0][0]) == text.lower()
    assert bpe.unknown_share(["😀 Ω", *TEXTS]) == 0


def test_decode_stops_at_eos_and_drops_special_tokens(bpe):
    ids = bpe.encode(["two dogs"], 12)[0][0].tolist()
    assert bpe.decode([*ids, *bpe.tokens(["after"])[0]]) == "two dogs"
    assert bpe.decode(ids[1:]) == "two dogs"  # generated ids come without bos
    assert bpe.decode([bpe.bos, *bpe.tokens(["two"])[0], bpe.image, bpe.pad]) == "two"


def test_vocabulary_is_a_multiple_of_64_and_holds_the_image_placeholder(bpe):
    assert bpe.vocab_size % 64 == 0 and 320 <= bpe.vocab_size <= 512
    assert bpe.tokens(["<image>"])[0] == [bpe.image]
    assert train_bpe([], 512, lower=True).vocab_size == 320


def test_lower_is_what_the_config_says():
    cased = train_bpe(TEXTS, 512, lower=False)
    assert cased.decode(cased.encode(["Two DOGS"], 24)[0][0]) == "Two DOGS"


def test_training_twice_gives_the_same_tokenizer(bpe):
    assert train_bpe(TEXTS, 512, lower=True).to_json() == bpe.to_json()


def test_json_holds_the_whole_tokenizer(bpe):
    again = Tokenizer.from_json(json.loads(json.dumps(bpe.to_json())))
    assert np.array_equal(again.encode(TEXTS, 16)[0], bpe.encode(TEXTS, 16)[0])
    assert (again.bos, again.eos, again.pad, again.unk, again.image) == (bpe.bos, bpe.eos, bpe.pad, bpe.unk, bpe.image)


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        (["[PAD]", "[UNK]", "[CLS]", "[SEP]"], Special("[CLS]", "[SEP]", "[PAD]", "[UNK]")),
        (["<|startoftext|>", "<|endoftext|>"], Special("<|startoftext|>", *["<|endoftext|>"] * 3)),
        (["<|endoftext|>"], Special(*["<|endoftext|>"] * 4)),
        (["<pad>", "</s>", "<unk>"], Special("<pad>", "</s>", "<pad>", "<unk>")),
    ],
)
def test_special_tokens_of_each_family(vocabulary, expected):
    assert special_of(vocabulary, "here") == expected


def test_a_vocabulary_that_does_not_know_the_texts_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nnothing\nof\nthis\n")
    with pytest.raises(ConfigError, match=r"config.processor.tokenizer: .*unknown \('\[UNK\]'\), expected at most 20%"):
        open_tokenizer(TokenizerConfig(path="vocab.txt"), TEXTS, "config.processor.tokenizer", str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TokenizerConfig(kind="bert"), r"w.path: empty. Expected the file or folder of the 'bert'"),
        (TokenizerConfig(kind="bpe", path="x"), r"w.path: found 'x', but 'bpe' trains"),
        (TokenizerConfig(vocab_size=100), r"w.vocab_size: found 100, expected 320"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        open_tokenizer(config, TEXTS, "w")
