import numpy as np
import pytest

from mmjax.data.templates import Template
from mmjax.evaluators.zero_shot import ZeroShot, average_prompts

PROMPT = "a {label}.|the {label}|one {label}"


def test_prompts_of_a_class_are_averaged_to_unit_length():
    prompts = np.random.default_rng(0).normal(size=(4, 3, 8))
    classes = average_prompts(prompts)
    np.testing.assert_allclose(np.linalg.norm(classes, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(classes[2], (m := prompts[2].mean(0)) / np.linalg.norm(m), rtol=1e-5)


def test_the_class_whose_text_is_nearest_wins():
    random = np.random.default_rng(0)
    of_class = dict(zip("abcd", random.normal(size=(4, 3, 8)), strict=True))
    labels = [*"abcdabcda", ""]
    records = [Template.parse(PROMPT, "w").apply({"label": name}) for name in labels[:-1]]
    records = [{**r, "prompt": PROMPT} for r in records] + [{"texts": ["no label"]}]
    texts = np.stack([np.pad(of_class.get(name, np.ones((3, 8))), ((0, 1), (0, 0))) for name in labels])
    images = random.normal(size=(10, 8)) + texts.mean(1)
    valid = np.arange(10) != 8
    judge = ZeroShot("contrastive")
    for rows in (slice(0, 4), slice(4, 10)):
        batch = {"text_valid": np.arange(4) < np.full((10, 1), 3), "valid": valid}
        outputs = {"image_embedding": images, "text_embedding": texts}
        judge.update({k: v[rows] for k, v in outputs.items()}, {k: v[rows] for k, v in batch.items()}, records[rows])
    (figure,) = judge.figures()
    classes = dict(zip("abcd", average_prompts(np.stack(list(of_class.values()))), strict=True))
    far = np.array([[((image - c) ** 2).sum() for c in classes.values()] for image in images[:8]])
    hits = [list(classes)[near] == label for near, label in zip(far.argmin(1), labels, strict=False)]
    assert (figure.name, figure.n) == ("contrastive/zero_shot_accuracy", 8)
    assert figure.value == pytest.approx(np.mean(hits)) and 0.25 < figure.value < 1 and figure.baseline == 0.25
    assert figure.interval[0] <= figure.value <= figure.interval[1]


@pytest.mark.parametrize("prompt", ["", "{label}: {text}"])
def test_captions_that_say_more_than_the_class_are_no_prompts(prompt):
    judge = ZeroShot("contrastive")
    outputs = {"image_embedding": np.ones((1, 2)), "text_embedding": np.ones((1, 1, 2))}
    record = {"label": "cat", "texts": ["a cat"], **({"prompt": prompt} if prompt else {})}
    judge.update(outputs, {"text_valid": np.ones((1, 1), bool), "valid": np.ones(1, bool)}, [record])
    assert judge.figures() == []
