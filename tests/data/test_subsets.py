"""Training subsets: the number of images of each class, and nesting."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intarsia.core.errors import ConfigError
from intarsia.data import ImageSet
from intarsia.data.subsets import Keep, keep_fraction, keep_shots

from ..refusals import refused

Noise = Callable[..., ImageSet]
CLASSES = ("a", "b", "c")
LABELS = st.lists(st.integers(0, 2), min_size=1, max_size=60)
SHARES = st.sampled_from([0.01, 0.05, 0.1, 0.25, 0.5, 1.0]) | st.floats(0.001, 1)
SEEDS = st.integers(0, 3)


def _set(labels: list[int]) -> ImageSet:
    pixels = np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1)  # a picture is its position
    return ImageSet("few", pixels, np.asarray(labels, dtype=np.int64), CLASSES)


def _where(images: ImageSet) -> list[int]:
    return [int(p) for p in np.asarray(images.images).ravel()]


def _have(labels: Iterable[int]) -> list[int]:
    return np.bincount(list(labels), minlength=3).tolist()


@given(labels=LABELS, fraction=SHARES, seed=SEEDS)
def test_a_fraction_of_each_class_is_kept(labels: list[int], fraction: float, seed: int) -> None:
    kept = keep_fraction(_set(labels), fraction, seed=seed)
    for n, got in zip(_have(labels), kept.counts().values(), strict=True):
        assert got == 0 if n == 0 else 1 <= got <= n
        assert abs(got - fraction * n) <= 0.5 + 1e-9 or got == 1
    assert _where(kept) == sorted(_where(kept))
    assert [labels[i] for i in _where(kept)] == kept.labels.tolist()


@given(labels=LABELS, one=SHARES, two=SHARES, seed=SEEDS)
def test_fractions_are_nested(labels: list[int], one: float, two: float, seed: int) -> None:
    small, large = (keep_fraction(_set(labels), f, seed=seed) for f in sorted((one, two)))
    assert set(_where(small)) <= set(_where(large))
    assert _where(keep_fraction(_set(labels), 1.0, seed=seed)) == list(range(len(labels)))


@given(labels=LABELS, shots=st.integers(1, 8), more=st.integers(0, 8), seed=SEEDS)
def test_shots_are_nested_and_as_many_as_asked(
    labels: list[int], shots: int, more: int, seed: int
) -> None:
    images, have = _set(labels), _have(labels)
    if shots > min(n for n in have if n):
        with refused(ConfigError, what="images of each class of 'few'"):
            keep_shots(images, shots, seed=seed)
    else:
        kept = keep_shots(images, shots, seed=seed)
        assert list(kept.counts().values()) == [shots * (n > 0) for n in have]
    small = keep_shots(images, shots, seed=seed, fewer=True)
    large = keep_shots(images, shots + more, seed=seed, fewer=True)
    assert list(small.counts().values()) == [min(shots, n) for n in have]
    assert set(_where(small)) <= set(_where(large))


def test_the_seed_chooses() -> None:
    images = _set([0, 1] * 20)
    one, same, other = (keep_fraction(images, 0.25, seed=s) for s in (0, 0, 1))
    assert _where(one) == _where(same) != _where(other)


def test_one_class_does_not_depend_on_the_others() -> None:
    small, large = _set([0] * 20), _set([0] * 20 + [1] * 20)
    one, two = (keep_shots(images, 5, seed=0) for images in (small, large))
    assert _where(one) == [i for i in _where(two) if i < 20]


def test_too_many_shots_are_refused_with_the_available_number() -> None:
    images = _set([0] * 5 + [1] * 2 + [2] * 3)
    with refused(ConfigError, what="images of each class of 'few'"):
        keep_shots(images, 4, seed=0)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, 10, float("nan")])
def test_impossible_fractions_are_refused(fraction: float) -> None:
    with refused(ConfigError, what="fraction of 'few'"):
        keep_fraction(_set([0, 1]), fraction, seed=0)


@pytest.mark.parametrize("shots", [0, -1])
def test_impossible_shots(shots: int) -> None:
    with pytest.raises(ConfigError):
        keep_shots(_set([0, 1]), shots, seed=0, fewer=True)


@pytest.mark.parametrize(
    "asked",
    [{"train": 5, "shots": 1}, {"fraction": 0.5, "shots": 1}, {"train": 5, "fraction": 0.5},
     {"fewer": True}, {"fraction": 0.5, "fewer": True}],
    ids=str,
)  # fmt: skip
def test_one_of_three(asked: dict[str, float]) -> None:
    with refused(
        ConfigError,
        what="size of the training part",
        want="one of train, fraction and shots; fewer with shots only",
    ):
        Keep(**asked)  # pyright: ignore


def test_the_record_has_the_given_settings() -> None:
    assert Keep().record() == {} and Keep(fraction=0.1).record() == {"fraction": 0.1}
    assert Keep(shots=2, fewer=True).record() == {"shots": 2, "fewer": True}


def test_without_settings_everything_is_kept() -> None:
    images = _set([0, 1, 2])
    assert Keep()(images, seed=0) is images
