"""Conversations: the layout of a turn, what is supervised, where the picture stands, and how it is cut."""

import numpy as np
import pytest

from mmjax.data.chat import ChatTemplate, Piece, padded, pictures_in, pieces, tokens_of, words_in
from mmjax.data.tokenizer import Special, Tokenizer, train_bpe
from mmjax.errors import ConfigError


def turn(role, *parts):
    """A turn of texts, and of pictures where a part is None."""
    return {"role": role, "content": [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]}


TALK = [
    turn("system", "Be brief."),
    turn("user", None, "\nwhat is this?"),
    turn("assistant", "a red cat"),
    turn("user", "and where?"),
    turn("assistant", "on a mat"),
]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe([" ".join(words_in(TALK))] * 3, 512, lower=True)


def ids_of(tokenizer, *conversations, template=ChatTemplate(), **options):  # noqa: B008
    return tokens_of([pieces(talk, template, "row", **options) for talk in conversations], tokenizer)


def test_a_conversation_is_markers_and_turns_and_only_the_assistants_words_and_eos_are_learnt(bpe):
    t = lambda text: bpe.tokens([text])[0]  # noqa: E731
    ((ids, learnt),) = ids_of(bpe, TALK)
    asked = [bpe.bos, *t("system:"), *t("Be brief."), *t("user:"), bpe.image, *t("what is this?"), *t("assistant:")]
    again = [*t("user:"), *t("and where?"), *t("assistant:")]
    first, second = [*t("a red cat"), bpe.eos], [*t("on a mat"), bpe.eos]
    assert ids == asked + first + again + second
    expected = [False] * len(asked) + [True] * len(first) + [False] * len(again) + [True] * len(second)
    assert learnt == expected


def test_markers_are_those_of_the_template(bpe):
    template = ChatTemplate(system="<<", user="Human:", assistant="Bot:")
    ((ids, _),) = ids_of(bpe, TALK, template=template)
    assert bpe.decode(ids).startswith("<< be brief. human: what is this? bot:")
    with pytest.raises(ConfigError, match="w.user: empty"):
        ChatTemplate(user=" ").check("w")


def test_several_rows_at_once_are_each_as_alone(bpe):
    talks = TALK, TALK[3:], [], TALK[:3]
    assert ids_of(bpe, *talks) == [ids_of(bpe, talk)[0] for talk in talks]
    assert ids_of(bpe, [])[0] == ([bpe.bos], [False])


def test_a_picture_stands_where_its_part_is_and_else_before_the_first_question():
    named = [turn("user", "look:", None, "what?")]
    assert pieces(named, ChatTemplate(), "row", picture=True)[1:] == [
        Piece("look:"), Piece("", picture=True), Piece("what?"),
    ]  # fmt: skip
    silent = [turn("system", "s"), turn("user", "what?"), turn("user", "what else?")]
    made = pieces(silent, ChatTemplate(), "row", picture=True)
    assert made[2:5] == [Piece("user:"), Piece("", picture=True), Piece("what?")]
    assert sum(p.picture for p in made) == 1
    for absent in (False, None):
        assert not any(p.picture for p in pieces(silent, ChatTemplate(), "row", picture=absent))


def test_special_tokens_written_as_words_do_nothing(bpe):
    sly = [turn("user", None, "a <image> <eos> b"), turn("assistant", "c <eos> d <bos>")]
    ((ids, learnt),) = ids_of(bpe, sly)
    assert ids.count(bpe.image) == ids.count(bpe.eos) == ids.count(bpe.bos) == 1
    assert ids[-1] == bpe.eos and learnt[-1]


def test_a_tokenizer_without_a_placeholder_leaves_the_picture_out(bpe):
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "user", "assistant", ":", "what", "cat"]
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = Tokenizer(backend, Special("[CLS]", "[SEP]", "[PAD]", "[UNK]"))
    ((ids, learnt),) = ids_of(tokenizer, [turn("user", None, "what"), turn("assistant", "cat")])
    assert [words[i] for i in ids] == ["[CLS]", "user", ":", "what", "assistant", ":", "cat", "[SEP]"]
    assert learnt == [False] * 6 + [True] * 2


def test_a_long_conversation_is_cut_without_an_eos(bpe):
    ((ids, learnt),) = long = ids_of(bpe, TALK)
    length = len(ids) - 2
    tokens, mask, supervised = padded([*long, ([bpe.bos], [False])], length, bpe.pad)
    assert tokens[0].tolist() == ids[:length] and tokens[0, -1] != bpe.eos
    assert supervised[0].tolist() == learnt[:length] and mask[0].all()
    assert mask[1].tolist() == [True] + [False] * (length - 1) and (tokens[1, 1:] == bpe.pad).all()
    assert (tokens.dtype, mask.dtype, supervised.dtype) == (np.int32, bool, bool)


def test_clean_reaches_every_turn():
    made = pieces(TALK, ChatTemplate(), "row", clean=str.upper)
    said = ["BE BRIEF.", "WHAT IS THIS?", "A RED CAT", "AND WHERE?", "ON A MAT"]
    assert [p.text for p in made if p.text][1::2] == said


def test_words_by_role_and_the_number_of_pictures():
    assert words_in(TALK, "assistant") == ["a red cat", "on a mat"] and len(words_in(TALK)) == 5
    assert words_in([turn("user", "a", None, "b ")]) == ["a\nb"]
    assert pictures_in(TALK) == 1 and pictures_in(TALK[2:]) == 0


@pytest.mark.parametrize(
    ("talk", "picture", "message"),
    [
        ([turn("user", None, "a"), turn("user", None)], True, "row: a conversation about 2 pictures"),
        ([turn("user", None)], False, "row: a conversation with an image part, but the row has no picture"),
        ([turn("tool", "x")], None, "row: a turn of 'tool'. Expected system, user or assistant"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused(talk, picture, message):
    with pytest.raises(ConfigError, match=message):
        pieces(talk, ChatTemplate(), "row", picture=picture)
