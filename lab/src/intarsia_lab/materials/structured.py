"""Synthetic versions of VTAB's structured tasks: position, number, distance and orientation.

pictures = load("synthetic-count", 2000)

All pictures are rendered here, without data of dSprites, CLEVR or smallNORB. Picture i is a
function of (task, seed, i) and has the label i mod classes. Sprites use dSprites' latents. Scenes
are simpler versions of CLEVR's, and toys of smallNORB's.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache as memory
from itertools import count, pairwise
from pathlib import Path

import numpy as np

from intarsia.core.checks import at_least
from intarsia.core.errors import UnknownName
from intarsia.data.decoded import Decoded, decoded_once
from intarsia.data.images import ImageSet
from intarsia.data.packages import announce, cache_dir

from .solids import Kind, Solid, Vector, View, depth, render, turn

Part = tuple[Kind, Vector, Vector]  # kind, position on the toy, half lengths

VERSION = 1  # raise it with any change of the pixels
SCENE, TOY, SPRITE = 112, 96, 64  # px
SEEN = 12  # px, the least visible area of each object in a scene
SHAPES = ("square", "ellipse", "heart")
LATENTS = (3, 6, 40, 32, 32)  # dSprites: shape, scale, orientation, x, y
NEAREST = (7.25, 8.0, 8.5, 9.0, 9.5, 10.0, 10.75)  # VTAB's bounds of distance, with finite ends
COLOURS = (  # of the objects in scenes, in linear light
    (0.09, 0.09, 0.09),
    (0.42, 0.02, 0.02),
    (0.03, 0.10, 0.65),
    (0.02, 0.35, 0.03),
    (0.22, 0.08, 0.03),
    (0.25, 0.05, 0.50),
    (0.02, 0.50, 0.50),
    (0.75, 0.60, 0.02),
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A synthetic task: the names of its classes, and the function that renders a picture."""

    classes: tuple[str, ...]
    draw: Callable[[str, int, int], np.ndarray]  # task, seed, picture -> uint8
    about: str


def names() -> tuple[str, ...]:
    """Return names of the tasks that `load` knows."""
    return tuple(TASKS)


def load(
    name: str,
    n: int,
    *,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[str], None] = announce,
) -> ImageSet:
    """Return the first `n` pictures of a synthetic task; render them the first time.

    name: of the task; seed: of the pictures; cache: folder, None = the usual one; progress: is
      called with a text before rendering, which takes up to 10 ms a picture. Any slice of the
      pictures is balanced and without repeats.
    Raises: UnknownName; ConfigError for fewer pictures than classes; AssetError for the cache.
    """
    task = _task(name)
    at_least(f"pictures of {name}", n, len(task.classes), "Ask for at least one of every class.")

    def make() -> Decoded:
        """Render the pictures; return them with their labels and the classes' names."""
        progress(f"intarsia: rendering {n} pictures of {name} (once)")
        pictures = np.stack([task.draw(name, seed, i) for i in range(n)])
        return pictures, [i % len(task.classes) for i in range(n)], list(task.classes)

    # version, seed and number decide the pictures, so that they are in the name
    file = (cache or cache_dir()) / "sets" / f"{name}-v{VERSION}-seed{seed}-{n}.safetensors"
    images, labels, classes = decoded_once(file, make)
    licence = "synthetic: none needed"
    source = f"synthetic: intarsia.data.structured, version {VERSION}, seed {seed}"
    return ImageSet(name, images, labels, classes, licence=licence, source=source)


def picture(name: str, index: int, *, seed: int = 0) -> np.ndarray:
    """Render one picture of a synthetic task, uint8 (H, W) or (H, W, 3).

    name: of the task; index: number of the picture, its label is `index` mod classes; seed: of the
      pictures.
    Raises: UnknownName.
    """
    return _task(name).draw(name, seed, index)


def _task(name: str) -> Rendered:
    if name not in TASKS:
        raise UnknownName("synthetic task", name, TASKS)
    return TASKS[name]


