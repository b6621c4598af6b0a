"""Text <-> token ids. Whatever the family, it is one `tokenizers.Tokenizer`, stored whole as a tokenizer.json string.

A config names the kind and a local path; without a path a byte-level BPE is trained on the run's own texts. The
readers of published vocabularies are `vocabularies.py`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from mmjax.config import choice
from mmjax.errors import ConfigError

IMAGE = "<image>"
ROUND = 64  # the vocabulary's size is a multiple of this, so that a `vocab` axis divides over any usual mesh
MOST_UNKNOWN = 0.2


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens.

    Attributes:
      kind: `bpe` trains one on the run's texts (needs no path); `auto` looks at `path`, or is `bpe` without one.
      path: a file (vocab.txt, *.model, tokenizer.json, bpe_simple_vocab_16e6.txt.gz) or a folder with one, or with
        vocab.json and merges.txt.
      vocab_size: largest size of a trained vocabulary.
      lower: lower-case the text first, for kinds `bpe` and `bert`; the others keep what their vocabulary was made for.
      added: tokens to add, such as "<image>"; each is a row more in the embedding table where no spare one is left.
      rows: of the embedding table, at least; 0 is one a token. Published tables are often longer than their vocabulary.
      start: the token that starts a text to be written, where that is not bos (T5 starts with pad, BLIP with [DEC]).
      read_bos, read_eos: whether a text that is read (by the text encoder) begins with bos and ends with eos: T5 and
        SigLIP read no bos.
    """

    kind: str = choice("auto", "bpe", "bert", "clip", "gpt2", "sentencepiece", "json")
    path: str = ""
    vocab_size: int = 4096
    lower: bool = True
    added: tuple[str, ...] = ()
    rows: int = 0
    start: str = ""
    read_bos: bool = True
    read_eos: bool = True

    def check(self, where: str) -> None:
        if self.kind not in ("auto", "bpe") and not self.path:
            raise ConfigError(f"{where}.path: empty. Expected the file or folder of the '{self.kind}' vocabulary.")
        if self.kind == "bpe" and self.path:
            raise ConfigError(f"{where}.path: found '{self.path}', but 'bpe' trains a new one. Set kind to 'auto'.")
        for name in ("rows", "start", "read_bos", "read_eos"):
            if not self.path and getattr(self, name) != getattr(TokenizerConfig, name):
                raise ConfigError(f"{where}.{name}: only of a vocabulary that is read; {where}.path is empty.")
        if self.vocab_size < 5 * ROUND:
            raise ConfigError(
                f"{where}.vocab_size: found {self.vocab_size}, expected {5 * ROUND} or more (256 are bytes)."
            )


@dataclasses.dataclass(frozen=True)
class Special:
    """Special tokens, by their text. `bos` starts a decoder, `eos` ends every text, `pad` fills up (the mask tells)."""

    bos: str
    eos: str
    pad: str
    unk: str


