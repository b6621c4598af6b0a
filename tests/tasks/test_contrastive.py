"""The contrastive task: rows without a picture, and which figures a set gives."""

import jax
import numpy as np
import pytest

from mmjax.tasks.contrastive import Contrastive

ROWS, TEXTS, WIDTH = 4, 2, 6


def unit(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


EMBEDDINGS = {"image": unit(0, ROWS, WIDTH), "text": unit(1, ROWS, TEXTS, WIDTH)}


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_a_row_without_a_picture_is_as_if_it_were_not_there(kind):
    """Its blank picture is no wrong answer to the other rows' captions. It has no captions of its own."""
    task = Contrastive(name="contrastive", loss_kind=kind)
    couple = jax.jit(lambda e, k: task.couple(e, k, (1.0, -2.0))["loss"])
    keys = {"valid": np.ones(ROWS, bool), "image_key": np.arange(ROWS), "pictured": np.arange(ROWS) != 2}
    keys |= {"text_valid": np.tile(keys["pictured"][:, None], TEXTS), "text_key": np.arange(8).reshape(ROWS, TEXTS)}
    others = keys["pictured"]
    whole = couple(EMBEDDINGS, keys)
    alone = couple({k: v[others] for k, v in EMBEDDINGS.items()}, {k: v[others] for k, v in keys.items()})
    np.testing.assert_allclose(whole, alone, rtol=1e-6)
    assert not np.allclose(couple(EMBEDDINGS, keys | {"pictured": np.ones(ROWS, bool)})[0], alone[0], rtol=1e-3)


@pytest.mark.parametrize("prompt", ["", "a {label}|one {label}"])
def test_zero_shot_accuracy_stands_beside_retrieval_where_captions_are_class_names(prompt):
    judge = Contrastive(name="contrastive").evaluator(None, None)
    records = [{"label": name, "texts": [name], "prompt": prompt} for name in "abab"]
    batch = {"valid": np.ones(ROWS, bool), "image_key": np.arange(ROWS), "text_valid": np.ones((ROWS, TEXTS), bool)}
    batch["text_key"] = np.array([[1, 2], [3, 4]] * 2)
    judge.update({f"{k}_embedding": v for k, v in EMBEDDINGS.items()}, batch, records)
    names = [figure.name for figure in judge.figures()]
    assert names[:6] == [f"contrastive/{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]
    assert names[6:] == (["contrastive/zero_shot_accuracy"] if prompt else [])