class _Random:
    """Random numbers from SHA-256 of a key, which no library version can change."""

    def __init__(self, *key: str | int) -> None:
        self._words = self._stream("/".join(map(str, key)))

    @staticmethod
    def _stream(key: str) -> Iterator[int]:
        """Yield the 64-bit numbers of SHA-256 of key/0, key/1, ..., four from each."""
        for block in count():
            yield from struct.unpack("<4Q", hashlib.sha256(f"{key}/{block}".encode()).digest())

    def real(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * ((next(self._words) >> 11) * 2.0**-53)

    def below(self, n: int) -> int:
        """Uniform in 0 ... n - 1."""
        return next(self._words) % n


def latents(attribute: int, classes: int, *, seed: int) -> tuple[np.ndarray, ...]:
    """Return dSprites' 737,280 latents in random order, by class: one (m, 5) array for each class.

    A latent is (shape, scale, orientation, x, y). attribute: index of the one that classes are made
    of; classes: their number; seed: of the order.
    VTAB's classes are floor(value * classes / values). They differ in size: each of 16 classes has
    2 or 3 of 40 orientations.
    """
    order = np.random.RandomState(seed).permutation(int(np.prod(LATENTS)))
    values = np.stack(np.unravel_index(order, LATENTS), axis=1).astype(np.int8)
    label = values[:, attribute].astype(np.int64) * classes // LATENTS[attribute]
    return tuple(values[label == c] for c in range(classes))


_latents = memory(latents)


def _sprite(attribute: int) -> Callable[[str, int, int], np.ndarray]:
    """Return the function (task, seed, index) -> picture that draws sprites."""

    def draw(_: str, seed: int, index: int) -> np.ndarray:
        """Draw picture `index` of a seed; its class is `index` mod 16."""
        # the next latents of the picture's class
        of_class = _latents(attribute, 16, seed=seed)[index % 16]
        shape, scale, angle, x, y = (int(v) for v in of_class[index // 16])
        return sprite(shape, scale, angle, x, y)

    return draw


def sprite(shape: int, scale: int, angle: int, x: int, y: int) -> np.ndarray:
    """Render one sprite from its five latents, white on black, (64, 64) uint8.

    shape, scale, angle, x, y: indices of dSprites' latents. Scales are 0.5 to 1. Orientations are 0
      to 2 pi including both ends, so 0 and 39 give the same picture. One step of x or y is one
      pixel.
    """
    cosine, sine = turn(360 * angle / 39)
    size = 0.5 + 0.1 * scale
    place = np.arange(SPRITE)
    across = ((place - 16) - x)[None, :] / size
    down = ((place - 16) - y)[:, None] / size
    # coordinates of each pixel in the frame of the sprite
    u, v = across * cosine + down * sine, down * cosine - across * sine
    if SHAPES[shape] == "square":
        inside = (np.abs(u) <= 10.5) & (np.abs(v) <= 10.5)
    elif SHAPES[shape] == "ellipse":
        u, v = u / 14, v / 8
        inside = u * u + v * v <= 1
    else:
        u, v = u / 10.5, -v / 10.5
        # the heart curve (u^2 + v^2 - 1)^3 <= u^2 v^3
        ring = u * u + v * v - 1
        inside = ring * ring * ring <= u * u * v * v * v
    return inside.astype(np.uint8) * 255


def _scene(name: str, seed: int, index: int) -> np.ndarray:
    return arrange(name, seed, index)[2]


def arrange(name: str, seed: int, index: int) -> tuple[list[Solid], View, np.ndarray]:
    """Draw a scene of 3 to 10 visible objects; return the objects, the view and the picture.

    name: of the task; seed, index: of the picture. The label is the number of objects, or the range
      of the depth of the nearest object's centre.
    """
    random = _Random(name, seed, index)
    counting = name == "synthetic-count"
    # the label fixes the number, or the range of the nearest object
    bounds = None if counting else NEAREST[index % 6 : index % 6 + 2]
    while True:
        grey = random.real(0.4, 0.6)
        view = View(
            eye=(random.real(-0.5, 0.5), random.real(-10.4, -9.4), random.real(4.8, 5.8)),
            target=(0.0, -0.4, 0.0),
            zoom=1.35,
            lamp=(random.real(-0.8, 0.8), random.real(-0.8, 0.3), random.real(0.7, 1.1)),
            floor=(grey, grey, grey),
        )
        objects = 3 + (index % 8 if counting else random.below(8))
        solids = _objects(random, view, objects, bounds)
        if solids is None:
            continue
        pixels, visible = render(solids, view, SCENE)
        # a scene in which an object is hidden is drawn again
        if visible.min() >= SEEN:
            return solids, view, pixels


def _objects(
    random: _Random, view: View, objects: int, bounds: tuple[float, ...] | None
) -> list[Solid] | None:
    """Draw objects that do not touch, the nearest at a depth within `bounds`."""
    nearest = random.real(*bounds) if bounds else 0.0
    solids: list[Solid] = []
    for _ in range(400):
        solid = _object(random)
        # the first object is the nearest
        if bounds and not solids:
            solid = _moved_to(nearest, solid, view)
        away = depth(view, solid.at)
        radius = max(solid.size)
        # beyond the picture's left or right edge
        outside = abs(solid.at[0] - view.eye[0]) + radius > 0.45 * away / view.zoom
        crowded = any(
            math.dist(solid.at[:2], neighbour.at[:2]) < 1.4 * (radius + max(neighbour.size))
            for neighbour in solids
        )
        if outside or crowded or (solids and away <= nearest):
            continue
        solids.append(solid)
        if len(solids) == objects:
            return solids
    return None


def _object(random: _Random) -> Solid:
    """Draw a small or large object on the floor, of metal or rubber."""
    kind = ("ball", "can", "cube")[random.below(3)]
    half = (0.35, 0.7)[random.below(2)] * (0.75 if kind == "cube" else 1.0)
    return Solid(
        kind,
        (random.real(-3.6, 3.6), random.real(-4.6, 3.4), half),
        (half, half, half),
        turn(random.below(360)),
        COLOURS[random.below(len(COLOURS))],
        shine=0.7 * random.below(2),
    )


def _moved_to(distance: float, solid: Solid, view: View) -> Solid:
    """Return a solid moved along y so that its depth from the eye is `distance`."""
    x, y, z = solid.at
    # the depth is linear in y
    slope = depth(view, (x, y + 1, z)) - depth(view, solid.at)
    return replace(solid, at=(x, y + (distance - depth(view, solid.at)) / slope, z))


def _toy(name: str, seed: int, index: int) -> np.ndarray:
    return render(*pose(name, seed, index), TOY)[0][:, :, 0]


def pose(name: str, seed: int, index: int) -> tuple[list[Solid], View]:
    """Draw one of five grey toys with random proportions, and a view with a random light.

    name: of the task; seed, index: of the picture. The label is the toy's azimuth / 20 degrees, or
      (the eye's elevation - 30 degrees) / 5 degrees. Returns the toy's parts and the view.
    """
    random = _Random(name, seed, index)
    # the label fixes one angle, the other is random
    azimuth = index % 18 if name == "synthetic-azimuth" else random.below(18)
    elevation = index % 9 if name == "synthetic-elevation" else random.below(9)
    cosine, sine = turn(30 + 5 * elevation)
    away = random.real(6.2, 7.0)
    floor, shade = random.real(0.45, 0.75), random.real(0.1, 0.4)
    view = View(
        eye=(0.0, -away * cosine, away * sine),
        target=(random.real(-0.15, 0.15), random.real(-0.15, 0.15), random.real(0.4, 0.6)),
        zoom=1.8,
        lamp=LAMPS[random.below(len(LAMPS))],
        floor=(floor, floor, floor),
    )
    parts = TOYS[tuple(TOYS)[random.below(len(TOYS))]]
    stretch = tuple(random.real(0.85, 1.15) for _ in range(3))
    return [_part(row, stretch, random.real(0.9, 1.1), 20 * azimuth, shade) for row in parts], view


def _part(row: Part, stretch: Sequence[float], swell: float, azimuth: int, shade: float) -> Solid:
    """Return a part of a toy as a solid, turned and scaled."""
    kind, centre, size = row
    x, y, z = (a * s for a, s in zip(centre, stretch, strict=True))
    length, width, height = (a * s * swell for a, s in zip(size, stretch, strict=True))
    cosine, sine = turn(azimuth)
    position = x * cosine - y * sine, x * sine + y * cosine, z
    return Solid(
        kind, position, (length, width, height), (cosine, sine), (shade, shade, shade), 0.1
    )


def _both(part: Part) -> tuple[Part, Part]:
    """Return a part and its mirror image on the other side of the toy."""
    kind, (x, y, z), size = part
    return part, (kind, (x, -y, z), size)


TOYS: dict[str, tuple[Part, ...]] = {  # x is forward, z up
    "car": (
        ("cube", (0.0, 0.0, 0.4), (1.0, 0.45, 0.2)),
        ("cube", (-0.3, 0.0, 0.75), (0.45, 0.4, 0.2)),
        *_both(("ball", (0.6, 0.45, 0.22), (0.22, 0.1, 0.22))),
        *_both(("ball", (-0.6, 0.45, 0.22), (0.22, 0.1, 0.22))),
    ),
    "truck": (
        ("cube", (0.75, 0.0, 0.6), (0.28, 0.42, 0.4)),
        ("cube", (-0.3, 0.0, 0.85), (0.68, 0.46, 0.6)),
        *_both(("ball", (0.7, 0.42, 0.2), (0.22, 0.1, 0.22))),
        *_both(("ball", (-0.6, 0.42, 0.2), (0.22, 0.1, 0.22))),
    ),
    "plane": (
        ("ball", (0.0, 0.0, 0.5), (1.2, 0.2, 0.2)),
        ("cube", (0.2, 0.0, 0.5), (0.22, 1.15, 0.04)),
        ("cube", (-1.0, 0.0, 0.6), (0.13, 0.42, 0.03)),
        ("cube", (-1.0, 0.0, 0.75), (0.15, 0.03, 0.25)),
    ),
    "animal": (
        ("ball", (0.0, 0.0, 0.75), (0.75, 0.3, 0.32)),
        ("ball", (0.85, 0.0, 1.1), (0.3, 0.2, 0.22)),
        ("can", (-0.75, 0.0, 0.95), (0.05, 0.05, 0.25)),
        *_both(("can", (0.45, 0.17, 0.3), (0.1, 0.1, 0.3))),
        *_both(("can", (-0.45, 0.17, 0.3), (0.1, 0.1, 0.3))),
    ),
    "person": (
        ("ball", (0.0, 0.0, 1.0), (0.22, 0.36, 0.45)),
        ("ball", (0.03, 0.0, 1.6), (0.2, 0.18, 0.22)),
        ("can", (0.0, -0.42, 0.95), (0.09, 0.09, 0.38)),
        ("cube", (0.35, 0.42, 1.25), (0.4, 0.08, 0.08)),
        *_both(("can", (0.0, 0.17, 0.35), (0.12, 0.12, 0.35))),
        *_both(("ball", (0.1, 0.17, 0.08), (0.24, 0.11, 0.09))),
    ),
}
LAMPS: tuple[Vector, ...] = (  # six, as smallNORB has
    (0.0, -0.6, 0.8),
    (0.7, -0.3, 0.7),
    (-0.7, -0.3, 0.7),
    (0.6, 0.5, 0.7),
    (-0.6, 0.5, 0.7),
    (0.1, 0.1, 1.0),
)
_NEAR = [f"{low} to {high}" for low, high in pairwise(NEAREST)]
TASKS: dict[str, Rendered] = {
    "synthetic-location": Rendered(
        tuple(f"x {2 * c} and {2 * c + 1}" for c in range(16)),
        _sprite(3),
        "synthetic sprites with dSprites' latents: position along x",
    ),
    "synthetic-orientation": Rendered(
        tuple(f"from {22.5 * c} degrees" for c in range(16)),
        _sprite(2),
        "synthetic sprites with dSprites' latents: orientation; squares look the same in 4 "
        "orientations and ellipses in 2, so the best possible accuracy is about 0.58",
    ),
    "synthetic-count": Rendered(
        tuple(str(n) for n in range(3, 11)), _scene, "synthetic scenes: number of objects"
    ),
    "synthetic-distance": Rendered(
        tuple(_NEAR), _scene, "synthetic scenes: distance of the nearest object"
    ),
    "synthetic-azimuth": Rendered(
        tuple(f"{20 * c} degrees" for c in range(18)), _toy, "synthetic toys: azimuth"
    ),
    "synthetic-elevation": Rendered(
        tuple(f"{30 + 5 * c} degrees" for c in range(9)),
        _toy,
        "synthetic toys: elevation of the eye",
    ),
}
