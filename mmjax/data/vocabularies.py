"""Opens a vocabulary, or has one trained; reads BERT's, CLIP's, GPT-2's (RoBERTa's), SentencePiece, tokenizer.json.

Read with the `tokenizers` library alone: in transformers 5 `BertTokenizer(vocab_file=...)` and its like fail silently
(all unknown). The layouts follow transformers' `convert_slow_tokenizer.py`; the tests compare the ids with transformers
and sentencepiece themselves.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from mmjax.data.tokenizer import IMAGE, Special, Tokenizer, TokenizerConfig, read_special, special_of, train_bpe
from mmjax.errors import ConfigError

_CLIP_MERGES = (
    49152 - 256 - 2
)  # the published list is longer; the release uses its head (simple_tokenizer.py of OpenAI's CLIP)


def open_tokenizer(config: TokenizerConfig, texts: Sequence[str], where: str, base: str = "") -> Tokenizer:
    """Trains or reads the tokenizer that `config` names, and checks it on `texts`, the run's own.

    Args:
      where: path of `config` for messages.
      base: folder that a relative `config.path` starts from.
    """
    config.check(where)
    if config.path:
        tokenizer = read(config, where, base)
        if texts:
            tokenizer.check(texts, where)
        return tokenizer
    return train_bpe(texts, config.vocab_size, config.lower, config.added)


def read(config: TokenizerConfig, where: str, base: str = "") -> Tokenizer:
    """Reads the vocabulary at `config.path`, of kind `config.kind` or of the kind that its files show."""
    path = Path(base, config.path).expanduser()
    if not path.exists():
        raise ConfigError(f"{where}.path: no file or folder '{path}'. Expected a vocabulary (see TokenizerConfig).")
    kind, file = _sniff(config.kind, path, where)
    backend = _READERS[kind](file, config.lower, where)
    vocabulary = backend.get_vocab(with_added_tokens=True)
    special = special_of(vocabulary, f"{where}.path '{path}'", _named(file.parent) if path.is_dir() else {})
    # Decoding drops special tokens. Their ids stay: they are in the vocabulary already.
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in _distinct(special)])
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in config.added])
    options = {name: getattr(config, name) for name in ("rows", "start", "read_bos", "read_eos")}
    return Tokenizer(backend, special, **options)


def _named(folder: Path) -> dict[str, str]:
    """The special tokens that a folder names itself; they go before the usual names."""
    files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    return {k: t for file in files if file.is_file() for k, t in read_special(file.read_text("utf-8")).items()}


def _distinct(special: Special) -> list[str]:
    return list(dict.fromkeys(dataclasses.astuple(special)))


def _sniff(kind: str, path: Path, where: str) -> tuple[str, Path]:
    """-> (kind, file): the file to read, and what it is."""
    patterns = {
        "json": ("tokenizer.json",),
        "bert": ("vocab.txt",),
        "gpt2": ("vocab.json",),
        "clip": ("bpe_simple_vocab*.txt*", "vocab.json"),
        "sentencepiece": ("*.model",),
    }
    candidates = patterns if kind == "auto" else {kind: patterns[kind]}
    for name, globs in candidates.items():
        for pattern in globs:
            if path.is_dir():
                found = sorted(path.glob(pattern))
                if len(found) > 1:
                    raise ConfigError(f"{where}.path: '{path}' has {[f.name for f in found]}. Name one of the files.")
                if found:
                    return name, found[0]
            elif path.match(pattern) or (kind == name and len(globs) == 1):
                return name, path
    expected = ", ".join(g for globs in candidates.values() for g in globs)
    found = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else path.name
    raise ConfigError(f"{where}.path: '{path}' is no vocabulary of kind '{kind}': found {found}, expected {expected}.")


def _bert(file: Path, lower: bool, where: str) -> Backend:
    tokens = file.read_text("utf-8").splitlines()
    pieces = {t.removeprefix("##") for t in tokens}
    cased = sum(p != p.lower() for p in pieces if not p.startswith("["))
    if lower and cased > 0.01 * len(pieces):
        raise ConfigError(
            f"{where}.lower: {file.name} has {cased} upper-case pieces: it is a cased vocabulary. Set lower to False."
        )
    # With the same token twice the last line counts, as in transformers.
    backend = Backend(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    if "[MASK]" in tokens:
        backend.add_special_tokens(["[MASK]"])
    return backend


def _merges(lines: list[str]) -> list[tuple[str, str]]:
    return [tuple(line.split()) for line in lines if line and not line.startswith("#version")]


def _gpt2(file: Path, lower: bool, where: str) -> Backend:
    """vocab.json beside merges.txt: GPT-2 and RoBERTa, or CLIP as Hugging Face keeps it."""
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise ConfigError(f"{where}.path: no 'merges.txt' beside '{file}'.")
    vocabulary = json.loads(file.read_text("utf-8"))
    pairs = _merges(merges.read_text("utf-8").split("\n"))
    if "<|startoftext|>" in vocabulary and "!</w>" in vocabulary:
        return _clip_backend(vocabulary, pairs)
    backend = Backend(models.BPE(vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix=""))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _clip(file: Path, lower: bool, where: str) -> Backend:
    """The merges as OpenAI published them; the vocabulary follows from them."""
    if file.name == "vocab.json":
        return _gpt2(file, lower, where)
    raw = file.read_bytes()
    text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode("utf-8")
    pairs = _merges(text.split("\n")[1 : _CLIP_MERGES + 1])
    alphabet = _byte_alphabet()
    tokens = [
        *alphabet,
        *(c + "</w>" for c in alphabet),
        *("".join(p) for p in pairs),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    return _clip_backend({t: i for i, t in enumerate(tokens)}, pairs)


def _clip_backend(vocabulary: dict[str, int], pairs: list[tuple[str, str]]) -> Backend:
    model = models.BPE(
        vocabulary, pairs, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>"
    )
    backend = Backend(model)
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    split = pre_tokenizers.Split(words, behavior="removed", invert=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.Sequence([decoders.Replace("</w>", "Ġ"), decoders.ByteLevel()])
    return backend


def _byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, in the order of OpenAI's `bytes_to_unicode`."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(rest)]


def _sentencepiece(file: Path, lower: bool, where: str) -> Backend:
    """A SentencePiece .model (unigram or BPE) as a `tokenizers` model with the same normaliser and pieces."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        proto.ParseFromString(file.read_bytes())
    except Exception as error:
        raise ConfigError(f"{where}.path: '{file}' is no SentencePiece model ({error}).") from error
    train, norm = proto.trainer_spec, proto.normalizer_spec
    pieces = [(p.piece, p.score) for p in proto.pieces]
    if train.model_type == train.UNIGRAM:
        backend = Backend(models.Unigram(pieces, unk_id=train.unk_id, byte_fallback=train.byte_fallback))
    elif train.model_type == train.BPE:
        ids = {piece: i for i, (piece, _) in enumerate(pieces)}
        model = models.BPE(
            ids, _spm_merges(pieces, ids), unk_token=train.unk_piece, fuse_unk=True, byte_fallback=train.byte_fallback
        )
        backend = Backend(model)
    else:
        raise ConfigError(
            f"{where}.path: '{file}' is a SentencePiece model of type {train.model_type}; expected unigram or BPE."
        )
    steps = [normalizers.Precompiled(norm.precompiled_charsmap)] if norm.precompiled_charsmap else []
    if norm.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    backend.normalizer = normalizers.Sequence(steps)
    prefix = "always" if norm.add_dummy_prefix else "never"
    space = {"replacement": "▁", "prepend_scheme": prefix, "split": train.split_by_whitespace}
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**space)
    metaspace = decoders.Metaspace(**space)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace]) if train.byte_fallback else metaspace
    added = [p for p in proto.pieces if p.type in (p.CONTROL, p.USER_DEFINED)]
    backend.add_tokens([AddedToken(p.piece, normalized=False, special=p.type == p.CONTROL) for p in added])
    return backend


