"""Synthetic tasks: labels match the pictures, which depend on their number only."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intarsia.core.errors import ConfigError, UnknownName
from intarsia_lab.materials import structured
from intarsia_lab.materials.solids import depth, turn

from ..refusals import refused

NAMES = structured.names()


def _load(name: str, n: int, cache: Path, **more: Any) -> Any:
    return structured.load(name, n, cache=cache, progress=lambda _: None, **more)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_depends_on_its_number_only(name: str, tmp_path: Path) -> None:
    alone = structured.picture(name, 17)  # before any other
    many = _load(name, 20, tmp_path)
    np.testing.assert_array_equal(many.images[17], alone)
    assert not np.array_equal(structured.picture(name, 17, seed=1), alone)
    assert many.images.dtype == np.uint8 and many.images[17].std() > 5


@pytest.mark.parametrize("name", NAMES)
def test_every_slice_is_balanced_and_called_synthetic(name: str, tmp_path: Path) -> None:
    images = _load(name, 40, tmp_path)
    for part in (images.select(range(25)), images.select(range(11, 40))):
        counts = list(part.counts().values())
        assert max(counts) - min(counts) <= 1
    assert "synthetic" in images.name and "synthetic" in images.source
    assert structured.TASKS[name].about.startswith("synthetic")


# Other pixels under the same VERSION would be mixed up with those in people's caches.
DIGESTS = {
    "synthetic-location": "3ecc939df7631efb",
    "synthetic-orientation": "032fb6f35524112f",
    "synthetic-count": "f99dc02a4b940415",
    "synthetic-distance": "cdd58ff58aaa3bfa",
    "synthetic-azimuth": "a6b3256f1753f7da",
    "synthetic-elevation": "e4eb6cd8b6bb598b",
}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_on_every_machine(name: str) -> None:
    pixels = b"".join(structured.picture(name, i).tobytes() for i in range(4))
    assert structured.VERSION == 1
    assert hashlib.sha256(pixels).hexdigest()[:16] == DIGESTS[name]


def _sprite_naive(shape: int, scale: int, angle: int, x: int, y: int) -> np.ndarray:
    theta, size = np.linspace(0, 2 * math.pi, 40)[angle], np.linspace(0.5, 1, 6)[scale]
    pixels = np.zeros((64, 64), dtype=np.uint8)
    for i in range(64):
        for j in range(64):
            point = (
                complex(j - 16 - x, i - 16 - y) / size * complex(math.cos(theta), -math.sin(theta))
            )
            u, v = point.real, point.imag
            inside = (
                max(abs(u), abs(v)) <= 10.5,
                math.hypot(u / 14, v / 8) <= 1,
                ((u / 10.5) ** 2 + (v / 10.5) ** 2 - 1) ** 3 <= (u / 10.5) ** 2 * (-v / 10.5) ** 3,
            )[shape]
            pixels[i, j] = 255 * inside
    return pixels


@pytest.mark.parametrize("latent", [(0, 5, 7, 0, 31), (1, 3, 22, 12, 5), (2, 0, 39, 31, 16)])
def test_sprites_have_the_latents_of_dsprites(latent: tuple[int, ...]) -> None:
    ours, naive = structured.sprite(*latent), _sprite_naive(*latent)
    assert set(np.unique(ours)) == {0, 255}
    assert (ours != naive).sum() <= 2  # pixels on the edge, by the last bit of a sine


def test_no_sprite_leaves_its_picture() -> None:
    for shape in range(3):
        for angle in range(40):
            for x, y in ((0, 0), (31, 31)):
                sprite = structured.sprite(shape, 5, angle, x, y)
                assert not (sprite[[0, -1]].any() or sprite[:, [0, -1]].any())


def test_both_ends_of_a_full_turn_are_the_same_picture() -> None:
    np.testing.assert_array_equal(
        structured.sprite(2, 3, 0, 9, 9), structured.sprite(2, 3, 39, 9, 9)
    )


@pytest.mark.parametrize(("attribute", "values"), [(3, 32), (2, 40)])
def test_latents_are_complete_and_labelled_as_in_vtab(attribute: int, values: int) -> None:
    by_class = structured.latents(attribute, 16, seed=0)
    assert sum(map(len, by_class)) == 3 * 6 * 40 * 32 * 32
    first = by_class[5].astype(np.int64)
    assert len(np.unique(first, axis=0)) == len(first)  # each once
    for label, some in enumerate(by_class):
        vtab = {v for v in range(values) if math.floor(v / (values / 16)) == label}
        assert set(some[:, attribute].tolist()) == vtab


def test_sprites_do_not_repeat(tmp_path: Path) -> None:
    for name in ("synthetic-location", "synthetic-orientation"):
        images = _load(name, 2000, tmp_path).images
        assert len({picture.tobytes() for picture in images}) == 2000


def test_count_is_the_number_of_visible_objects() -> None:
    for index in range(16):
        solids, _, pixels = structured.arrange("synthetic-count", 0, index)
        assert len(solids) == int(structured.TASKS["synthetic-count"].classes[index % 8])
        np.testing.assert_array_equal(pixels, structured.picture("synthetic-count", index))


def test_distance_is_that_of_the_nearest_object() -> None:
    numbers = set()
    for index in range(24):
        solids, view, _ = structured.arrange("synthetic-distance", 0, index)
        nearest = min(depth(view, solid.at) for solid in solids)
        assert np.digitize(nearest, (8.0, 8.5, 9.0, 9.5, 10.0)) == index % 6  # VTAB's bounds
        numbers.add(len(solids))
    assert len(numbers) > 4  # the number of objects is left to chance


def test_objects_do_not_touch() -> None:
    solids, _, _ = structured.arrange("synthetic-count", 0, 7)
    for i, one in enumerate(solids):
        assert one.at[2] == one.size[2]
        for two in solids[:i]:
            assert math.dist(one.at[:2], two.at[:2]) > one.size[0] + two.size[0]


def test_azimuth_and_elevation_are_smallnorbs() -> None:
    for index in range(20):
        solids, _ = structured.pose("synthetic-azimuth", 0, index)
        assert solids[0].turn == turn(20 * (index % 18))
        _, view = structured.pose("synthetic-elevation", 0, index)
        x, y, z = view.eye
        height = math.degrees(math.atan2(z, math.hypot(x, y)))
        assert height == pytest.approx(30 + 5 * (index % 9))


def test_too_few_pictures_and_unknown_tasks(tmp_path: Path) -> None:
    with refused(ConfigError, what="pictures of synthetic-count", got=5):
        _load("synthetic-count", 5, tmp_path)
    with refused(
        UnknownName,
        what="unknown synthetic task",
        got="'synthetic-cuont'",
        near=("synthetic-count", "synthetic-location", "synthetic-azimuth"),
    ):
        _load("synthetic-cuont", 50, tmp_path)
