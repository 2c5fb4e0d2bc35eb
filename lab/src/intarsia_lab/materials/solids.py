"""Shaded pictures of balls, cans and cubes on a floor, by ray casting in numpy.

picture, seen = render([Solid("ball", at=(0, 0, 1))], View(eye=(0, -9, 5), target=(0, 0, 0)), 96)

Pixels are computed with additions, products, quotients and square roots only. IEEE 754 rounds these
in the same way on every machine, so a scene gives the same bytes everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Kind = Literal["ball", "can", "cube"]
Vector = tuple[float, float, float]
Rays = Sequence[np.ndarray]  # x, y and z, all of one shape
Span = tuple[np.ndarray, np.ndarray]  # where a ray enters and leaves, in units of its direction

AMBIENT = 0.35  # light in the shadow
GRAZE = 1e-4  # shadows start this far from a surface, so that it does not shade itself


@dataclass(frozen=True, slots=True)
class Solid:
    """A unit ball, can or cube, scaled to half lengths `size`, turned about z, moved to `at`."""

    kind: Kind
    at: Vector
    size: Vector = (1.0, 1.0, 1.0)
    turn: tuple[float, float] = (1.0, 0.0)  # cosine and sine
    colour: Vector = (0.6, 0.6, 0.6)
    shine: float = 0.0  # strength of the highlight


@dataclass(frozen=True, slots=True)
class View:
    """The position of the eye, the point it looks at, and the light; z points up."""

    eye: Vector
    target: Vector
    zoom: float = 1.1  # focal length in picture widths
    lamp: Vector = (-0.4, -0.5, 0.8)  # towards the light
    floor: Vector = (0.6, 0.6, 0.6)


def turn(degrees: float) -> tuple[float, float]:
    """Return cosine and sine of an angle, rounded to 12 decimals.

    Libraries differ in the 16th decimal, and a picture must have the same bytes everywhere.
    """
    angle = math.radians(degrees)
    return round(math.cos(angle), 12), round(math.sin(angle), 12)


def depth(view: View, point: Vector) -> float:
    """Return the distance of a point from the eye, along the line of sight."""
    ahead = _unit(_minus(view.target, view.eye))
    return _dot(ahead, _minus(point, view.eye))


def render(solids: Sequence[Solid], view: View, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene; return its picture (size, size, 3) uint8, and each solid's visible pixels.

    solids: on the floor z = 0; view: eye, target and lamp; size: pixels of a side.
    """
    rays = _rays(view, size)
    # distance along each ray to the floor, infinite above the horizon
    nearest = np.where(rays[2] < 0, -view.eye[2] / np.minimum(rays[2], -1e-9), np.inf)
    owner = np.full(nearest.shape, -1)
    for k, solid in enumerate(solids):
        # the nearest solid owns the pixel; -1 is the floor
        near, far, _ = _cross(solid, view.eye, rays)
        first = (near < far) & (near > 0) & (near < nearest)
        nearest, owner = np.where(first, near, nearest), np.where(first, k, owner)
    hit = np.isfinite(nearest)
    ahead = tuple(ray[hit] for ray in rays)
    # where each ray hits something
    point = tuple(eye + nearest[hit] * ray for eye, ray in zip(view.eye, ahead, strict=True))
    shades = _shade(solids, view, owner[hit], point, ahead)
    picture = np.empty((*nearest.shape, 3), dtype=np.uint8)
    for band in range(3):
        plane = np.full(nearest.shape, view.floor[band] * AMBIENT)  # beyond the horizon
        plane[hit] = shades[band]
        bright = np.sqrt(np.minimum(plane, 1.0))  # light -> display values
        picture[..., band] = (bright * 255 + 0.5).astype(np.uint8)
    return picture, np.bincount(owner[owner >= 0], minlength=len(solids))


def _shade(
    solids: Sequence[Solid], view: View, owner: np.ndarray, point: Rays, ahead: Rays
) -> list[np.ndarray]:
    """Return the light that goes from each visible point to the eye, an array for each colour band.

    solids: of the scene; view: camera and lamp; owner: (n,), solid of each point, -1 = the floor;
      point: (n,) coordinates; ahead: (n,) directions of the rays from the eye.
    """
    lamp = _unit(view.lamp)
    normal = [np.zeros(owner.shape), np.zeros(owner.shape), np.ones(owner.shape)]  # the floor's
    colour = [np.full(owner.shape, band) for band in view.floor]
    shine = np.zeros(owner.shape)
    dark = np.zeros(owner.shape, dtype=bool)
    for k, solid in enumerate(solids):
        mine = owner == k
        outward = _normal(solid, view.eye, tuple(ray[mine] for ray in ahead))
        for band in range(3):
            normal[band][mine], colour[band][mine] = outward[band], solid.colour[band]
        shine[mine] = solid.shine
        # a solid between point and lamp: shadow
        near, far, _ = _cross(solid, point, lamp)
        dark |= (near < far) & (far > GRAZE)
    facing = _dot(normal, lamp)
    lit = np.where(dark, 0.0, np.maximum(facing, 0.0))
    length = np.sqrt(_dot(ahead, ahead))
    # halfway between lamp and eye: the highlight of Blinn's model
    half = [light - ray / length for light, ray in zip(lamp, ahead, strict=True)]
    gloss = np.maximum(_dot(normal, half) / np.sqrt(np.maximum(_dot(half, half), 1e-12)), 0.0)
    for _ in range(5):
        gloss = gloss * gloss  # to the power of 32
    gloss = np.where(lit > 0, shine * gloss, 0.0)
    return [band * (AMBIENT + (1 - AMBIENT) * lit) + gloss for band in colour]


