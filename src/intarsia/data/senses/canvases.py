"""Pictures of 16 small shop pictures, and whether one of a kind is among them.

A canvas of 224 px has four tiles of 112 px, and each tile four items of 56 px. Three kinds fill it,
three stand in it once, and four are absent: a question names one of the last seven. The same in
words, and tiles of one kind alone, are for what has to be learnt before.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from intarsia.data.packages import obtain, pinned
from intarsia.data.readers import fashion_mnist
from intarsia.data.senses.questions import Question

ACROSS, ITEM = 4, 56  # items, px
FILL, NEEDLES, TRAINING = 3, 3, 60_000
WHAT = " What is it?"  # with a space before it, as words have behind other words
NAMES = tuple(str.split("T-shirt trousers pullover dress coat sandal shirt sneaker bag boot"))


@lru_cache(maxsize=1)
def _items() -> tuple[np.ndarray, np.ndarray]:
    images, labels, _ = fashion_mnist(obtain(pinned("dataset-fashion-mnist")))
    return np.asarray(images), np.asarray(labels)


def _of_kind(test: bool) -> list[np.ndarray]:
    """The numbers of the items of each kind."""
    labels = _items()[1]
    part = np.arange(TRAINING, len(labels)) if test else np.arange(TRAINING)
    return [part[labels[part] == kind] for kind in range(len(NAMES))]


def _kinds(draws: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """The kinds of a canvas's 16 items, and six kinds to ask for with their answers."""
    fill, needles, absent = np.split(draws.permutation(len(NAMES)), [FILL, FILL + NEEDLES])
    rest = ACROSS * ACROSS - NEEDLES
    shown = draws.permutation([*needles, *fill, *draws.choice(fill, rest - FILL)])
    return shown, [(k, "yes") for k in needles] + [(k, "no") for k in absent[:NEEDLES]]


def asks_for(kind: int) -> str:
    """The question whether there is one of a kind."""
    return f" Is there a {NAMES[kind]}?"


def canvas_questions(count: int, seed: int, *, test: bool = False) -> list[Question]:
    """Six questions for each of so many canvases, half of them to be answered by yes.

    test: of items of the publisher's test part.
    """
    images, of_kind = _items()[0], _of_kind(test)
    draws = np.random.default_rng([seed, int(test)])
    found: list[Question] = []
    for number in range(count):
        shown, asked = _kinds(draws)
        picture = canvas([images[draws.choice(of_kind[kind])] for kind in shown])
        for kind, answer in asked:
            own = {"image": (picture,), "group": f"{seed}-{number}"}
            found.append(Question(asks_for(kind), answer, **own))
    return found


def tile_questions(count: int, seed: int) -> list[Question]:
    """What it is, of so many tiles whose four items are of one kind; of the training part."""
    images, of_kind = _items()[0], _of_kind(False)
    draws = np.random.default_rng([seed, 2])
    found: list[Question] = []
    for number in range(count):
        kind = number % len(NAMES)
        tile = canvas([images[i] for i in draws.choice(of_kind[kind], 4)], 2)
        found.append(
            Question(WHAT, f" {NAMES[kind]}", image=(tile,), group=f"tile {seed}-{number}")
        )
    return found


def canvases_in_words(count: int, seed: int) -> list[Question]:
    """So many questions of both kinds where words stand for the items: the same texts otherwise."""
    draws = np.random.default_rng([seed, 3])
    found: list[Question] = []
    for number in range(count):
        if number % 5 == 4:
            name = NAMES[number // 5 % len(NAMES)]
            found.append(Question(f" {name}{WHAT}", f" {name}"))
            continue
        shown, asked = _kinds(draws)
        kind, answer = asked[draws.integers(len(asked))]
        names = " ".join(NAMES[k] for k in shown)
        found.append(Question(f" {names}{asks_for(kind)}", answer))
    return found


def canvas(items: list[np.ndarray], across: int = ACROSS) -> Image.Image:
    """Grey items, row by row, `across` in a row."""
    page = Image.new("RGB", (across * ITEM, len(items) // across * ITEM))
    for place, item in enumerate(items):
        small = Image.fromarray(item).resize((ITEM, ITEM), Image.Resampling.BICUBIC)
        page.paste(small.convert("RGB"), (place % across * ITEM, place // across * ITEM))
    return page
