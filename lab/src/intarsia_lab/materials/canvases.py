"""Canvases of small shop pictures in colours: the colour of the one of a kind, a list of all.

A canvas of 224 px has four tiles of 112 px, and each tile four items of 56 px. Four kinds stand in
it once, and a question names one of them; the other two fill it, in any colours. A strip is the
upper half of a canvas: half as many items are easier to tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from intarsia.data.packages import obtain, pinned
from intarsia.data.readers import fashion_mnist
from intarsia.senses.data.questions import Question

ACROSS, ITEM, TILE = 4, 56, 2  # items in a row, px of an item, items along a side of a tile
CANVAS, STRIP = 16, 8  # items
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
LIST = "List"


@lru_cache(maxsize=1)
def _items() -> tuple[np.ndarray, np.ndarray]:
    images, labels, _ = fashion_mnist(obtain(pinned("dataset-fashion-mnist")))
    return np.asarray(images), np.asarray(labels)


def _items_of_kinds(test: bool) -> list[np.ndarray]:
    """Return, for each kind of garment, the numbers of its pictures in Fashion-MNIST."""
    # the publisher's parts lie one after the other
    labels = _items()[1]
    part = np.arange(TRAINING, len(labels)) if test else np.arange(TRAINING)
    return [part[labels[part] == label] for label in KINDS.values()]


def asks_for(kind: int) -> str:
    """Return the question for the colour of a kind.  kind: index into NAMES."""
    return f"Colour of the {NAMES[kind]}"


@dataclass(frozen=True)
class ItemLayout:
    """The items of a picture: their kinds and colours, in rows of four, and the kinds there once.

    kinds: indices into NAMES; colours: names; once: the kinds that questions ask for.
    """

    kinds: list[int]
    colours: list[str]
    once: list[int]

    @classmethod
    def drawn(cls, draws: np.random.Generator, count: int) -> ItemLayout:
        """Draw `count` items: four kinds stand there once, and the two others fill the rest."""
        once, often = np.split(draws.permutation(len(NAMES)), [ONCE])
        # each of the two at least once
        repeats = draws.choice(often, count - len(NAMES))
        kinds = draws.permutation([*once, *often, *repeats]).tolist()
        colours = list(COLOURS)
        in_colour = [colours[i] for i in draws.integers(len(colours), size=count)]
        return cls(kinds, in_colour, once.tolist())

    @property
    def by_tile(self) -> list[int]:
        """The numbers of the items tile by tile, in the order of a reader's local vectors."""
        place = np.arange(len(self.kinds)).reshape(-1, TILE, ACROSS // TILE, TILE)
        return place.swapaxes(1, 2).ravel().tolist()

    @property
    def answers(self) -> dict[str, str]:
        """The questions with their answers: the colour of each kind that stands there once."""
        return {asks_for(k): f" {self.colours[self.kinds.index(k)]}" for k in self.once}

    @property
    def listed(self) -> dict[str, str]:
        """The question for all items with its answer, tile by tile."""
        names = (f" {NAMES[self.kinds[i]]} {self.colours[i]}" for i in self.by_tile)
        return {LIST: "".join(names)}


def canvas_questions(
    count: int, seed: int, *, test: bool = False, items: int = CANVAS, listed: bool = False
) -> list[Question]:
    """Return four questions for each of `count` pictures, each on the colour of one garment.

    A question names a kind of garment that occurs once in the picture; four kinds do. seed: of the
    draws; test: take the garments from Fashion-MNIST's test part; items: of a picture, CANVAS or
    STRIP; listed: ask for a list of all garments, too, after the four.
    """
    images, of_kind = _items()[0], _items_of_kinds(test)
    draws = np.random.default_rng([seed, int(test), items])
    questions: list[Question] = []
    for number in range(count):
        layout = ItemLayout.drawn(draws, items)
        pictures = [images[draws.choice(of_kind[kind])] for kind in layout.kinds]
        context = {
            "image": (canvas(pictures, layout.colours),),
            "group": f"{seed}-{items}-{number}",
        }
        answers = layout.answers | (layout.listed if listed else {})
        questions += [Question(question, answer, **context) for question, answer in answers.items()]
    return questions


def canvas(items: list[np.ndarray], colours: list[str]) -> Image.Image:
    """Draw items in their colours on black, four in a row.

    items: grey pictures; colours: the colour's name of each.
    """
    page = Image.new("RGB", (ACROSS * ITEM, len(items) // ACROSS * ITEM))
    for place, (item, colour) in enumerate(zip(items, colours, strict=True)):
        small = Image.fromarray(item).resize((ITEM, ITEM), Image.Resampling.BICUBIC)
        # the grey value scales the colour
        light = np.asarray(small, dtype=np.float64)[..., None] / 255
        tinted = (light * np.array(COLOURS[colour])).round().astype(np.uint8)
        page.paste(Image.fromarray(tinted), (place % ACROSS * ITEM, place // ACROSS * ITEM))
    return page