def _spm_merges(pieces: list[tuple[str, float]], ids: dict[str, int]) -> list[tuple[str, str]]:
    """SentencePiece joins any two neighbours whose union is a piece, best score first: that, as a list of merges."""
    merges = []
    for piece, score in pieces:
        splits = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in ids and piece[i:] in ids]
        splits.sort(key=lambda pair: (ids[pair[0]], ids[pair[1]]))
        merges += [(score, pair) for pair in splits]
    merges.sort(key=lambda entry: -entry[0])  # stable
    return [pair for _, pair in merges]


def read_json(file: Path, where: str) -> Backend:
    """A tokenizer.json, without the padding and the cutting that some carry (all-MiniLM's pads to 128)."""
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:
        raise ConfigError(f"{where}: '{file}' is no tokenizer.json ({error}).") from error
    backend.no_padding()
    backend.no_truncation()
    return backend


def _json(file: Path, lower: bool, where: str) -> Backend:
    return read_json(file, f"{where}.path")


_READERS = {"json": _json, "bert": _bert, "gpt2": _gpt2, "clip": _clip, "sentencepiece": _sentencepiece}


def ids_as_words(rows: int, bos: int, eos: int, pad: int, image: int = -1, start: int = -1) -> Tokenizer:
    """A vocabulary whose words are its ids: "5 17 3" <-> [5, 17, 3]. Any other word is a ConfigError. image, start:
    their ids where there are any; the picture is written <image>.
    """
    vocabulary = {IMAGE if i == image else str(i): i for i in range(rows)}
    backend = Backend(models.WordLevel(vocabulary))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = Special(bos=str(bos), eos=str(eos), pad=str(pad), unk=str(pad))
    marks = [AddedToken(t, normalized=False, single_word=True, special=True) for t in _distinct(special)]
    backend.add_special_tokens(marks)  # decoding drops them
    return Tokenizer(backend, special, start=str(start) if start >= 0 else "")
