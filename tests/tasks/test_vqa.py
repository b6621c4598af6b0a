"""Answers written by the decoder, and chosen from the list by their likelihood."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.config import build
from mmjax.data.processor import Processor, ProcessorConfig
from mmjax.decoding import score
from mmjax.errors import ConfigError
from mmjax.generation_config import GenerationConfig
from mmjax.models.decoder import DecoderConfig
from mmjax.models.forward import Forward
from mmjax.models.fusion import FusionConfig
from mmjax.models.multimodal import ModelConfig, Multimodal, TokenIds, initialise
from mmjax.models.patch_encoder import PatchEncoderConfig
from mmjax.models.text_encoder import TextEncoderConfig
from mmjax.tasks import Task
from mmjax.tasks.vqa import VQA

SMALL = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8}
QA = [
    [("what is it?", "red"), ("how many?", "two")],
    [("what colour?", "blue"), ("which?", "dog")],
    [("is it big?", "no"), ("where?", "here")],
]


class Memory(list):
    name = "memory"

    def annotations(self, i):
        return self[i]


RECORDS = Memory({"id": str(i), "qa": [{"question": q, "answers": [a]} for q, a in qa]} for i, qa in enumerate(QA))
GENERATE = VQA(name="vqa", answer="generate", generation=GenerationConfig(num_beams=2))
RANK = VQA(name="vqa", answer="rank", candidates=0)


@functools.cache
def processor():
    config = ProcessorConfig(question_length=8, answer_length=6, questions=2)
    return Processor.fit(config, [RECORDS], frozenset({"image", "question", "answer", "answer_text"}))


@functools.cache
def make():
    own = processor().tokenizer
    config = ModelConfig(
        patch_encoder=PatchEncoderConfig(**SMALL, patch=4),
        text_encoder=TextEncoderConfig(**SMALL),
        fusion=FusionConfig(**SMALL, name="cross_attention"),
        decoder=DecoderConfig(**SMALL, length=32),
    )
    model = Multimodal(config, (8, 8), tokens=TokenIds(own.vocab_size, own.pad, own.bos, own.eos))
    shapes = nn.unbox(jax.eval_shape(lambda key: initialise(model, key), jax.random.key(0)))
    draw = np.random.default_rng(5)
    return model, jax.tree.map(lambda s: np.float32(draw.normal(size=s.shape)), shapes)


def batch():
    features = frozenset({"question", "answer_text"})
    arrays = processor().arrays(RECORDS, np.zeros(3, np.uint64), features, train=False, captions=1, questions=2)
    image = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), np.uint8)
    return arrays | {"image": image, "valid": np.ones(3, bool), "row": np.arange(3)}


def run(task):
    model, params = make()
    predict = jax.jit(lambda params, batch: task.predict(Forward(model, params, batch, processor=processor())))
    return task.readable(jax.device_get(predict(params, batch())), processor())


def test_the_ranked_answer_is_the_likeliest_of_the_list():
    model, params = make()
    ids, mask = processor().encode(processor().answers, processor().answer_length)
    fused = Forward(model, params, batch()).fuse("question").tokens
    scores = []
    for answer in range(len(ids)):
        one = (jnp.tile(jnp.asarray(x[answer]), (6, 1)) for x in (ids, mask))
        scores.append(score(model, params, *one, fused))
    wanted = np.array(processor().answers, dtype=object)[np.argmax(scores, 0).reshape(3, 2)]
    got = run(RANK)["answer"]
    assert got.tolist() == wanted.tolist()
    assert len(ids) >= 4 and len(set(got.reshape(-1))) > 1


def test_written_answers_come_with_accuracy_and_perplexity():
    outputs = run(GENERATE)
    assert outputs["answer"].shape == (3, 2) and all(isinstance(a, str) for a in outputs["answer"].reshape(-1))
    judge = GENERATE.evaluator(processor(), RECORDS)
    judge.update(outputs, batch(), RECORDS)
    names = {figure.name for figure in judge.figures()}
    assert {"vqa/accuracy", "vqa/perplexity", "vqa/token_accuracy"} <= names


def test_settings_for_writing_are_refused_where_nothing_is_written():
    with pytest.raises(ConfigError, match=r"config.tasks.vqa.generation: nothing is written with answer 'class'"):
        build(Task, {"generation": {"num_beams": 2}}, "config.tasks.vqa")


def test_confidence_of_a_written_answer_is_its_probability_and_of_a_chosen_one_its_share_of_the_list():
    model, params = make()
    fused = Forward(model, params, batch()).fuse("question").tokens
    written, own = run(GENERATE), processor().tokenizer
    for row, ids in enumerate(written["ids"].reshape(6, -1)):
        ends = np.flatnonzero(ids == own.eos)
        text = np.concatenate([[own.bos], ids[: ends[0] + 1 if len(ends) else None]]).astype(np.int32)
        alone = jax.tree.map(lambda x, row=row: x[row : row + 1], fused)
        logits = model.apply(
            {"params": params}, text[None], np.ones((1, len(text)), bool), alone, method="decode"
        ).logits
        steps = jax.nn.log_softmax(logits[0])[np.arange(len(text) - 1), text[1:]]
        np.testing.assert_allclose(written["confidence"].reshape(-1)[row], np.exp(np.sum(steps)), rtol=1e-4)
    chosen = run(GENERATE.choosing())
    assert chosen["answer"].tolist() == run(RANK)["answer"].tolist() and (chosen["confidence"] > 0.25).all()
