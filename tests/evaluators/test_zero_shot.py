import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.zero_shot import ZeroShot, average_prompts


def test_the_nearest_class_text_wins():
    random = np.random.default_rng(0)
    prompts = random.normal(size=(4, 3, 8))
    classes = average_prompts(prompts)
    np.testing.assert_allclose(np.linalg.norm(classes, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(classes[2], (m := prompts[2].mean(0)) / np.linalg.norm(m), rtol=1e-5)
    images, label = random.normal(size=(10, 8)), random.integers(-1, 4, 10)
    evaluator = ZeroShot("contrastive", labels=tuple("abcd"), class_embedding=classes)
    valid = np.arange(10) < 9
    evaluator.update({"image_embedding": images}, {"label": label, "valid": valid}, [{}] * 10)
    (figure,) = evaluator.figures()
    hits = [
        min(range(4), key=lambda c: ((images[i] - classes[c]) ** 2).sum()) == label[i]
        for i in range(9)
        if label[i] >= 0
    ]
    assert figure.name == "contrastive/zero_shot_accuracy" and figure.n == len(hits)
    assert figure.value == pytest.approx(np.mean(hits)) and figure.baseline == 0.25


def test_labels_and_embeddings_must_agree():
    with pytest.raises(ConfigError, match="2 class embeddings for 3 labels"):
        ZeroShot("contrastive", labels=tuple("abc"), class_embedding=np.zeros((2, 4)))
