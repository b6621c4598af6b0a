"""What is said about a scene: captions that state all of it, the parser that checks them, and balanced questions.

An object is a dict: `color`, `shape`, `x`, `y`, `radius` (in picture widths, y downwards) and, in the full set,
`size` and `texture`.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np

Object = dict[str, Any]

COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "moon")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SIZES = ("large", "small")
NUMBERS = ("zero", "one", "two", "three")
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SYNONYMS = {"to the left of": "left of", "to the right of": "right of", "over": "above", "under": "below"}
GAP = 0.15  # of the picture's width: a smaller distance between two centres is not called left, right, above or below


def pick(rng: np.random.Generator, options: Any) -> Any:
    """One of `options`, each equally likely."""
    return options[int(rng.integers(len(options)))]


# Truth


def attributes(item: Object) -> tuple[str, str, str, str]:
    """(size, color, texture, shape), with "" for what the set does not vary."""
    return item.get("size", ""), item["color"], item.get("texture", ""), item["shape"]


def holds(relation: str, a: Object, b: Object) -> bool:
    """Whether `a` is left of, right of, above or below `b`."""
    if relation in ("right of", "below"):
        return holds(OPPOSITE[relation], b, a)
    axis = "x" if relation == "left of" else "y"
    return b[axis] - a[axis] > GAP


def stands(place: str, item: Object) -> bool:
    """Whether `item` is at `place`: words out of left, right, top, bottom, center."""
    x, y = item["x"], item["y"]
    truth = {"left": x < 0.42, "right": x > 0.58, "top": y < 0.42, "bottom": y > 0.58}
    truth["center"] = not any(truth.values())
    return all(truth[word] for word in place.split())


def place_of(item: Object) -> str:
    """ "left", "top", "top left", "center", ...: the fullest description of where the item is."""
    return " ".join(w for w in ("top", "bottom", "left", "right") if stands(w, item)) or "center"


# Captions


def _a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _noun(item: Object) -> str:
    return _a(" ".join(word for word in attributes(item) if word))


def _at(item: Object) -> str:
    place = place_of(item)
    return ("in the " if place == "center" else "on the " if place in ("left", "right") else "at the ") + place


def _join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def captions(objects: list[Object], rng: np.random.Generator) -> list[str]:
    """Five captions, each of the whole scene: every object with all its attributes, and where it is (to the other)."""
    orders = list(itertools.permutations(objects))
    rng.shuffle(orders)
    placed = [_join([f"{_noun(o)} {_at(o)}" for o in order]) for order in orders]
    inverted = _join([f"{_at(o)} is {_noun(o)}" for o in orders[-1]])
    there = "there is" if len(objects) == 1 else "there are"
    said = [placed[0], f"{there} {placed[-1]}", inverted, f"the picture shows {placed[len(placed) // 2]}"]
    if len(objects) != 2:
        return [*said, f"only {placed[0]}" if len(objects) == 1 else placed[1]]
    a, b = orders[0]
    relation = pick(rng, [r for r in OPPOSITE if holds(r, a, b)])
    ways = {"left of": "to the left of", "right of": "to the right of", "above": "over", "below": "under"}
    return [
        f"{_noun(a)} {relation} {_noun(b)}",
        f"{_noun(b)} {OPPOSITE[relation]} {_noun(a)}",
        f"there is {_noun(a)} {ways[relation]} {_noun(b)}",
        said[0],
        inverted,
    ]


# The way back

_OBJECT = re.compile(
    rf"\b(?:an? )?(?:({'|'.join(SIZES)}) )?(?:({'|'.join(COLORS)}) )?(?:({'|'.join(TEXTURES)}) )?({'|'.join(SHAPES)})\b"
)
_PLACE = r"(?:on|at|in) the (top left|top right|bottom left|bottom right|left|right|top|bottom|center)(?! of)"
_PLACE_IS = re.compile(_PLACE + r" (?:is|are) #(\d)")
_IS_PLACE = re.compile(r"#(\d) (?:is )?" + _PLACE)
_RELATION = re.compile(rf"#(\d) (?:is )?({'|'.join([*SYNONYMS, *OPPOSITE])}) #(\d)")
_GLUE = {"there", "is", "are", "the", "picture", "shows", "only", "and"}


def _parse(text: str) -> tuple[list[tuple[str, ...]], list[tuple[str, int]], list[tuple[str, int, int]], set[str]]:
    """The objects named, (place, object), (relation, object, object), and the words that say something else."""
    rest = " ".join(re.findall(r"[^\s,.]+", text.lower()))
    named: list[tuple[str, ...]] = []

    def number(match: re.Match) -> str:
        named.append(tuple(word or "" for word in match.groups()))
        return f"#{len(named) - 1}"

    rest = _OBJECT.sub(number, rest.replace("#", ""))
    places = [(m[1], int(m[2])) for m in _PLACE_IS.finditer(rest)]
    rest = _PLACE_IS.sub(" ", rest)
    places += [(m[2], int(m[1])) for m in _IS_PLACE.finditer(rest)]
    relations = [(SYNONYMS.get(m[2], m[2]), int(m[1]), int(m[3])) for m in _RELATION.finditer(rest)]
    rest = _RELATION.sub(" ", _IS_PLACE.sub(" ", rest))
    return named, places, relations, {w for w in rest.split() if not w.startswith("#")} - _GLUE


def parse_caption(text: str) -> Counter[tuple[str, ...]]:
    """The objects that a caption names, as a multiset of (size, color, texture, shape); "" for what it does not say."""
    return Counter(_parse(text)[0])


def caption_is_right(caption: str, record: dict[str, Any]) -> bool:
    """Whether a caption names exactly the objects of `record["scene"]`, with no false attribute, place or relation.

    Words outside the captions' own language make it wrong: they say something that the picture does not show.
    """
    scene = {attributes(item): item for item in record["scene"]}
    named, places, relations, unknown = _parse(caption)
    if unknown or Counter(named) != Counter(map(attributes, record["scene"])):
        return False
    items = [scene[words] for words in named]
    return all(stands(p, items[i]) for p, i in places) and all(holds(r, items[i], items[j]) for r, i, j in relations)


# Questions


def _refer(item: Object, objects: list[Object], hide: str, rng: np.random.Generator) -> str | None:
    """One of the shortest phrases without the attribute `hide` that singles `item` out: "the striped star"; or None."""
    known = [key for key in ("size", "color", "texture", "shape") if key in item and key != hide]
    for length in range(1, len(known) + 1):
        keys = [
            keys
            for keys in itertools.combinations(known, length)
            if sum(all(other[k] == item[k] for k in keys) for other in objects) == 1
        ]
        if keys:
            chosen = pick(rng, keys)
            return " ".join(["the", *(item[k] for k in chosen), *(() if "shape" in chosen else ("shape",))])
    return None


def _near_miss(objects: list[Object], pairs: list[tuple[str, str]], rng: np.random.Generator) -> tuple[str, str]:
    """A pair that is not in the scene but shares its color or its shape with an object that is."""
    present = {(o["color"], o["shape"]) for o in objects}
    item = pick(rng, objects)
    near = [p for p in pairs if p not in present and (p[0] == item["color"]) != (p[1] == item["shape"])]
    return pick(rng, near)


def questions(
    objects: list[Object], pairs: list[tuple[str, str]], coins: int, rng: np.random.Generator
) -> list[tuple[str, str]]:
    """Eight or so (question, one-word answer).

    The wanted answer comes first and the question is made to fit it, so that the question alone tells little: of each
    kind of yes/no question half are yes. `pairs` are the (color, shape) pairs that may be asked for; the bits of
    `coins` are the wanted answers (the number of the picture: over a split each bit is set half the time).
    """
    coin = [bool(coins >> k & 1) for k in range(4)]
    asked = pick(rng, objects)
    rows = [(f"is there {_a(' '.join((asked['color'], asked['shape'])))}?", "yes")]
    rows += [(f"is there {_a(' '.join(_near_miss(objects, pairs, rng)))}?", "no")]
    if "texture" in objects[0]:
        rows += [_attribute("what texture is {}?", "texture", objects, rng)]
        rows += [_attribute("what size is {}?", "size", objects, rng)]
    else:
        rows += [_presence(coin[0], objects, pairs, rng)]
    rows += [_attribute("what color is {}?", "color", objects, rng), _attribute("what is {}?", "shape", objects, rng)]
    rows += [_count(coin[1], coin[2], objects, pairs, rng)]
    rows += [_yes_no_relation(coin[3], objects, rng), _open_relation(objects, rng)] if len(objects) > 1 else []
    rows += [_place(objects[0], coin[3], rng)] if len(objects) == 1 else []
    kept = [row for row in rows if row is not None]
    rng.shuffle(kept)
    return [(str(q), str(a)) for q, a in kept]


def _presence(yes: bool, objects: list[Object], pairs: list, rng: np.random.Generator) -> tuple[str, str]:
    which, k = pick(rng, [("color", 0), ("shape", 1)])
    present = sorted({o[which] for o in objects})
    word = pick(rng, present if yes else sorted({p[k] for p in pairs} - set(present)))
    return f"is there {_a(word + ' shape' if which == 'color' else word)}?", "yes" if yes else "no"


def _attribute(question: str, key: str, objects: list[Object], rng: np.random.Generator) -> tuple[str, str] | None:
    told = [(o, _refer(o, objects, key, rng)) for o in objects]
    told = [(o, phrase) for o, phrase in told if phrase]
    if not told:
        return None
    item, phrase = pick(rng, told)
    return question.format(phrase), item[key]


def _count(all_shapes: bool, some: bool, objects: list, pairs: list, rng: np.random.Generator) -> tuple[str, str]:
    if all_shapes or "texture" not in objects[0]:
        return "how many shapes are there?", NUMBERS[len(objects)]
    present = sorted({o["color"] for o in objects})
    color = pick(rng, present if some else sorted({c for c, _ in pairs} - set(present)))
    return f"how many {color} shapes are there?", NUMBERS[sum(o["color"] == color for o in objects)]


def _yes_no_relation(yes: bool, objects: list[Object], rng: np.random.Generator) -> tuple[str, str]:
    a, b, relation = pick(
        rng, [(a, b, r) for a, b in itertools.permutations(objects, 2) for r in OPPOSITE if holds(r, a, b)]
    )
    a, b = (a, b) if yes else (b, a)
    return f"is {_pair(a)} {relation} {_pair(b)}?", "yes" if yes else "no"


def _open_relation(objects: list[Object], rng: np.random.Generator) -> tuple[str, str]:
    found = [(o, r, [p for p in objects if holds(r, p, o)]) for o in objects for r in OPPOSITE]
    wanted = 0 if rng.random() < 0.3 else 1
    item, relation, there = pick(rng, [row for row in found if len(row[2]) == wanted])
    return f"what shape is {relation} {_pair(item)}?", there[0]["shape"] if there else "nothing"


def _place(item: Object, flip: bool, rng: np.random.Generator) -> tuple[str, str]:
    words = place_of(item).split()
    if len(words) == 1 and "texture" not in item:
        return f"where is the {item['shape']}?", words[0]
    if flip:
        return f"is the {item['shape']} at the top or at the bottom?", words[0]
    return f"is the {item['shape']} on the left or on the right?", words[1]


def _pair(item: Object) -> str:
    return f"the {item['color']} {item['shape']}"