def _rays(view: View, size: int) -> Rays:
    """Return the directions from the eye through the pixels' centres, three arrays (size, size)."""
    ahead = _unit(_minus(view.target, view.eye))
    # the picture's horizontal and vertical axes
    right = _unit((ahead[1], -ahead[0], 0.0))
    up = _times(right, ahead)
    across = (np.arange(size) + 0.5) / size - 0.5
    x, y = across[None, :] / view.zoom, -across[:, None] / view.zoom
    first, second, third = (a + x * r + y * u for a, r, u in zip(ahead, right, up, strict=True))
    return first, second, third


def _cross(solid: Solid, start: Vector | Rays, ahead: Vector | Rays) -> tuple[np.ndarray, ...]:
    """Return where rays enter and leave a solid, and the face entered; near < far if they hit."""
    start, ahead = _local(solid, _minus(start, solid.at)), _local(solid, ahead)
    spans = _spans(solid, start, ahead)
    near, far = spans[0]
    face = np.zeros(np.shape(near), dtype=np.int8)
    for k, (enter, leave) in enumerate(spans[1:], 1):
        face = np.where(enter > near, k, face)
        # a solid is the intersection of its spans
        near, far = np.maximum(near, enter), np.minimum(far, leave)
    return near, far, face


def _spans(solid: Solid, start: Sequence, ahead: Sequence) -> list[Span]:
    """Return, for each ray, the spans that intersect in the solid."""
    if solid.kind == "ball":
        return [_tube(start, ahead)]
    if solid.kind == "can":
        return [_tube(start[:2], ahead[:2]), _layer(start[2], ahead[2])]
    return [_layer(s, a) for s, a in zip(start, ahead, strict=True)]


def _layer(start: np.ndarray, ahead: np.ndarray) -> Span:
    """Return where rays enter and leave the layer from -1 to 1 along one axis."""
    ahead = np.where(ahead == 0, 1e-12, ahead)
    entry, leaving = (-1 - start) / ahead, (1 - start) / ahead
    return np.minimum(entry, leaving), np.maximum(entry, leaving)


def _tube(start: Sequence[np.ndarray], ahead: Sequence[np.ndarray]) -> Span:
    """Return where rays enter and leave the points within distance 1 of the origin."""
    a = np.maximum(_dot(ahead, ahead), 1e-12)
    b, c = _dot(start, ahead), _dot(start, start) - 1
    # the discriminant of |start + t ahead|^2 = 1
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0.0))
    missed = inside < 0
    return np.where(missed, np.inf, (-b - root) / a), np.where(missed, -np.inf, (-b + root) / a)


def _normal(solid: Solid, eye: Vector, ahead: Rays) -> Rays:
    """Return the outward unit normals where rays from the eye enter a solid."""
    near, _, face = _cross(solid, eye, ahead)
    start, local = _local(solid, _minus(eye, solid.at)), _local(solid, ahead)
    point = [s + near * a for s, a in zip(start, local, strict=True)]
    flat = [np.where(a > 0, -1.0, 1.0) for a in local]
    if solid.kind == "can":
        side = face == 0
        point = [np.where(side, p, 0.0) for p in point[:2]] + [np.where(side, 0.0, flat[2])]
    elif solid.kind == "cube":
        point = [np.where(face == k, flat[k], 0.0) for k in range(3)]
    # normals scale inversely to the lengths, then turn with the solid
    x, y, z = (p / s for p, s in zip(point, solid.size, strict=True))
    cosine, sine = solid.turn
    world = x * cosine - y * sine, x * sine + y * cosine, z
    length = np.sqrt(_dot(world, world))
    return world[0] / length, world[1] / length, world[2] / length


def _local(solid: Solid, vector: Vector | Rays) -> tuple:
    """Turn a direction, or the direction of rays, into the frame of the unit solid."""
    x, y, z = vector
    cosine, sine = solid.turn
    length, width, height = solid.size
    return (x * cosine + y * sine) / length, (y * cosine - x * sine) / width, z / height


def _dot(left_vector: Sequence, right_vector: Sequence) -> Any:
    """Return the scalar product of two vectors of arrays."""
    total = left_vector[0] * right_vector[0]
    for a, b in zip(left_vector[1:], right_vector[1:], strict=True):
        total = total + a * b
    return total


def _minus(minuend: Sequence, subtrahend: Sequence) -> tuple:
    return minuend[0] - subtrahend[0], minuend[1] - subtrahend[1], minuend[2] - subtrahend[2]


def _times(left_vector: Vector, right_vector: Vector) -> Vector:
    """Return the vector product."""
    (a, b, c), (d, e, f) = left_vector, right_vector
    return b * f - c * e, c * d - a * f, a * e - b * d


def _unit(vector: Vector) -> Vector:
    length = math.sqrt(_dot(vector, vector))
    return vector[0] / length, vector[1] / length, vector[2] / length
