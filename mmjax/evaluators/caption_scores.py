"""BLEU, ROUGE-L, CIDEr-D and METEOR's exact stage, as the COCO caption evaluation (pycocoevalcap) computes them.

A caption is a list of words (`caption_words.words`); its references are one or more such lists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

Words = Sequence[str]
_ORDERS = range(1, 5)


def ngrams(words: Words, orders: Iterable[int] = _ORDERS) -> Counter[tuple[str, ...]]:
    """How often each n-gram of the orders is in the words."""
    return Counter(tuple(words[i : i + n]) for n in orders for i in range(len(words) - n + 1))


def bleu_counts(said: Words, references: Sequence[Words]) -> np.ndarray:
    """What corpus BLEU sums over captions: [10] float64, four counts of right n-grams, four of all, own and reference
    length, of the reference that is nearest in length (the shorter of two).
    """
    most: Counter[tuple[str, ...]] = Counter()
    for reference in references:
        most |= ngrams(reference)
    right = np.zeros(4)
    for gram, count in ngrams(said).items():
        right[len(gram) - 1] += min(count, most[gram])
    every = [max(0, len(said) - n + 1) for n in _ORDERS]
    nearest = min((abs(len(r) - len(said)), len(r)) for r in references)[1]
    return np.array([*right, *every, len(said), nearest])


def bleu(counts: np.ndarray) -> np.ndarray:
    """BLEU-1 to BLEU-4 (Papineni et al., 2002) of summed counts: [..., 10] -> [..., 4]."""
    right, every, own, nearest = counts[..., :4], counts[..., 4:8], counts[..., 8:9], counts[..., 9:]
    tiny, small = 1e-15, 1e-9  # as in pycocoevalcap: no n-gram at all gives about 0, not an error
    precision = np.cumprod((right + tiny) / (every + small), -1) ** (1 / np.arange(1, 5))
    ratio = (own + tiny) / (nearest + small)
    return precision * np.exp(np.minimum(0, 1 - 1 / ratio))


def rouge_l(said: Words, references: Sequence[Words], beta: float = 1.2) -> float:
    """F-measure of the longest common subsequence, of the best precision and the best recall (Lin, 2004, sec. 3)."""
    if not said:
        return 0.0
    common = [_longest_common(said, r) for r in references]
    precision = max(common) / len(said)
    recall = max(c / max(1, len(r)) for c, r in zip(common, references, strict=True))
    if not precision or not recall:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _longest_common(a: Words, b: Words) -> int:
    above = [0] * (len(b) + 1)
    for word in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(above[j] + 1 if word == other else max(row[j], above[j + 1]))
        above = row
    return above[-1]


def cider_d(said: Sequence[Words], references: Sequence[Sequence[Words]], sigma: float = 6.0) -> np.ndarray:
    """CIDEr-D of each of N captions (Vedantam et al., 2015, sec. 5): [N] float64; the set's is their mean.

    An n-gram's rarity is counted on the references of the set itself, so that a set of one picture has no score but 0.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    counted = [[ngrams(r) for r in rs] for rs in references]
    for grams in counted:
        seen.update(set().union(*grams))
    sets = np.log(float(len(references)))

    def weights(counts: Counter) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
        vectors: list[dict[tuple[str, ...], float]] = [{} for _ in _ORDERS]
        for gram, count in counts.items():
            vectors[len(gram) - 1][gram] = count * (sets - np.log(max(1.0, seen[gram])))
        norms = [sum(v * v for v in vector.values()) ** 0.5 for vector in vectors]
        return vectors, norms, sum(c for gram, c in counts.items() if len(gram) == 2)

    scores = []
    for words, grams in zip(said, counted, strict=True):
        vectors, norms, length = weights(ngrams(words))
        total = 0.0
        for reference in grams:
            others, other_norms, other_length = weights(reference)
            damp = np.exp(-((length - other_length) ** 2) / (2 * sigma**2))
            for mine, its, a, b in zip(vectors, others, norms, other_norms, strict=True):
                product = sum(min(v, its[gram]) * its[gram] for gram, v in mine.items() if gram in its)
                total += damp * product / (a * b if a and b else 1.0)
        scores.append(10.0 * total / len(grams) / 4)
    return np.array(scores)


def meteor_counts(said: Words, references: Sequence[Words]) -> np.ndarray:
    """What METEOR's exact stage sums over captions: [4] float64, matches, chunks, own and reference length, of the
    reference that scores best. A caption that is its reference word for word has no chunk.
    """
    options = []
    for reference in references:
        matches, chunks = _align(said, reference)
        whole = chunks == 1 and matches == len(said) == len(reference)
        options.append(np.array([matches, 0 if whole else chunks, len(said), len(reference)], float))
    return max(options, key=lambda counts: float(meteor(counts)))


def meteor(counts: np.ndarray) -> np.ndarray:
    """METEOR 1.5 (Denkowski and Lavie, 2014) of counts [..., 4] with equal words as the only matches, all words of one
    weight, and its English alpha, beta and gamma.
    """
    alpha, beta, gamma = 0.85, 0.2, 0.6
    matches, chunks, own, reference = np.moveaxis(np.asarray(counts, float), -1, 0)
    some = np.maximum(matches, 1)
    precision, recall = some / np.maximum(own, 1), some / np.maximum(reference, 1)
    mean = precision * recall / (alpha * precision + (1 - alpha) * recall)
    score = mean * (1 - gamma * (chunks / some) ** beta)
    return np.where(matches > 0, score, 0.0)


def _align(said: Words, reference: Words, beam: int = 40) -> tuple[int, int]:
    """(matches, chunks) of the alignment with most matches, among those fewest chunks, then the nearest places."""
    places: dict[str, list[int]] = {}
    for j, word in enumerate(reference):
        places.setdefault(word, []).append(j)
    times = Counter(said)
    # (used places, place of the last word if it was matched) -> (-matches, chunks, distance), the best way there
    states: dict[tuple[frozenset[int], int], tuple[int, int, int]] = {(frozenset(), -2): (0, 0, 0)}
    for i, word in enumerate(said):
        after: dict[tuple[frozenset[int], int], tuple[int, int, int]] = {}
        for (used, last), (negative, chunks, far) in states.items():
            # A word that the reference has as often is matched each time, or matches would be lost.
            may_skip = times[word] > len(places.get(word, ()))
            options = [((used, -2), (negative, chunks, far))] if may_skip else []
            for j in places.get(word, ()):
                if j not in used:
                    way = (negative - 1, chunks + (j != last + 1), far + abs(i - j))
                    options.append(((used | {j}, j), way))
            for state, way in options:
                if state not in after or way < after[state]:
                    after[state] = way
        states = dict(sorted(after.items(), key=lambda item: item[1])[:beam])
    negative, chunks, _ = min(states.values())
    return -negative, chunks
