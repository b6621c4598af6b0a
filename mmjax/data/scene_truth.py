"""Sentences that are true or false of a scene, such that the sentence alone says nothing.

Scenes come in twos that differ in one thing: a colour, a shape, a place, or an object more. Of both the same sentences
are said, half of them true of the one alone, half of the other alone: each sentence is as often true as it is false.
(Pictures in twos: Goyal et al., 2017, for questions; sentences over sets of shapes: Suhr et al., 2017.)
"""

from __future__ import annotations

import itertools

import numpy as np

from mmjax.data.scene_language import NUMBERS, OPPOSITE, Object, holds, pick, place_of

Phrase = tuple[str, str]  # (color, shape), either may be ""
SIDE = 3  # sentences of each picture that are true, and as many that are false


def changed(
    objects: list[Object], pairs: list[Phrase], cells: list[tuple[float, float]], rng: np.random.Generator
) -> list[Object]:
    """The scene with one thing changed. `pairs` may be shown; `cells` are where objects stand."""
    objects = [dict(item) for item in objects]
    present = {(o["color"], o["shape"]) for o in objects}
    taken = {min(cells, key=lambda c: abs(c[0] - o["x"]) + abs(c[1] - o["y"])) for o in objects}
    free = [cell for cell in cells if cell not in taken]
    item = pick(rng, objects)
    ways = ["color", "shape", "move"] + ["swap", "remove"] * (len(objects) > 1) + ["add"] * (len(objects) < 3)
    way = pick(rng, ways)
    if way in ("color", "shape"):
        kept = "shape" if way == "color" else "color"
        near = [(c, s) for c, s in pairs if (c, s) not in present and item[kept] == (c if kept == "color" else s)]
        item["color"], item["shape"] = pick(rng, near) if near else pick(rng, [p for p in pairs if p not in present])
    elif way == "move":
        item["x"], item["y"] = pick(rng, free)
    elif way == "swap":
        other = pick(rng, [o for o in objects if o is not item])
        for key in ("x", "y"):
            item[key], other[key] = other[key], item[key]
    elif way == "remove":
        objects.remove(item)
    else:
        (color, shape), (x, y) = pick(rng, [p for p in pairs if p not in present]), pick(rng, free)
        objects.append({**item, "color": color, "shape": shape, "x": x, "y": y})
    return objects


def true_sentences(objects: list[Object], phrases: list[Phrase]) -> dict[str, str]:
    """{sentence: its kind}: all that is true of the scene and that `phrases` can say."""
    found = {_there(len(objects), "", "shape"): "count"}
    for color, shape in phrases:
        matching = _matching(objects, (color, shape))
        if matching:
            found[f"there is {_a(color, shape)}"] = "exists"
            found |= {f"there is {_a(color, shape)} at the {place_of(o)}": "place" for o in matching}
            if len(matching) == len(objects) and not (color and shape):
                found[f"all shapes are {color or _many(shape)}"] = "all"
        else:
            found[f"there is no {_noun(color, shape)}"] = "none"
        if matching and not (color and shape):
            found[_there(len(matching), color, shape)] = "count"
    for one, other in itertools.permutations(phrases, 2):
        a, b = _matching(objects, one), _matching(objects, other)
        if all(one) and all(other) and a and b:
            found["there is {} and {}".format(*sorted((_a(*one), _a(*other))))] = "both"
        for relation in OPPOSITE:
            if any(x is not y and holds(relation, x, y) for x in a for y in b):
                found[f"there is {_a(*one)} {relation} {_a(*other)}"] = "relation"
    return found


def sentences(first: list[Object], second: list[Object], rng: np.random.Generator) -> list[tuple[str, bool]]:
    """Up to 2 * SIDE (sentence, whether it is true of the first scene); the second is the other way round.

    Each kind of sentence is as likely as another, within what tells the two scenes apart.
    """
    seen = [(o["color"], o["shape"]) for o in (*first, *second)]
    phrases = sorted({*seen, *((c, "") for c, _ in seen), *(("", s) for _, s in seen)})
    one, other = true_sentences(first, phrases), true_sentences(second, phrases)
    sides = [{t: k for t, k in a.items() if t not in b} for a, b in ((one, other), (other, one))]
    count = min(SIDE, *map(len, sides))
    said: list[tuple[str, bool]] = []
    for side, true in zip(sides, (True, False), strict=True):
        for _ in range(count):
            kind = pick(rng, sorted(set(side.values())))
            text = pick(rng, sorted(t for t, k in side.items() if k == kind))
            del side[text]
            said.append((text, true))
    return said


def _matching(objects: list[Object], phrase: Phrase) -> list[Object]:
    color, shape = phrase
    return [o for o in objects if color in ("", o["color"]) and shape in ("", o["shape"])]


def _noun(color: str, shape: str) -> str:
    return " ".join(word for word in (color, shape or "shape") if word)


def _a(color: str, shape: str) -> str:
    noun = _noun(color, shape)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _there(count: int, color: str, shape: str) -> str:
    noun = _noun(color, shape)
    return f"there is exactly one {noun}" if count == 1 else f"there are exactly {NUMBERS[count]} {_many(noun)}"


def _many(noun: str) -> str:
    return noun + ("es" if noun.endswith("s") else "s")
