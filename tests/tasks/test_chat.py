"""The chat task: which tokens count, where the picture is read, rows without one, and the reply."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.data.chat import words_in
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.errors import ConfigError
from mmjax.generation_config import GenerationConfig
from mmjax.models.decoder import DecoderConfig
from mmjax.models.forward import Forward
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.tasks import Task
from mmjax.tasks.chat import Chat, last_turn, widen
from mmjax.train_step import nested
from tests.pretrained.fixture_folders import FOLDER, expected, load

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
VOCABULARY, IMAGE, PATCHES, LENGTH = 12, 3, 4, 20
MEMORIES = "cross_attention", "prefix"
TASK = Chat(name="chat", generation=GenerationConfig(length=3))
IDS = np.array([
    [1, 5, IMAGE, 6, 7, 8, 2, 5, 9, 7, 10, 2],  # two turns of the assistant: 8 eos and 10 eos
    [1, 5, 6, 7, 4, 2, 0, 0, 0, 0, 0, 0],  # no picture
    [1, 5, 6, IMAGE, 7, 4, 4, 2, 0, 0, 0, 0],
])  # fmt: skip
SUPERVISED = np.zeros(IDS.shape, bool)
for row, tokens in enumerate([(5, 6, 10, 11), (4, 5), (5, 6, 7)]):
    SUPERVISED[row, list(tokens)] = True
START = 10, 4, 5  # of the last turn


def batch(**changes):
    image = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    arrays = {"image": image, "valid": np.ones(3, bool), "image_valid": np.array([True, False, True])}
    return arrays | {"chat": IDS, "chat_mask": IDS > 0, "chat_supervised": SUPERVISED} | changes


OTHER = batch()["image"][::-1]


@functools.cache
def make(memory, image=IMAGE):
    """A model whose logits are wide apart, so that greedy choices are no ties; drawn in NumPy: nothing to compile."""
    decoder = DecoderConfig(**SMALL, memory=memory, length=32)
    config = ModelConfig(patch_encoder=PatchEncoderConfig(**SMALL, patch=4), decoder=decoder)
    model = Multimodal(config, (8, 8), tokens=TokenIds(VOCABULARY, image=image))
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    draw = np.random.default_rng(3)
    drawn = lambda s: np.float32(draw.normal(size=s.shape) * (1 if len(s.shape) > 1 else 0.1))  # noqa: E731
    return model, jax.tree.map(drawn, shapes)


@functools.cache
def compiled(memory, image):
    model, _ = make(memory, image)

    def both(params, batch):
        forward = Forward(model, params, batch)
        return TASK.loss(forward), TASK.predict(forward)

    return jax.jit(both)


def run(memory, placeholder=IMAGE, **changes):
    """(loss, prediction) of the task."""
    return jax.device_get(compiled(memory, placeholder)(make(memory, placeholder)[1], batch(**changes)))


@functools.cache
def decoder(memory):
    model, params = make(memory)

    def scores(ids):
        seen = Forward(model, params, batch()).memory()
        logits = model.apply({"params": params}, ids, ids > 0, seen, placed=memory == "prefix", method="decode").logits
        return jax.nn.log_softmax(logits)

    return jax.jit(scores)


def by_hand(memory, rows):
    """Log-probabilities of what follows each of the ids of each row; the patches placed in plain Python."""
    wide = [[j for i in ids for j in [i] * (PATCHES if i == IMAGE and memory == "prefix" else 1)] for ids in rows]
    scores = np.asarray(decoder(memory)(np.array([ids + [0] * (LENGTH - len(ids)) for ids in wide])))
    kept = [[t for t in range(len(ids)) if ids[t : t + 2] != [IMAGE, IMAGE]] for ids in wide]
    return [row[at] for row, at in zip(scores, kept, strict=True)]


def rows_of(ids):
    return [[int(i) for i in row if i] for row in ids]


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_loss_is_over_the_assistants_tokens_each_from_what_stands_before_it(memory):
    losses, outputs = run(memory)
    total = hits = 0
    for row, scores in enumerate(by_hand(memory, rows_of(IDS))):
        wanted = np.flatnonzero(SUPERVISED[row])
        own = -sum(scores[t - 1, IDS[row, t]] for t in wanted)
        assert outputs["nll"][row] == pytest.approx(own, rel=1e-4)
        assert outputs["hits"][row] == sum(scores[t - 1].argmax() == IDS[row, t] for t in wanted)
        total, hits = total + own, hits + outputs["hits"][row]
    assert losses["loss"][0] == pytest.approx(total, rel=1e-4)
    assert losses["loss"][1] == losses["token_accuracy"][1] == SUPERVISED.sum() == 9
    assert losses["token_accuracy"][0] == hits


@pytest.mark.parametrize(("memory", "placeholder"), [*((m, IMAGE) for m in MEMORIES), ("prefix", -1)])
def test_a_row_without_a_picture_reads_none_and_one_with_it_does(memory, placeholder):
    """With the placeholder, without one (the prefix then stands before the conversation), and by cross-attention."""
    ids = np.where(IDS == IMAGE, 6, IDS) if placeholder < 0 else IDS
    (_, here), (_, there) = (run(memory, placeholder, chat=ids, image=i) for i in (batch()["image"], OTHER))
    assert here["nll"][1] == there["nll"][1]
    assert not np.isclose(here["nll"][[0, 2]], there["nll"][[0, 2]], rtol=1e-4).any()
    np.testing.assert_array_equal(here["reply_ids"][1], there["reply_ids"][1])


def test_padding_rows_of_an_evaluation_count_nothing():
    whole, part = run("prefix")[0], run("prefix", valid=np.array([True, True, False]))[0]
    assert part["loss"][1] == SUPERVISED[:2].sum() and part["loss"][0] < whole["loss"][0]


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_reply_follows_all_but_the_last_turn(memory):
    """Greedy by decoding ever longer texts, without a cache; what stood in the last turn changes nothing."""
    got = run(memory)[1]["reply_ids"]
    changed = np.where(SUPERVISED & (np.arange(IDS.shape[1]) >= np.array(START)[:, None]), 11, IDS)
    np.testing.assert_array_equal(got, run(memory, chat=changed)[1]["reply_ids"])
    rows = [row[:start] for row, start in zip(rows_of(IDS), START, strict=True)]
    replies = [[], [], []]
    for _ in range(TASK.generation.length):
        for row, scores in enumerate(by_hand(memory, rows)):
            token = 0 if 2 in replies[row] else int(scores[-1].argmax())
            replies[row].append(token)
            rows[row] = rows[row] + [token] * (token != 0)
    assert memory != "prefix" or IMAGE not in np.array(replies)  # it would be another picture to the slow way
    assert got.tolist() == replies and len(np.unique(got)) > 2


def test_widen_puts_the_patches_where_the_picture_was():
    wide = jax.jit(widen, static_argnums=(3, 4))
    ids, mask, supervised = (np.asarray(x) for x in wide(IDS, IDS > 0, SUPERVISED, IMAGE, 3))
    assert ids[0].tolist() == [1, 5, 3, 3, 3, 6, 7, 8, 2, 5, 9, 7, 10, 2]
    assert ids[1][mask[1]].tolist() == [1, 5, 6, 7, 4, 2] and mask[1, :6].all()
    assert ids[2][mask[2]].tolist() == [1, 5, 6, 3, 3, 3, 7, 4, 4, 2]
    for row in range(3):
        assert ids[row][supervised[row]].tolist() == IDS[row][SUPERVISED[row]].tolist()
    same = wide(IDS, IDS > 0, SUPERVISED, IMAGE, 1)
    for got, given in zip(same, (IDS, IDS > 0, SUPERVISED), strict=True):
        np.testing.assert_array_equal(got, given)


def test_the_last_turn_begins_where_its_stretch_does():
    rows = np.concatenate([SUPERVISED, np.zeros((1, 12), bool), np.ones((1, 12), bool)])
    start, number = jax.jit(last_turn)(rows)
    assert start.tolist() == [*START, 12, 0] and number.tolist() == [2, 1, 1, 0, 1]


def message(role, text):
    return {"role": role, "content": [{"type": "text", "text": text}]}


TALK = [message("user", "What is it?"), message("assistant", "A  cat")]


def test_replies_are_read_back_and_shown_with_the_question():
    records = [{"id": "0", "messages": TALK}]

    class Memory(list):
        name = "memory"

        def annotations(self, i):
            return self[i]

    processor = Processor.fit(ProcessorConfig(chat_length=24), [Memory(records)], TASK.features)
    ids = [*processor.tokenizer.tokens(["a cat"])[0], processor.tokenizer.eos, processor.tokenizer.pad]
    outputs = TASK.readable({"reply_ids": np.array([ids] * 3), "turn": np.array([1, 2, 0])}, processor)
    assert outputs["reply"].tolist() == ["a cat"] * 3
    assert TASK.describe(outputs, 0, records[0]) == [("What is it? a cat", True)]
    longer = {"messages": [*TALK, message("user", "Where?"), message("assistant", "here")]}
    assert TASK.describe(outputs, 0, longer) == [("What is it? a cat", True)]  # the second turn was cut off
    assert TASK.describe(outputs, 1, longer) == [("Where? a cat", None), ("(here)", None)]
    assert TASK.describe(outputs, 2, {}) == [("a cat", None)]
    assert TASK.describe(outputs, 2, {"messages": TALK[:1]}) == [("What is it? a cat", None)]
    judge = TASK.evaluator(processor, Memory(records))
    arrays = processor.conversations(records, pictures=False) | {"valid": np.array([True])}
    judge.update({"nll": np.array([1.0]), "hits": np.array([2])}, arrays, records)
    assert [f.name for f in judge.figures()] == ["chat/token_accuracy", "chat/perplexity"]
    assert words_in(TALK, "assistant") == ["A  cat"]


def test_chat_is_a_kind_of_task_whose_replies_the_config_shapes():
    given = {"kind": "chat", "generation": {"length": 5, "num_beams": 2}}
    talk = build(Task, given, "config.tasks.talk")
    assert talk == Chat(name="talk", generation=GenerationConfig(length=5, num_beams=2))
    with pytest.raises(ConfigError, match="config.tasks.chat.generation.length: found -1"):
        build(Task, {"generation": {"length": -1}}, "config.tasks.chat")


@pytest.mark.parametrize("name", ["paligemma", "paligemma2"])
def test_an_imported_paligemma_reads_the_question_both_ways_and_learns_the_answer_alone(name):
    """Logits and loss of a batch are those of torch with token types (the fixture's prompts and answers)."""
    inputs, truths = expected(name)
    loaded = load(FOLDER / name)
    image, count = loaded.model.tokens.image, int((inputs["text"][0] == loaded.model.tokens.image).sum())
    rows = len(inputs["text"]) // len(inputs["image"])
    learnt = inputs["text_mask"] & ~inputs["decoder_prefix"]
    talk = {"chat": inputs["text"], "chat_mask": inputs["text_mask"], "chat_supervised": learnt}
    batch = {k: jnp.asarray(v[:, count - 1 :]) for k, v in talk.items()}  # one <image> for all its places
    batch |= {"image": jnp.repeat(inputs["image"], rows, 0), "valid": jnp.ones(len(inputs["text"]), bool)}
    task, params = Chat(name="chat", generation=GenerationConfig(length=5)), nested(loaded.params)
    with jax.default_matmul_precision("highest"):
        forward = Forward(loaded.model, params, batch)
        found = task._conversation(forward)
        logits = np.asarray(task._logits(forward, found))
        total, weight = task.loss(forward)["loss"]
        replies = np.asarray(task.predict(forward)["reply_ids"])
    np.testing.assert_array_equal(found.ids, inputs["text"])
    theirs, real = truths["decoder_logits"], inputs["text_mask"][..., None]
    assert np.abs(np.where(real, logits - theirs, 0)).max() < 1e-4 * np.abs(theirs).max()
    shifted = theirs[:, :-1] - theirs[:, :-1].max(-1, keepdims=True)
    chances = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    nats = -np.take_along_axis(chances, inputs["text"][:, 1:, None], -1)[..., 0]
    assert weight == learnt[:, 1:].sum() == 6 and image >= 0
    np.testing.assert_allclose(total, nats[learnt[:, 1:]].sum(), rtol=1e-4)
    # A reply begins where the answer did, with what torch finds likeliest there.
    first = [int(np.argmax(row)) for row in learnt]
    for row, at in enumerate(first):
        if at:
            assert replies[row, 0] == theirs[row, at - 1].argmax()