# First match wins; each family has its own. Without bos a text starts with pad (T5), without pad eos fills (CLIP).
_NAMES = {
    "bos": ("<bos>", "[CLS]", "<|startoftext|>", "<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos": ("<eos>", "[SEP]", "</s>", "<|endoftext|>", "<|end_of_text|>"),
    "pad": ("<pad>", "[PAD]"),
    "unk": ("<unk>", "[UNK]", "<|endoftext|>"),
}


def special_of(vocabulary: Iterable[str], where: str, named: Mapping[str, str] = MappingProxyType({})) -> Special:
    """The special tokens that a vocabulary has: as `named` ({"bos": "<s>", ...}), else by their usual names."""
    vocabulary = set(vocabulary)
    if absent := {kind: token for kind, token in named.items() if token not in vocabulary}:
        kind, token = next(iter(absent.items()))
        raise ConfigError(f"{where}: its {kind} token is '{token}', which is not in the vocabulary.")
    found = {kind: next((n for n in names if n in vocabulary), "") for kind, names in _NAMES.items()} | dict(named)
    if not found["eos"]:
        raise ConfigError(
            f"{where}: no end-of-text token. Expected one of {', '.join(_NAMES['eos'])} in the vocabulary."
        )
    pad = found["pad"] or found["eos"]
    return Special(bos=found["bos"] or pad, eos=found["eos"], pad=pad, unk=found["unk"] or found["eos"])


class Tokenizer:
    """Texts <-> ids, in the layout `bos tokens eos pad ...`.

    Attributes:
      vocab_size: rows of an embedding: largest id + 1, or more where `rows` says so.
      bos, eos, pad, unk: ids; they may coincide (see `Special`).
      start: id that a written text starts with. reads_bos, reads_eos: see `TokenizerConfig`.
      image: id of the `<image>` placeholder, -1 where there is none.
    """

    def __init__(
        self,
        backend: Any,
        special: Special,
        *,
        rows: int = 0,
        start: str = "",
        read_bos: bool = True,
        read_eos: bool = True,
    ):
        self.backend, self.special = backend, special
        given = {"rows": rows, "start": start, "read_bos": read_bos, "read_eos": read_eos}
        self.options = {k: v for k, v in given.items() if v != getattr(TokenizerConfig, k)}
        self.reads_bos, self.reads_eos = read_bos, read_eos
        backend.no_padding()
        backend.no_truncation()
        vocabulary = backend.get_vocab(with_added_tokens=True)
        for kind, token in dataclasses.asdict(special).items():
            if token not in vocabulary:
                raise ConfigError(f"tokenizer: the {kind} token '{token}' is not in the vocabulary.")
        if start and start not in vocabulary:
            raise ConfigError(f"tokenizer: the start token '{start}' is not in the vocabulary.")
        self.vocab_size = max(max(vocabulary.values()) + 1, rows)
        self.bos, self.eos = vocabulary[special.bos], vocabulary[special.eos]
        self.start = vocabulary[start or special.bos]
        self.pad, self.unk = vocabulary[special.pad], vocabulary[special.unk]
        self.image = vocabulary.get(IMAGE, -1)

    @property
    def wordless(self) -> bool:
        """Whether it stands for none: its words are its ids (`vocabularies.ids_as_words`)."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return all(token in (str(i), IMAGE) for token, i in vocabulary.items())

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, without bos and eos. ConfigError for a word that a vocabulary without a token for
        unknown words does not have.
        """
        try:
            return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]
        except Exception as error:  # the library has no other kind
            raise ConfigError(
                f"tokenizer: a word among {', '.join(repr(t[:40]) for t in [*texts][:3])} has no token ({error}). Give "
                "the model's own vocabulary: config.processor.tokenizer.path=FOLDER_OR_FILE."
            ) from error

    def encode(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """n texts -> ids, mask [n, length] int32, bool: `start tokens eos pad...`; a long text keeps its eos."""
        ids = np.full((len(texts), length), self.pad, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, tokens in enumerate(self.tokens(texts)):
            line = [self.start, *tokens[: length - 2], self.eos]
            ids[row, : len(line)] = line
            mask[row, : len(line)] = True
        return ids, mask

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """[L] ids -> text: from after the start to before the first eos, without special tokens."""
        ids = [int(i) for i in np.asarray(ids).reshape(-1)]
        ids = ids[1:] if ids and ids[0] == self.start else ids  # it may be eos (GPT-2) or pad (T5)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return self.backend.decode([i for i in ids if i != self.pad], skip_special_tokens=True).strip()

    def extends(self, other: Tokenizer) -> bool:
        """Whether another's texts have the same ids here: the same model, with more added tokens at most, and texts
        that start, end and are filled alike.
        """
        own, theirs = (t.backend.get_vocab(with_added_tokens=True) for t in (self, other))
        marks = ("bos", "eos", "pad", "start", "reads_bos", "reads_eos")
        alike = all(getattr(self, name) == getattr(other, name) for name in marks)
        # More merges would cut old texts otherwise, though every old token kept its id.
        ways = ("normalizer", "pre_tokenizer", "model")
        told = [json.loads(t.backend.to_str()) for t in (self, other)]
        cuts = [{way: tokenizer[way] for way in ways} for tokenizer in told]
        return alike and cuts[0] == cuts[1] and all(own.get(token) == i for token, i in theirs.items())

    def unknown_share(self, texts: Sequence[str]) -> float:
        """Share of unknown tokens in texts; a text that becomes no token at all counts as one unknown."""
        unknown = total = 0
        for text, ids in zip(texts, self.tokens(texts), strict=True):
            if text.strip():
                unknown += ids.count(self.unk) if ids else 1
                total += max(len(ids), 1)
        return unknown / max(total, 1)

    def check(self, texts: Sequence[str], where: str) -> None:
        """Raises where the vocabulary does not fit the texts (`ConfigError`): nothing else would tell."""
        share = self.unknown_share(texts[:: 1 + len(texts) // 5000])
        if share > MOST_UNKNOWN:
            raise ConfigError(
                f"{where}: {share:.0%} of the tokens of the run's texts are unknown ('{self.special.unk}'), expected "
                f"at most {MOST_UNKNOWN:.0%}. First text: {texts[0]!r}. Is the vocabulary of another language, case or "
                f"kind?"
            )

    def to_json(self) -> dict[str, Any]:
        """{"tokenizer_json": the whole tokenizer.json as a string, "special": {"bos": ...}, options that are set}."""
        return {"tokenizer_json": self.backend.to_str(), "special": dataclasses.asdict(self.special), **self.options}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Tokenizer:
        """The inverse of `to_json`."""
        import tokenizers

        options = {k: v for k, v in value.items() if k not in ("tokenizer_json", "special")}
        return Tokenizer(tokenizers.Tokenizer.from_str(value["tokenizer_json"]), Special(**value["special"]), **options)


def train_bpe(texts: Iterable[str], vocab_size: int, lower: bool, added: Sequence[str] = ()) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens: nothing is unknown. Reserved tokens round the size up to 64."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    special = Special("<bos>", "<eos>", "<pad>", "<unk>")
    backend = Backend(models.BPE())
    lowered = [normalizers.Lowercase()] if lower else []
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), *lowered, normalizers.Strip()])
    # The first word gets a space too, so that a word is one token wherever it stands.
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size // ROUND * ROUND,
        special_tokens=[special.pad, special.bos, special.eos, special.unk, IMAGE, *(t for t in added if t != IMAGE)],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    missing = -backend.get_vocab_size() % ROUND
    backend.add_special_tokens([f"<reserved_{i}>" for i in range(missing)])
    return Tokenizer(backend, special)


def read_special(text: str) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json or special_tokens_map.json names -> {"bos": "<s>", ...}."""
    named = {}
    for kind in ("bos", "eos", "pad", "unk", "cls", "sep"):
        token = json.loads(text).get(f"{kind}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token:
            named.setdefault({"cls": "bos", "sep": "eos"}.get(kind, kind), token)
    return named
