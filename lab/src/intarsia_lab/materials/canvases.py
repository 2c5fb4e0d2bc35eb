"""Pictures of 16 small shop pictures in colours, and which colour the one of a kind has.

A canvas of 224 px has four tiles of 112 px, and each tile four items of 56 px. Four kinds stand in
it once, and a question names one of them; the other two fill it, in any colours. Tiles of one kind
and colour alone are for learning what a kind looks like.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from intarsia.data.packages import obtain, pinned
from intarsia.data.readers import fashion_mnist
from intarsia.data.senses.questions import Question

ACROSS, ITEM = 4, 56  # items, px
ONCE, TRAINING = 4, 60_000
# Fashion-MNIST's labels; without its shirts, pullovers and sneakers, which look like others here
KINDS = {"trousers": 1, "dress": 3, "coat": 4, "sandal": 5, "bag": 8, "boot": 9}
NAMES = tuple(KINDS)
COLOURS = {
    "red": (255, 60, 60),
    "green": (60, 220, 60),
    "blue": (80, 110, 255),
    "yellow": (255, 230, 60),
    "purple": (200, 80, 230),
    "white": (255, 255, 255),
}
WHAT = "What is it?"


@lru_cache(maxsize=1)
def _items() -> tuple[np.ndarray, np.ndarray]:
    images, labels, _ = fashion_mnist(obtain(pinned("dataset-fashion-mnist")))
    return np.asarray(images), np.asarray(labels)


def _items_of_kinds(test: bool) -> list[np.ndarray]:
    """Return, for each kind of garment, the numbers of its pictures in Fashion-MNIST.

    test: of the publisher's test part, else of its training part.
    """
    # the publisher's parts lie one after the other
    labels = _items()[1]
    part = np.arange(TRAINING, len(labels)) if test else np.arange(TRAINING)
    return [part[labels[part] == label] for label in KINDS.values()]


def asks_for(kind: int) -> str:
    """Return the question for the colour of a kind.  kind: index into NAMES."""
    return f"Colour of the {NAMES[kind]}"  # the kind last: two blocks read it from there


def canvas_questions(count: int, seed: int, *, test: bool = False) -> list[Question]:
    """Return four questions for each of `count` pictures, each on the colour of one garment.

    A question names a kind of garment that occurs once in the picture; four kinds do. seed: of the
    draws; test: take the garments from Fashion-MNIST's test part.
    """
    images, of_kind = _items()[0], _items_of_kinds(test)
    draws, colours = np.random.default_rng([seed, int(test)]), list(COLOURS)
    questions: list[Question] = []
    for number in range(count):
        # four kinds occur once; the two others fill the canvas, each at least once
        once, often = np.split(draws.permutation(len(NAMES)), [ONCE])
        repeats = ACROSS * ACROSS - len(NAMES)
        kinds = draws.permutation([*once, *often, *draws.choice(often, repeats)]).tolist()
        # a colour and a picture of its kind for each place
        in_colour = [colours[i] for i in draws.integers(len(colours), size=len(kinds))]
        items = [images[draws.choice(of_kind[kind])] for kind in kinds]
        context = {
            "image": (canvas(items, in_colour),),
            "group": f"{seed}-{number}",
        }
        for kind in once.tolist():
            answer = in_colour[kinds.index(kind)]
            questions.append(Question(asks_for(kind), f" {answer}", **context))
    return questions


def tile_questions(count: int, seed: int) -> list[Question]:
    """Return training questions on `count` tiles, each of four items of one kind and colour.

    seed: of the draws.
    """
    images, of_kind = _items()[0], _items_of_kinds(False)
    draws, colours = np.random.default_rng([seed, 2]), list(COLOURS)
    questions: list[Question] = []
    for number in range(count):
        # each kind equally often, in a random colour
        kind, colour = number % len(NAMES), colours[draws.integers(len(colours))]
        items = [images[i] for i in draws.choice(of_kind[kind], 4)]
        context = {"image": (canvas(items, [colour] * 4, 2),), "group": f"tile {seed}-{number}"}
        questions.append(Question(WHAT, f" {colour} {NAMES[kind]}", **context))
    return questions


def canvas(items: list[np.ndarray], colours: list[str], across: int = ACROSS) -> Image.Image:
    """Draw items in their colours on black, row by row.

    items: grey pictures; colours: the colour's name of each; across: items in a row.
    """
    page = Image.new("RGB", (across * ITEM, len(items) // across * ITEM))
    for place, (item, colour) in enumerate(zip(items, colours, strict=True)):
        small = Image.fromarray(item).resize((ITEM, ITEM), Image.Resampling.BICUBIC)
        # the grey value scales the colour
        light = np.asarray(small, dtype=np.float64)[..., None] / 255
        tinted = (light * np.array(COLOURS[colour])).round().astype(np.uint8)
        page.paste(Image.fromarray(tinted), (place % across * ITEM, place // across * ITEM))
    return page
