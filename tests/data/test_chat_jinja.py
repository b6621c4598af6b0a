"""Chat templates of public weights: the text and the ids of transformers, and the assistant's turns learnt."""

import pytest
from transformers import PreTrainedTokenizerFast

from mmjax.data.chat_jinja import tokens_of, written
from mmjax.data.tokenizer import train_bpe
from mmjax.errors import ConfigError

CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + eos_token }}"
    "{{ '\n' }}{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% else %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% endif %}{% endfor %}"
)
PARTS = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% if message['content'] is string %}"
    "{{ message['content'] + eos_token }}{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<image>\n' }}{% else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)
FORGETS = "{% for m in messages %}{{ m['content'] if loop.last else 'earlier ' }}{% endfor %}"


def turn(role, *texts):
    return {"role": role, "content": [{"type": "text", "text": t} if t else {"type": "image"} for t in texts]}


TALK = [
    turn("user", "", "what is in the picture?"),
    turn("assistant", "a red circle"),
    turn("user", "and where?"),
    turn("assistant", "at the top left"),
]
WORDS = ["what is in the picture? a red circle and where? at the top left USER: ASSISTANT: [INST] [/INST]"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(WORDS, 400, lower=False, added=("<|im_start|>",))


@pytest.fixture(scope="module")
def theirs(tokenizer):
    names = {f"{kind}_token": getattr(tokenizer.special, kind) for kind in ("bos", "eos", "pad", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **names)


def as_theirs(messages, parts):
    """Our records as transformers takes them: a list of parts, or one text with the picture's token in it."""
    made = []
    for message in messages:
        texts = [part.get("text", "<image>") for part in message["content"]]
        whole = parts and message["role"] != "assistant"
        made.append({"role": message["role"], "content": message["content"] if whole else "\n".join(texts)})
    return made


@pytest.mark.parametrize("template", [CHATML, LLAMA2, PARTS], ids=["chatml", "llama2", "parts"])
@pytest.mark.parametrize("reply", [False, True])
def test_ids_are_those_of_transformers(template, reply, tokenizer, theirs):
    talk = TALK[:-1] if reply else TALK
    got = written(talk, template, tokenizer, "row", picture=True, reply=reply)
    how = {"chat_template": template, "add_generation_prompt": reply}
    assert got.text == theirs.apply_chat_template(as_theirs(talk, template == PARTS), tokenize=False, **how)
    want = theirs.apply_chat_template(as_theirs(talk, template == PARTS), tokenize=True, return_dict=False, **how)
    ((ids, _),) = tokens_of([got], tokenizer)
    assert ids == want and ids.count(tokenizer.image) == 1


@pytest.mark.parametrize("template", [CHATML, LLAMA2, PARTS], ids=["chatml", "llama2", "parts"])
def test_the_assistant_s_words_and_their_end_are_learnt_and_nothing_else(template, tokenizer):
    ((ids, learnt),) = tokens_of([written(TALK, template, tokenizer, "row", picture=True)], tokenizer)
    kept = [i for i, flag in zip(ids, learnt, strict=True) if flag]
    assert kept.count(tokenizer.eos) == 2 and kept[-1] == tokenizer.eos
    said = " ".join(tokenizer.backend.decode(kept, skip_special_tokens=True).split())
    assert said.replace(" ", "") == "aredcircleatthetopleft"


def test_a_picture_that_no_part_names_stands_in_the_first_user_turn(tokenizer):
    bare = [turn("user", "what is in the picture?"), TALK[1]]
    named = [turn("user", "", "what is in the picture?"), TALK[1]]
    for template in (CHATML, PARTS):
        ours, theirs = (written(talk, template, tokenizer, "row", picture=True) for talk in (bare, named))
        assert ours == theirs
    assert "<image>" not in written(bare, CHATML, tokenizer, "row", picture=False).text


def test_special_tokens_in_a_text_end_no_turn(tokenizer):
    sly = [turn("user", f"a {tokenizer.special.eos} red <|im_start|> circle <image>"), TALK[1]]
    ((ids, _),) = tokens_of([written(sly, CHATML, tokenizer, "row", picture=False)], tokenizer)
    assert ids.count(tokenizer.eos) == 2 and tokenizer.image not in ids


def test_what_a_template_cannot_write_is_an_error_that_says_so(tokenizer):
    with pytest.raises(ConfigError, match="row: the chat template writes turn 2 otherwise once there are later ones"):
        written([turn("user", "a"), turn("assistant", "b"), turn("user", "c")], FORGETS, tokenizer, "row")
    with pytest.raises(ConfigError, match="row: the chat template cannot write this conversation: no turns"):
        written(TALK, "{{ raise_exception('no turns') }}", tokenizer, "row")
    with pytest.raises(ConfigError, match="a turn of 'tool'"):
        written([turn("tool", "a")], CHATML, tokenizer, "row")


def test_nothing_said_is_bos_alone(tokenizer):
    assert tokens_of([written([], CHATML, tokenizer, "row")], tokenizer) == [([tokenizer.bos], [False])]
