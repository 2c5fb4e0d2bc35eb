"""Ray casting agrees with ray marching; shadows, depth and visibility."""

from __future__ import annotations

import math

import numpy as np
import pytest

from intarsia_lab.materials.solids import Kind, Solid, View, _cross, depth, render, turn


def _inside_naive(solid: Solid, point: np.ndarray) -> bool:
    angle = math.atan2(solid.turn[1], solid.turn[0])
    back = [[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0]]
    x, y, z = np.array([*back, [0, 0, 1]]) @ (point - solid.at) / solid.size
    if solid.kind == "ball":
        return x * x + y * y + z * z <= 1
    return (x * x + y * y <= 1 if solid.kind == "can" else max(abs(x), abs(y)) <= 1) and abs(z) <= 1


@pytest.mark.parametrize("kind", ["ball", "can", "cube"])
def test_ray_casting_agrees_with_ray_marching(kind: Kind) -> None:
    solid = Solid(kind, (0.3, -0.2, 0.5), (1.2, 0.6, 0.8), turn(35))
    rng = np.random.default_rng(0)
    eye = np.array([4.0, -3.0, 2.0])
    ahead = (rng.uniform(-1, 1, (60, 3)) + solid.at - eye) / 5
    near, far, _ = _cross(solid, tuple(eye), tuple(ahead.T))
    steps = np.arange(0, 10, 0.01)
    hits = 0
    for k in range(60):
        inside = [t for t in steps if _inside_naive(solid, eye + t * ahead[k])]
        if inside:
            hits += 1
            assert near[k] == pytest.approx(inside[0], abs=0.011)
            assert far[k] == pytest.approx(inside[-1], abs=0.011)
        else:
            assert far[k] - near[k] < 0.01
    assert 10 < hits < 60


def test_the_nearer_of_two_is_seen() -> None:
    view = View(eye=(0, -9, 1), target=(0, 0, 1))
    front = Solid("ball", (0, -3, 1), colour=(0.8, 0.0, 0.0))
    back = Solid("ball", (0, 0, 1), colour=(0.0, 0.8, 0.0))
    for solids in ([front, back], [back, front]):
        picture, visible = render(solids, view, 40)
        assert visible[solids.index(front)] > 0 and visible[solids.index(back)] == 0
        assert picture[20, 20, 0] > 100 > picture[20, 20, 1]


def test_a_shadow_falls_away_from_the_lamp() -> None:
    ball = Solid("ball", (0, 0, 2.0))
    eye, target = (0.0, -0.01, 30.0), (0.0, 0.0, 0.0)  # from above: right is +x
    left_lit, right_lit = (
        render([ball], View(eye, target, zoom=3, lamp=(x, 0, 1)), 60)[0][..., 0].astype(int)
        for x in (-1.0, 1.0)
    )
    assert left_lit[30, 44] < left_lit[30, 15] and right_lit[30, 15] < right_lit[30, 44]
    np.testing.assert_allclose(left_lit, right_lit[:, ::-1], atol=1)


def test_depth_is_along_the_line_of_sight() -> None:
    view = View(eye=(0, -10, 0), target=(0, 0, 0))
    assert depth(view, (0, 0, 0)) == depth(view, (5, 0, 3)) == pytest.approx(10)


def test_turns_are_rounded_alike_everywhere() -> None:
    for degrees in (*range(361), *(360 * k / 39 for k in range(40))):  # scenes, toys; sprites
        for exact in (math.cos(math.radians(degrees)), math.sin(math.radians(degrees))):
            digits = abs(exact) * 1e12
            # the last bit of a number near 1 is worth 1e-4 here
            assert abs(digits - math.floor(digits) - 0.5) > 5e-4, "too near to a tie"
    assert turn(90) == (0, 1) and turn(360) == (1, 0)
