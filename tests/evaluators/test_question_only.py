from collections import Counter

import numpy as np
import pytest

from mmjax.errors import ConfigError
from mmjax.evaluators.question_only import NaiveBayes, QuestionOnly


def qa(question, *answers):
    return {"question": question, "answers": list(answers)}


TRAIN = [
    {"qa": [qa("what colour is it?", "red"), qa("is it big?", "yes"), qa("is it red?", "no")]},
    {"qa": [qa("what colour is it?", "blue", "Red"), qa("is it small?", "no")]},
    {"qa": [qa("what shape is it?", "cube")]},
]


def test_question_only_falls_back_to_two_words_and_then_to_any():
    blind = QuestionOnly(TRAIN)
    assert blind.lookup("What colour  is it?") == "red"
    assert blind.lookup("what colour was it?") == "red"
    assert blind.lookup("is it round?") == "no"
    assert blind.lookup("who?") == blind.most_frequent == "red"


def test_words_that_training_lacks_change_no_answer():
    blind = QuestionOnly(TRAIN)
    assert blind.by_words("so what shape then is it?") == "cube"
    assert blind.by_words("who?") == "red"  # the prior alone


def test_naive_bayes_equals_that_of_scikit_learn():
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    draw = np.random.default_rng(0)
    words, answers = [f"w{i}" for i in range(20)], [f"a{i}" for i in range(6)]
    sentence = lambda: " ".join(draw.choice(words, draw.integers(2, 7)))  # noqa: E731
    pairs = Counter((sentence(), str(draw.choice(answers))) for _ in range(200))
    questions, truth = zip(*pairs.elements(), strict=True)
    counter = CountVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), binary=True)
    theirs = MultinomialNB(alpha=0.1).fit(counter.fit_transform(questions), truth)
    ours, asked = NaiveBayes(pairs), [sentence() for _ in range(200)]
    assert [ours(q) for q in asked] == list(theirs.predict(counter.transform(asked)))


def test_a_set_without_answers_is_an_error():
    with pytest.raises(ConfigError, match="data.train: no record has questions"):
        QuestionOnly([{}])
